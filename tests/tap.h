/* SPDX-License-Identifier: BSD-3-Clause */

/* Test Anything Protocol for the test programs.
 *
 * A program makes checks with ok, is_int and is_str, and ends with
 * `return tap_done ();'.  The plan is printed there, so a program that
 * dies or returns early has none, which tests/run counts as a failure.
 * There is no way to skip.
 *
 * The counters are plain: check results from one thread only.
 */

#ifndef TAP_H
#define TAP_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static unsigned tap_count, tap_failed;

static inline bool __attribute__ ((format (printf, 4, 0)))
tap_result (bool passed, const char *file, int line, const char *fmt,
            va_list args)
{
  tap_count++;
  printf ("%sok %u - ", passed ? "" : "not ", tap_count);
  vprintf (fmt, args);
  putchar ('\n');
  if (!passed) {
    tap_failed++;
    printf ("#   at %s:%d\n", file, line);
  }
  fflush (stdout);
  return passed;
}

static inline bool __attribute__ ((format (printf, 4, 5)))
tap_ok (bool passed, const char *file, int line, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  tap_result (passed, file, line, fmt, args);
  va_end (args);
  return passed;
}

static inline bool __attribute__ ((format (printf, 5, 6)))
tap_is_int (int64_t got, int64_t want, const char *file, int line,
            const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  tap_result (got == want, file, line, fmt, args);
  va_end (args);
  if (got != want)
    printf ("#   got  %" PRId64 " (0x%" PRIx64 ")\n"
            "#   want %" PRId64 " (0x%" PRIx64 ")\n",
            got, (uint64_t) got, want, (uint64_t) want);
  return got == want;
}

static inline bool __attribute__ ((format (printf, 5, 6)))
tap_is_str (const char *got, const char *want, const char *file, int line,
            const char *fmt, ...)
{
  bool same = got && want ? strcmp (got, want) == 0 : got == want;
  va_list args;

  va_start (args, fmt);
  tap_result (same, file, line, fmt, args);
  va_end (args);
  if (!same)
    printf ("#   got  %s\n#   want %s\n",
            got ? got : "(null)", want ? want : "(null)");
  return same;
}

/* One check each; the message is printf-like and says what holds.  The value
 * is whether it held, so that a test can stop: `if (!ok (...)) return ...'.
 */
#define ok(cond, ...) tap_ok ((cond), __FILE__, __LINE__, __VA_ARGS__)
#define is_int(got, want, ...) \
  tap_is_int ((got), (want), __FILE__, __LINE__, __VA_ARGS__)
#define is_str(got, want, ...) \
  tap_is_str ((got), (want), __FILE__, __LINE__, __VA_ARGS__)

/* Prints the plan; returns the exit status for main. */
static inline int
tap_done (void)
{
  printf ("1..%u\n", tap_count);
  fflush (stdout);
  return tap_failed || !tap_count ? 1 : 0;
}

#endif /* TAP_H */
