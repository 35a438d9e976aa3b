/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting all references to host clusters.
 *
 * First come the L1 tables and all that is not reached through L2
 * tables.  Then the map knows all L2 tables and how often each is
 * referenced; they are read in the order in which they lie in the file,
 * many at a time.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "count-refs.h"
#include "format.h"

/* "Cluster mapping", "Refcount table entry": bits that must be 0. */
#define L1_RESERVED UINT64_C (0x7f000000000001ff)
#define L2_RESERVED UINT64_C (0x3f000000000001fe)
#define REFCOUNT_TABLE_RESERVED UINT64_C (0x1ff)

/*----- What the parts of the walk share -----*/

int
ref_problem (const struct ref_counter *c, const struct ref_place *at,
             const char *problem)
{
  char text[200];

  snprintf (text, sizeof text, "%s at 0x%" PRIx64 ", entry %" PRIu64 ": %s",
            at->what, at->offset, at->index, problem);
  return c->walk->problem (c->walk->opaque, text);
}

int
ref_count (const struct ref_counter *c, enum ref_kind kind, uint64_t offset,
           uint64_t bytes, uint32_t times, const struct ref_place *at,
           bool *good)
{
  static const char *const problems[] = {
    [REF_OUTSIDE] = "past the end of the file",
    [REF_OVERLAP] = "in use for something else, too",
    [REF_TOO_MANY] = "referenced too often",
  };
  enum ref_verdict verdict =
    ref_map_add (c->walk->map, kind, offset, bytes, times);
  char text[100];

  *good = verdict == REF_GOOD;
  if (*good)
    return 0;
  snprintf (text, sizeof text, "what it names at 0x%" PRIx64 " is %s",
            offset, problems[verdict]);
  return ref_problem (c, at, text);
}

int
ref_read (const struct ref_counter *c, void *buf, size_t count,
          uint64_t offset, const char *what)
{
  int r = qcow2_storage_read_meta (c->layer->file, buf, count, offset);

  if (r < 0)
    qcow2_error_set (c->error, -r, "can't read %s at 0x%" PRIx64 ": %s",
                     what, offset, strerror (-r));
  return r;
}

int
ref_each_word (const struct ref_counter *c, const char *what,
               uint64_t offset, uint64_t nr, ref_word_fn *fn)
{
  struct ref_place at = { what, offset, 0 };

  while (at.index < nr) {
    uint64_t n = REF_WALK_BUFFER_BYTES / 8, i;
    int r;

    if (n > nr - at.index)
      n = nr - at.index;
    r = ref_read (c, c->buf, n * 8, offset + at.index * 8, what);
    for (i = 0; r == 0 && i < n; ++i, ++at.index)
      r = fn (c, be64toh (c->buf[i]), &at);
    if (r < 0)
      return r;
  }
  return 0;
}

/*----- Header, refcount structures, snapshot table -----*/

static int
count_header (const struct ref_counter *c)
{
  const struct ref_place at = { "header", 0, 0 };
  uint64_t bytes = c->cluster_bytes;
  bool good;

  /* A file may be shorter than its first cluster. */
  if (bytes > c->walk->map->file_bytes)
    bytes = c->walk->map->file_bytes;
  return ref_count (c, REF_HEADER, 0, bytes, 1, &at, &good);
}

static int
count_refcount_block (const struct ref_counter *c, uint64_t entry,
                      const struct ref_place *at)
{
  bool good;

  if (entry == 0)
    return 0;
  if (entry & REFCOUNT_TABLE_RESERVED)
    return ref_problem (c, at, "reserved bits are set");
  if (entry & (c->cluster_bytes - 1))
    return ref_problem (c, at, "the refcount block is not aligned");
  return ref_count (c, REF_REFCOUNT_BLOCK, entry, c->cluster_bytes, 1, at,
                    &good);
}

