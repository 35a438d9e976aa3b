/* SPDX-License-Identifier: BSD-3-Clause */

/* Where everything lies in a new image. */

#include <errno.h>
#include <string.h>

#include "create-layout.h"
#include "format.h"

/* No file is larger, and no entry points further. */
#define MAX_HOST_BITS 56

/* QEMU's limit for the size of any disk. */
#define MAX_SIZE_BYTES ((uint64_t) INT64_MAX & ~((UINT64_C (1) << 30) - 1))

static uint64_t
divide_up (uint64_t n, uint64_t by)
{
  return n / by + (n % by != 0);
}

/*----- Sizes -----*/

static unsigned
l2_entry_bits (const struct create_layout *l)
{
  return l->extended_l2 ? 4 : 3;
}

/* How many clusters an L2 table maps. */
static uint64_t
l2_entries (const struct create_layout *l)
{
  return UINT64_C (1) << (l->cluster_bits - l2_entry_bits (l));
}

/* How many clusters a refcount block counts. */
static uint64_t
refcounts_per_block (const struct create_layout *l)
{
  return UINT64_C (1) << (l->cluster_bits + 3 - l->refcount_order);
}

static int
too_large (struct qcow2_error *error)
{
  return qcow2_error_set (error, EFBIG, "The image size is too large for "
                          "file format 'qcow2' (try using a larger cluster "
                          "size)");
}

/* The refcount structures count themselves, so their number is found in
 * a few rounds, each of which is enough for the one before.
 */
static int
count_clusters (struct create_layout *l, struct qcow2_error *error)
{
  const uint64_t cluster_bytes = create_layout_cluster_bytes (l);
  const uint64_t max_clusters =
    UINT64_C (1) << (MAX_HOST_BITS - l->cluster_bits);
  const uint64_t others = 1 + l->l1_clusters + l->nr_l2_tables +
    (l->external_data ? 0 : l->nr_data_clusters);
  uint64_t blocks = 1, table_clusters = 1;

  do {
    l->nr_refcount_blocks = blocks;
    l->refcount_table_clusters = table_clusters;
    l->nr_clusters = others + blocks + table_clusters;
    if (l->nr_clusters > max_clusters)
      return too_large (error);
    blocks = divide_up (l->nr_clusters, refcounts_per_block (l));
    table_clusters = divide_up (blocks * 8, cluster_bytes);
    if (table_clusters * cluster_bytes > MAX_REFCOUNT_TABLE_BYTES)
      return too_large (error);
  } while (blocks != l->nr_refcount_blocks ||
           table_clusters != l->refcount_table_clusters);
  return 0;
}

static unsigned
log2_of (uint64_t power_of_two)
{
  return (unsigned) __builtin_ctzll (power_of_two);
}

int
create_layout_make (const struct qcow2_create_options *options,
                    uint64_t size_bytes, struct create_layout *l,
                    struct qcow2_error *error)
{
  uint64_t clusters;
  int r;

  memset (l, 0, sizeof *l);
  l->cluster_bits = log2_of (options->cluster_bytes);
  l->refcount_order = log2_of (options->refcount_bits);
  l->extended_l2 = options->extended_l2;
  l->external_data = options->data_file != NULL;
  l->data_in_one_piece =
    options->preallocation >= QCOW2_PREALLOCATION_FALLOC;
  l->size_bytes = size_bytes;

  if (size_bytes > MAX_SIZE_BYTES)
    return too_large (error);
  clusters = divide_up (size_bytes, options->cluster_bytes);
  l->l1_entries = divide_up (clusters, l2_entries (l));
  if (l->l1_entries * 8 > MAX_L1_BYTES)
    return too_large (error);
  l->l1_clusters = divide_up (l->l1_entries * 8, options->cluster_bytes);
  if (options->preallocation != QCOW2_PREALLOCATION_OFF) {
    l->nr_data_clusters = clusters;
    l->nr_l2_tables = l->l1_entries;
  }
  r = count_clusters (l, error);
  if (r < 0)
    return r;

