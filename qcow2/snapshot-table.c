/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading the snapshot table.
 *
 * Entries have no fixed length, so the table's end is known only when
 * the last one has been read: a cursor goes over the file and checks
 * each piece against the limit for the whole table and the file's size.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "snapshot-table.h"

struct cursor {
  struct qcow2_storage *s;
  uint64_t offset;
  uint64_t limit;               /* the table may not go on from here */
  uint64_t end;                 /* of the last entry, without padding */
};

static int
cursor_read (struct cursor *c, void *buf, size_t n)
{
  int r;

  if (n > c->limit - c->offset)
    return -EFBIG;
  r = qcow2_storage_read_meta (c->s, buf, n, c->offset);
  if (r < 0)
    return r;
  c->offset += n;
  return 0;
}

static int
cursor_skip (struct cursor *c, uint64_t n)
{
  if (n > c->limit - c->offset)
    return -EFBIG;
  c->offset += n;
  return 0;
}

/* The padding after the last entry may be missing in the file. */
static void
cursor_align (struct cursor *c)
{
  c->end = c->offset;
  c->offset = (c->offset + 7) & ~UINT64_C (7);
  if (c->offset > c->limit)
    c->offset = c->limit;
}

static int
read_string (struct cursor *c, size_t n, char **out)
{
  int r;

  *out = calloc (1, n + 1);
  if (!*out)
    return -ENOMEM;
  r = cursor_read (c, *out, n);
  if (r < 0) {
    free (*out);
    *out = NULL;
  }
  return r;
}

static void
decode (const struct disk_snapshot *d, const struct disk_snapshot_extra *x,
        uint32_t extra_bytes, const struct header *h, struct snapshot *sn)
{
  sn->l1_offset = be64toh (d->l1_table_offset);
  sn->l1_entries = be32toh (d->l1_size);
  sn->date_sec = be32toh (d->date_sec);
  sn->date_nsec = be32toh (d->date_nsec);
  sn->vm_clock_nsec = be64toh (d->vm_clock_nsec);
  sn->vm_state_bytes = be32toh (d->vm_state_size);
  sn->disk_size_bytes = h->size_bytes;
  sn->has_disk_size =
    extra_bytes >= offsetof (struct disk_snapshot_extra, icount);
  sn->icount = QCOW2_NO_ICOUNT;

  if (extra_bytes >= offsetof (struct disk_snapshot_extra, disk_size))
    sn->vm_state_bytes = be64toh (x->vm_state_size);
  if (sn->has_disk_size)
    sn->disk_size_bytes = be64toh (x->disk_size);
  if (extra_bytes >= sizeof *x)
    sn->icount = be64toh (x->icount);
}

static int
read_entry (struct cursor *c, const struct header *h, size_t index,
            struct snapshot *sn, struct qcow2_error *error)
{
  struct disk_snapshot d;
  struct disk_snapshot_extra x = { 0 };
  uint32_t extra_bytes;
  size_t known;
  int r;

  sn->entry_offset = c->offset - h->snapshots_offset;
  r = cursor_read (c, &d, sizeof d);
  if (r < 0)
    return r;
  extra_bytes = be32toh (d.extra_data_size);
  if (extra_bytes > MAX_SNAPSHOT_EXTRA_BYTES)
    return qcow2_error_set (error, EINVAL,
                            "snapshot table entry %zu: extra_data_size is "
                            "%" PRIu32 ", at most %d are allowed", index,
                            extra_bytes, MAX_SNAPSHOT_EXTRA_BYTES);

  known = extra_bytes < sizeof x ? extra_bytes : sizeof x;
  r = cursor_read (c, &x, known);
  if (r < 0)
    return r;
  r = cursor_skip (c, extra_bytes - known);
  if (r < 0)
    return r;
  decode (&d, &x, extra_bytes, h, sn);

  r = read_string (c, be16toh (d.id_str_size), &sn->id);
  if (r < 0)
    return r;
  r = read_string (c, be16toh (d.name_size), &sn->name);
  if (r < 0)
    return r;
  sn->entry_bytes = c->offset - h->snapshots_offset - sn->entry_offset;
  cursor_align (c);
  return 0;
}

/* Turn an errno without a message into one. */
static int
explain (int r, size_t index, struct qcow2_error *error)
{
  if (r == -EFBIG)
    return qcow2_error_set (error, EFBIG,
                            "snapshot table too large: entry %zu goes beyond "
                            "%" PRIu64 " bytes", index,
                            MAX_SNAPSHOT_TABLE_BYTES);
  return qcow2_error_set (error, -r,
                          "can't read snapshot table entry %zu: %s", index,
                          r == -EIO ? "Input/output error, or the file is "
                          "truncated" : strerror (-r));
}

int
snapshot_table_read (struct qcow2_storage *s, const struct header *h,
                     struct snapshot_table *table, struct qcow2_error *error)
{
  struct cursor c = {
    .s = s,
    .offset = h->snapshots_offset,
    .limit = h->snapshots_offset + MAX_SNAPSHOT_TABLE_BYTES,
  };
  size_t i;
  int r;

  table->nr_snapshots = 0;
  table->snapshots = NULL;
  table->table_bytes = 0;
  if (h->nr_snapshots == 0)
    return 0;

  /* header_read has compared the count with the size of the file. */
  table->snapshots = calloc (h->nr_snapshots, sizeof *table->snapshots);
  if (!table->snapshots)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  table->nr_snapshots = h->nr_snapshots;

  for (i = 0; i < table->nr_snapshots; ++i) {
    if (error)
      error->message[0] = '\0';
    r = read_entry (&c, h, i, &table->snapshots[i], error);
    if (r < 0) {
      if (!error || error->message[0] == '\0')
        explain (r, i, error);
      snapshot_table_clear (table);
      return r;
    }
  }
  table->table_bytes = c.end - h->snapshots_offset;
  return 0;
}

void
snapshot_table_describe (const struct snapshot_table *table, size_t index,
                         struct qcow2_snapshot_info *info)
{
  const struct snapshot *sn = &table->snapshots[index];

  info->id = sn->id;
  info->name = sn->name;
  info->disk_size_bytes = sn->disk_size_bytes;
  info->vm_state_bytes = sn->vm_state_bytes;
  info->date_sec = sn->date_sec;
  info->date_nsec = sn->date_nsec;
  info->vm_clock_nsec = sn->vm_clock_nsec;
  info->icount = sn->icount;
}

void
snapshot_table_clear (struct snapshot_table *table)
{
  size_t i;

  for (i = 0; i < table->nr_snapshots; ++i) {
    free (table->snapshots[i].id);
    free (table->snapshots[i].name);
  }
  free (table->snapshots);
  table->snapshots = NULL;
  table->nr_snapshots = 0;
}

int
snapshot_table_find_id (const struct snapshot_table *table, const char *id)
{
  size_t i;

  for (i = 0; i < table->nr_snapshots; ++i)
    if (strcmp (table->snapshots[i].id, id) == 0)
      return (int) i;
  return -ENOENT;
}

int
snapshot_table_find_name (const struct snapshot_table *table,
                          const char *name)
{
  size_t i;

  for (i = 0; i < table->nr_snapshots; ++i)
    if (strcmp (table->snapshots[i].name, name) == 0)
      return (int) i;
  return -ENOENT;
}

int
snapshot_table_find (const struct snapshot_table *table,
                     const char *id_or_name)
{
  int r = snapshot_table_find_id (table, id_or_name);

  return r == -ENOENT ? snapshot_table_find_name (table, id_or_name) : r;
}
