/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading a snapshot table that may be damaged.
 *
 * Entries are copied byte by byte, so what is not known here is kept.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "snapshot-mend.h"

/* What version 3 demands: the state's size and the disk's. */
#define MIN_EXTRA_BYTES offsetof (struct disk_snapshot_extra, icount)

struct reader {
  struct layer *layer;
  struct snapshot_mend *mend;
  bool repair;
  uint64_t file_bytes;
  uint64_t offset;              /* of the next entry */
  uint64_t room;                /* of mend->bytes */
  struct qcow2_error *error;
};

static void
tell (const struct reader *rd, const char *what, uint32_t index)
{
  char text[200];

  rd->mend->nr_wrong++;
  snprintf (text, sizeof text, "%s snapshot table entry %" PRIu32 ": %s",
            rd->repair ? "Repairing" : "ERROR", index, what);
  rd->mend->found (rd->mend->opaque, text);
}

/* Make room for COUNT more bytes of the new table, zeroed. */
static uint8_t *
append (struct reader *rd, uint64_t count)
{
  struct snapshot_mend *m = rd->mend;
  uint64_t room = m->nr_bytes + count + rd->room / 2;
  uint8_t *bytes;

  if (m->nr_bytes + count > rd->room) {
    bytes = realloc (m->bytes, room);
    if (!bytes)
      return NULL;
    m->bytes = bytes;
    rd->room = room;
  }
  memset (m->bytes + m->nr_bytes, 0, count);
  m->nr_bytes += count;
  return m->bytes + m->nr_bytes - count;
}

static uint64_t
align8 (uint64_t n)
{
  return (n + 7) & ~UINT64_C (7);
}

/* Fill in what version 3 wants and is not there. */
static void
complete_extra (const struct reader *rd, const struct disk_snapshot *d,
                uint32_t extra_bytes, uint8_t *extra)
{
  const struct disk_snapshot_extra x = {
    .vm_state_size = htobe64 (be32toh (d->vm_state_size)),
    .disk_size = htobe64 (rd->layer->header.size_bytes),
  };

  if (extra_bytes < offsetof (struct disk_snapshot_extra, disk_size))
    memcpy (extra, &x.vm_state_size, sizeof x.vm_state_size);
  memcpy (extra + sizeof x.vm_state_size, &x.disk_size, sizeof x.disk_size);
}

/* Copy entry D, whose parts are so long on disk, to the new table.  */
static int
copy_entry (struct reader *rd, const struct disk_snapshot *d,
            uint32_t extra_bytes, uint32_t names_bytes)
{
  uint32_t kept = extra_bytes > MAX_SNAPSHOT_EXTRA_BYTES ?
    MAX_SNAPSHOT_EXTRA_BYTES : extra_bytes, wanted = kept;
  struct disk_snapshot copy = *d;
  uint64_t at = rd->offset + sizeof *d;
  uint8_t *out;
  int r;

  if (rd->layer->header.version >= 3 && wanted < MIN_EXTRA_BYTES)
    wanted = MIN_EXTRA_BYTES;
  out = append (rd, align8 (sizeof copy + wanted + names_bytes));
  if (!out)
    return -ENOMEM;
  copy.extra_data_size = htobe32 (wanted);
  memcpy (out, &copy, sizeof copy);
  r = qcow2_storage_read_meta (rd->layer->file, out + sizeof copy, kept, at);
  if (r == 0)
    r = qcow2_storage_read_meta (rd->layer->file,
                                 out + sizeof copy + wanted, names_bytes,
                                 at + extra_bytes);
  if (wanted > kept)
    complete_extra (rd, d, kept, out + sizeof copy);
  return r;
}

/* Is there an id of COUNT bytes at OFFSET?  QEMU gives numbers. */
static bool
is_id (const struct reader *rd, uint64_t offset, uint32_t count)
{
  char id[8];
  uint32_t i;

  if (count == 0 || count > sizeof id || offset > rd->file_bytes - count ||
      qcow2_storage_read_meta (rd->layer->file, id, count, offset) < 0)
    return false;
  for (i = 0; i < count; ++i)
    if (id[i] < '0' || id[i] > '9')
      return false;
  return true;
}

/* How long the extra data of entry D is, even if it claims to be too long
 * or too short.  Snapshots would be lost by a wrong number, so what is
 * behind the extra data is looked for.
 */