static int
count_refcount_structures (const struct ref_counter *c)
{
  const struct header *h = &c->layer->header;
  uint64_t offset = h->refcount_table_offset;
  uint64_t bytes = (uint64_t) h->refcount_table_clusters * c->cluster_bytes;
  const struct ref_place at = { "refcount table", offset, 0 };
  bool good;
  int r;

  r = ref_count (c, REF_REFCOUNT_TABLE, offset, bytes, 1, &at, &good);
  if (r < 0 || !good)
    return r;
  return ref_each_word (c, at.what, offset, bytes / 8, count_refcount_block);
}

static int
count_snapshot_table (const struct ref_counter *c)
{
  const struct ref_place at = {
    "snapshot table", c->layer->header.snapshots_offset, 0,
  };
  bool good;

  return ref_count (c, REF_SNAPSHOT_TABLE, at.offset,
                    c->walk->snapshots->table_bytes, 1, &at, &good);
}

/*----- L1 tables -----*/

static int
count_l2_table (const struct ref_counter *c, uint64_t entry,
                const struct ref_place *at)
{
  uint64_t offset = entry & ENTRY_OFFSET_MASK;
  bool good;

  if (entry & L1_RESERVED)
    return ref_problem (c, at, "reserved bits are set");
  if (offset == 0)
    return 0;
  if (offset & (c->cluster_bytes - 1))
    return ref_problem (c, at, "the L2 table is not aligned");
  return ref_count (c, REF_L2, offset, c->cluster_bytes, 1, at, &good);
}

static int
count_l1_table (const struct ref_counter *c, const char *what,
                uint64_t offset, uint32_t nr_entries)
{
  const struct ref_place at = { what, offset, 0 };
  bool good;
  int r;

  if (nr_entries == 0)
    return 0;
  if (offset & (c->cluster_bytes - 1))
    return ref_problem (c, &at, "the table is not aligned");
  if (nr_entries > MAX_L1_BYTES / 8)
    return ref_problem (c, &at, "the table is too large");
  r = ref_count (c, REF_L1, offset, nr_entries * UINT64_C (8), 1, &at, &good);
  if (r < 0 || !good)
    return r;
  return ref_each_word (c, what, offset, nr_entries, count_l2_table);
}

static int
count_l1_tables (const struct ref_counter *c)
{
  const struct header *h = &c->layer->header;
  const struct snapshot_table *table = c->walk->snapshots;
  size_t i;
  int r;

  r = count_l1_table (c, "active L1 table", h->l1_offset, h->l1_entries);
  for (i = 0; r == 0 && i < table->nr_snapshots; ++i)
    r = count_l1_table (c, "snapshot's L1 table",
                        table->snapshots[i].l1_offset,
                        table->snapshots[i].l1_entries);
  return r;
}

/*----- L2 tables -----*/

static const char *
compressed_problem (const struct layer *l, uint64_t bitmap)
{
  if (l->external_data)
    return "compressed cluster, but there is an external data file";
  return bitmap ? "compressed cluster with subclusters" : NULL;
}

/* BITMAP is 0 without extended L2 entries. */
static const char *
entry_problem (const struct layer *l, uint64_t entry, uint64_t bitmap)
{
  bool extended = l->header.incompatible_features & INCOMPAT_EXTENDED_L2;
  uint64_t host = entry & ENTRY_OFFSET_MASK;
  bool has_host = host != 0 || (l->external_data && entry & ENTRY_COPIED);

  if (entry & ENTRY_COMPRESSED)
    return compressed_problem (l, bitmap);
  if (entry & L2_RESERVED)
    return "reserved bits are set";
  if (entry & ENTRY_ZERO && (extended || l->header.version < 3))
    return "the zero flag is set, which is reserved in this image";
  if (host & (layer_cluster_bytes (l) - 1))
    return "the data cluster is not aligned";
  if (has_host ? subclusters_allocated (bitmap) & subclusters_zero (bitmap) :
      subclusters_allocated (bitmap))
    return "invalid subcluster bitmap";
  return NULL;
}

