/* SPDX-License-Identifier: BSD-3-Clause */

/* What is under guard, and what becomes of an image that is corrupt.
 *
 * Setting the corrupt bit is safe at any moment: it is one durable write of
 * the header's first sector, made by the header's owner from what is durable
 * there.  It says nothing about what else is on disk, so it needs no order
 * with other writes.
 *
 * What was not committed when corruption was met stays so: its refcounts and
 * entries were derived from metadata that can't be trusted any more.  On disk
 * this is as after a power failure: what was flushed is there, clusters may
 * have leaked.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "guard.h"

/*----- What is under guard -----*/

static bool
is_aligned (const struct layer *l, uint64_t offset)
{
  return (offset & (layer_cluster_bytes (l) - 1)) == 0;
}

static struct metadata_range
range_of (const struct layer *l, enum metadata_kind kind, uint64_t offset,
          uint64_t bytes)
{
  unsigned bits = l->header.cluster_bits;

  return (struct metadata_range) {
    .kind = kind, .first = offset >> bits,
    .end = (offset + bytes + layer_cluster_bytes (l) - 1) >> bits,
  };
}

int
guard_add_table (struct layer *l, enum metadata_kind kind, uint64_t offset,
                 uint64_t bytes)
{
  struct metadata_range range = range_of (l, kind, offset, bytes);

  return metadata_set_add_ranges (&l->guard->set, &range, bytes > 0);
}

void
guard_remove_table (struct layer *l, enum metadata_kind kind,
                    uint64_t offset, uint64_t bytes)
{
  struct metadata_range range = range_of (l, kind, offset, bytes);

  if (bytes > 0)
    metadata_set_remove_range (&l->guard->set, &range);
}

int
guard_add (struct layer *l, enum metadata_kind kind, uint64_t offset)
{
  if (offset == 0 || !is_aligned (l, offset))
    return 0;
  return metadata_set_add (&l->guard->set, kind,
                           offset >> l->header.cluster_bits);
}

void
guard_remove (struct layer *l, enum metadata_kind kind, uint64_t offset)
{
  metadata_set_remove (&l->guard->set, kind,
                       offset >> l->header.cluster_bits);
}

/* Snapshots' L1 tables are checked when they are used: so much of each as
 * could be used.  No file goes on behind INT64_MAX, where the end of a range
 * would not be a number any more.
 */
static int
add_snapshots (struct layer *l, const struct snapshot_table *snapshots)
{
  struct metadata_range *ranges =
    calloc (snapshots->nr_snapshots + 1, sizeof *ranges);
  size_t nr = 0, i;
  int r;

  if (!ranges)
    return -ENOMEM;
  for (i = 0; i < snapshots->nr_snapshots; ++i) {
    const struct snapshot *sn = &snapshots->snapshots[i];
    uint64_t bytes = (uint64_t) sn->l1_entries * 8;

    if (bytes > MAX_L1_BYTES)
      bytes = MAX_L1_BYTES;
    if (bytes > 0 && sn->l1_offset != 0 && is_aligned (l, sn->l1_offset) &&
        sn->l1_offset <= INT64_MAX)
      ranges[nr++] = range_of (l, METADATA_SNAPSHOT_L1, sn->l1_offset, bytes);
  }
  r = metadata_set_add_ranges (&l->guard->set, ranges, nr);
  free (ranges);
  return r;
}

static int
add_tables (struct layer *l, const struct snapshot_table *snapshots)
{
  const struct header *h = &l->header;
  uint32_t i;
  int r;

  r = guard_add_table (l, METADATA_HEADER, 0, layer_cluster_bytes (l));
  if (r == 0)
    r = guard_add_table (l, METADATA_L1_TABLE, h->l1_offset,
                         (uint64_t) h->l1_entries * 8);
  if (r == 0)
    r = guard_add_table (l, METADATA_SNAPSHOT_TABLE, h->snapshots_offset,
                         snapshots->table_bytes);
  if (r == 0 && h->autoclear_features & AUTOCLEAR_BITMAPS)
    r = guard_add_table (l, METADATA_BITMAP_DIRECTORY,
                         h->bitmap_directory_offset,
                         h->bitmap_directory_bytes);
  if (r == 0)
    r = add_snapshots (l, snapshots);
  for (i = 0; i < l->l1.nr_entries && r == 0; ++i)
    r = guard_add (l, METADATA_L2_TABLE,
                   l->l1.entries[i] & ENTRY_OFFSET_MASK);
  return r;
}