static uint32_t
find_extra_bytes (const struct reader *rd, const struct disk_snapshot *d)
{
  uint32_t claimed = be32toh (d->extra_data_size), bytes;
  uint32_t id_bytes = be16toh (d->id_str_size);
  uint64_t at = rd->offset + sizeof *d;

  if ((claimed <= MAX_SNAPSHOT_EXTRA_BYTES &&
       (claimed >= MIN_EXTRA_BYTES || rd->layer->header.version < 3)) ||
      is_id (rd, at + claimed, id_bytes))
    return claimed;
  for (bytes = 0; bytes <= MAX_SNAPSHOT_EXTRA_BYTES; bytes += 8)
    if (is_id (rd, at + bytes, id_bytes))
      return bytes;
  return claimed;
}

/* A name of entry D that goes on behind the file is cut: the snapshot is more
 * than its name.
 */
static void
cut_name (const struct reader *rd, uint32_t index, uint32_t extra_bytes,
          struct disk_snapshot *d)
{
  uint64_t l1_offset = be64toh (d->l1_table_offset), room;
  uint32_t id_bytes = be16toh (d->id_str_size);
  uint64_t at = rd->offset + sizeof *d + extra_bytes;
  char c;

  if (l1_offset == 0 || l1_offset & (layer_cluster_bytes (rd->layer) - 1) ||
      !is_id (rd, at, id_bytes))
    return;
  at += id_bytes;
  room = rd->file_bytes - at;
  if (be16toh (d->name_size) <= room)
    return;
  /* What is behind an entry is padding. */
  while (room > 0 &&
         qcow2_storage_read_meta (rd->layer->file, &c, 1, at + room - 1) == 0 &&
         c == '\0')
    room--;
  d->name_size = htobe16 ((uint16_t) room);
  tell (rd, "its name is too long", index);
}

/* Does an entry end behind the file or the table's limit, or is it empty?
 * QEMU gives each snapshot an id.
 */
static bool
is_overhanging (const struct reader *rd, const struct disk_snapshot *d,
                uint64_t bytes)
{
  uint64_t start = rd->layer->header.snapshots_offset;

  return bytes > rd->file_bytes - rd->offset ||
    rd->offset + bytes - start > MAX_SNAPSHOT_TABLE_BYTES ||
    (d->l1_table_offset == 0 && d->id_str_size == 0 && d->name_size == 0);
}

static int
judge_entry (struct reader *rd, uint32_t index, uint32_t extra_bytes)
{
  if (extra_bytes > MAX_SNAPSHOT_EXTRA_BYTES) {
    if (!rd->repair)
      return qcow2_error_set (rd->error, EFBIG,
                              "snapshot table entry %" PRIu32 " has %" PRIu32
                              " bytes of extra data, at most %d are allowed; "
                              "\"-r all\" removes what is too much", index,
                              extra_bytes, MAX_SNAPSHOT_EXTRA_BYTES);
    tell (rd, "too much extra data", index);
  }
  else if (rd->layer->header.version >= 3 && extra_bytes < MIN_EXTRA_BYTES)
    tell (rd, "it is incomplete", index);
  return 0;
}

/* D is left out, and what is behind it.  It may have been a snapshot, which
 * named clusters, though there is nothing in it now; unless the header has a
 * number that can't be.
 */
static bool
is_lost (const struct reader *rd, const struct disk_snapshot *d)
{
  static const struct disk_snapshot nothing;

  return rd->layer->header.nr_snapshots <= MAX_SNAPSHOTS ||
    memcmp (d, &nothing, sizeof *d) != 0;
}

/* The file ends within an entry, or before it. */
static int
read_rest (struct reader *rd)
{
  struct disk_snapshot d = { .l1_table_offset = 0 };
  int r = qcow2_storage_read_meta (rd->layer->file, &d,
                                   rd->file_bytes - rd->offset, rd->offset);

  if (r < 0)
    return r;
  rd->mend->lost = is_lost (rd, &d);
  return 1;
}

