/* SPDX-License-Identifier: BSD-3-Clause */

/* Comparing the refcounts on disk with a ref_map. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "check-refcounts.h"
#include "refcount-word.h"

/* "Refcount table entry": what is no offset is told elsewhere. */
#define REFCOUNT_TABLE_RESERVED UINT64_C (0x1ff)

struct compare {
  struct check *check;
  unsigned order;               /* log2 of a refcount's bits */
  uint64_t cluster_bytes;
  uint64_t per_block;           /* refcounts */
  uint64_t *table;              /* a cluster of the refcount table */
  uint64_t *block;
};

static void
compare_one (struct check *c, uint64_t cluster, uint64_t have, uint32_t want)
{
  struct qcow2_check_result *res = c->result;

  if (have == 1)
    check_set_bit (c->once, cluster);
  if (have > 0 || want > 0)
    res->image_end_bytes = (cluster + 1) << c->map->cluster_bits;
  if (have == want)
    return;
  if (have < want)
    res->corruptions++;
  else
    res->leaks++;
  check_found (c, "%s cluster %" PRIu64 " refcount=%" PRIu64
               " reference=%" PRIu32, have < want ? "ERROR" : "Leaked",
               cluster, have, want);
}

/* Clusters from FIRST on, BLOCK their refcounts, or NULL if all are 0. */
static void
compare_block (const struct compare *cmp, uint64_t first,
               const uint64_t *block)
{
  const struct ref_map *map = cmp->check->map;
  unsigned order = cmp->order;
  uint64_t i, have;

  for (i = 0; i < cmp->per_block && first + i < map->nr_clusters; ++i) {
    have = block ? refcount_word_get (order, be64toh (block[i >> (6 - order)]),
                                      i) : 0;
    if (have != 0 || map->words[first + i] != 0)
      compare_one (cmp->check, first + i, have,
                   ref_map_count (map, first + i));
  }
}

static void
unknown_block (const struct compare *cmp, uint64_t first, const char *why)
{
  struct check *c = cmp->check;
  uint64_t nr = c->map->nr_clusters - first;

  if (nr > cmp->per_block)
    nr = cmp->per_block;
  c->result->check_errors += nr;
  check_found (c, "Can't get the refcounts of clusters %" PRIu64 " to %"
               PRIu64 ": %s", first, first + nr - 1, why);
}

/* Past the end of the file all refcounts are 0, as QEMU has it. */
static int
read_block (const struct compare *cmp, uint64_t offset)
{
  uint64_t count = cmp->check->map->file_bytes - offset;

  if (count > cmp->cluster_bytes)
    count = cmp->cluster_bytes;
  memset ((char *) cmp->block + count, 0, cmp->cluster_bytes - count);
  return qcow2_storage_read_meta (cmp->check->layer->file, cmp->block, count,
                                  offset);
}

static void
compare_entry (const struct compare *cmp, uint64_t first, uint64_t entry)
{
  uint64_t offset = entry & ~REFCOUNT_TABLE_RESERVED;
  int r;

  if (offset == 0 || offset >= cmp->check->map->file_bytes) {
    compare_block (cmp, first, NULL);
    return;
  }
  if (offset & (cmp->cluster_bytes - 1)) {
    unknown_block (cmp, first, "their refcount block is not aligned");
    return;
  }
  r = read_block (cmp, offset);
  if (r < 0)
    unknown_block (cmp, first, strerror (-r));
  else
    compare_block (cmp, first, cmp->block);
}

/* The cluster INDEX of the table: false if it can't be read. */
static bool
read_table (const struct compare *cmp, uint64_t index)
{
  const struct layer *l = cmp->check->layer;

  memset (cmp->table, 0, cmp->cluster_bytes);
  return index >= l->header.refcount_table_clusters ||
    qcow2_storage_read_meta (l->file, cmp->table, cmp->cluster_bytes,
                             l->header.refcount_table_offset +
                             index * cmp->cluster_bytes) == 0;
}

static void
compare_all (const struct compare *cmp)
{
  uint64_t nr = cmp->check->map->nr_clusters, first, index = 0;
  uint64_t per_cluster = cmp->cluster_bytes / 8;
  bool good = false;

  for (first = 0; first < nr; first += cmp->per_block, ++index) {
    if (index % per_cluster == 0)
      good = read_table (cmp, index / per_cluster);
    if (good)
      compare_entry (cmp, first, be64toh (cmp->table[index % per_cluster]));
    else
      unknown_block (cmp, first, "the refcount table can't be read");
  }
}

int
check_refcounts (struct check *c)
{
  const struct header *h = &c->layer->header;
  struct compare cmp = {
    .check = c, .order = h->refcount_order,
    .cluster_bytes = layer_cluster_bytes (c->layer),
    .per_block = UINT64_C (1) << (h->cluster_bits + 3 - h->refcount_order),
  };
  int r = 0;

  c->result->image_end_bytes = cmp.cluster_bytes;
  cmp.table = malloc (cmp.cluster_bytes);
  cmp.block = malloc (cmp.cluster_bytes);
  if (cmp.table && cmp.block)
    compare_all (&cmp);
  else
    r = qcow2_error_set (c->error, ENOMEM, "out of memory");
  free (cmp.table);
  free (cmp.block);
  return r;
}
