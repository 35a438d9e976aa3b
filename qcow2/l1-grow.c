/* SPDX-License-Identifier: BSD-3-Clause */

/* Moving the active L1 table.
 *
 *     allocate clusters, in memory
 *     write the new table: the durable entries, then zeros
 *     commit: refcounts of these clusters          -> flush
 *     header: place and length of the table, size     (one durable sector)
 *     retire the old clusters
 *
 * The flush covers the new table, too.  So at each moment the header names
 * a table that is complete and has its refcounts; a power failure leaks
 * one of the two at most.
 */

#include <errno.h>
#include <stdlib.h>

#include "commit.h"
#include "guard.h"
#include "header-write.h"
#include "l1-grow.h"

#define MAX_ENTRIES (MAX_L1_BYTES / 8)

static uint64_t
clusters_of (const struct allocator *a, uint32_t nr_entries)
{
  unsigned bits = a->rc->cluster_bits;

  return (nr_entries * UINT64_C (8) + (UINT64_C (1) << bits) - 1) >> bits;
}

/* Whole clusters: what follows the table in the last one is zeros. */
static int
write_table (const struct allocator *a, const struct l1_larger *larger,
             uint64_t first, uint64_t nr_clusters)
{
  unsigned bits = a->rc->cluster_bits;
  uint64_t table_bytes = larger->nr_entries * UINT64_C (8);
  uint64_t rest_bytes = (nr_clusters << bits) - table_bytes;
  void *zeros = calloc (1, rest_bytes + 1);
  struct iovec iov[2] = {
    { .iov_base = larger->durable, .iov_len = table_bytes },
    { .iov_base = zeros, .iov_len = rest_bytes },
  };
  int r;

  if (!zeros)
    return -ENOMEM;
  r = qcow2_storage_writev (a->layer->file, iov, rest_bytes > 0 ? 2 : 1,
                            first << bits, false);
  epoch_note_write (epoch_first_ticket (a->committer->epoch));
  free (zeros);
  return r;
}

static int
switch_table (struct l1_writer *w, struct allocator *a,
              struct l1_larger *larger, uint64_t host_offset,
              uint64_t size_bytes)
{
  struct header_change change = {
    .fields = HEADER_L1 | HEADER_SIZE, .size_bytes = size_bytes,
    .l1_offset = host_offset, .l1_entries = larger->nr_entries,
  };
  int r;

  turn_take (a->turn);
  r = committer_state (a->committer);
  if (r == 0) {
    r = header_writer_commit (a->header, &change);
    if (r == 0)
      l1_replace (w, larger, host_offset);
    else                        /* the header may name either table now */
      committer_fail (a->committer, r);
  }
  turn_give (a->turn);
  return r;
}

/* Give up a table that nothing on disk names. */
static void
retire_table (const struct allocator *a, uint64_t offset, uint64_t nr)
{
  unsigned bits = a->rc->cluster_bits;

  if (nr == 0)
    return;
  guard_remove_table (a->layer, METADATA_L1_TABLE, offset, nr << bits);
  retire_now (a->retire, offset >> bits, nr);
}

static int
guard_table (const struct allocator *a, uint64_t offset, uint64_t nr)
{
  uint64_t bytes = nr << a->rc->cluster_bits;
  int r = guard_check (a->layer, METADATA_NONE, offset, bytes,
                       "a new L1 table");

  return r < 0 ? r : guard_add_table (a->layer, METADATA_L1_TABLE, offset,
                                      bytes);
}

static int
move_once (struct l1_writer *w, struct allocator *a,
           struct l1_larger *larger, uint64_t size_bytes)
{
  uint64_t old_offset = w->layer->header.l1_offset;
  uint64_t old_nr = clusters_of (a, w->layer->l1.nr_entries);
  uint64_t nr = clusters_of (a, larger->nr_entries), first, offset;
  int r;

  r = alloc_run (a, nr, &first);
  if (r < 0)
    return r;
  offset = first << a->rc->cluster_bits;
  /* Nothing is given back if this fails: nobody may have these clusters. */
  r = guard_table (a, offset, nr);
  if (r < 0)
    return r;
  r = write_table (a, larger, first, nr);
  if (r == 0)
    r = commit (a->committer);
  if (r < 0) {
    retire_table (a, offset, nr);
    return r;
  }
  /* Neither is given up if nobody knows which one the header names. */
  r = switch_table (w, a, larger, offset, size_bytes);
  if (r == 0)
    retire_table (a, old_offset, old_nr);
  return r;
}

/* Where the file can't grow any more there may be room in it.  Not if it was the
 * header that had none: which table it names is not known then.
 */
static int
move (struct l1_writer *w, struct allocator *a, struct l1_larger *larger,
      uint64_t size_bytes)
{
  int r = move_once (w, a, larger, size_bytes);

  if (r != -ENOSPC || committer_state (a->committer) < 0 ||
      !qcow2_storage_can_grow (a->layer->file) || a->full)
    return r;
  alloc_note_full (a);
  return move_once (w, a, larger, size_bytes);
}

int
l1_grow (struct l1_writer *w, struct allocator *a, uint32_t nr_entries,
         bool exact, uint64_t size_bytes)
{
  uint64_t spare = w->layer->l1.nr_entries * UINT64_C (3) / 2;
  struct l1_larger larger;
  int r;

  if (!exact && nr_entries < spare)
    nr_entries = spare < MAX_ENTRIES ? (uint32_t) spare : MAX_ENTRIES;
  r = l1_larger_init (w, nr_entries, &larger);
  if (r < 0)
    return r;
  r = move (w, a, &larger, size_bytes);
  l1_larger_clear (&larger);
  return r;
}
