/* SPDX-License-Identifier: BSD-3-Clause */

/* Shrinking the disk.
 *
 *     look at all that is to be unmapped: can it be trusted?
 *     header: the size, and with it the length of the L1 table
 *                                              (one durable sector)
 *     L2 entries behind the end, in the table that the end is in, go
 *                                              -> commit
 *     what they and the L1 entries behind the table's end named is retired
 *     refcount blocks that count nothing any more go
 *     the data file, and the tail of the file, are cut
 *
 * No space is needed for that, so that a full disk can be made room on; only
 * where the end is within an L2 table that a snapshot uses, too, that is
 * copied.
 *
 * The header's sector decides: before it all is as it was, after it the disk
 * ends where it shall.  If power fails then, L2 tables behind the end may have
 * leaked, and some entries of the last one may still map what nobody can see.
 * Growing makes zeros of that before it comes to light (grow.c), and so it
 * does of the bytes between the disk's end and that of its last cluster; those
 * are made zeros here, too, where that can be done in place, for programs that
 * grow a disk with less care.
 */

#include <errno.h>
#include <string.h>

#include "format.h"
#include "guard.h"
#include "header-write.h"
#include "l2.h"
#include "resize.h"

/* Retired clusters are freed when there may be so many ranges of them. */
#define MAX_RETIRED 65536

static unsigned
l1_bits (const struct writer *w)
{
  return header_l1_entry_bits (&w->top->header);
}

static unsigned
clusters_from (const struct writer *w, uint64_t offset, uint64_t end)
{
  return (unsigned) ((end - offset) >> w->top->header.cluster_bits);
}

static uint64_t
round_up (const struct writer *w, uint64_t bytes)
{
  uint64_t cluster = layer_cluster_bytes (w->top);

  return (bytes + cluster - 1) & ~(cluster - 1);
}

static bool
is_empty (const struct l2_entry *e)
{
  return e->entry == 0 && e->bitmap == 0;
}

/*----- Rounds -----*/

/* Until all is durable and nothing waits to be freed.  The worker is stopped:
 * this does its work.
 */
static int
do_rounds (struct writer *w)
{
  int r;

  atomic_store (&w->committer.finishing, true);
  do
    r = worker_round (w);
  while (r == 0 && !(retire_is_empty (&w->retire) &&
                     committer_is_clean (&w->committer)));
  atomic_store (&w->committer.finishing, false);
  return r;
}

/*----- Unmapping -----*/

/* Call FN for the entries of the table at guest OFFSET, from there on, slice
 * by slice.
 */
typedef int entries_fn (struct writer *w, uint64_t offset, unsigned nr,
                        const struct l2_entry *entries, void *opaque);

static int
for_entries (struct writer *w, uint64_t offset, entries_fn *fn, void *opaque)
{
  struct l2_entry entries[L2_SLICE_ENTRIES];
  uint64_t end = ((offset >> l1_bits (w)) + 1) << l1_bits (w), next;
  int r = 0;

  for (; r == 0 && offset < end; offset = next) {
    unsigned nr;

    next = l2_slice_end (w, offset);
    if (next > end)
      next = end;
    nr = clusters_from (w, offset, next);
    r = l2_read (w, offset, nr, entries);
    if (r == 0)
      r = fn (w, offset, nr, entries, opaque);
  }
  return r;
}

static int
check_entries (struct writer *w, uint64_t offset, unsigned nr,
               const struct l2_entry *entries, void *opaque)
{
  bool *some = opaque;
  unsigned i;
  int r = 0;

  for (i = 0; r == 0 && i < nr; ++i)
    if (!is_empty (&entries[i])) {
      *some = true;
      r = l2_check (w, offset + ((uint64_t) i << w->top->header.cluster_bits),
                    &entries[i]);
    }
  return r;
}

static int
clear_entries (struct writer *w, uint64_t offset, unsigned nr,
               const struct l2_entry *entries, void *opaque)
{
  static const struct l2_entry nothing[L2_SLICE_ENTRIES];
  bool some = false;
  unsigned i;
  int r = check_entries (w, offset, nr, entries, &some);

  if (r == 0 && some)
    r = l2_link (w, offset, nr, nothing);
  for (i = 0; r == 0 && i < nr; ++i)
    l2_unlink (w, &entries[i]);
  return r;
}

