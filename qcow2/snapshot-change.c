/* SPDX-License-Identifier: BSD-3-Clause */

/* What creating, applying and deleting a snapshot have in common. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "snapshot-change.h"

/*----- Begin and end -----*/

static int
check (struct snapshot_change *c)
{
  if (!c->w)
    return qcow2_error_set (c->error, EROFS,
                            "the image is not open for writing");
  if (c->image->finished)
    return qcow2_error_set (c->error, ESHUTDOWN,
                            "the image is being closed");
  if (c->top->external_data)
    return qcow2_error_set (c->error, ENOTSUP, "an image with an external "
                            "data file can't have internal snapshots");
  return committer_state (&c->w->committer);
}

int
snapshot_change_begin (struct snapshot_change *c, struct qcow2 *image,
                       struct qcow2_error *error)
{
  int r;

  memset (c, 0, sizeof *c);
  c->image = image;
  c->error = error;
  if (error)
    error->message[0] = '\0';
  gate_close (&image->gate);
  c->w = image->writer;
  c->top = image->chain.layers[0];
  r = check (c);
  if (r == 0)
    r = writer_rest (c->w);
  if (r < 0)
    return r;
  c->has_refs = true;
  return l1_refs_init (&c->refs, c->w, error);
}

int
snapshot_change_end (struct snapshot_change *c, int r, const char *what)
{
  if (c->has_refs)
    l1_refs_clear (&c->refs);
  l1_larger_clear (&c->larger);
  /* If this fails the worker goes on trying, and closing tells. */
  if (c->w && writer_has_begun (c->w) &&
      committer_state (&c->w->committer) == 0)
    writer_rest (c->w);
  gate_open (&c->image->gate);
  if (r < 0 && c->error) {
    if (c->error->message[0] == '\0')
      qcow2_error_set (c->error, -r, "%s: %s", what, strerror (-r));
    qcow2_error_prefix (c->error, "%s: ", c->top->filename);
  }
  return r;
}

/*----- Before the switch -----*/

static uint64_t
clusters_of (const struct snapshot_change *c, uint64_t bytes)
{
  unsigned bits = c->top->header.cluster_bits;

  return (bytes + (UINT64_C (1) << bits) - 1) >> bits;
}

static int
write_table (struct snapshot_change *c, const struct new_table *table,
             const void *data)
{
  uint64_t rest_bytes =
    (clusters_of (c, table->bytes) << c->top->header.cluster_bits) -
    table->bytes;
  void *zeros = calloc (1, rest_bytes + 1);
  struct iovec iov[2] = {
    { .iov_base = (void *) data, .iov_len = table->bytes },
    { .iov_base = zeros, .iov_len = rest_bytes },
  };
  int r;

  if (!zeros)
    return -ENOMEM;
  r = qcow2_storage_writev (c->top->file, iov, rest_bytes > 0 ? 2 : 1,
                            table->offset, false);
  epoch_note_write (epoch_first_ticket (&c->image->epoch));
  free (zeros);
  return r;
}

static void
give_up_table (struct snapshot_change *c, struct new_table *table)
{
  snapshot_retire (c, table->kind, table->offset, table->bytes);
  table->bytes = 0;
}

static int
new_table (struct snapshot_change *c, struct new_table *table,
           enum metadata_kind kind, const void *data, uint64_t bytes)
{
  unsigned bits = c->top->header.cluster_bits;
  uint64_t nr = clusters_of (c, bytes), first;
  int r;

  r = alloc_run (&c->w->alloc, nr, &first);
  if (r < 0)
    return r;
  /* Nothing is given back if this fails: nobody may have these clusters. */
  r = guard_check (c->top, METADATA_NONE, first << bits, nr << bits,
                   "a new table");
  if (r < 0)
    return r;
  r = guard_add_table (c->top, kind, first << bits, bytes);
  if (r < 0) {
    retire_now (&c->w->retire, first, nr);
    return r;
  }
  table->kind = kind;
  table->offset = first << bits;
  table->bytes = bytes;
  return write_table (c, table, data);
}

