/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting all references to host clusters.
 *
 * First come the L1 tables and all that is not reached through L2
 * tables.  Then the map knows all L2 tables and how often each is
 * referenced, so count-l2.c reads them in the order in which they lie in the
 * file, many at a time.
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
#define REFCOUNT_TABLE_RESERVED UINT64_C (0x1ff)

/*----- What the parts of the walk share -----*/

int
ref_problem (const struct ref_counter *c, enum ref_problem kind,
             const struct ref_place *at, const char *problem)
{
  char text[200];

  snprintf (text, sizeof text, "%s at 0x%" PRIx64 ", entry %" PRIu64 ": %s",
            at->what, at->offset, at->index, problem);
  if (at->unit)
    parallel_wait_turn (at->unit);
  return c->walk->problem (c->walk->opaque, kind, text);
}

static bool
is_of_refcounts (enum ref_kind kind)
{
  return kind == REF_REFCOUNT_TABLE || kind == REF_REFCOUNT_BLOCK;
}

int
ref_count (const struct ref_counter *c, enum ref_kind kind, uint64_t offset,
           uint64_t bytes, uint32_t times, const struct ref_place *at,
           bool *good)
{
  static const char *const problems[] = {
    [REF_SHARED] = "in use for something else, too",
    [REF_OUTSIDE] = "past the end of the file",
    [REF_TOO_MANY] = "referenced too often",
  };
  enum ref_verdict verdict =
    ref_map_add (c->walk->map, kind, offset, bytes, times);
  enum ref_problem problem = is_of_refcounts (kind) ? PROBLEM_REFCOUNTS :
    verdict == REF_SHARED ? PROBLEM_SHARED : PROBLEM_BAD;
  char text[100];

  *good = verdict == REF_GOOD || verdict == REF_SHARED;
  if (verdict == REF_GOOD)
    return 0;
  snprintf (text, sizeof text, "what it names at 0x%" PRIx64 " is %s",
            offset, problems[verdict]);
  return ref_problem (c, problem, at, text);
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

/* How many words from OFFSET on are a hole, or data, and *HOLE.  Never more
 * than NR, at least 1.
 */
static uint64_t
alike (const struct ref_counter *c, uint64_t offset, uint64_t nr, bool *hole)
{
  uint64_t bytes;

  if (qcow2_storage_hole (c->layer->file, offset, hole, &bytes) < 0) {
    *hole = false;
    return nr;
  }
  if (*hole && bytes < 8)
    *hole = false;
  if (bytes / 8 >= nr)
    return nr;
  return *hole ? bytes / 8 : (bytes + 7) / 8;
}

/* What is a hole is not read: a small file may claim that it has many
 * tables, which were never written.
 */
static int
each_word (const struct ref_counter *c, const char *what,
           const struct ref_table *table, uint32_t times, ref_word_fn *fn)
{
  struct ref_place at = { what, table->offset, 0, NULL };

  while (at.index < table->nr) {
    uint64_t offset = table->offset + at.index * 8, n, i;
    bool hole;
    int r;

    n = alike (c, offset, table->nr - at.index, &hole);
    if (hole) {
      at.index += n;
      continue;
    }
    if (n > REF_WALK_BUFFER_BYTES / 8)
      n = REF_WALK_BUFFER_BYTES / 8;
    r = ref_read (c, c->buf, n * 8, offset, what);
    for (i = 0; r == 0 && i < n; ++i, ++at.index)
      r = fn (c, be64toh (c->buf[i]), times, &at);
    if (r < 0)
      return r;
  }
  return 0;
}

/* Where a table begins or ends. */
struct ref_edge {
  uint64_t offset;
  int32_t change;               /* of how many tables lie there */
};

static int
compare_edges (const void *a, const void *b)
{
  const struct ref_edge *x = a, *y = b;

  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int
ref_each_word (const struct ref_counter *c, const char *what,
               const struct ref_table *tables, size_t nr, ref_word_fn *fn)
{
  struct ref_edge *edges = malloc ((2 * nr + 1) * sizeof *edges);
  int32_t times = 0;
  size_t i;
  int r = 0;

  if (!edges)
    return qcow2_error_set (c->error, ENOMEM, "out of memory");
  for (i = 0; i < nr; ++i) {
    edges[2 * i] = (struct ref_edge) { tables[i].offset, 1 };
    edges[2 * i + 1] = (struct ref_edge) {
      tables[i].offset + tables[i].nr * 8, -1,
    };
  }
  qsort (edges, 2 * nr, sizeof *edges, compare_edges);
  /* From one edge to the next, the tables are the same. */
  for (i = 0; r == 0 && i + 1 < 2 * nr; ++i) {
    const struct ref_table piece = {
      edges[i].offset, (edges[i + 1].offset - edges[i].offset) / 8,
    };

    times += edges[i].change;
    if (times > 0 && piece.nr > 0)
      r = each_word (c, what, &piece, (uint32_t) times, fn);
  }
  free (edges);
  return r;
}

/*----- Header, snapshot table -----*/

/* Encrypted images are refused, so here the field was damaged: the keys are
 * in clusters that nothing else names.
 */
static int
judge_crypto (const struct ref_counter *c, const struct ref_place *at)
{
  const struct header *h = &c->layer->header;
  size_t i;

  for (i = 0; i < h->nr_unknown_extensions; ++i)
    if (h->unknown_extensions[i].type == EXTENSION_CRYPTO)
      return ref_problem (c, PROBLEM_BAD, at, "there is an encryption header, "
                          "but crypt_method is 0");
  return 0;
}

static int
count_header (const struct ref_counter *c)
{
  const struct ref_place at = { "header", 0, 0, NULL };
  uint64_t bytes = c->cluster_bytes;
  bool good;
  int r = judge_crypto (c, &at);

  if (r < 0)
    return r;

  /* A file may be shorter than its first cluster. */
  if (bytes > c->walk->map->file_bytes)
    bytes = c->walk->map->file_bytes;
  return ref_count (c, REF_HEADER, 0, bytes, 1, &at, &good);
}

static int
count_snapshot_table (const struct ref_counter *c)
{
  const struct ref_place at = {
    "snapshot table", c->layer->header.snapshots_offset, 0, NULL,
  };
  bool good;

  return ref_count (c, REF_SNAPSHOT_TABLE, at.offset,
                    c->walk->snapshots->table_bytes, 1, &at, &good);
}

/* A disk has an L1 table.  An entry that was lost, and is zeros now, reads as
 * a snapshot without one; what it named is not known.
 */
static int
judge_snapshots (const struct ref_counter *c)
{
  const struct snapshot_table *table = c->walk->snapshots;
  struct ref_place at = {
    "snapshot table", c->layer->header.snapshots_offset, 0, NULL,
  };
  int r = 0;

  for (; r == 0 && at.index < table->nr_snapshots; ++at.index) {
    const struct snapshot *sn = &table->snapshots[at.index];

    if (sn->l1_entries == 0 && sn->disk_size_bytes > 0)
      r = ref_problem (c, PROBLEM_BAD, &at, "the snapshot has no L1 table");
  }
  return r;
}

/*----- L1 tables -----*/

static int
count_l1_table (const struct ref_counter *c, const char *what,
                uint64_t offset, uint32_t nr_entries, bool *good)
{
  const struct ref_place at = { what, offset, 0, NULL };

  *good = false;
  if (nr_entries == 0)
    return 0;
  if (offset & (c->cluster_bytes - 1))
    return ref_problem (c, PROBLEM_BAD, &at, "the table is not aligned");
  if (nr_entries > MAX_L1_BYTES / 8)
    return ref_problem (c, PROBLEM_BAD, &at, "the table is too large");
  return ref_count (c, REF_L1, offset, nr_entries * UINT64_C (8), 1, &at,
                    good);
}

/* QEMU's check, and what it does with snapshots, take the header for a table
 * then.  Snapshots' entries are never written here.
 */
static int
lonely_flag (const struct ref_counter *c, const struct ref_place *at)
{
  bool is_active = at->offset == c->layer->header.l1_offset;

  return ref_problem (c, is_active ? PROBLEM_FLAG : PROBLEM_BAD, at,
                      "the copied flag is set, but there is no L2 table");
}

static int
count_l2_table (const struct ref_counter *c, uint64_t entry, uint32_t times,
                const struct ref_place *at)
{
  uint64_t offset = entry & ENTRY_OFFSET_MASK;
  uint64_t cluster = offset >> c->walk->map->cluster_bits;
  bool good;
  int r = 0;

  if (entry & L1_RESERVED)
    r = ref_problem (c, PROBLEM_BAD, at, "reserved bits are set");
  if (r == 0 && offset == 0 && entry & ENTRY_COPIED)
    r = lonely_flag (c, at);
  if (r < 0 || offset == 0)
    return r;
  if (offset & (c->cluster_bytes - 1))
    return ref_problem (c, PROBLEM_BAD, at, "the L2 table is not aligned");
  r = ref_count (c, REF_L2, offset, c->cluster_bytes, times, at, &good);
  if (r < 0 || !good)
    return r;
  if (ref_map_kind (c->walk->map, cluster) != REF_L2)
    return ref_problem (c, PROBLEM_BAD, at,
                        "the L2 table is other metadata, too");
  if (c->l1_index)
    c->l1_index[cluster] = (uint32_t) at->index + 1;
  return 0;
}

/* All tables first: what lies in one of them is no L2 table. */
static int
count_l1_tables (const struct ref_counter *c)
{
  const struct header *h = &c->layer->header;
  const struct snapshot_table *snapshots = c->walk->snapshots;
  const char *active = "active L1 table", *old = "snapshot's L1 table";
  struct ref_table *tables =
    malloc ((snapshots->nr_snapshots + 1) * sizeof *tables);
  size_t nr = 1, i;
  bool good, good_active;
  int r;

  if (!tables)
    return qcow2_error_set (c->error, ENOMEM, "out of memory");
  tables[0] = (struct ref_table) { h->l1_offset, h->l1_entries };
  r = count_l1_table (c, active, h->l1_offset, h->l1_entries, &good_active);
  for (i = 0; r == 0 && i < snapshots->nr_snapshots; ++i) {
    const struct snapshot *sn = &snapshots->snapshots[i];

    r = count_l1_table (c, old, sn->l1_offset, sn->l1_entries, &good);
    if (good)
      tables[nr++] = (struct ref_table) { sn->l1_offset, sn->l1_entries };
  }
  if (r == 0 && good_active)
    r = ref_each_word (c, active, tables, 1, count_l2_table);
  if (r == 0)
    r = ref_each_word (c, old, tables + 1, nr - 1, count_l2_table);
  free (tables);
  return r;
}

/*----- Refcount structures -----*/

bool
is_refcount_block_counted (const struct ref_map *map, uint64_t entry)
{
  uint64_t bytes = UINT64_C (1) << map->cluster_bits;

  return entry != 0 && !(entry & (bytes - 1)) && entry < map->file_bytes &&
    bytes <= map->file_bytes - entry;
}

bool
is_refcount_block_good (const struct ref_map *map, uint64_t entry)
{
  uint64_t cluster = entry >> map->cluster_bits;

  return is_refcount_block_counted (map, entry) &&
    ref_map_kind (map, cluster) == REF_REFCOUNT_BLOCK &&
    ref_map_count (map, cluster) == 1;
}

static int
count_refcount_block (const struct ref_counter *c, uint64_t entry,
                      uint32_t times, const struct ref_place *at)
{
  bool good;

  if (entry == 0)
    return 0;
  if (entry & REFCOUNT_TABLE_RESERVED)
    return ref_problem (c, PROBLEM_REFCOUNTS, at, "reserved bits are set");
  if (entry & (c->cluster_bytes - 1))
    return ref_problem (c, PROBLEM_REFCOUNTS, at,
                        "the refcount block is not aligned");
  return ref_count (c, REF_REFCOUNT_BLOCK, entry, c->cluster_bytes, 1, at,
                    &good);
}

/* Is a cluster of the table anything else, too? */
static bool
is_table_shared (const struct ref_counter *c, uint64_t offset, uint32_t nr)
{
  const struct ref_map *map = c->walk->map;
  uint64_t first = offset >> map->cluster_bits, i;

  for (i = first; i < first + nr; ++i)
    if (ref_map_count (map, i) != 1)
      return true;
  return false;
}

static int
count_refcount_structures (const struct ref_counter *c)
{
  const struct header *h = &c->layer->header;
  uint64_t offset = h->refcount_table_offset;
  uint64_t bytes = (uint64_t) h->refcount_table_clusters * c->cluster_bytes;
  const struct ref_place at = { "refcount table", offset, 0, NULL };
  struct ref_walk *walk = c->walk;
  int r;

  walk->table_is_bad = true;
  if (h->refcount_table_clusters == 0)
    return 0;                   /* all refcounts are 0 */
  r = ref_count (c, REF_REFCOUNT_TABLE, offset, bytes, 1, &at,
                 &walk->table_counted);
  if (r < 0 || !walk->table_counted)
    return r;
  walk->table_is_bad = is_table_shared (c, offset,
                                        h->refcount_table_clusters);
  if (walk->table_is_bad)
    return 0;
  return ref_each_word (c, at.what,
                        &(struct ref_table) { offset, bytes / 8 }, 1,
                        count_refcount_block);
}

/*----- All of it -----*/

static int
allocate (struct ref_counter *c)
{
  c->buf = malloc (REF_WALK_BUFFER_BYTES);
  if (c->layer->external_data)
    c->l1_index = calloc (c->walk->map->nr_clusters + 1,
                          sizeof *c->l1_index);
  if (!c->buf || (c->layer->external_data && !c->l1_index))
    return qcow2_error_set (c->error, ENOMEM, "out of memory");
  return 0;
}

int
count_refs (struct ref_walk *walk, struct qcow2_error *error)
{
  struct ref_counter c = {
    .walk = walk, .layer = walk->layer, .error = error,
    .cluster_bytes = layer_cluster_bytes (walk->layer),
  };
  int r = allocate (&c);

  walk->table_is_bad = walk->table_counted = false;
  if (r == 0)
    r = count_header (&c);
  if (r == 0)
    r = count_snapshot_table (&c);
  if (r == 0)
    r = judge_snapshots (&c);
  if (r == 0)
    r = count_bitmaps (&c);
  if (r == 0)
    r = count_l1_tables (&c);
  if (r == 0)
    r = count_l2_tables (&c);
  if (r == 0)
    r = count_refcount_structures (&c);
  free (c.buf);
  free (c.l1_index);
  return r;
}
