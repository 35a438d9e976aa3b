/* SPDX-License-Identifier: BSD-3-Clause */

/* Messages about an open image, passed to the log function of
 * qcow2_options.
 */

#ifndef QCOW2_LOG_H
#define QCOW2_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

struct log {
  void (*fn) (void *opaque, enum qcow2_log_level level, const char *text);
  void *opaque;
};

extern void log_message (const struct log *log, enum qcow2_log_level level,
                         const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

/* For messages that could come with each request: one a second passes, and
 * others are counted.  All zero to begin with.
 */
struct log_limit {
  _Atomic int64_t last_sec;
  _Atomic unsigned nr_left_out;
};

/* Is it time for a message?  If so, *NR_LEFT_OUT have not passed since the
 * last one.
 */
extern bool log_limit_passes (struct log_limit *limit, unsigned *nr_left_out);

/* The text for the positive errno ERR, for messages about a request: not
 * translated, since strerror takes a lock of the C library for that.
 */
extern const char *log_errno_text (int err);

#endif /* QCOW2_LOG_H */
