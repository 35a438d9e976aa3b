/* SPDX-License-Identifier: BSD-3-Clause */

/* One message for the user, and how the engine passes it up.
 *
 * Opening an image can fail in a hundred ways, and the user needs to
 * know the file, the field and what to do: functions on that path take
 * a struct qcow2_error.  Requests on an open image report through the
 * log of qcow2_options instead, and return an errno.
 */

#ifndef QCOW2_ERROR_H
#define QCOW2_ERROR_H

#include <stddef.h>

struct qcow2_error {
  char message[2048];
};

/* Set the message (printf-like) and return -ERR, so that a caller can
 * write "return qcow2_error_set (error, EINVAL, ...)".  ERR is a
 * positive errno.  ERROR may be NULL.
 */
extern int qcow2_error_set (struct qcow2_error *error, int err,
                            const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

/* Put text (printf-like) before the message that is already there. */
extern void qcow2_error_prefix (struct qcow2_error *error,
                                const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Copy SRC to DST, which has room for SIZE bytes (at least 1), with
 * everything that a terminal or a log would act upon (control
 * characters, bytes that are not UTF-8, marks that reorder a line)
 * shown as \xNN.  What does not fit is left out.  For texts from an
 * image that go to the user on another way than a struct qcow2_error.
 */
extern void qcow2_error_escape (char *dst, size_t size, const char *src);

#endif /* QCOW2_ERROR_H */
