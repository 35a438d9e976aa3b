/* SPDX-License-Identifier: BSD-3-Clause */

/* Taking a snapshot: a copy of the active L1 table.
 *
 * All that the copy names is shared then, so the COPIED flags go first.  What
 * lies behind the end of the disk, the state of a virtual machine, is not
 * shared but moves to the snapshot: the header names an active L1 table
 * without it at the moment when it names the snapshot.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "snapshot-change.h"

/* What QEMU can find again. */
#define MAX_NAME_BYTES 255
#define MAX_ID_BYTES 127

struct creation {
  struct snapshot_change c;
  const struct qcow2_snapshot_params *params;
  char id[MAX_ID_BYTES + 1];
  uint32_t nr_shared;           /* L1 entries; those behind them move */
  struct next_snapshots next;
};

/*----- Planning -----*/

static int
check_id (struct creation *cr)
{
  const struct snapshot_table *table = &cr->c.image->snapshots;

  if (strlen (cr->params->id) > MAX_ID_BYTES)
    return qcow2_error_set (cr->c.error, EINVAL, "the snapshot's id is too "
                            "long: at most %d bytes are allowed",
                            MAX_ID_BYTES);
  if (snapshot_table_find_id (table, cr->params->id) >= 0)
    return qcow2_error_set (cr->c.error, EEXIST, "there is a snapshot with "
                            "the id \"%s\" already", cr->params->id);
  strcpy (cr->id, cr->params->id);
  return 0;
}

/* The highest number that an id begins with, and one more. */
static void
make_id (struct creation *cr)
{
  const struct snapshot_table *table = &cr->c.image->snapshots;
  unsigned long long max = 0, id;
  size_t i;

  for (i = 0; i < table->nr_snapshots; ++i) {
    id = strtoull (table->snapshots[i].id, NULL, 10);
    if (id > max)
      max = id;
  }
  do
    snprintf (cr->id, sizeof cr->id, "%llu", ++max);
  while (snapshot_table_find_id (table, cr->id) >= 0);
}

static int
check_params (struct creation *cr)
{
  if (strlen (cr->params->name) > MAX_NAME_BYTES)
    return qcow2_error_set (cr->c.error, EINVAL, "the snapshot's name is too "
                            "long: at most %d bytes are allowed",
                            MAX_NAME_BYTES);
  if (cr->params->id)
    return check_id (cr);
  make_id (cr);
  return 0;
}

static int
plan (struct creation *cr)
{
  struct snapshot_change *c = &cr->c;
  const struct l1_table *l1 = &c->top->l1;
  uint64_t disk = header_disk_l1_entries (&c->top->header,
                                          c->top->size_bytes);
  int r = check_params (cr);

  cr->nr_shared = l1->nr_entries;
  if (cr->params->vm_state_bytes > 0 && disk < l1->nr_entries)
    cr->nr_shared = (uint32_t) disk;
  if (r == 0)
    r = l1_refs_count (&c->refs, l1, cr->nr_shared, true,
                       &c->refs.more);
  return r == 0 ? l1_refs_judge (&c->refs) : r;
}

/*----- Writing -----*/

/* Without flags, which are not to be there in it. */
static int
write_snapshot_l1 (struct creation *cr)
{
  struct snapshot_change *c = &cr->c;
  const struct l1_table *l1 = &c->top->l1;
  uint64_t *words = malloc (l1->nr_entries * sizeof *words + 1);
  uint32_t i;
  int r;

  if (!words)
    return -ENOMEM;
  for (i = 0; i < l1->nr_entries; ++i)
    words[i] = htobe64 (l1->entries[i] & ~ENTRY_COPIED);
  r = snapshot_new_table (c, &c->snapshot_l1, METADATA_SNAPSHOT_L1, words,
                          l1->nr_entries * sizeof *words);
  free (words);
  return r;
}

