/* SPDX-License-Identifier: BSD-3-Clause */

/* Alignment: takes any requests, before a storage that takes only whole
 * blocks from aligned memory.
 */

#ifndef QCOW2_IO_ALIGNED_H
#define QCOW2_IO_ALIGNED_H

#include "storage.h"

/* What a storage asks for; both are powers of 2. */
struct io_alignment {
  size_t memory_bytes;          /* of buffers */
  uint64_t block_bytes;         /* of offsets and lengths */
};

/* The longest that a block may be. */
#define IO_ALIGNED_MAX_BLOCK_BYTES (64 * 1024)

/* Put alignment before FILE, which takes requests only as ALIGNMENT says
 * (a zero or discard: whole blocks of at least a page) and is owned from
 * then on, also on error.  Each request in progress takes up to 1 MiB of
 * memory.  -ENOMEM; -EINVAL for an alignment that can't be served.
 */
extern int qcow2_io_aligned_new (struct qcow2_storage *file,
                                 const struct io_alignment *alignment,
                                 struct qcow2_storage **s);

#endif /* QCOW2_IO_ALIGNED_H */
