/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device. */

#ifndef QCOW2_IO_FILE_H
#define QCOW2_IO_FILE_H

#include <stdbool.h>

#include "error.h"
#include "storage.h"

/* Make a storage of FD, which it owns from then on, also on error.  FD
 * must be open for reading on a regular file or a block device, else
 * -EINVAL with a message that names FILENAME.  With LOCK, QEMU's locks
 * for a reader are taken (file-lock.h) and kept until close.
 */
extern int qcow2_io_file_new (int fd, const char *filename, bool lock,
                              struct qcow2_storage **s,
                              struct qcow2_error *error);

#endif /* QCOW2_IO_FILE_H */
