/* SPDX-License-Identifier: BSD-3-Clause */

/* The names by which an image refers to its backing or data file:
 * a path, "file:PATH", "host_device:PATH", or "json:{...}" with a driver
 * and a file.
 */

#ifndef QCOW2_BACKING_NAME_H
#define QCOW2_BACKING_NAME_H

#include "error.h"

struct backing_name {
  char *path;          /* ready to open, malloced */
  char *format;        /* "qcow2" or "raw" as said in a json: name,
                          malloced; NULL if the name does not say */
};

/* Understand NAME (a string from an image, not trusted), as found in the
 * image IMAGE_FILENAME: a relative path is relative to the directory of
 * that name (links not resolved, as in QEMU).  -ENOTSUP for other
 * protocols and for json: members that are not understood, -EINVAL for
 * a name that is malformed.  On error nothing is left in OUT to clear.
 */
extern int backing_name_parse (const char *name, const char *image_filename,
                               struct backing_name *out,
                               struct qcow2_error *error);

/* Free the members, not OUT. */
extern void backing_name_clear (struct backing_name *out);

#endif /* QCOW2_BACKING_NAME_H */
