/* SPDX-License-Identifier: BSD-3-Clause */

/* Going over all L2 tables of an L1 table, many at a time. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "guard.h"
#include "l1-walk.h"
#include "l2-walk.h"

#define BUFFER_BYTES (UINT64_C (4) << 20)
#define SECTOR_BYTES 512
#define SECTOR_WORDS 64

struct table_place {
  uint64_t host_offset;
  uint32_t l1_index;
};

struct walk_state {
  const struct l1_walk *walk;
  struct layer *layer;
  uint64_t cluster_bytes;
  uint64_t file_bytes;
  struct table_place *tables;   /* in the order of the file */
  size_t nr_tables;
  uint64_t *buf;
  uint8_t *changed;             /* for each sector of BUF */
};

/*----- Where the tables are -----*/

/* A snapshot's table may be the active layer's, too. */
static int
check_table (const struct walk_state *s, const struct table_place *t)
{
  const struct layer *l = s->layer;
  uint64_t cluster = t->host_offset >> l->header.cluster_bits;
  struct metadata_hit hit;

  if (t->host_offset & (s->cluster_bytes - 1))
    return guard_corrupt (l, "%s L1 table, entry %" PRIu32 ": the L2 table at "
                          "0x%" PRIx64 " is not aligned",
                          s->walk->is_active ? "active" : "a snapshot's",
                          t->l1_index, t->host_offset);
  if (t->host_offset > s->file_bytes ||
      s->cluster_bytes > s->file_bytes - t->host_offset)
    return guard_corrupt (l, "%s L1 table, entry %" PRIu32 ": the L2 table at "
                          "0x%" PRIx64 " is past the end of the file",
                          s->walk->is_active ? "active" : "a snapshot's",
                          t->l1_index, t->host_offset);
  if (!s->walk->is_active &&
      metadata_set_is (&l->guard->set, METADATA_NONE, cluster, 1, &hit))
    return 0;
  return guard_check (l, METADATA_L2_TABLE, t->host_offset, s->cluster_bytes,
                      "an L2 table");
}

static int
compare (const void *a, const void *b)
{
  const struct table_place *x = a, *y = b;

  return x->host_offset < y->host_offset ? -1 :
    x->host_offset > y->host_offset;
}

static int
check_twice (const struct walk_state *s)
{
  size_t i;

  for (i = 1; i < s->nr_tables; ++i)
    if (s->tables[i].host_offset == s->tables[i - 1].host_offset)
      return guard_corrupt (s->layer, "%s L1 table names the L2 table at "
                            "0x%" PRIx64 " twice",
                            s->walk->is_active ? "the active" :
                            "a snapshot's", s->tables[i].host_offset);
  return 0;
}

static int
list_tables (struct walk_state *s)
{
  const struct l1_walk *walk = s->walk;
  uint32_t i;
  int r;

  s->tables = calloc ((size_t) walk->nr_entries + 1, sizeof *s->tables);
  if (!s->tables)
    return -ENOMEM;
  for (i = 0; i < walk->nr_entries; ++i) {
    struct table_place t = { walk->l1->entries[i] & ENTRY_OFFSET_MASK, i };

    if (t.host_offset == 0)
      continue;
    r = check_table (s, &t);
    if (r < 0)
      return r;
    s->tables[s->nr_tables++] = t;
  }
  qsort (s->tables, s->nr_tables, sizeof *s->tables, compare);
  return check_twice (s);
}

/*----- A buffer full of them -----*/

/* How many lie in a row from table FIRST on; at most a buffer full. */
static size_t
tables_in_a_row (const struct walk_state *s, size_t first)
{
  size_t max = BUFFER_BYTES / s->cluster_bytes, nr = 1;

  while (nr < max && first + nr < s->nr_tables &&
         s->tables[first + nr].host_offset ==
         s->tables[first].host_offset + nr * s->cluster_bytes)
    nr++;
  return nr;
}