/* From OFFSET on to the end of its L2 table, which keeps its place. */
static int
clear_rest (struct writer *w, uint64_t offset)
{
  struct epoch_ticket ticket;
  bool some = false;
  int r = for_entries (w, offset, check_entries, &some);

  if (r < 0 || !some)
    return r;
  ticket = epoch_enter (&w->image->epoch);
  r = l2_own_table (w, offset, ticket);
  epoch_leave (ticket);
  return r < 0 ? r : for_entries (w, offset, clear_entries, NULL);
}

/* All tables from the L1 entry INDEX on; the L1 table on disk has NR_ON_DISK
 * entries.  A round commits before it frees, so that nothing is freed which
 * the disk still names.
 */
static int
drop_tables (struct writer *w, uint32_t index, uint32_t nr_on_disk)
{
  uint64_t per_table = UINT64_C (1) << (l1_bits (w) -
                                        w->top->header.cluster_bits);
  uint64_t most = 0;
  int r = 0;

  for (; r == 0 && index < w->top->l1.nr_entries; ++index) {
    if (w->top->l1.entries[index] == 0)
      continue;
    r = l2_drop_table (w, index, index >= nr_on_disk);
    most += per_table;
    if (r == 0 && most >= MAX_RETIRED) {
      r = do_rounds (w);
      most = 0;
    }
  }
  return r;
}

static uint32_t
first_dropped (const struct writer *w, uint64_t from)
{
  uint64_t index = (from >> l1_bits (w)) +
    !!(from & ((UINT64_C (1) << l1_bits (w)) - 1));

  return index < w->top->l1.nr_entries ? (uint32_t) index :
    w->top->l1.nr_entries;
}

static bool
is_within_table (const struct writer *w, uint64_t from)
{
  return (from & ((UINT64_C (1) << l1_bits (w)) - 1)) != 0 &&
    from >> l1_bits (w) < w->top->l1.nr_entries;
}

int
unmap_behind (struct writer *w, uint64_t from)
{
  int r = is_within_table (w, from) ? clear_rest (w, from) : 0;

  return r < 0 ? r : drop_tables (w, first_dropped (w, from),
                                  w->top->l1.nr_entries);
}

/*----- Before -----*/

/* Nothing is begun if something can't be trusted. */
static int
check_behind (struct writer *w, uint64_t from)
{
  uint32_t index = first_dropped (w, from);
  bool some;
  int r = 0;

  if (is_within_table (w, from))
    r = for_entries (w, from, check_entries, &some);
  for (; r == 0 && index < w->top->l1.nr_entries; ++index)
    if (w->top->l1.entries[index] != 0)
      r = for_entries (w, (uint64_t) index << l1_bits (w), check_entries,
                       &some);
  return r;
}

/*----- The moment -----*/

/* A table without entries would have no place. */
static uint32_t
l1_entries_after (const struct resize *z)
{
  uint32_t nr = z->l1_entries > 0 ? z->l1_entries : 1;

  return nr < z->w->top->l1.nr_entries ? nr : z->w->top->l1.nr_entries;
}

static int
write_header (const struct resize *z)
{
  struct writer *w = z->w;
  struct header_change change = {
    .fields = HEADER_SIZE | HEADER_L1, .size_bytes = z->new_bytes,
    .l1_offset = w->top->header.l1_offset,
    .l1_entries = l1_entries_after (z),
  };
  int r;

  turn_take (&w->turn);
  r = committer_state (&w->committer);
  if (r == 0) {
    r = header_writer_commit (w->header, &change);
    if (r < 0)                  /* either size may be on disk now */
      committer_fail (&w->committer, r);
  }
  turn_give (&w->turn);
  return r;
}

/*----- After -----*/

/* The L1 table in memory becomes as long as the one that the header names, and
 * the clusters that it doesn't reach any more are given up.  The shorter range
 * comes under guard before the longer one goes.
 */
