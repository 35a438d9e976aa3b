/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in memory that is as strict as O_DIRECT: requests that are not
 * aligned fail with EINVAL.  It also dawdles between the steps of
 * requests, so that they meet.
 */

#ifndef STRICT_STORAGE_H
#define STRICT_STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/io-aligned.h"
#include "qcow2/storage.h"

struct strict_storage {
  struct io_alignment alignment;
  size_t max_bytes;             /* no write goes beyond: ENOSPC */
  unsigned max_usec;            /* how long a request dawdles */
  bool short_reads;             /* some reads give less */

  /* Faults: the next read fails with this, or gives this many bytes. */
  _Atomic int read_errno;
  _Atomic int read_bytes;       /* 0: all */

  /* What was asked for. */
  _Atomic unsigned nr_reads, nr_writes, nr_durable, nr_zeroes, nr_refused;
  _Atomic size_t longest_bytes;
  const void *last_buf;
};

/* A storage of SIZE_BYTES that HOW, which lives longer, describes. */
extern struct qcow2_storage *strict_storage_new (struct strict_storage *how,
                                                 size_t size_bytes);

/* The bytes, and how many there really are. */
extern const uint8_t *strict_storage_bytes (struct qcow2_storage *s,
                                            size_t *size_bytes);

#endif /* STRICT_STORAGE_H */
