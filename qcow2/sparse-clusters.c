/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting the clusters in use against the space that the file takes. */

#include <endian.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "sparse-clusters.h"

#define PIECE_BYTES 65536

/* The entries of BYTES of a refcount block that are not 0. */
static uint64_t
count_used (const uint8_t *block, size_t bytes, unsigned refcount_order)
{
  uint64_t used = 0;
  size_t i, k, entry_bytes;

  if (refcount_order >= 3) {
    static const uint8_t zeros[8];

    entry_bytes = (size_t) 1 << (refcount_order - 3);
    for (i = 0; i < bytes; i += entry_bytes)
      used += memcmp (block + i, zeros, entry_bytes) != 0;
    return used;
  }
  for (i = 0; i < bytes; ++i) {
    if (block[i] == 0)
      continue;
    for (k = 0; k < 8; k += 1u << refcount_order)
      used += (block[i] >> k & ((1u << (1u << refcount_order)) - 1)) != 0;
  }
  return used;
}

/* Add what a refcount block, or the table itself, has.  Stops when *USED
 * reaches ENOUGH.
 */
static int
count_in_block (const struct layer *l, uint8_t *buf, uint64_t block_offset,
                uint64_t enough, uint64_t *used)
{
  uint64_t cluster_bytes = layer_cluster_bytes (l), done;
  size_t piece = cluster_bytes < PIECE_BYTES ? cluster_bytes : PIECE_BYTES;
  int r;

  for (done = 0; done < cluster_bytes && *used < enough; done += piece) {
    r = qcow2_storage_read_meta (l->file, buf, piece, block_offset + done);
    if (r < 0)
      return r;
    *used += count_used (buf, piece, l->header.refcount_order);
  }
  return 0;
}

static int
count_in_table (const struct layer *l, uint8_t *buf, uint64_t enough,
                uint64_t *used)
{
  uint64_t cluster_bytes = layer_cluster_bytes (l);
  uint64_t nr_entries = l->header.refcount_table_clusters *
    (cluster_bytes / 8), i;
  uint64_t entries[64];
  int r = 0;

  for (i = 0; r == 0 && i < nr_entries && *used < enough; ++i) {
    uint64_t block_offset;

    if (i % 64 == 0)
      r = qcow2_storage_read_meta (l->file, entries, sizeof entries,
                                   l->header.refcount_table_offset + i * 8);
    block_offset = be64toh (entries[i % 64]) & ENTRY_OFFSET_MASK;
    if (r == 0 && block_offset != 0)
      r = count_in_block (l, buf, block_offset, enough, used);
  }
  return r;
}

static bool
find_out (const struct layer *l)
{
  int64_t disk_bytes = qcow2_storage_disk_bytes (l->file);
  uint64_t clusters, enough, used = 0;
  uint8_t *buf;
  int r;

  if (disk_bytes < 0)
    return false;
  clusters = (uint64_t) disk_bytes >> l->header.cluster_bits;
  enough = clusters * 10 / 9;
  if (enough < clusters + 2)
    enough = clusters + 2;

  buf = malloc (PIECE_BYTES);
  if (!buf)
    return false;
  r = count_in_table (l, buf, enough, &used);
  free (buf);
  return r == 0 && used >= enough;
}

bool
sparse_clusters (struct layer *l)
{
  enum layer_sparse known = atomic_load_explicit (&l->sparse,
                                                  memory_order_relaxed);

  if (known == LAYER_SPARSE_UNKNOWN) {
    known = find_out (l) ? LAYER_SPARSE : LAYER_NOT_SPARSE;
    atomic_store_explicit (&l->sparse, known, memory_order_relaxed);
  }
  return known == LAYER_SPARSE;
}