static int
shorten_table (const struct resize *z)
{
  struct writer *w = z->w;
  struct layer *l = w->top;
  uint64_t offset = l->header.l1_offset;
  uint64_t old_bytes = l->l1.nr_entries * UINT64_C (8);
  uint64_t new_bytes = l1_entries_after (z) * UINT64_C (8);
  uint64_t end = round_up (w, offset + new_bytes);
  uint64_t old_end = round_up (w, offset + old_bytes);
  int r;

  if (new_bytes == old_bytes)
    return 0;
  l->l1.nr_entries = l->header.l1_entries = l1_entries_after (z);
  r = guard_add_table (l, METADATA_L1_TABLE, offset, new_bytes);
  if (r < 0)
    return r;
  guard_remove_table (l, METADATA_L1_TABLE, offset, old_bytes);
  if (old_end > end)
    retire_now (&w->retire, end >> l->header.cluster_bits,
                clusters_from (w, end, old_end));
  return 0;
}

/* Bytes of the last cluster that nobody but the disk has, behind its end. */
static int
zero_tail (const struct resize *z)
{
  struct writer *w = z->w;
  const struct layer *l = w->top;
  uint64_t in_cluster = z->new_bytes & (layer_cluster_bytes (l) - 1);
  uint64_t start = z->new_bytes - in_cluster, host_offset;
  struct l2_entry e;
  int r;

  if (in_cluster == 0)
    return 0;
  r = l2_read (w, start, 1, &e);
  if (r == 0)
    r = l2_check (w, start, &e);
  if (r < 0 || !l2_is_owned (&e))
    return r;
  host_offset = (l->external_data ? start : l2_host_cluster (&e)) +
    in_cluster;
  if (host_offset == in_cluster && !l->external_data)
    return 0;
  r = qcow2_storage_zero (l->data, host_offset,
                          layer_cluster_bytes (l) - in_cluster, false);
  epoch_note_write (epoch_first_ticket (&w->image->epoch));
  return r;
}

/* A data file ends with the disk.  If there are snapshots, which QEMU doesn't
 * make then, they may be longer.
 */
static int
cut_data_file (const struct resize *z)
{
  struct writer *w = z->w;
  struct qcow2_storage *data = w->top->data;
  int64_t size_bytes = qcow2_storage_size (data);
  int r;

  if (!w->top->external_data || w->image->snapshots.nr_snapshots > 0 ||
      !qcow2_storage_can_grow (data))
    return 0;
  if (size_bytes < 0 || (uint64_t) size_bytes <= z->new_bytes)
    return size_bytes < 0 ? (int) size_bytes : 0;
  r = qcow2_storage_truncate (data, z->new_bytes);
  return r < 0 ? r : committer_flush (&w->committer, data);
}

static int
drop_blocks (struct writer *w)
{
  bool some = true;
  int r = 0;

  while (r == 0 && some) {
    r = refcount_drop_blocks (&w->alloc, &some);
    if (r == 0 && some)
      r = do_rounds (w);
  }
  return r;
}

static int
give_back (const struct resize *z, uint64_t from)
{
  struct writer *w = z->w;
  int r = is_within_table (w, from) ? clear_rest (w, from) : 0, r2;

  if (r == 0)
    r = drop_tables (w, first_dropped (w, from), l1_entries_after (z));
  r2 = shorten_table (z);       /* the header has done it already */
  if (r == 0)
    r = r2;
  if (r == 0)
    r = zero_tail (z);
  if (r == 0)
    r = cut_data_file (z);
  if (r == 0)
    r = do_rounds (w);
  return r < 0 ? r : drop_blocks (w);
}

int
disk_shrink (struct resize *z)
{
  struct writer *w = z->w;
  uint64_t from = round_up (w, z->new_bytes);
  int r;

  r = writer_rest (w);
  if (r == 0)
    r = check_behind (w, from);
  if (r == 0)
    r = writer_begin_change (w);
  if (r == 0)
    r = write_header (z);
  if (r < 0)
    return r;
  image_set_size (w->image, z->new_bytes);
  worker_stop (w);
  r = give_back (z, from);
  worker_start (w);
  return r;
}