static int
count_entry (const struct ref_counter *c, uint64_t entry, uint64_t bitmap,
             uint32_t times, const struct ref_place *at)
{
  const struct layer *l = c->layer;
  const char *problem = entry_problem (l, entry, bitmap);
  unsigned cluster_bits = l->header.cluster_bits;
  bool good;

  if (problem)
    return ref_problem (c, at, problem);
  if (entry & ENTRY_COMPRESSED)
    return ref_count (c, REF_DATA, compressed_offset (entry, cluster_bits),
                      compressed_bytes (entry, cluster_bits), times, at,
                      &good);
  if (l->external_data || (entry & ENTRY_OFFSET_MASK) == 0)
    return 0;
  return ref_count (c, REF_DATA, entry & ENTRY_OFFSET_MASK,
                    c->cluster_bytes, times, at, &good);
}

static int
count_l2_entries (const struct ref_counter *c, const uint64_t *words,
                  uint64_t cluster)
{
  const struct ref_map *map = c->walk->map;
  struct ref_place at = { "L2 table", cluster << map->cluster_bits, 0 };
  unsigned words_per_entry = 1u << (c->layer->l2_entry_bits - 3);
  uint64_t nr = c->cluster_bytes >> c->layer->l2_entry_bits;
  uint32_t times = ref_map_count (map, cluster);
  int r;

  for (at.index = 0; at.index < nr; ++at.index) {
    uint64_t entry = be64toh (words[at.index * words_per_entry]);
    uint64_t bitmap = words_per_entry == 2 ?
      be64toh (words[at.index * 2 + 1]) : 0;

    if (entry == 0 && bitmap == 0)
      continue;
    r = count_entry (c, entry, bitmap, times, &at);
    if (r < 0)
      return r;
  }
  return 0;
}

/* How many L2 tables lie in a row from CLUSTER on; at most a buffer full. */
static uint64_t
tables_in_a_row (const struct ref_counter *c, uint64_t cluster)
{
  uint64_t max = REF_WALK_BUFFER_BYTES / c->cluster_bytes, nr = 1;

  while (nr < max &&
         ref_map_kind (c->walk->map, cluster + nr) == REF_L2)
    nr++;
  return nr;
}

static int
count_l2_tables (const struct ref_counter *c)
{
  const struct ref_map *map = c->walk->map;
  uint64_t cluster, nr, i;

  for (cluster = 0; cluster < map->nr_clusters; cluster += nr) {
    uint64_t offset = cluster << map->cluster_bits;
    int r = 0;

    nr = 1;
    if (ref_map_kind (map, cluster) != REF_L2)
      continue;
    nr = tables_in_a_row (c, cluster);
    if (qcow2_storage_is_hole (c->layer->file, offset,
                               nr * c->cluster_bytes))
      continue;
    r = ref_read (c, c->buf, nr * c->cluster_bytes, offset, "L2 tables");
    for (i = 0; r == 0 && i < nr; ++i)
      r = count_l2_entries (c, c->buf + i * c->cluster_bytes / 8,
                            cluster + i);
    if (r < 0)
      return r;
  }
  return 0;
}

/*----- All of it -----*/

int
count_refs (const struct ref_walk *walk, struct qcow2_error *error)
{
  struct ref_counter c = {
    .walk = walk, .layer = walk->layer, .error = error,
    .cluster_bytes = layer_cluster_bytes (walk->layer),
  };
  int r;

  c.buf = malloc (REF_WALK_BUFFER_BYTES);
  if (!c.buf)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  r = count_header (&c);
  if (r == 0)
    r = count_refcount_structures (&c);
  if (r == 0)
    r = count_snapshot_table (&c);
  if (r == 0)
    r = count_bitmaps (&c);
  if (r == 0)
    r = count_l1_tables (&c);
  if (r == 0)
    r = count_l2_tables (&c);
  free (c.buf);
  return r;
}
