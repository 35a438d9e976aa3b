/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening an image that is to be changed. */

#ifndef IMG_OPEN_TO_WRITE_H
#define IMG_OPEN_TO_WRITE_H

#include "options.h"

/* Open FILENAME for writing, with its backing files unless OPTIONS say that
 * they stay closed.  That it can't be written, for whatever reason, is an
 * error here.  Reports it and returns -1.
 */
extern int img_open_to_write (const struct img_options *options,
                              const char *filename, struct img_image *image);

/* Make everything durable, and close.  Reports an error and returns -1, but
 * not if QUIET, because one was reported already.
 */
extern int img_close_written (struct img_image *image, bool quiet);

#endif /* IMG_OPEN_TO_WRITE_H */
