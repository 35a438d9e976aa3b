/* SPDX-License-Identifier: BSD-3-Clause */

/* Messages about an open image. */

#include <stdarg.h>
#include <stdio.h>

#include "error.h"
#include "log.h"

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
