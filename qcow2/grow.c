/* SPDX-License-Identifier: BSD-3-Clause */

/* Growing the disk while it is in use.
 *
 * With the gate closed and the image at rest:
 *
 *     the data file, if it is to read like the disk
 *     the L1 table, if it is too short      (durable, see l1-grow.c)
 *     zeros over what would come to light
 *     space for what is added, if it is wanted now
 *                                           -> commit
 *     the size in the header                (one durable sector)
 *
 * What would come to light lies behind the old end: bytes in the last
 * cluster, a backing file that is longer, clusters that another program
 * has left there (QEMU keeps the state of virtual machines behind the end
 * of the disk).  Where there is nothing of that, and no space is wanted, the
 * size is written with the new place of the L1 table.
 */

#include <errno.h>

#include "format.h"
#include "header-write.h"
#include "l1-grow.h"
#include "resize.h"
#include "write.h"
#include "zero.h"

/*----- What would come to light -----*/

static uint64_t
min64 (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

static uint64_t
round_up (uint64_t bytes, uint64_t unit_bytes)
{
  uint64_t up = (bytes + unit_bytes - 1) & ~(unit_bytes - 1);

  return up < bytes ? UINT64_MAX : up;
}

/* Up to where the last cluster or a backing file goes on. */
static uint64_t
end_below (const struct resize *g)
{
  const struct chain *chain = &g->w->image->chain;
  uint64_t end = g->old_bytes;

  if (chain->nr_layers > 1 && chain->layers[1]->size_bytes > end)
    end = chain->layers[1]->size_bytes;
  return min64 (round_up (end, layer_cluster_bytes (chain->layers[0])),
                g->new_bytes);
}

/* Up to where the L1 table has entries already. */
static uint64_t
end_of_table (const struct resize *g)
{
  const struct layer *top = g->w->top;
  unsigned bits = header_l1_entry_bits (&top->header);
  uint64_t nr = top->header.l1_entries;

  if (nr > UINT64_MAX >> bits)
    return g->new_bytes;
  return min64 (nr << bits, g->new_bytes);
}

/* The first part of [FROM, END) that may not read as zeros; *COUNT is 0 if
 * there is none.
 */
static int
find_data (const struct resize *g, uint64_t from, uint64_t end,
           uint64_t *offset, uint64_t *count)
{
  const struct chain *chain = &g->w->image->chain;
  struct run run;

  *count = 0;
  while (from < end) {
    int r = chain_lookup (chain, &g->w->top->l1, from, end - from, &run);

    if (r < 0)
      return r;
    if (run.kind != RUN_ZERO && run.kind != RUN_UNALLOCATED) {
      *offset = from;
      *count = run.length_bytes;
      return 0;
    }
    from += run.length_bytes;
  }
  return 0;
}

/* In parts, so that what is freed can be used again meanwhile. */
static int
zero_range (const struct resize *g, uint64_t offset, uint64_t end)
{
  uint64_t part = UINT64_C (1) << header_l1_entry_bits (&g->w->top->header);
  int r = 0;

  while (offset < end && r == 0) {
    struct epoch_ticket ticket = epoch_enter (&g->w->image->epoch);
    uint64_t n = min64 (part - (offset & (part - 1)), end - offset);
    bool in_place;

    r = zero_guest (g->w, ticket, ZERO_UNMAP, n, offset, &in_place);
    epoch_leave (ticket);
    offset += n;
  }
  return r;
}

/* *SOME: there is something to be zeroed. */
static int
must_zero (const struct resize *g, bool *some)
{
  uint64_t offset, count;
  int r = find_data (g, g->old_bytes, end_below (g), &offset, &count);

  if (r == 0 && count == 0)
    r = find_data (g, end_below (g), end_of_table (g), &offset, &count);
  *some = count > 0;
  return r;
}

/* TABLE_END: end_of_table, before the table was replaced. */
static int
zero_all (const struct resize *g, uint64_t table_end)
{
  uint64_t from = g->old_bytes, end = end_below (g), offset, count;
  int r = find_data (g, from, end, &offset, &count);

  if (r == 0 && count > 0)
    r = zero_range (g, from, end);
  for (from = end; r == 0; from = offset + count) {
    r = find_data (g, from, table_end, &offset, &count);
    if (r < 0 || count == 0)
      break;
    r = zero_range (g, offset, offset + count);
  }
  return r;
}

/*----- The steps -----*/

/* A data file is as long as the disk; a raw one has zeros where that has. */
static int
grow_data_file (const struct resize *g)
{
  struct qcow2_storage *data = g->w->top->data;
  bool raw = g->w->data_file_raw;
  int64_t size_bytes = qcow2_storage_size (data);
  int r = 0;

  if (!g->w->top->external_data)
    return 0;
  if (size_bytes < 0)
    return (int) size_bytes;
  if (raw)
    r = qcow2_storage_zero (data, g->old_bytes, g->new_bytes - g->old_bytes,
                            true);
  if (r == 0 && (uint64_t) size_bytes < g->new_bytes &&
      (raw || qcow2_storage_can_grow (data)))
    r = qcow2_storage_truncate (data, g->new_bytes);
  return r < 0 ? r : committer_flush (&g->w->committer, data);
}

static int
grow_table (const struct resize *g, uint64_t header_bytes)
{
  struct writer *w = g->w;

  if (g->l1_entries <= w->top->l1.nr_entries)
    return 0;
  return l1_grow (&w->l1, &w->alloc, g->l1_entries, w->nr_growths == 0,
                  header_bytes);
}

static int
write_size (const struct resize *g)
{
  struct writer *w = g->w;
  int r;

  turn_take (&w->turn);
  r = committer_state (&w->committer);
  if (r == 0) {
    r = header_writer_set_size (w->header, g->new_bytes);
    if (r < 0)
      committer_fail (&w->committer, r);
  }
  turn_give (&w->turn);
  return r;
}

/* What is added is mapped at once: by the user's wish, and in a raw data file
 * because what is in that is on the disk.
 */
static enum qcow2_preallocation
preallocation (const struct resize *g)
{
  if (g->w->data_file_raw && g->preallocation == QCOW2_PREALLOCATION_OFF)
    return QCOW2_PREALLOCATION_METADATA;
  return g->preallocation;
}

/* Where space is to be taken from: with the last cluster that was, if that
 * holds nothing but zeros when it is not mapped.
 */
static uint64_t
preallocate_from (const struct resize *g)
{
  const struct writer *w = g->w;
  uint64_t cluster = layer_cluster_bytes (w->top);

  if (w->image->chain.nr_layers > 1 || w->top->external_data)
    return round_up (g->old_bytes, cluster);
  return g->old_bytes & ~(cluster - 1);
}

/* The rest of the last cluster that was is added, too.  Where
 * preallocate_from leaves that out, or finds it mapped, zeros take the space.
 */
static int
fill_last (const struct resize *g)
{
  static const uint8_t zeros[65536];
  uint64_t offset = g->old_bytes, n;
  uint64_t end = min64 (round_up (offset, layer_cluster_bytes (g->w->top)),
                        g->new_bytes);
  bool in_place;
  int r = 0;

  if (g->preallocation < QCOW2_PREALLOCATION_FALLOC ||
      preallocate_from (g) < offset)
    return 0;
  for (; r == 0 && offset < end; offset += n) {
    struct epoch_ticket ticket = epoch_enter (&g->w->image->epoch);

    n = min64 (sizeof zeros, end - offset);
    r = write_guest (g->w, ticket, zeros, n, offset, false, &in_place);
    epoch_leave (ticket);
  }
  return r;
}

/* Nobody can see what was mapped, but it takes space. */
static void
undo (const struct resize *g)
{
  struct writer *w = g->w;

  if (committer_state (&w->committer) < 0)
    return;
  worker_stop (w);
  if (unmap_behind (w, round_up (g->old_bytes,
                                 layer_cluster_bytes (w->top))) == 0)
    commit (&w->committer);
  worker_start (w);
}

/* The disk has its new size while what lies behind its old end is changed, but
 * nobody is told of it yet.
 */
static int
change_behind (const struct resize *g, uint64_t table_end)
{
  struct writer *w = g->w;
  int r;

  w->top->size_bytes = g->new_bytes;
  r = zero_all (g, table_end);
  if (r == 0)
    r = fill_last (g);
  if (r == 0)
    r = preallocate_guest (w, preallocate_from (g), g->new_bytes,
                           preallocation (g));
  if (r == 0)
    r = commit (&w->committer);
  if (r < 0) {
    w->top->size_bytes = g->old_bytes;
    if (preallocation (g) != QCOW2_PREALLOCATION_OFF)
      undo (g);
  }
  return r;
}

int
disk_grow (struct resize *g)
{
  struct writer *w = g->w;
  uint64_t table_end = end_of_table (g);
  bool behind;
  int r;

  r = writer_rest (w);
  if (r == 0)
    r = writer_begin_change (w);
  if (r == 0)
    r = must_zero (g, &behind);
  if (preallocation (g) != QCOW2_PREALLOCATION_OFF)
    behind = true;
  if (r == 0)
    r = grow_data_file (g);
  if (r == 0)
    r = grow_table (g, behind ? g->old_bytes : g->new_bytes);
  if (r == 0 && behind)
    r = change_behind (g, table_end);
  /* Nothing is written if the table's move has done it. */
  if (r == 0)
    r = write_size (g);
  image_set_size (w->image, r == 0 ? g->new_bytes : g->old_bytes);
  w->nr_growths++;
  return r;
}