/* Where the file can't grow any more there may be room in it. */
int
snapshot_new_table (struct snapshot_change *c, struct new_table *table,
                    enum metadata_kind kind, const void *data,
                    uint64_t bytes)
{
  struct allocator *a = &c->w->alloc;
  int r;

  if (bytes == 0)
    return 0;
  r = new_table (c, table, kind, data, bytes);
  if (r != -ENOSPC || !qcow2_storage_can_grow (c->top->file) || a->full)
    return r;
  give_up_table (c, table);
  alloc_note_full (a);
  return new_table (c, table, kind, data, bytes);
}

void
snapshot_retire (struct snapshot_change *c, enum metadata_kind kind,
                 uint64_t offset, uint64_t bytes)
{
  if (bytes == 0)
    return;
  guard_remove_table (c->top, kind, offset, bytes);
  retire_now (&c->w->retire, offset >> c->top->header.cluster_bits,
              clusters_of (c, bytes));
}

int
snapshot_clear_flags (struct snapshot_change *c, const struct l1_table *l1,
                      uint32_t nr, bool is_active)
{
  int r;

  if (!c->refs.has_copied)
    return 0;
  c->flags_cleared = is_active;
  r = l1_flags_clear (c->w, l1, nr, is_active);
  return r == 0 ? commit (&c->w->committer) : r;
}

int
snapshot_raise (struct snapshot_change *c)
{
  int r = l1_refs_raise (&c->refs);

  return r == 0 ? commit (&c->w->committer) : r;
}

/* Flags are set when the refcounts are durable that they tell of. */
void
snapshot_undo (struct snapshot_change *c)
{
  int r;

  give_up_table (c, &c->snapshot_l1);
  give_up_table (c, &c->snapshots);
  give_up_table (c, &c->active_l1);
  if (committer_state (&c->w->committer) < 0 ||
      (c->refs.raised_end == 0 && !c->flags_cleared))
    return;
  r = l1_refs_undo_raise (&c->refs);
  if (r == 0 && c->flags_cleared) {
    r = commit (&c->w->committer);
    if (r == 0)
      r = snapshot_set_flags (c, &c->refs.more);
  }
  snapshot_cleaned_up (c, r);
}

/*----- The switch -----*/

int
snapshot_switch (struct snapshot_change *c,
                 const struct header_change *change)
{
  struct writer *w = c->w;
  int r;

  turn_take (&w->turn);
  r = committer_state (&w->committer);
  if (r == 0) {
    r = header_writer_commit (w->header, change);
    if (r < 0)                  /* it may be as before or as after */
      committer_fail (&w->committer, r);
    else if (change->fields & HEADER_L1)
      l1_replace (&w->l1, &c->larger, change->l1_offset);
  }
  turn_give (&w->turn);
  return r;
}

/*----- After it -----*/

void
snapshot_replace_table (struct snapshot_change *c,
                        struct next_snapshots *next, size_t skip)
{
  struct header *h = &c->top->header;

  snapshot_retire (c, METADATA_SNAPSHOT_TABLE, h->snapshots_offset,
                   c->image->snapshots.table_bytes);
  next_snapshots_replace (next, &c->image->snapshots, skip);
  h->snapshots_offset = c->snapshots.offset;
  h->nr_snapshots = (uint32_t) c->image->snapshots.nr_snapshots;
}

int
snapshot_lower (struct snapshot_change *c)
{
  int r = l1_refs_lower (&c->refs);

  return r == 0 ? commit (&c->w->committer) : r;
}

int
snapshot_set_flags (struct snapshot_change *c, const struct ref_map *map)
{
  int r = l1_flags_set (c->w, map);

  return r == 0 ? commit (&c->w->committer) : r;
}

void
snapshot_cleaned_up (struct snapshot_change *c, int r)
{
  /* If writing has ended the dirty bit stays, and was told of. */
  if (r == 0 || committer_state (&c->w->committer) < 0)
    return;
  c->w->unrepaired = c->top->header.version >= 3;
  log_message (&c->top->log, QCOW2_LOG_WARNING,
               c->w->unrepaired ?
               "%s: cleaning up after an operation on snapshots has failed: "
               "%s; the image will be repaired when it is opened next" :
               "%s: cleaning up after an operation on snapshots has failed: "
               "%s; this may waste space, which \"qcow2-img check -r all\" "
               "finds", c->top->filename, strerror (-r));
}