  l->file_bytes = l->nr_clusters << l->cluster_bits;
  /* Like QEMU's, the file ends with its last table. */
  if (l->nr_l2_tables == 0 && l->l1_entries > 0)
    l->file_bytes = create_layout_l1_table (l) + l->l1_entries * 8;
  return 0;
}

/*----- Places -----*/

uint64_t
create_layout_refcount_table (const struct create_layout *l)
{
  return create_layout_cluster_bytes (l);
}

uint64_t
create_layout_refcount_blocks (const struct create_layout *l)
{
  return (1 + l->refcount_table_clusters) << l->cluster_bits;
}

static uint64_t
l1_cluster (const struct create_layout *l)
{
  return 1 + l->refcount_table_clusters + l->nr_refcount_blocks;
}

/* A table without entries has no place. */
uint64_t
create_layout_l1_table (const struct create_layout *l)
{
  return l->l1_entries > 0 ? l1_cluster (l) << l->cluster_bits : 0;
}

uint64_t
create_layout_l2_table (const struct create_layout *l, uint64_t l1_index)
{
  uint64_t cluster = l1_cluster (l) + l->l1_clusters + l1_index;

  if (!l->external_data) {
    if (!l->data_in_one_piece)
      cluster += l1_index * l2_entries (l);
    else if (l1_index > 0)
      cluster += l->nr_data_clusters;
  }
  return cluster << l->cluster_bits;
}

static uint64_t
data_offset (const struct create_layout *l, uint64_t guest_cluster)
{
  uint64_t cluster = l1_cluster (l) + l->l1_clusters + 1 + guest_cluster;

  if (l->external_data)
    return guest_cluster << l->cluster_bits;
  if (!l->data_in_one_piece)
    cluster += guest_cluster / l2_entries (l);
  return cluster << l->cluster_bits;
}

/*----- Words -----*/

uint64_t
create_layout_refcount_entry (const struct create_layout *l, uint64_t unused,
                              uint64_t index)
{
  return create_layout_refcount_blocks (l) + (index << l->cluster_bits);
}

static unsigned
refcounts_per_word (const struct create_layout *l)
{
  return 64u >> l->refcount_order;
}

uint64_t
create_layout_refcount_words (const struct create_layout *l)
{
  return divide_up (l->nr_clusters, refcounts_per_word (l));
}

/* Refcounts of less than a byte begin at its low end; bytes begin at the
 * high end of a word.
 */
uint64_t
create_layout_refcount_word (const struct create_layout *l, uint64_t unused,
                             uint64_t index)
{
  const unsigned per_word = refcounts_per_word (l);
  const unsigned bits = 1u << l->refcount_order;
  const uint64_t left = l->nr_clusters - index * per_word;
  uint64_t word = 0;
  unsigned i;

  for (i = 0; i < per_word && i < left; ++i) {
    unsigned first_bit = i * bits;

    if (bits < 8)
      word |= UINT64_C (1) << (56 - first_bit / 8 * 8 + first_bit % 8);
    else
      word |= UINT64_C (1) << (64 - bits - first_bit);
  }
  return word;
}

uint64_t
create_layout_l1_entry (const struct create_layout *l, uint64_t unused,
                        uint64_t index)
{
  return create_layout_l2_table (l, index) | ENTRY_COPIED;
}

uint64_t
create_layout_l2_words (const struct create_layout *l, uint64_t l1_index)
{
  uint64_t entries = l->nr_data_clusters - l1_index * l2_entries (l);

  if (entries > l2_entries (l))
    entries = l2_entries (l);
  return entries << (l2_entry_bits (l) - 3);
}

/* With subclusters, these stay unallocated: what is mapped is space alone,
 * and what is in the backing file is still seen.
 */
uint64_t
create_layout_l2_word (const struct create_layout *l, uint64_t l1_index,
                       uint64_t index)
{
  if (l->extended_l2) {
    if (index % 2 != 0)
      return 0;
    index /= 2;
  }
  return data_offset (l, l1_index * l2_entries (l) + index) | ENTRY_COPIED;
}
