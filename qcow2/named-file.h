/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening files: the operator's, and those that an image names.
 *
 * What the operator names is his word.  A name inside an image may come
 * from an enemy: such a file is opened only if, links resolved, it lies
 * in an allowed directory.  The check is made on the opened descriptor,
 * so that no link can be swapped in between.
 */

#ifndef QCOW2_NAMED_FILE_H
#define QCOW2_NAMED_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct named_file_rule;

/* What an image names its file for. */
enum named_file_use {
  NAMED_FILE_BACKING,           /* read only: the image's directory will do */
  NAMED_FILE_DATA,              /* written to: allowed directories alone */
};

/* Make the rule for the image open on IMAGE_FD: its directory (of the
 * resolved path; none where it is not a regular file), ALLOW_DIRS (each
 * must exist), and those of the environment variable QCOW2_ALLOW_DIR
 * (absolute, separated by colons, "none" among them like ALLOW_NONE).
 * ALLOW_NONE takes the image's own directory away.  The rule keeps
 * neither IMAGE_FD nor the strings.
 */
extern int named_file_rule_new (int image_fd, const char *const *allow_dirs,
                                size_t nr_allow_dirs, bool allow_none,
                                struct named_file_rule **rule,
                                struct qcow2_error *error);

extern void named_file_rule_free (struct named_file_rule *rule);

/* Open a file that the operator named, for reading (with WRITABLE for
 * writing, too) and close-on-exec, without waiting on a FIFO.  Returns a
 * descriptor or a negative errno, which is that of open: -EACCES,
 * -EPERM and -EROFS tell a caller to try again without WRITABLE.
 */
extern int named_file_open_operator (const char *filename, bool writable,
                                     struct qcow2_error *error);

/* Open FILENAME, which an image named, under RULE: a regular file in
 * the image's directory or below (NAMED_FILE_BACKING), or a regular file or
 * block device in an allowed directory or below.  Returns a descriptor
 * (close-on-exec, for reading, with WRITABLE for writing, too) or a
 * negative errno: -EACCES if the rule forbids it (the message says which
 * parameter allows it) or if /proc, which tells where the file is, is not
 * mounted; -EINVAL for a file of another kind.  Opening has no side effect
 * on a file that is then refused.  As above, -EACCES, -EPERM and -EROFS
 * may also mean that the file can't be written: what the rule forbids, it
 * forbids again without WRITABLE.
 */
extern int named_file_open (const struct named_file_rule *rule,
                            enum named_file_use use, const char *filename,
                            bool writable, struct qcow2_error *error);

#endif /* QCOW2_NAMED_FILE_H */
