/* SPDX-License-Identifier: BSD-3-Clause */

/* Growing the disk while it is in use.
 *
 * With the gate closed and the image at rest:
 *
 *     the data file, if it is to read like the disk
 *     the L1 table, if it is too short      (durable, see l1-grow.c)
 *     zeros over what would come to light   -> commit
 *     the size in the header                (one durable sector)
 *
 * What would come to light lies behind the old end: bytes in the last
 * cluster, a backing file that is longer, clusters that another program
 * has left there (QEMU keeps the state of virtual machines behind the end
 * of the disk).  Where there is nothing of that, the size is written with
 * the new place of the L1 table.
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "format.h"
#include "header-write.h"
#include "l1-grow.h"
#include "writer.h"
#include "zero.h"

struct growing {
  struct writer *w;
  uint64_t old_bytes, new_bytes;
  uint32_t l1_entries;          /* that the new size needs */
  struct qcow2_error *error;
};

/*----- May it be done? -----*/

/* A snapshot that doesn't tell its disk's size has the image's. */
static int
check_snapshots (const struct growing *g, const struct snapshot_table *table)
{
  const struct layer *top = g->w->top;
  size_t i;

  if (top->header.version < 3 && table->nr_snapshots > 0)
    return qcow2_error_set (g->error, ENOTSUP,
                            "%s: an image of version 2 with snapshots can't "
                            "be made larger; use \"qemu-img amend -o "
                            "compat=1.1\" first", top->filename);
  for (i = 0; i < table->nr_snapshots; ++i)
    if (!table->snapshots[i].has_disk_size)
      return qcow2_error_set (g->error, ENOTSUP,
                              "%s: the image can't be made larger, because "
                              "snapshot table entry %zu has no disk size; "
                              "use \"qemu-img check -r all\" first",
                              top->filename, i);
  return 0;
}

static int
check (const struct qcow2 *image, struct growing *g)
{
  const struct header *h = &g->w->top->header;
  unsigned bits = header_l1_entry_bits (h);
  uint64_t entries = (g->new_bytes >> bits) +
    !!(g->new_bytes & ((UINT64_C (1) << bits) - 1));

  if (g->new_bytes < g->old_bytes)
    return qcow2_error_set (g->error, ENOTSUP,
                            "%s: the disk can't be made smaller than it is "
                            "(%" PRIu64 " bytes)", g->w->top->filename,
                            g->old_bytes);
  if (g->new_bytes > INT64_MAX || entries > MAX_L1_BYTES / 8)
    return qcow2_error_set (g->error, EFBIG,
                            "%s: a size of %" PRIu64 " bytes is too large "
                            "for clusters of %" PRIu64 " bytes",
                            g->w->top->filename, g->new_bytes,
                            layer_cluster_bytes (g->w->top));
  g->l1_entries = (uint32_t) entries;
  return check_snapshots (g, &image->snapshots);
}

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
end_below (const struct growing *g)
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
end_of_table (const struct growing *g)
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
find_data (const struct growing *g, uint64_t from, uint64_t end,
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
zero_range (const struct growing *g, uint64_t offset, uint64_t end)
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
must_zero (const struct growing *g, bool *some)
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
zero_all (const struct growing *g, uint64_t table_end)
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

/* A raw data file is as long as the disk, and has zeros where that has. */
static int
grow_data_file (const struct growing *g)
{
  struct qcow2_storage *data = g->w->top->data;
  int64_t size_bytes = qcow2_storage_size (data);
  int r;

  if (!g->w->data_file_raw)
    return 0;
  if (size_bytes < 0)
    return (int) size_bytes;
  r = qcow2_storage_zero (data, g->old_bytes, g->new_bytes - g->old_bytes,
                          true);
  if (r == 0 && (uint64_t) size_bytes < g->new_bytes)
    r = qcow2_storage_truncate (data, g->new_bytes);
  if (r < 0)
    return r;
  r = qcow2_storage_flush (data);
  if (r < 0)
    committer_fail (&g->w->committer, r);
  return r;
}

static int
grow_table (const struct growing *g, uint64_t header_bytes)
{
  struct writer *w = g->w;

  if (g->l1_entries <= w->top->l1.nr_entries)
    return 0;
  return l1_grow (&w->l1, &w->alloc, g->l1_entries, w->nr_growths == 0,
                  header_bytes);
}

static int
write_size (const struct growing *g)
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

/* The disk has its new size while zeros are written behind its old end, but
 * nobody is told of it yet.
 */
static int
write_zeros (const struct growing *g, uint64_t table_end)
{
  struct writer *w = g->w;
  int r;

  w->top->size_bytes = g->new_bytes;
  r = zero_all (g, table_end);
  if (r == 0)
    r = commit (&w->committer);
  if (r < 0)
    w->top->size_bytes = g->old_bytes;
  return r;
}

static int
grow (struct growing *g)
{
  struct writer *w = g->w;
  uint64_t table_end = end_of_table (g);
  bool zeros;
  int r;

  r = writer_rest (w);
  if (r == 0)
    r = writer_begin_change (w);
  if (r == 0)
    r = must_zero (g, &zeros);
  if (r == 0)
    r = grow_data_file (g);
  if (r == 0)
    r = grow_table (g, zeros ? g->old_bytes : g->new_bytes);
  if (r == 0 && zeros)
    r = write_zeros (g, table_end);
  /* Nothing is written if the table's move has done it. */
  if (r == 0)
    r = write_size (g);
  image_set_size (w->image, r == 0 ? g->new_bytes : g->old_bytes);
  w->nr_growths++;
  return r;
}

int
qcow2_grow (struct qcow2 *image, uint64_t size_bytes,
            struct qcow2_error *error)
{
  const struct layer *top = image->chain.layers[0];
  struct growing g = { .new_bytes = size_bytes, .error = error };
  int r;

  gate_close (&image->gate);
  g.w = image->writer;
  g.old_bytes = top->size_bytes;
  if (!g.w)
    r = qcow2_error_set (error, EROFS, "%s: the image is not open for "
                         "writing", top->filename);
  else
    r = check (image, &g);
  if (r == 0 && g.new_bytes > g.old_bytes) {
    r = grow (&g);
    if (r == 0 && !image_has_views (image))
      r = writer_rest (g.w);
    if (r < 0)
      qcow2_error_set (error, -r, "%s: the disk could not be made larger: %s",
                       top->filename, strerror (-r));
  }
  gate_open (&image->gate);
  return r;
}
