/* SPDX-License-Identifier: BSD-3-Clause */

/* Messages about an open image. */

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

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

bool
log_limit_passes (struct log_limit *limit, unsigned *nr_left_out)
{
  int64_t last = atomic_load (&limit->last_sec);
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  if (last == now.tv_sec ||
      !atomic_compare_exchange_strong (&limit->last_sec, &last, now.tv_sec)) {
    atomic_fetch_add (&limit->nr_left_out, 1);
    return false;
  }
  *nr_left_out = atomic_exchange (&limit->nr_left_out, 0);
  return true;
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
