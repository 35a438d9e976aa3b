/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting the clusters in use against the space that the file takes. */

#include <endian.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "format.h"
#include "sparse-clusters.h"

#define PIECE_BYTES 65536

/* The entries of BYTES of a refcount block that are not 0, a word of them at a
 * time: the lowest bit of each becomes 1 if any is.
 */
static uint64_t
count_used (const uint64_t *words, size_t bytes, unsigned refcount_order)
{
  unsigned bits = 1u << refcount_order, shift;
  uint64_t lowest = bits < 64 ? UINT64_MAX / ((UINT64_C (1) << bits) - 1) : 1;
  uint64_t used = 0;
  size_t i;

  for (i = 0; i < bytes / 8; ++i) {
    uint64_t word = words[i];

    for (shift = bits / 2; shift > 0; shift /= 2)
      word |= word >> shift;
    used += (unsigned) __builtin_popcountll (word & lowest);
  }
  return used;
}

/* Add what a refcount block has.  Stops when *USED reaches ENOUGH.  What is a
 * hole need not be read.
 */
static int
count_in_block (const struct layer *l, uint64_t *buf, uint64_t block_offset,
                uint64_t enough, uint64_t *used)
{
  uint64_t cluster_bytes = layer_cluster_bytes (l), done;
  size_t piece = cluster_bytes < PIECE_BYTES ? cluster_bytes : PIECE_BYTES;
  int r;

  for (done = 0; done < cluster_bytes && *used < enough; done += piece) {
    if (qcow2_storage_is_hole (l->file, block_offset + done, piece))
      continue;
    r = qcow2_storage_read_meta (l->file, buf, piece, block_offset + done);
    if (r < 0)
      return r;
    *used += count_used (buf, piece, l->header.refcount_order);
  }
  return 0;
}

/* As far as the file goes: a table may have room for more. */
static uint64_t
nr_blocks (const struct layer *l, uint64_t file_bytes)
{
  const struct header *h = &l->header;
  unsigned block_bits = 2 * h->cluster_bits + 3 - h->refcount_order;
  uint64_t nr = (uint64_t) h->refcount_table_clusters <<
    (h->cluster_bits - 3);
  uint64_t needed = (file_bytes >> block_bits) +
    !!(file_bytes & ((UINT64_C (1) << block_bits) - 1));

  return nr < needed ? nr : needed;
}

static int
count_in_table (const struct layer *l, uint64_t *buf, uint64_t file_bytes,
                uint64_t enough, uint64_t *used)
{
  uint64_t nr = nr_blocks (l, file_bytes), i;
  uint64_t entries[64];
  int r = 0;

  for (i = 0; r == 0 && i < nr && *used < enough; ++i) {
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
  int64_t file_bytes = qcow2_storage_size (l->file);
  uint64_t clusters, enough, used = 0;
  uint64_t *buf;
  int r;

  if (disk_bytes < 0 || file_bytes < 0)
    return false;
  clusters = (uint64_t) disk_bytes >> l->header.cluster_bits;
  enough = clusters * 10 / 9;
  if (enough < clusters + 2)
    enough = clusters + 2;

  buf = malloc (PIECE_BYTES);
  if (!buf)
    return false;
  r = count_in_table (l, buf, (uint64_t) file_bytes, enough, &used);
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
