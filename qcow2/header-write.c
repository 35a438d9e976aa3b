/* SPDX-License-Identifier: BSD-3-Clause */

/* The one owner of the header on disk.
 *
 * Fields lie in sector 0.  To change them is to write that sector, whole
 * and durably, from the copy of what is durable.
 *
 * Extensions begin in sector 0 and run on from there, and the backing
 * file's name lies behind them, where sector 0 says.  Call a byte live if
 * what is in sector 0 leads to it.  Names and extensions are changed in
 * two steps:
 *
 *     write the new content beyond sector 0  -> durable
 *     write sector 0                         -> durable
 *
 * The first changes no live byte: so the old header is whole until the
 * second, and if power fails in the first, whatever part of it is there.
 * The second is one sector, so it is there or not; it leads to bytes that
 * are durable.  Sectors that the first writes may hold live bytes, too,
 * but these are written as they are.
 *
 * That can be done only if no byte is live before and after with
 * different values (header_layout_compatible).  The name can be moved
 * out of the way.  The extensions can't: behind the fields, they are
 * where they are.  So where they collide, they make a detour:
 *
 *     | fields | gap ................. | extensions | name |
 *     | fields | extensions | name |
 *
 * The first of these has all new content behind all that is live, and in
 * sector 0 no more than the fields and the head of an extension which nobody
 * knows (EXTENSION_GAP), so long that the others follow there.  What lies
 * inside is not live.  From the old header to the first, and from the
 * first to the second, both steps as above are possible.  Whatever a power
 * failure leaves has the old meaning or the new one; a gap that
 * it leaves goes away with the next change.
 *
 * A detour takes room for both.  Where there is none, the feature name
 * table is dropped, which is for messages alone; if that is not enough
 * the change is refused.
 *
 * After a failed write of sector 0, either content may be there.  Since
 * both are whole, to write the old one again is safe, and that comes
 * before anything that relies on knowing which bytes are live.
 */

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "header-layout.h"
#include "header-write.h"

struct header_writer {
  struct qcow2_storage *storage;
  unsigned version;
  size_t cluster_bytes;
  size_t header_bytes;

  pthread_mutex_t lock;         /* held while the header is written */
  struct header_layout durable;
  bool sector_0_unknown;        /* the last write of it failed */
};

static int
read_layout (struct header_writer *w, struct qcow2_error *error)
{
  uint8_t *cluster = malloc (w->cluster_bytes);
  int r;

  if (!cluster)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  r = qcow2_storage_read_meta (w->storage, cluster, w->cluster_bytes, 0);
  if (r < 0)
    qcow2_error_set (error, -r, "can't read the header: %s", strerror (-r));
  else
    r = header_layout_parse (cluster, w->cluster_bytes, w->header_bytes,
                             &w->durable, error);
  free (cluster);
  return r;
}

int
header_writer_new (struct qcow2_storage *s, const struct header *h,
                   struct header_writer **out, struct qcow2_error *error)
{
  struct header_writer *w = calloc (1, sizeof *w);
  int r;

  if (!w)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  w->storage = s;
  w->version = h->version;
  w->cluster_bytes = (size_t) 1 << h->cluster_bits;
  w->header_bytes = h->header_bytes;
  pthread_mutex_init (&w->lock, NULL);
  r = read_layout (w, error);
  if (r < 0) {
    header_writer_free (w);
    return r;
  }
  *out = w;
  return 0;
}

void
header_writer_free (struct header_writer *w)
{
  if (!w)
    return;
  header_layout_clear (&w->durable);
  pthread_mutex_destroy (&w->lock);
  free (w);
}

static int
write_sector_0 (struct header_writer *w, const uint8_t *sector)
{
  int r = qcow2_storage_write (w->storage, sector, SECTOR_BYTES, 0, true);

  w->sector_0_unknown = r < 0;
  return r;
}

/*----- Fields -----*/

static uint64_t
change_bits (uint64_t disk_bits, uint64_t set, uint64_t clear)
{
  return htobe64 ((be64toh (disk_bits) & ~clear) | set);
}

static int
change_features (struct disk_header *d, unsigned version,
                 const struct header_change *c)
{
  if (version < 3)
    return c->set.incompatible || c->set.compatible || c->set.autoclear ?
      -ENOTSUP : 0;
  d->incompatible_features = change_bits (d->incompatible_features,
                                          c->set.incompatible,
                                          c->clear.incompatible);
  d->compatible_features = change_bits (d->compatible_features,
                                        c->set.compatible,
                                        c->clear.compatible);
  d->autoclear_features = change_bits (d->autoclear_features,
                                       c->set.autoclear, c->clear.autoclear);
  return 0;
}