static int
write_snapshots (struct creation *cr)
{
  struct snapshot_change *c = &cr->c;
  const struct qcow2_snapshot_params *p = cr->params;
  const struct snapshot added = {
    .id = cr->id, .name = (char *) p->name,
    .l1_offset = c->snapshot_l1.offset, .l1_entries = c->top->l1.nr_entries,
    .date_sec = p->date_sec, .date_nsec = p->date_nsec,
    .vm_clock_nsec = p->vm_clock_nsec, .vm_state_bytes = p->vm_state_bytes,
    .disk_size_bytes = c->top->size_bytes, .has_disk_size = true,
    .icount = p->icount,
  };
  int r = next_snapshots_init (&cr->next, c->top->file, &c->top->header,
                               &c->image->snapshots, NO_SNAPSHOT, &added);

  if (r == -EFBIG)
    return qcow2_error_set (c->error, EFBIG, "the image has too many "
                            "snapshots (%zu)",
                            c->image->snapshots.nr_snapshots);
  if (r < 0)
    return r;
  return snapshot_new_table (c, &c->snapshots, METADATA_SNAPSHOT_TABLE,
                             cr->next.bytes, cr->next.table.table_bytes);
}

static bool
moves_vm_state (const struct creation *cr)
{
  return cr->nr_shared < cr->c.top->l1.nr_entries;
}

/* The active L1 table without the VM's state. */
static int
write_active_l1 (struct creation *cr)
{
  struct snapshot_change *c = &cr->c;
  uint32_t nr = c->top->l1.nr_entries, i;
  int r;

  if (!moves_vm_state (cr))
    return 0;
  r = l1_larger_init (&c->w->l1, nr, &c->larger);
  if (r < 0)
    return r;
  for (i = cr->nr_shared; i < nr; ++i)
    c->larger.entries[i] = c->larger.durable[i] = 0;
  return snapshot_new_table (c, &c->active_l1, METADATA_L1_TABLE,
                             c->larger.durable, nr * UINT64_C (8));
}

static int
prepare (struct creation *cr)
{
  struct snapshot_change *c = &cr->c;
  int r = writer_begin_operation (c->w, true);

  if (r == 0)
    r = snapshot_clear_flags (c, &c->top->l1, cr->nr_shared, true);
  if (r == 0)
    r = write_snapshot_l1 (cr);
  if (r == 0)
    r = write_snapshots (cr);
  if (r == 0)
    r = write_active_l1 (cr);
  if (r == 0)
    r = snapshot_raise (c);
  if (r < 0)
    snapshot_undo (c);
  return r;
}

/*----- The switch, and after it -----*/

static int
switch_to (struct creation *cr)
{
  const struct snapshot_change *c = &cr->c;
  const struct header_change change = {
    .fields = HEADER_SNAPSHOTS | (moves_vm_state (cr) ? HEADER_L1 : 0),
    .snapshots_offset = c->snapshots.offset,
    .nr_snapshots = (uint32_t) cr->next.table.nr_snapshots,
    .l1_offset = c->active_l1.offset, .l1_entries = c->top->l1.nr_entries,
  };

  return snapshot_switch (&cr->c, &change);
}

/* L2 tables that the active layer has no more. */
static void
unguard_vm_state (struct creation *cr, const struct l1_table *was)
{
  uint32_t i;

  for (i = cr->nr_shared; i < was->nr_entries; ++i)
    if (was->entries[i] & ENTRY_OFFSET_MASK)
      guard_remove (cr->c.top, METADATA_L2_TABLE,
                    was->entries[i] & ENTRY_OFFSET_MASK);
}

static int
create (struct creation *cr)
{
  struct snapshot_change *c = &cr->c;
  uint64_t old_l1_offset = c->top->header.l1_offset;
  int r;

  r = plan (cr);
  if (r == 0)
    r = prepare (cr);
  if (r < 0)
    return r;
  /* If this succeeds the table in memory is gone. */
  if (moves_vm_state (cr))
    unguard_vm_state (cr, &c->top->l1);
  r = switch_to (cr);
  if (r < 0)
    return r;
  snapshot_replace_table (c, &cr->next, NO_SNAPSHOT);
  if (moves_vm_state (cr))
    snapshot_retire (c, METADATA_L1_TABLE, old_l1_offset,
                     c->top->l1.nr_entries * UINT64_C (8));
  return 0;
}

int
qcow2_snapshot_create (struct qcow2 *image,
                       const struct qcow2_snapshot_params *params,
                       struct qcow2_error *error)
{
  struct creation cr = { .params = params };
  int r;

  r = snapshot_change_begin (&cr.c, image, error);
  if (r == 0)
    r = create (&cr);
  next_snapshots_clear (&cr.next);
  return snapshot_change_end (&cr.c, r,
                              "the snapshot could not be created");
}
