/* SPDX-License-Identifier: BSD-3-Clause */

/* Applying a snapshot: the active layer gets a new L1 table, a copy of the
 * snapshot's, with the snapshot's size, by one write of the header.
 *
 * All that the new table names is shared with the snapshot, so nothing in it
 * has the COPIED flag.  What the old and the new one have in common keeps its
 * refcounts.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "snapshot-change.h"
#include "sparse-clusters.h"

struct application {
  struct snapshot_change c;
  size_t index;
  struct l1_table l1;           /* the snapshot's */
  uint64_t size_bytes;          /* of its disk */
  uint32_t nr_entries;          /* of the new active table */
};

/*----- Planning -----*/

static int
check_bitmaps (const struct snapshot_change *c)
{
  struct header_features features;

  header_writer_features (c->w->header, &features);
  if (c->top->header.has_bitmaps && features.autoclear & AUTOCLEAR_BITMAPS)
    return qcow2_error_set (c->error, EBUSY, "the image has dirty bitmaps, "
                            "which would not be true any more; remove them "
                            "first");
  return 0;
}

/* A request that waits at the gate may lie behind the new end: it would write
 * to the VM state that is applied.
 */
static int
check_views (const struct application *a)
{
  const struct snapshot_change *c = &a->c;

  if (a->size_bytes >= c->top->size_bytes || !image_has_views (c->image))
    return 0;
  return qcow2_error_set (c->error, EBUSY, "the snapshot's disk is smaller, "
                          "and the image is in use");
}

/* A snapshot that doesn't tell its disk's size has the image's. */
static int
check_size (const struct application *a)
{
  const struct snapshot_change *c = &a->c;
  const struct snapshot_table *table = &c->image->snapshots;
  size_t i;

  if (a->size_bytes > INT64_MAX)
    return qcow2_error_set (c->error, EFBIG, "the snapshot's disk size "
                            "%" PRIu64 " is too large", a->size_bytes);
  if (a->size_bytes == c->top->header.size_bytes)
    return 0;
  if (c->top->header.version < 3)
    return qcow2_error_set (c->error, ENOTSUP, "the snapshot's disk has "
                            "another size, and an image of version 2 with "
                            "snapshots can't change its size; use \"qemu-img "
                            "amend -o compat=1.1\" first");
  for (i = 0; i < table->nr_snapshots; ++i)
    if (!table->snapshots[i].has_disk_size)
      return qcow2_error_set (c->error, ENOTSUP, "the snapshot's disk has "
                              "another size, and snapshot table entry %zu "
                              "has no disk size; use \"qcow2-img check -r "
                              "all\" first", i);
  return 0;
}

/* Not shorter than it was, as QEMU has it. */
static int
choose_entries (struct application *a)
{
  const struct snapshot_change *c = &a->c;
  uint64_t nr = header_disk_l1_entries (&c->top->header, a->size_bytes);

  if (nr > MAX_L1_BYTES / 8)
    return qcow2_error_set (c->error, EFBIG, "the snapshot's disk size "
                            "%" PRIu64 " is too large for clusters of %"
                            PRIu64 " bytes", a->size_bytes,
                            layer_cluster_bytes (c->top));
  if (nr < a->l1.nr_entries)
    nr = a->l1.nr_entries;
  if (nr < c->top->l1.nr_entries)
    nr = c->top->l1.nr_entries;
  a->nr_entries = (uint32_t) nr;
  return 0;
}

static int
plan (struct application *a)
{
  struct snapshot_change *c = &a->c;
  const struct snapshot *sn;
  int r;

  if (a->index >= c->image->snapshots.nr_snapshots)
    return qcow2_error_set (c->error, ENOENT, "there is no such snapshot");
  sn = &c->image->snapshots.snapshots[a->index];
  a->size_bytes = sn->disk_size_bytes;
  r = check_bitmaps (c);
  if (r == 0)
    r = check_size (a);
  if (r == 0)
    r = check_views (a);
  if (r == 0)
    r = l1_table_read (c->top, "snapshot L1 table", sn->l1_offset,
                       sn->l1_entries, &a->l1, c->error);
  if (r == 0)
    r = choose_entries (a);
  if (r == 0)
    r = l1_refs_count (&c->refs, &a->l1, a->l1.nr_entries, false,
                       &c->refs.more);
  if (r == 0)
    r = l1_refs_count (&c->refs, &c->top->l1, c->top->l1.nr_entries, true,
                       &c->refs.less);
  return r == 0 ? l1_refs_judge (&c->refs) : r;
}

