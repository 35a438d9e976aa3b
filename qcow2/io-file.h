/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device. */

#ifndef QCOW2_IO_FILE_H
#define QCOW2_IO_FILE_H

#include "error.h"
#include "storage.h"

enum io_file_flags {
  /* The storage can be written.  FD is open for reading and writing. */
  QCOW2_IO_FILE_WRITE = 1 << 0,
  /* Take QEMU's locks (file-lock.h), a writer's or a reader's, and keep
   * them until close.
   */
  QCOW2_IO_FILE_LOCK = 1 << 1,
  /* Make nothing durable: flushes do nothing, and durable writes are
   * plain ones.
   */
  QCOW2_IO_FILE_NO_FLUSH = 1 << 2,
};

/* Make a storage of FD, which it owns from then on, also on error.  FD
 * must be open, as FLAGS (enum io_file_flags) need it, on a regular file
 * or a block device, else -EINVAL with a message that names FILENAME.
 */
extern int qcow2_io_file_new (int fd, const char *filename, unsigned flags,
                              struct qcow2_storage **s,
                              struct qcow2_error *error);

#endif /* QCOW2_IO_FILE_H */