/* D has the fields of VERSION at least; others are not touched. */
static int
change_fields (struct disk_header *d, unsigned version,
               const struct header_change *c)
{
  if (c->fields & HEADER_SIZE)
    d->size = htobe64 (c->size_bytes);
  if (c->fields & HEADER_L1) {
    d->l1_table_offset = htobe64 (c->l1_offset);
    d->l1_size = htobe32 (c->l1_entries);
  }
  if (c->fields & HEADER_REFCOUNT_TABLE) {
    d->refcount_table_offset = htobe64 (c->refcount_table_offset);
    d->refcount_table_clusters = htobe32 (c->refcount_table_clusters);
  }
  if (c->fields & HEADER_SNAPSHOTS) {
    d->snapshots_offset = htobe64 (c->snapshots_offset);
    d->nb_snapshots = htobe32 (c->nr_snapshots);
  }
  return change_features (d, version, c);
}

static int
commit_locked (struct header_writer *w, const struct header_change *change)
{
  uint8_t sector[SECTOR_BYTES];
  int r;

  memcpy (sector, w->durable.bytes, sizeof sector);
  r = change_fields ((struct disk_header *) sector, w->version, change);
  if (r < 0)
    return r;
  if (!w->sector_0_unknown &&
      memcmp (sector, w->durable.bytes, sizeof sector) == 0)
    return 0;
  r = write_sector_0 (w, sector);
  if (r == 0)
    memcpy (w->durable.bytes, sector, sizeof sector);
  return r;
}

int
header_writer_commit (struct header_writer *w,
                      const struct header_change *change)
{
  int r;

  pthread_mutex_lock (&w->lock);
  r = commit_locked (w, change);
  pthread_mutex_unlock (&w->lock);
  return r;
}

int
header_writer_set_features (struct header_writer *w,
                            const struct header_features *set,
                            const struct header_features *clear)
{
  struct header_change change = { .fields = 0 };

  if (set)
    change.set = *set;
  if (clear)
    change.clear = *clear;
  return header_writer_commit (w, &change);
}

int
header_writer_set_size (struct header_writer *w, uint64_t size_bytes)
{
  struct header_change change = {
    .fields = HEADER_SIZE, .size_bytes = size_bytes,
  };

  return header_writer_commit (w, &change);
}

int
header_writer_set_l1 (struct header_writer *w, uint64_t offset,
                      uint32_t entries)
{
  struct header_change change = {
    .fields = HEADER_L1, .l1_offset = offset, .l1_entries = entries,
  };

  return header_writer_commit (w, &change);
}

int
header_writer_set_refcount_table (struct header_writer *w, uint64_t offset,
                                  uint32_t clusters)
{
  struct header_change change = {
    .fields = HEADER_REFCOUNT_TABLE,
    .refcount_table_offset = offset, .refcount_table_clusters = clusters,
  };

  return header_writer_commit (w, &change);
}

int
header_writer_set_snapshots (struct header_writer *w, uint64_t offset,
                             uint32_t nr)
{
  struct header_change change = {
    .fields = HEADER_SNAPSHOTS, .snapshots_offset = offset,
    .nr_snapshots = nr,
  };

  return header_writer_commit (w, &change);
}

void
header_writer_features (struct header_writer *w,
                        struct header_features *features)
{
  const struct disk_header *d;

  memset (features, 0, sizeof *features);
  if (w->version < 3)
    return;
  pthread_mutex_lock (&w->lock);
  d = (const struct disk_header *) w->durable.bytes;
  features->incompatible = be64toh (d->incompatible_features);
  features->compatible = be64toh (d->compatible_features);
  features->autoclear = be64toh (d->autoclear_features);
  pthread_mutex_unlock (&w->lock);
}

/*----- Names and extensions -----*/

#define MAX_CHANGES 4

/* What a rewrite is made of. */
struct rewrite {
  struct header_writer *w;
  uint8_t *fields;              /* as they are to be */
  char name[MAX_BACKING_NAME_BYTES];    /* of the backing file, likewise */
  size_t name_bytes;
  struct extension_change changes[MAX_CHANGES];
  size_t nr_changes;
  struct disk_bitmaps bitmaps;
  struct qcow2_error *error;
};