/*----- Writing -----*/

static int
write_l1 (struct application *a)
{
  struct snapshot_change *c = &a->c;
  uint32_t i;
  int r;

  r = l1_larger_init (&c->w->l1, a->nr_entries, &c->larger);
  if (r < 0)
    return r;
  for (i = 0; i < a->nr_entries; ++i) {
    uint64_t entry = i < a->l1.nr_entries ?
      a->l1.entries[i] & ~ENTRY_COPIED : 0;

    c->larger.entries[i] = entry;
    c->larger.durable[i] = htobe64 (entry);
  }
  return snapshot_new_table (c, &c->active_l1, METADATA_L1_TABLE,
                             c->larger.durable,
                             a->nr_entries * UINT64_C (8));
}

/* The L2 tables of MAP that OTHER has not: under guard, or no more. */
static int
guard_tables (struct snapshot_change *c, const struct l1_table *l1,
              const struct ref_map *other, bool add)
{
  uint32_t i;
  int r = 0;

  for (i = 0; i < l1->nr_entries && r == 0; ++i) {
    uint64_t offset = l1->entries[i] & ENTRY_OFFSET_MASK;

    if (offset == 0 ||
        ref_map_kind (other, offset >> other->cluster_bits) == REF_L2)
      continue;
    if (add)
      r = guard_add (c->top, METADATA_L2_TABLE, offset);
    else
      guard_remove (c->top, METADATA_L2_TABLE, offset);
  }
  return r;
}

static int
prepare (struct application *a)
{
  struct snapshot_change *c = &a->c;
  int r = writer_begin_operation (c->w, false);

  if (r == 0)
    r = snapshot_clear_flags (c, &a->l1, a->l1.nr_entries, false);
  if (r == 0)
    r = write_l1 (a);
  if (r == 0)
    r = snapshot_raise (c);
  if (r < 0)
    snapshot_undo (c);
  return r;
}

/*----- The switch, and after it -----*/

static int
switch_to (struct application *a)
{
  const struct header_change change = {
    .fields = HEADER_L1 | HEADER_SIZE, .size_bytes = a->size_bytes,
    .l1_offset = a->c.active_l1.offset, .l1_entries = a->nr_entries,
  };

  return snapshot_switch (&a->c, &change);
}

/* The old active L1 table, for what is to be done once it is replaced. */
static int
copy_l1 (const struct l1_table *l1, struct l1_table *copy)
{
  uint32_t i;

  copy->nr_entries = l1->nr_entries;
  copy->entries = malloc (l1->nr_entries * sizeof *copy->entries + 1);
  if (!copy->entries)
    return -ENOMEM;
  for (i = 0; i < l1->nr_entries; ++i)
    copy->entries[i] = l1->entries[i];
  return 0;
}

static int
replace (struct application *a, const struct l1_table *was)
{
  struct snapshot_change *c = &a->c;
  uint64_t was_offset = c->top->header.l1_offset;
  int r = prepare (a);

  if (r < 0)
    return r;
  r = guard_tables (c, &a->l1, &c->refs.less, true);
  if (r < 0) {
    guard_tables (c, &a->l1, &c->refs.less, false);
    snapshot_undo (c);
    return r;
  }
  r = switch_to (a);
  if (r < 0)
    return r;
  image_set_size (c->image, a->size_bytes);
  guard_tables (c, was, &c->refs.more, false);
  snapshot_retire (c, METADATA_L1_TABLE, was_offset,
                   was->nr_entries * UINT64_C (8));
  c->top->sparse = LAYER_SPARSE_UNKNOWN;
  snapshot_cleaned_up (c, snapshot_lower (c));
  return 0;
}

static int
apply (struct application *a)
{
  struct l1_table was = { .nr_entries = 0 };
  int r = plan (a);

  if (r == 0)
    r = copy_l1 (&a->c.top->l1, &was);
  if (r == 0)
    r = replace (a, &was);
  free ((void *) was.entries);
  return r;
}

int
qcow2_snapshot_apply (struct qcow2 *image, size_t index,
                      struct qcow2_error *error)
{
  struct application a = { .index = index };
  int r;

  r = snapshot_change_begin (&a.c, image, error);
  if (r == 0)
    r = apply (&a);
  free ((void *) a.l1.entries);
  return snapshot_change_end (&a.c, r, "the snapshot could not be applied");
}
