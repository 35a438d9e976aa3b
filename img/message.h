/* SPDX-License-Identifier: BSD-3-Clause */

/* What qcow2-img says on the standard error output, and how the engine's
 * messages get there.
 */

#ifndef IMG_MESSAGE_H
#define IMG_MESSAGE_H

#include "qcow2.h"

#define IMG_NAME "qcow2-img"

/* Print a line (printf-like), with the program's name before it, and all
 * that a terminal would act upon made harmless.
 */
extern void img_error (const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* The same, and where to find help; ends the program with status 1. */
extern void img_usage_error (const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 1, 2), __noreturn__));

/* Without the advice to open what is in use all the same: a command that
 * changes an image has no -U.
 */
extern void img_cut_share_advice (struct qcow2_error *error);

/* What the engine says of an operation that failed, which changes an image.
 */
extern void img_engine_error (struct qcow2_error *error);

/* "Could not open" an image: why, in the engine's words, but with the
 * names of the tool's options.  FORMAT_OPTION is the option that tells
 * FILENAME's format if the user has not used it, else NULL.
 */
extern void img_open_error (const char *filename,
                            const struct qcow2_error *error,
                            const char *format_option);

/* The log function of qcow2_options.  Errors are kept, to be part of the one
 * message that the user sees; warnings are printed only if a *WRITES (a
 * bool, or NULL) is true: who only reads an image need not know that it is
 * marked dirty, as with qemu-img.
 */
extern void img_log (void *writes, enum qcow2_log_level level,
                     const char *text);

/* The first error in the log, or NULL; it stays what it is. */
extern const char *img_logged_error (void);

/* Why the engine's last failed request failed: the first error in the log,
 * else the text of ERR, a positive errno.
 */
extern const char *img_reason (int err);

#endif /* IMG_MESSAGE_H */
