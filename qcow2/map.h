/* SPDX-License-Identifier: BSD-3-Clause */

/* From guest offsets to host offsets within one layer
 * (specification: "Cluster mapping").
 */

#ifndef QCOW2_MAP_H
#define QCOW2_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "layer.h"

enum run_kind {
  RUN_UNALLOCATED,              /* look in the backing file */
  RUN_ZERO,                     /* reads as zeros, backing file or not */
  RUN_DATA,                     /* in the layer's data storage */
  RUN_COMPRESSED,               /* part of one compressed cluster */
};

/* A range of guest bytes that one rule serves. */
struct run {
  enum run_kind kind;
  struct layer *layer;
  uint64_t length_bytes;
  uint64_t host_offset;         /* RUN_DATA: of the first byte;
                                   RUN_COMPRESSED: of the compressed data */
  size_t compressed_bytes;      /* RUN_COMPRESSED only */
  size_t cluster_from;          /* RUN_COMPRESSED: the run's first byte in
                                   the decompressed cluster */
};

/* What do the bytes from guest OFFSET on, MAX_BYTES (at least 1) at most,
 * consist of in layer L under the table L1?  The run is as long as can
 * be told from one L2 slice.  -EIO, with a message in the log, if the
 * metadata can't be read or is corrupt.  Raw layers are all data.
 */
extern int map_lookup (struct layer *l, const struct l1_table *l1,
                       uint64_t offset, uint64_t max_bytes, struct run *run);

/* The same, for a writer: is the run made of allocated data clusters that
 * the active layer alone uses, so that it may be written in place?
 */
extern int map_lookup_owned (struct layer *l, uint64_t offset,
                             uint64_t max_bytes, struct run *run,
                             bool *owned);

/* If NEXT goes on where RUN ends, add it to RUN. */
extern bool run_join (struct run *run, const struct run *next);

#endif /* QCOW2_MAP_H */
