/* SPDX-License-Identifier: BSD-3-Clause */

/* Messages about an open image. */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "log.h"

#if defined __GLIBC__ && defined __GLIBC_PREREQ
#define HAVE_STRERRORDESC __GLIBC_PREREQ (2, 32)
#else
#define HAVE_STRERRORDESC 0
#endif

void
log_message (const struct log *log, enum qcow2_log_level level,
             const char *fs, ...)
{
  char text[2048], harmless[2048];
  va_list args;

  if (!log->fn)
    return;
  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  qcow2_error_escape (harmless, sizeof harmless, text);
  log->fn (log->opaque, level, harmless);
}

const char *
log_errno_text (int err)
{
#if HAVE_STRERRORDESC
  const char *text = strerrordesc_np (err);

  return text ? text : "unknown error";
#else
  return strerror (err);
#endif
}
