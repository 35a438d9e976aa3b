/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device, past the page cache
 * (O_DIRECT).
 */

#ifndef QCOW2_IO_DIRECT_H
#define QCOW2_IO_DIRECT_H

#include "error.h"
#include "storage.h"

/* What a file asks of direct I/O; all are powers of 2. */
struct direct_alignment {
  size_t memory_bytes;          /* of buffers */
  uint64_t block_bytes;         /* of offsets and lengths */
};

/* The longest that a block may be. */
#define DIRECT_MAX_BLOCK_BYTES (64 * 1024)

/* As qcow2_io_file_new, whose FLAGS these are, but with O_DIRECT.  -EINVAL,
 * with a message, where the file system has no such thing.
 */
extern int qcow2_io_direct_new (int fd, const char *filename, unsigned flags,
                                struct qcow2_storage **s,
                                struct qcow2_error *error);

/* Put alignment before FILE, which takes requests only as ALIGNMENT says
 * (a zero or discard: whole blocks of at least a page) and is owned from
 * then on, also on error.  -ENOMEM; -EINVAL for an alignment that can't be
 * served.
 */
extern int qcow2_io_direct_over (struct qcow2_storage *file,
                                 const struct direct_alignment *alignment,
                                 struct qcow2_storage **s);

#endif /* QCOW2_IO_DIRECT_H */