static int
check_length (const char *what, const char *text, size_t max_bytes,
              struct qcow2_error *error)
{
  if (text && strlen (text) > max_bytes)
    return qcow2_error_set (error, EINVAL,
                            "the %s is too long: %zu bytes, at most %zu are "
                            "allowed", what, strlen (text), max_bytes);
  return 0;
}

static int
check_parts (const struct header_parts *p, struct qcow2_error *error)
{
  int r = 0;

  if (p->parts & HEADER_BACKING_NAME)
    r = check_length ("name of the backing file", p->backing_name,
                      MAX_BACKING_NAME_BYTES, error);
  if (r == 0 && p->parts & HEADER_BACKING_FORMAT)
    r = check_length ("format of the backing file", p->backing_format,
                      MAX_BACKING_FORMAT_BYTES, error);
  if (r == 0 && p->parts & HEADER_DATA_FILE)
    r = check_length ("name of the data file", p->data_file,
                      MAX_DATA_FILE_NAME_BYTES, error);
  return r;
}

static void
add_change (struct rewrite *rw, uint32_t type, const void *data,
            size_t nr_bytes)
{
  rw->changes[rw->nr_changes++] = (struct extension_change) {
    .type = type, .data = data, .length_bytes = nr_bytes,
  };
}

static void
add_text (struct rewrite *rw, uint32_t type, const char *text)
{
  add_change (rw, type, text, text ? strlen (text) : 0);
}

static void
list_changes (struct rewrite *rw, const struct header_parts *p)
{
  if (p->parts & HEADER_BACKING_FORMAT)
    add_text (rw, EXTENSION_BACKING_FORMAT, p->backing_format);
  if (p->parts & HEADER_DATA_FILE)
    add_text (rw, EXTENSION_DATA_FILE, p->data_file);
  if (p->parts & HEADER_FEATURE_NAMES)
    add_change (rw, EXTENSION_FEATURE_NAMES, p->feature_names,
                p->nr_feature_names * sizeof *p->feature_names);
  if (p->parts & HEADER_BITMAPS) {
    rw->bitmaps.nb_bitmaps = htobe32 (p->nr_bitmaps);
    rw->bitmaps.bitmap_directory_size = htobe64 (p->bitmap_directory_bytes);
    rw->bitmaps.bitmap_directory_offset =
      htobe64 (p->bitmap_directory_offset);
    add_change (rw, EXTENSION_BITMAPS, &rw->bitmaps,
                p->nr_bitmaps > 0 ? sizeof rw->bitmaps : 0);
  }
}

/* The new name, or a copy of the durable one. */
static void
choose_name (struct rewrite *rw, const struct header_parts *p)
{
  const struct header_layout *layout = &rw->w->durable;
  const struct disk_header *d = (const struct disk_header *) layout->bytes;
  uint64_t offset = be64toh (d->backing_file_offset);
  uint32_t nr_bytes = be32toh (d->backing_file_size);

  if (p->parts & HEADER_BACKING_NAME) {
    if (!p->backing_name)
      return;
    rw->name_bytes = strlen (p->backing_name);
    memcpy (rw->name, p->backing_name, rw->name_bytes);
  }
  else if (offset != 0 && nr_bytes <= sizeof rw->name &&
           offset <= layout->nr_bytes &&
           nr_bytes <= layout->nr_bytes - offset) {
    rw->name_bytes = nr_bytes;
    memcpy (rw->name, layout->bytes + offset, nr_bytes);
  }
}

/* Both steps, from the durable layout to NEXT, which is consumed. */
static int
switch_to (struct header_writer *w, struct header_layout *next)
{
  const struct header_layout *old = &w->durable;
  size_t beyond = next->nr_bytes - SECTOR_BYTES, i;
  uint8_t *bytes = malloc (next->nr_bytes);
  int r = bytes ? 0 : -ENOMEM;

  if (r == 0 && beyond > 0) {
    memcpy (bytes, next->bytes, next->nr_bytes);
    for (i = SECTOR_BYTES; i < next->nr_bytes && i < old->nr_bytes; ++i)
      if (old->live[i])
        bytes[i] = old->bytes[i];
    r = qcow2_storage_write (w->storage, bytes + SECTOR_BYTES, beyond,
                             SECTOR_BYTES, true);
  }
  free (bytes);
  if (r == 0)
    r = write_sector_0 (w, next->bytes);
  if (r < 0) {
    header_layout_clear (next);
    return r;
  }
  header_layout_clear (&w->durable);
  w->durable = *next;
  return 0;
}

/* Extensions behind the fields, the name behind them: directly, or
 * behind all that is live now.  -EAGAIN if that collides, -ENOBUFS if the
 * cluster is too small for it.
 */
