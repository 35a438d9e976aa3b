/* SPDX-License-Identifier: BSD-3-Clause */

/* Deleting a snapshot: first the table forgets it, then its references go,
 * and what the active layer has alone again gets its COPIED flags back.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "snapshot-change.h"
#include "sparse-clusters.h"

struct deletion {
  struct snapshot_change c;
  size_t index;
  struct l1_table l1;           /* the snapshot's */
  struct next_snapshots next;
};

static int
plan (struct deletion *d)
{
  struct snapshot_change *c = &d->c;
  const struct snapshot *sn;
  int r;

  if (d->index >= c->image->snapshots.nr_snapshots)
    return qcow2_error_set (c->error, ENOENT, "there is no such snapshot");
  if (image_has_view_of (c->image, d->index))
    return qcow2_error_set (c->error, EBUSY, "the snapshot is in use");
  sn = &c->image->snapshots.snapshots[d->index];
  r = l1_table_read (c->top, "snapshot L1 table", sn->l1_offset,
                     sn->l1_entries, &d->l1, c->error);
  if (r == 0)
    r = l1_refs_count (&c->refs, &d->l1, d->l1.nr_entries, false,
                       &c->refs.less);
  /* What the active layer needs must not be given away, should a refcount be
   * too low.
   */
  if (r == 0)
    r = l1_refs_count (&c->refs, &c->top->l1, c->top->l1.nr_entries, true,
                       &c->refs.stay);
  if (r == 0)
    r = l1_refs_judge (&c->refs);
  return r;
}

static int
prepare (struct deletion *d)
{
  struct snapshot_change *c = &d->c;
  int r = next_snapshots_init (&d->next, c->top->file, &c->top->header,
                               &c->image->snapshots, d->index, NULL);

  if (r == 0)
    r = writer_begin_operation (c->w, true);
  if (r < 0)
    return r;
  r = snapshot_new_table (c, &c->snapshots, METADATA_SNAPSHOT_TABLE,
                          d->next.bytes, d->next.table.table_bytes);
  if (r == 0)
    r = commit (&c->w->committer);
  if (r < 0)
    snapshot_undo (c);
  return r;
}

static int
delete (struct deletion *d)
{
  struct snapshot_change *c = &d->c;
  struct header_change change = { .fields = HEADER_SNAPSHOTS };
  uint64_t l1_offset, l1_bytes;
  int r;

  r = plan (d);
  if (r == 0)
    r = prepare (d);
  if (r < 0)
    return r;
  l1_offset = c->image->snapshots.snapshots[d->index].l1_offset;
  l1_bytes = d->l1.nr_entries * UINT64_C (8);
  change.snapshots_offset = c->snapshots.offset;
  change.nr_snapshots = (uint32_t) d->next.table.nr_snapshots;
  r = snapshot_switch (c, &change);
  if (r < 0)
    return r;
  snapshot_replace_table (c, &d->next, d->index);
  image_remove_snapshot (c->image, d->index);
  snapshot_retire (c, METADATA_SNAPSHOT_L1, l1_offset, l1_bytes);
  c->top->sparse = LAYER_SPARSE_UNKNOWN;
  r = snapshot_lower (c);
  if (r == 0)
    r = snapshot_set_flags (c, &c->refs.less);
  snapshot_cleaned_up (c, r);
  return 0;
}

int
qcow2_snapshot_delete (struct qcow2 *image, size_t index,
                       struct qcow2_error *error)
{
  struct deletion d = { .index = index };
  int r;

  r = snapshot_change_begin (&d.c, image, error);
  if (r == 0)
    r = delete (&d);
  next_snapshots_clear (&d.next);
  free ((void *) d.l1.entries);
  return snapshot_change_end (&d.c, r, "the snapshot could not be deleted");
}
