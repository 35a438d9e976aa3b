/* SPDX-License-Identifier: BSD-3-Clause */

/* A backing chain: which layer answers for a guest offset.
 *
 * Layers below the top never change while they are open.  So which of
 * them answers, and where in it, is remembered for each unit of guest
 * address space (the smallest cluster or subcluster below the top) in
 * slices of the metadata cache: once cached, what the top leaves
 * unallocated costs one look-up however deep the chain is.
 */

#ifndef QCOW2_CHAIN_H
#define QCOW2_CHAIN_H

#include "layer.h"
#include "map.h"

struct chain {
  struct layer **layers;        /* [0] is the top image */
  unsigned nr_layers;
  struct slice_cache *slices;
  unsigned unit_bits;           /* log2 of the unit below the top */
  unsigned answer_bits;         /* log2 of the units in an answer slice */
};

/* The slice size that a cache for these layers needs. */
extern size_t chain_slice_bytes (const struct chain *chain);

/* To be called once, when all layers and the cache are there. */
extern void chain_prepare (struct chain *chain);

/* What do the bytes from guest OFFSET on, MAX_BYTES at most, consist of,
 * for a top layer with the table L1?  RUN_UNALLOCATED: in no layer at
 * all, they read as zeros.  Errors are those of map_lookup.
 */
extern int chain_lookup (const struct chain *chain,
                         const struct l1_table *l1, uint64_t offset,
                         uint64_t max_bytes, struct run *run);

/* Does all of the range read as zeros, by metadata alone? */
extern int chain_reads_as_zeros (const struct chain *chain,
                                 const struct l1_table *l1, uint64_t offset,
                                 uint64_t count, bool *zeros);

#endif /* QCOW2_CHAIN_H */