/* HOLES: they were not read. */
static int
call (const struct walk_state *s, size_t first, size_t nr, bool holes)
{
  unsigned l1_bits = header_l1_entry_bits (&s->layer->header);
  size_t i;
  int r = 0;

  memset (s->changed, 0, nr * s->cluster_bytes / SECTOR_BYTES);
  for (i = 0; i < nr && r == 0; ++i) {
    const struct table_place *t = &s->tables[first + i];
    const struct walked_table table = {
      .host_offset = t->host_offset,
      .guest_offset = (uint64_t) t->l1_index << l1_bits,
      .words = holes ? NULL : s->buf + i * s->cluster_bytes / 8,
      .changed = s->changed + i * s->cluster_bytes / SECTOR_BYTES,
    };

    r = s->walk->fn (s->walk->opaque, &table);
  }
  return r;
}

/* Adjacent sectors go together.  *SOME: there were any. */
static int
write_changed (const struct walk_state *s, uint64_t offset, size_t nr_sectors,
               bool *some)
{
  size_t i, n;
  int r;

  *some = false;
  for (i = 0; i < nr_sectors; i += n) {
    for (n = 0; i + n < nr_sectors && s->changed[i + n]; ++n)
      ;
    if (n == 0) {
      n = 1;
      continue;
    }
    *some = true;
    r = qcow2_storage_write (s->layer->file, s->buf + i * SECTOR_WORDS,
                             n * SECTOR_BYTES, offset + i * SECTOR_BYTES,
                             false);
    if (r < 0)
      return r;
  }
  return 0;
}

/* One table after the other: slots are larger than a table where a backing file
 * has larger clusters.
 */
static void
drop_slices (const struct walk_state *s, uint64_t offset, uint64_t end)
{
  for (; offset < end; offset += s->cluster_bytes)
    slice_cache_drop (s->layer->slices, offset, offset + s->cluster_bytes);
}

static int
walk_row (const struct walk_state *s, size_t first, size_t nr)
{
  uint64_t offset = s->tables[first].host_offset;
  size_t bytes = nr * s->cluster_bytes;
  bool some;
  int r;

  r = qcow2_storage_read_meta (s->layer->file, s->buf, bytes, offset);
  if (r == 0)
    r = call (s, first, nr, false);
  if (r < 0)
    return r;
  r = write_changed (s, offset, bytes / SECTOR_BYTES, &some);
  if (some) {
    /* After an error any of it may be there. */
    epoch_note_write (epoch_first_ticket (&s->walk->w->image->epoch));
    drop_slices (s, offset, offset + bytes);
  }
  return r;
}

/* A row, or what of it is alike: holes are not read, since a file may claim to
 * have many tables that were never written.  *NR: so many tables.
 */
static int
walk_alike (const struct walk_state *s, size_t first, size_t *nr)
{
  uint64_t cluster = s->tables[first].host_offset >>
    s->layer->header.cluster_bits;
  bool hole;

  *nr = l2_walk_alike (s->layer, cluster,
                       cluster + tables_in_a_row (s, first), &hole);
  return hole ? call (s, first, *nr, true) : walk_row (s, first, *nr);
}

int
l1_walk (const struct l1_walk *walk)
{
  struct walk_state s = {
    .walk = walk, .layer = walk->w->top,
    .cluster_bytes = layer_cluster_bytes (walk->w->top),
  };
  int64_t file_bytes = qcow2_storage_size (s.layer->file);
  size_t i, nr;
  int r;

  if (file_bytes < 0)
    return (int) file_bytes;
  s.file_bytes = (uint64_t) file_bytes;
  r = list_tables (&s);
  if (r == 0 && s.nr_tables > 0) {
    s.buf = malloc (BUFFER_BYTES);
    s.changed = malloc (BUFFER_BYTES / SECTOR_BYTES);
    r = s.buf && s.changed ? 0 : -ENOMEM;
  }
  for (i = 0; i < s.nr_tables && r == 0; i += nr)
    r = walk_alike (&s, i, &nr);
  free (s.tables);
  free (s.buf);
  free (s.changed);
  return r;
}