/* For the hash table's first size. */
static size_t
count_entries (const struct layer *l)
{
  size_t nr = 0;
  uint32_t i;

  for (i = 0; i < l->l1.nr_entries; ++i)
    nr += l->l1.entries[i] != 0;
  return nr;
}

int
guard_new (struct layer *l, const struct snapshot_table *snapshots,
           struct header_writer *header)
{
  struct guard *g = calloc (1, sizeof *g);
  int r;

  if (!g)
    return -ENOMEM;
  g->header = header;
  r = metadata_set_init (&g->set, count_entries (l));
  if (r < 0) {
    free (g);
    return r;
  }
  l->guard = g;
  return add_tables (l, snapshots);
}

void
guard_free (struct layer *l)
{
  if (!l->guard)
    return;
  metadata_set_destroy (&l->guard->set);
  free (l->guard);
  l->guard = NULL;
}

/*----- Corruption -----*/

/* Autoclear features that nobody here knows go with any change. */
static int
set_corrupt_bit (struct guard *g)
{
  const struct header_features set = { .incompatible = INCOMPAT_CORRUPT };
  const struct header_features clear = {
    .autoclear = ~(AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA),
  };

  return header_writer_set_features (g->header, &set, &clear);
}

int
guard_corrupt (const struct layer *l, const char *fs, ...)
{
  struct guard *g = l->guard;
  char text[512], note[128] = "";
  va_list args;
  int r;

  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);

  if (!g || atomic_exchange (&g->corrupt, true)) {
    log_message (&l->log, QCOW2_LOG_ERROR,
                 "%s: the image is corrupt: %s; use \"qcow2-img check\"",
                 l->filename, text);
    return -EIO;
  }
  r = set_corrupt_bit (g);
  if (r < 0 && r != -ENOTSUP)   /* version 2 has no such bit */
    snprintf (note, sizeof note, "; the corrupt bit can't be set: %s",
              log_errno_text (-r));
  log_message (&l->log, QCOW2_LOG_ERROR,
               "%s: %s: %s; further writes are refused; use "
               "\"qcow2-img check -r all\"%s", l->filename,
               r == 0 ? "marking image as corrupt" : "the image is corrupt",
               text, note);
  return -EIO;
}

static const char *const kind_names[] = {
  [METADATA_NONE] = "a cluster that is none",
  [METADATA_L2_TABLE] = "an L2 table",
  [METADATA_REFCOUNT_BLOCK] = "a refcount block",
  [METADATA_SEVERAL] = "a cluster in which two structures lie",
  [METADATA_HEADER] = "the header",
  [METADATA_L1_TABLE] = "the L1 table",
  [METADATA_REFCOUNT_TABLE] = "the refcount table",
  [METADATA_SNAPSHOT_TABLE] = "the snapshot table",
  [METADATA_SNAPSHOT_L1] = "a snapshot's L1 table",
  [METADATA_BITMAP_DIRECTORY] = "the bitmap directory",
};

int
guard_refuse (const struct layer *l, const char *what,
              const struct metadata_hit *hit)
{
  if (guard_is_corrupt (l))
    return -EIO;
  return guard_corrupt (l, "%s at host offset 0x%" PRIx64 " would be in %s",
                        what, hit->cluster << l->header.cluster_bits,
                        kind_names[hit->kind]);
}

bool
guard_is_past_end (const struct layer *l, uint64_t offset, uint64_t bytes)
{
  int64_t size_bytes;

  if (!l->guard)
    return false;
  size_bytes = qcow2_storage_size (l->file);
  return size_bytes >= 0 &&
    (offset > (uint64_t) size_bytes ||
     bytes > (uint64_t) size_bytes - offset);
}
