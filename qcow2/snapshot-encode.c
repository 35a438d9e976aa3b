/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a snapshot table that is to replace another. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "snapshot-encode.h"

static uint64_t
align_8 (uint64_t n)
{
  return (n + 7) & ~UINT64_C (7);
}

static uint64_t
added_bytes (const struct snapshot *sn)
{
  return sizeof (struct disk_snapshot) + sizeof (struct disk_snapshot_extra) +
    strlen (sn->id) + strlen (sn->name);
}

/* As QEMU does in both versions.  A VM's state that is too large for the
 * old field is only in the new one.
 */
static void
encode (uint8_t *p, const struct snapshot *sn)
{
  size_t id_bytes = strlen (sn->id), name_bytes = strlen (sn->name);
  const struct disk_snapshot d = {
    .l1_table_offset = htobe64 (sn->l1_offset),
    .l1_size = htobe32 (sn->l1_entries),
    .id_str_size = htobe16 ((uint16_t) id_bytes),
    .name_size = htobe16 ((uint16_t) name_bytes),
    .date_sec = htobe32 (sn->date_sec),
    .date_nsec = htobe32 (sn->date_nsec),
    .vm_clock_nsec = htobe64 (sn->vm_clock_nsec),
    .vm_state_size = sn->vm_state_bytes > UINT32_MAX ? 0 :
      htobe32 ((uint32_t) sn->vm_state_bytes),
    .extra_data_size = htobe32 (sizeof (struct disk_snapshot_extra)),
  };
  const struct disk_snapshot_extra x = {
    .vm_state_size = htobe64 (sn->vm_state_bytes),
    .disk_size = htobe64 (sn->disk_size_bytes),
    .icount = htobe64 (sn->icount),
  };

  memcpy (p, &d, sizeof d);
  p += sizeof d;
  memcpy (p, &x, sizeof x);
  p += sizeof x;
  memcpy (p, sn->id, id_bytes);
  memcpy (p + id_bytes, sn->name, name_bytes);
}

static int
add_entry (struct next_snapshots *next, const struct snapshot *add)
{
  struct snapshot_table *t = &next->table;
  struct snapshot *sn = &t->snapshots[t->nr_snapshots];

  *sn = *add;
  sn->id = strdup (add->id);
  sn->name = strdup (add->name);
  next->added = sn;
  t->nr_snapshots++;
  if (!sn->id || !sn->name)
    return -ENOMEM;
  sn->entry_offset = align_8 (t->table_bytes);
  sn->entry_bytes = added_bytes (add);
  encode (next->bytes + sn->entry_offset, sn);
  t->table_bytes = sn->entry_offset + sn->entry_bytes;
  return 0;
}

static void
copy_entries (struct next_snapshots *next, const uint8_t *was,
              const struct snapshot_table *old, size_t skip)
{
  struct snapshot_table *t = &next->table;
  size_t i;

  for (i = 0; i < old->nr_snapshots; ++i) {
    struct snapshot *sn = &t->snapshots[t->nr_snapshots];

    if (i == skip)
      continue;
    *sn = old->snapshots[i];
    sn->entry_offset = align_8 (t->table_bytes);
    memcpy (next->bytes + sn->entry_offset,
            was + old->snapshots[i].entry_offset, sn->entry_bytes);
    t->table_bytes = sn->entry_offset + sn->entry_bytes;
    t->nr_snapshots++;
  }
}

int
next_snapshots_init (struct next_snapshots *next, struct qcow2_storage *s,
                     const struct header *h,
                     const struct snapshot_table *old, size_t skip,
                     const struct snapshot *add)
{
  uint64_t bytes = align_8 (old->table_bytes) + (add ? added_bytes (add) : 0);
  uint8_t *was = malloc (old->table_bytes + 1);
  int r = -ENOMEM;

  memset (next, 0, sizeof *next);
  next->table.snapshots = calloc (old->nr_snapshots + 1,
                                  sizeof *next->table.snapshots);
  next->bytes = calloc (1, bytes + 1);
  if (was && next->bytes && next->table.snapshots)
    r = old->table_bytes > 0 ?
      qcow2_storage_read_meta (s, was, old->table_bytes,
                               h->snapshots_offset) : 0;
  if (r == 0) {
    copy_entries (next, was, old, skip);
    if (add)
      r = add_entry (next, add);
  }
  if (r == 0 && add && (next->table.nr_snapshots > MAX_SNAPSHOTS ||
                        next->table.table_bytes > MAX_SNAPSHOT_TABLE_BYTES))
    r = -EFBIG;
  free (was);
  if (r < 0)
    next_snapshots_clear (next);
  return r;
}

void
next_snapshots_clear (struct next_snapshots *next)
{
  if (next->added) {
    free (next->added->id);
    free (next->added->name);
  }
  free (next->table.snapshots);
  free (next->bytes);
  memset (next, 0, sizeof *next);
}

void
next_snapshots_replace (struct next_snapshots *next,
                        struct snapshot_table *old, size_t skip)
{
  if (skip != NO_SNAPSHOT) {
    free (old->snapshots[skip].id);
    free (old->snapshots[skip].name);
  }
  free (old->snapshots);
  *old = next->table;
  free (next->bytes);
  memset (next, 0, sizeof *next);
}