/* Returns 1 if there are no more. */
static int
read_entry (struct reader *rd, uint32_t index)
{
  struct snapshot_mend *m = rd->mend;
  struct snapshot *sn = &m->table.snapshots[m->table.nr_snapshots];
  struct disk_snapshot d;
  uint32_t extra_bytes, names_bytes;
  uint64_t bytes = sizeof d;
  int r;

  if (sizeof d > rd->file_bytes - rd->offset)
    return read_rest (rd);
  r = qcow2_storage_read_meta (rd->layer->file, &d, sizeof d, rd->offset);
  if (r < 0)
    return r;
  extra_bytes = find_extra_bytes (rd, &d);
  cut_name (rd, index, extra_bytes, &d);
  names_bytes = be16toh (d.id_str_size) + (uint32_t) be16toh (d.name_size);
  bytes += (uint64_t) extra_bytes + names_bytes;
  if (is_overhanging (rd, &d, bytes)) {
    m->lost = is_lost (rd, &d);
    return 1;
  }
  r = judge_entry (rd, index, be32toh (d.extra_data_size));
  if (r == 0 && rd->repair)
    r = copy_entry (rd, &d, extra_bytes, names_bytes);
  if (r < 0)
    return r;
  sn->l1_offset = be64toh (d.l1_table_offset);
  sn->l1_entries = be32toh (d.l1_size);
  m->table.nr_snapshots++;
  m->table.table_bytes = rd->offset + bytes -
    rd->layer->header.snapshots_offset;
  rd->offset += align8 (bytes);
  if (rd->offset > rd->file_bytes)
    rd->offset = rd->file_bytes;
  return 0;
}

/* Entries from INDEX on can't be kept. */
static int
overhang (struct reader *rd, uint32_t index)
{
  uint32_t nr = rd->layer->header.nr_snapshots - index;
  char text[200];

  if (!rd->repair)
    return qcow2_error_set (rd->error, EFBIG,
                            "the snapshot table is too large or damaged: %"
                            PRIu32 " of %" PRIu32 " snapshots can't be read; "
                            "\"-r all\" removes them", nr,
                            rd->layer->header.nr_snapshots);
  snprintf (text, sizeof text, "Discarding %" PRIu32 " overhanging snapshots",
            nr);
  rd->mend->found (rd->mend->opaque, text);
  rd->mend->nr_wrong += nr;
  return 0;
}

static int
read_all (struct reader *rd)
{
  uint32_t nr = rd->layer->header.nr_snapshots, index;
  int r = 0;

  if (nr > MAX_SNAPSHOTS)
    nr = MAX_SNAPSHOTS;
  rd->mend->table.snapshots = calloc (nr, sizeof *rd->mend->table.snapshots);
  if (!rd->mend->table.snapshots)
    return -ENOMEM;
  for (index = 0; r == 0 && index < nr; ++index)
    r = read_entry (rd, index);
  if (r == 1)
    index--;
  else if (r == 0 && index < rd->layer->header.nr_snapshots)
    rd->mend->lost = true;
  if (r >= 0 && index < rd->layer->header.nr_snapshots)
    r = overhang (rd, index);
  return r;
}

int
snapshot_mend_read (struct layer *l, bool repair, struct snapshot_mend *m,
                    struct qcow2_error *error)
{
  struct qcow2_error why = { "" };
  struct reader rd = {
    .layer = l, .mend = m, .repair = repair,
    .offset = l->header.snapshots_offset, .error = &why,
  };
  int64_t file_bytes = qcow2_storage_size (l->file);
  int r;

  if (l->header.nr_snapshots == 0)
    return 0;
  if (file_bytes < 0)
    return qcow2_error_set (error, (int) -file_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -file_bytes));
  rd.file_bytes = (uint64_t) file_bytes;
  r = header_check_table (&l->header, rd.file_bytes, "snapshot table",
                          rd.offset, 1, sizeof (struct disk_snapshot),
                          MAX_SNAPSHOT_TABLE_BYTES, error);
  if (r < 0)
    return r;
  r = read_all (&rd);
  if (r < 0 && why.message[0])
    return qcow2_error_set (error, -r, "%s", why.message);
  return r < 0 ? qcow2_error_set (error, -r, "can't read the snapshot table: "
                                  "%s", strerror (-r)) : 0;
}

void
snapshot_mend_clear (struct snapshot_mend *m)
{
  free (m->table.snapshots);
  free (m->bytes);
  memset (&m->table, 0, sizeof m->table);
  m->bytes = NULL;
}
