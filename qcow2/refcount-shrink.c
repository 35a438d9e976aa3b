/* SPDX-License-Identifier: BSD-3-Clause */

/* Giving up refcount blocks.
 *
 * Blocks lie among the clusters that they count, so as long as one is there,
 * the file can't be cut below it.  From the last one down those go that count
 * nothing but themselves, and each other.  Their entries are in one sector of
 * the refcount table, which is written durably; only then is their place free.
 * If that fails, nothing is written any more.
 */

#include <errno.h>

#include "commit.h"
#include "format.h"
#include "guard.h"
#include "resize.h"

#define ENTRIES_PER_SECTOR 64

/* Entries FIRST to END - 1, behind which there are none. */
struct dropping {
  struct allocator *a;
  struct refcount_table *table;
  uint64_t first, end;
};

static uint64_t
block_cluster (const struct dropping *d, uint64_t index)
{
  return (d->table->entries[index] & TABLE_OFFSET_MASK) >>
    d->a->rc->cluster_bits;
}

/* Nothing lies at 0, whatever reserved bits say. */
static bool
has_block (const struct dropping *d, uint64_t index)
{
  return (d->table->entries[index] & TABLE_OFFSET_MASK) != 0;
}

/* Is CLUSTER a block that goes, if the one of entry INDEX does? */
static bool
is_going (const struct dropping *d, uint64_t index, uint64_t cluster)
{
  uint64_t i;

  for (i = index; i < d->end; ++i)
    if (has_block (d, i) && block_cluster (d, i) == cluster)
      return true;
  return false;
}

/* Does the block of entry INDEX count nothing else? */
static int
counts_nothing (const struct dropping *d, uint64_t index, bool *nothing)
{
  struct refcounts *rc = d->a->rc;
  uint64_t cluster = index << rc->block_bits;
  uint64_t end = (index + 1) << rc->block_bits, found, nr;

  *nothing = false;
  while (cluster < end) {
    int r = refcounts_next_free (rc, cluster, end, &found, &nr);

    if (r < 0)
      return r;
    for (; cluster < found; ++cluster)
      if (!is_going (d, index, cluster))
        return 0;
    cluster = found + nr;
  }
  *nothing = true;
  return 0;
}

/* Find the last ones, as far as one sector goes: none if FIRST is END then. */
static int
find (struct dropping *d)
{
  bool nothing = true;
  int r = 0;

  d->end = d->table->nr_entries;
  while (d->end > 0 && !has_block (d, d->end - 1))
    d->end--;
  d->first = d->end;
  while (r == 0 && d->first > 1 &&
         (d->first == d->end || d->first % ENTRIES_PER_SECTOR != 0)) {
    if (has_block (d, d->first - 1))
      r = counts_nothing (d, d->first - 1, &nothing);
    if (r < 0 || !nothing)
      break;
    d->first--;
  }
  return r;
}

static int
write_entries (const struct dropping *d)
{
  struct allocator *a = d->a;
  uint64_t sector = d->first / ENTRIES_PER_SECTOR * ENTRIES_PER_SECTOR;
  uint64_t offset = d->table->host_offset + sector * 8;
  uint64_t words[ENTRIES_PER_SECTOR], i;
  int r;

  r = guard_check (a->layer, METADATA_REFCOUNT_TABLE, offset, sizeof words,
                   "the refcount table");
  if (r < 0)
    return r;
  for (i = 0; i < ENTRIES_PER_SECTOR; ++i)
    words[i] = sector + i < d->first ?
      htobe64 (d->table->entries[sector + i]) : 0;
  r = qcow2_storage_write (a->layer->file, words, sizeof words, offset, true);
  if (r < 0)
    committer_fail (a->committer, r);
  return r;
}

/* A block that another one counts is retired; one that nobody counts any more
 * is free at once.
 */
static void
forget (const struct dropping *d)
{
  struct allocator *a = d->a;
  unsigned bits = a->rc->cluster_bits;
  uint64_t i;

  for (i = d->first; i < d->end; ++i) {
    uint64_t cluster = block_cluster (d, i);

    if (!has_block (d, i))
      continue;
    d->table->entries[i] = 0;
    guard_remove (a->layer, METADATA_REFCOUNT_BLOCK, cluster << bits);
    slice_cache_drop (a->rc->slices, cluster << bits, (cluster + 1) << bits);
    if (cluster >> a->rc->block_bits < d->first)
      retire_now (a->retire, cluster, 1);
    else
      alloc_note_free (a, cluster, 1);
  }
}

int
refcount_drop_blocks (struct allocator *a, bool *some)
{
  struct dropping d = { .a = a };
  int r;

  *some = false;
  turn_take (a->turn);
  d.table = atomic_load (&a->rc->table);
  r = refcount_settle_entries (a);
  if (r == 0)
    r = find (&d);
  if (r == 0 && d.first < d.end) {
    r = write_entries (&d);
    if (r == 0) {
      forget (&d);
      *some = true;
    }
  }
  turn_give (a->turn);
  return r;
}