static int
try_directly (struct rewrite *rw, struct header_plan *plan)
{
  struct header_writer *w = rw->w;
  size_t end = plan->extensions_offset + plan->extensions->nr_bytes;
  size_t live_end = (header_layout_end (&w->durable) + 7) & ~(size_t) 7;
  struct header_layout next;
  unsigned i;
  int r;

  for (i = 0; i < 2; ++i) {
    plan->name_offset = i == 0 || live_end < end ? end : live_end;
    r = header_layout_build (plan, &next);
    if (r < 0)                  /* the second takes more room */
      return i == 0 ? r : -EAGAIN;
    if (header_layout_compatible (&w->durable, &next))
      return switch_to (w, &next);
    header_layout_clear (&next);
  }
  return -EAGAIN;
}

/* Go to where nothing collides.  Then the way back is free.  -ENOBUFS if
 * there is no such place.
 */
static int
make_detour (struct rewrite *rw, const struct header_plan *direct)
{
  struct header_writer *w = rw->w;
  struct header_plan plan = *direct;
  struct header_layout next;
  size_t away = header_layout_end (&w->durable);
  size_t end = direct->extensions_offset + direct->extensions->nr_bytes +
    rw->name_bytes;
  int r;

  if (w->header_bytes + sizeof (struct disk_extension) > SECTOR_BYTES)
    return -ENOBUFS;            /* the gap would not begin in sector 0 */
  if (away < end)
    away = end;
  plan.extensions_offset = (away + SECTOR_BYTES - 1) / SECTOR_BYTES *
    SECTOR_BYTES;
  plan.name_offset = plan.extensions_offset + plan.extensions->nr_bytes;
  r = header_layout_build (&plan, &next);
  if (r < 0)
    return r;
  return switch_to (w, &next);
}

static int
rewrite_with (struct rewrite *rw, bool drop_names)
{
  struct header_writer *w = rw->w;
  struct extension_list extensions;
  struct header_plan plan = {
    .fields = rw->fields, .header_bytes = w->header_bytes,
    .cluster_bytes = w->cluster_bytes,
    .extensions = &extensions, .extensions_offset = w->header_bytes,
    .name = rw->name_bytes > 0 ? rw->name : NULL,
    .name_bytes = rw->name_bytes,
  };
  int r;

  r = header_layout_extensions (&w->durable, w->header_bytes, rw->changes,
                                rw->nr_changes, drop_names,
                                w->cluster_bytes - w->header_bytes,
                                &extensions);
  if (r < 0)
    return r;
  r = try_directly (rw, &plan);
  if (r == -EAGAIN) {
    r = make_detour (rw, &plan);
    if (r == 0)
      r = try_directly (rw, &plan);
  }
  free (extensions.bytes);
  return r;
}

static int
rewrite_locked (struct rewrite *rw, const struct header_parts *parts,
                const struct header_change *change)
{
  struct header_writer *w = rw->w;
  int r = 0;

  memcpy (rw->fields, w->durable.bytes, w->header_bytes);
  if (change)
    r = change_fields ((struct disk_header *) rw->fields, w->version, change);
  if (r < 0)
    return qcow2_error_set (rw->error, -r, "an image of version 2 has no "
                            "feature bits");
  if (w->sector_0_unknown)
    r = write_sector_0 (w, w->durable.bytes);
  if (r == 0) {
    choose_name (rw, parts);
    list_changes (rw, parts);
    r = rewrite_with (rw, false);
    if (r == -ENOBUFS)
      r = rewrite_with (rw, true);
  }
  if (r == -ENOBUFS)
    return qcow2_error_set (rw->error, ENOSPC,
                            "there is no room in the first cluster (%zu "
                            "bytes) to change the header safely",
                            w->cluster_bytes);
  if (r < 0)
    return qcow2_error_set (rw->error, -r, "can't write the header: %s",
                            strerror (-r));
  return 0;
}

int
header_writer_rewrite (struct header_writer *w,
                       const struct header_parts *parts,
                       const struct header_change *change,
                       struct qcow2_error *error)
{
  struct rewrite rw = { .w = w, .error = error };
  int r;

  r = check_parts (parts, error);
  if (r < 0)
    return r;
  rw.fields = malloc (w->header_bytes);
  if (!rw.fields)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  pthread_mutex_lock (&w->lock);
  r = rewrite_locked (&rw, parts, change);
  pthread_mutex_unlock (&w->lock);
  free (rw.fields);
  return r;
}
