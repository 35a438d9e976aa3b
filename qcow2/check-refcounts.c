/* SPDX-License-Identifier: BSD-3-Clause */

/* Comparing the refcounts on disk with a ref_map.
 *
 * A unit of work is some refcount blocks in a row.  A block counts at least
 * 64 clusters, so no two threads change bits of one byte.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "check-refcounts.h"
#include "parallel.h"
#include "refcount-word.h"

/* "Refcount table entry": what is no offset is told elsewhere. */
#define REFCOUNT_TABLE_RESERVED UINT64_C (0x1ff)

/* So much of the refcounts is a unit. */
#define UNIT_BYTES (256u << 10)
#define MAX_UNIT_BLOCKS (UNIT_BYTES >> 9)

struct compare {
  struct check *check;
  unsigned order;               /* log2 of a refcount's bits */
  uint64_t cluster_bytes;
  uint64_t per_block;           /* refcounts */
  uint64_t nr_blocks;           /* that are needed for the file */
  uint64_t unit_blocks;
  uint64_t cursor;              /* the next block */
};

/* What a thread does now. */
struct part {
  const struct compare *cmp;
  struct parallel_unit *unit;
  struct qcow2_check_result result;
  bool has_lost_refcounts;
};

/*----- Clusters -----*/

static void
mismatch (struct part *p, uint64_t cluster, uint64_t have, uint32_t want)
{
  if (have < want) {
    p->result.corruptions++;
    p->has_lost_refcounts = p->has_lost_refcounts || have == 0;
  }
  else
    p->result.leaks++;
  parallel_wait_turn (p->unit);
  check_found (p->cmp->check, "%s cluster %" PRIu64 " refcount=%" PRIu64
               " reference=%" PRIu32, have < want ? "ERROR" : "Leaked",
               cluster, have, want);
}

/* Clusters from FIRST on, BLOCK their refcounts, or NULL if all are 0. */
static void
compare_block (struct part *p, uint64_t first, const uint64_t *block)
{
  struct check *c = p->cmp->check;
  const struct ref_map *map = c->map;
  unsigned order = p->cmp->order;
  uint64_t i, have, last = 0;

  for (i = 0; i < p->cmp->per_block && first + i < map->nr_clusters; ++i) {
    uint32_t want = ref_map_count (map, first + i);

    have = block ? refcount_word_get (order, be64toh (block[i >> (6 - order)]),
                                      i) : 0;
    if (have == 1)
      check_set_bit (c->once, first + i);
    if (have > 0 || want > 0)
      last = first + i + 1;
    if (have != want)
      mismatch (p, first + i, have, want);
  }
  if (last > 0)
    p->result.image_end_bytes = last << map->cluster_bits;
}

static void
unknown_block (struct part *p, uint64_t first, const char *why)
{
  struct check *c = p->cmp->check;
  uint64_t nr = c->map->nr_clusters - first;

  if (nr > p->cmp->per_block)
    nr = p->cmp->per_block;
  p->result.check_errors += nr;
  parallel_wait_turn (p->unit);
  check_found (c, "Can't get the refcounts of clusters %" PRIu64 " to %"
               PRIu64 ": %s", first, first + nr - 1, why);
}

/*----- Blocks -----*/

/* Past the end of the file all refcounts are 0, as QEMU has it. */
static int
read_block (struct part *p, uint64_t offset)
{
  const struct compare *cmp = p->cmp;
  uint64_t count = cmp->check->map->file_bytes - offset;
  char *block = p->unit->buffer;

  if (count > cmp->cluster_bytes)
    count = cmp->cluster_bytes;
  memset (block + count, 0, cmp->cluster_bytes - count);
  return qcow2_storage_read_meta (cmp->check->layer->file, block, count,
                                  offset);
}

static void
compare_entry (struct part *p, uint64_t first, uint64_t entry)
{
  uint64_t offset = entry & ~REFCOUNT_TABLE_RESERVED;
  int r;

  if (offset == 0 || offset >= p->cmp->check->map->file_bytes) {
    compare_block (p, first, NULL);
    return;
  }
  if (offset & (p->cmp->cluster_bytes - 1)) {
    unknown_block (p, first, "their refcount block is not aligned");
    return;
  }
  r = read_block (p, offset);
  if (r < 0)
    unknown_block (p, first, strerror (-r));
  else
    compare_block (p, first, p->unit->buffer);
}

/* The table's entries of a unit; past its end they are 0, and so they are
 * past the end of the file.
 */
static bool
read_entries (const struct part *p, uint64_t *entries)
{
  const struct layer *l = p->cmp->check->layer;
  uint64_t table = l->header.refcount_table_offset;
  uint64_t bytes = p->unit->nr * 8, at = p->unit->first * 8, end;

  memset (entries, 0, bytes);
  end = (uint64_t) l->header.refcount_table_clusters * p->cmp->cluster_bytes;
  if (table >= p->cmp->check->map->file_bytes)
    end = 0;
  else if (end > p->cmp->check->map->file_bytes - table)
    end = p->cmp->check->map->file_bytes - table;
  if (at >= end)
    return true;
  return qcow2_storage_read_meta (l->file, entries,
                                  bytes < end - at ? bytes : end - at,
                                  table + at) == 0;
}

/*----- Units -----*/

static bool
deal (void *opaque, uint64_t *first, uint64_t *nr)
{
  struct compare *cmp = opaque;

  *first = cmp->cursor;
  *nr = cmp->nr_blocks - cmp->cursor;
  if (*nr > cmp->unit_blocks)
    *nr = cmp->unit_blocks;
  cmp->cursor += *nr;
  check_progress (cmp->check, *nr * cmp->per_block);
  return *nr > 0;
}

static int
run (void *opaque, struct parallel_unit *unit)
{
  struct compare *cmp = opaque;
  struct part p = { .cmp = cmp, .unit = unit };
  uint64_t entries[MAX_UNIT_BLOCKS], i;
  bool good = read_entries (&p, entries);

  for (i = 0; i < unit->nr; ++i) {
    uint64_t first = (unit->first + i) * cmp->per_block;

    if (good)
      compare_entry (&p, first, be64toh (entries[i]));
    else
      unknown_block (&p, first, "the refcount table can't be read");
  }
  check_add_result (cmp->check, &p.result);
  if (p.has_lost_refcounts) {
    pthread_mutex_lock (&cmp->check->lock);
    cmp->check->has_lost_refcounts = true;
    pthread_mutex_unlock (&cmp->check->lock);
  }
  return 0;
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
  const struct parallel_work work = {
    .nr_threads = c->nr_threads, .buffer_bytes = cmp.cluster_bytes,
    .deal = deal, .run = run, .opaque = &cmp,
  };

  c->result->image_end_bytes = cmp.cluster_bytes;
  cmp.nr_blocks = (c->map->nr_clusters + cmp.per_block - 1) / cmp.per_block;
  cmp.unit_blocks = UNIT_BYTES / cmp.cluster_bytes;
  if (cmp.unit_blocks == 0)
    cmp.unit_blocks = 1;
  if (parallel_run (&work) < 0)
    return qcow2_error_set (c->error, ENOMEM, "out of memory");
  c->unknown_refcounts = c->result->check_errors > 0;
  return 0;
}
