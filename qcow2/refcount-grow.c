/* SPDX-License-Identifier: BSD-3-Clause */

/* Growing the refcount structures.
 *
 * New refcount blocks, and a larger table where the old one is full, are
 * laid down together in an area among the clusters that they cover:
 *
 *     | block | block | ... | table ... |
 *     ^ the end of the file; on a device the first cluster without a refcount
 *
 * All clusters of the area have their refcounts within the area itself,
 * so nothing else has to be durable for it.  The order is
 *
 *     write the area, durably -> switch
 *
 * where to switch is to write the table's entries, or the header if the
 * table moves.  Not by a flush: gigabytes may have been written that nobody
 * wants to be durable yet, and who needs a cluster waits here.  Table entries
 * need none either: the first flush of any commit that relies on them comes
 * later.  It is done ahead of need and for several blocks at once.
 *
 * Where many clusters in a row are needed (for a table), the area has
 * blocks for all of them, and they follow it.  Blocks whose entries are
 * not in one sector of the table come with a new table.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "commit.h"
#include "format.h"
#include "guard.h"
#include "header-write.h"

#define MIN_AHEAD_BYTES (UINT64_C (4) << 20)
#define AHEAD_PART 64
#define MAX_AREA_BYTES (UINT64_C (4) << 20)
#define ENTRIES_PER_SECTOR 64

struct growth {
  struct allocator *a;
  uint64_t first_entry;         /* in the table */
  uint64_t area;                /* its first cluster */
  uint64_t nr_blocks;
  uint64_t table_clusters;      /* of a new table, or 0 */
  uint64_t nr_after;            /* clusters wanted behind the area */
};

static uint64_t
cluster_bytes (const struct allocator *a)
{
  return UINT64_C (1) << a->rc->cluster_bits;
}

/* How many clusters that the area's blocks cover lie in front of it. */
static uint64_t
nr_before_area (const struct growth *g)
{
  return g->area - (g->first_entry << g->a->rc->block_bits);
}

/* Until where blocks are wanted, as a cluster. */
static uint64_t
target_cluster (const struct allocator *a, uint64_t cluster)
{
  uint64_t ahead_bytes = (cluster << a->rc->cluster_bits) / AHEAD_PART;
  uint64_t target;

  if (ahead_bytes < MIN_AHEAD_BYTES)
    ahead_bytes = MIN_AHEAD_BYTES;
  target = cluster + (ahead_bytes >> a->rc->cluster_bits);
  return target < a->end ? target : a->end - 1;
}

/* As many entries in a row as are wanted and not there.  They lie in one
 * sector, so that all of them become valid at once: the blocks'
 * refcounts are in the first ones.
 */
static uint64_t
count_missing (const struct allocator *a, uint64_t first_entry,
               uint64_t cluster)
{
  const struct refcount_table *table = atomic_load (&a->rc->table);
  uint64_t last = target_cluster (a, cluster) >> a->rc->block_bits;
  uint64_t max = MAX_AREA_BYTES >> a->rc->cluster_bits;
  uint64_t nr = 1;

  if (max == 0)
    max = 1;
  if (max > ENTRIES_PER_SECTOR - first_entry % ENTRIES_PER_SECTOR)
    max = ENTRIES_PER_SECTOR - first_entry % ENTRIES_PER_SECTOR;
  while (nr < max && first_entry + nr <= last &&
         (first_entry + nr >= table->nr_entries ||
          table->entries[first_entry + nr] == 0))
    nr++;
  return nr;
}

/* A new table at least doubles if the old one is too short. */
static int
plan_table (struct growth *g)
{
  const struct allocator *a = g->a;
  const struct refcount_table *table = atomic_load (&a->rc->table);
  uint64_t needed = g->first_entry + g->nr_blocks;
  uint64_t max = MAX_REFCOUNT_TABLE_BYTES / 8;

  if (needed <= table->nr_entries &&
      g->first_entry % ENTRIES_PER_SECTOR + g->nr_blocks <=
      ENTRIES_PER_SECTOR)
    return 0;
  if (needed > max)
    return -EFBIG;
  if (needed <= table->nr_entries)
    needed = table->nr_entries;
  else if (needed < 2 * table->nr_entries)
    needed = 2 * table->nr_entries < max ? 2 * table->nr_entries : max;
  g->table_clusters = (needed * 8 + cluster_bytes (a) - 1) >>
    a->rc->cluster_bits;
  return 0;
}

/* The area's blocks have to cover it, and what is to follow. */
static int
plan_blocks (struct growth *g)
{
  for (;;) {
    int r = plan_table (g);

    if (r < 0)
      return r;
    if (nr_before_area (g) + g->nr_blocks + g->table_clusters + g->nr_after <=
        g->nr_blocks << g->a->rc->block_bits)
      return 0;
    g->nr_blocks++;
  }
}

/* Is none of the blocks there? */
static bool
all_are_missing (const struct growth *g)
{
  const struct refcount_table *table = atomic_load (&g->a->rc->table);
  uint64_t end = g->first_entry + g->nr_blocks, i;

  for (i = g->first_entry; i < end && i < table->nr_entries; ++i)
    if (table->entries[i] != 0)
      return false;
  return true;
}

/* Where a block is missing there may be data all the same, if the image is
 * damaged: a file that can grow is left alone up to CLUSTER.
 */
static int
plan (struct growth *g, uint64_t cluster)
{
  const struct allocator *a = g->a;
  uint64_t end;
  int r;

  g->first_entry = cluster >> a->rc->block_bits;
  g->area = g->first_entry << a->rc->block_bits;
  if (qcow2_storage_can_grow (a->layer->file))
    g->area = cluster;
  g->nr_blocks = count_missing (a, g->first_entry, cluster);
  g->table_clusters = 0;
  r = plan_blocks (g);
  if (r < 0)
    return r;
  end = g->area + g->nr_blocks + g->table_clusters + g->nr_after;
  return end <= a->end && all_are_missing (g) ? 0 : -ENOSPC;
}

/* Blocks with the area's own refcounts, then the new table. */
static void
fill_area (const struct growth *g, uint64_t *area)
{
  const struct refcounts *rc = g->a->rc;
  const struct refcount_table *old = atomic_load (&rc->table);
  uint64_t words = cluster_bytes (g->a) / 8;
  uint64_t *table = area + g->nr_blocks * words;
  uint64_t first = nr_before_area (g), i;

  for (i = first; i < first + g->nr_blocks + g->table_clusters; ++i)
    refcounts_encode (rc, area + (i >> rc->block_bits) * words,
                      i & ((UINT64_C (1) << rc->block_bits) - 1), 1);
  if (g->table_clusters == 0)
    return;
  for (i = 0; i < old->nr_entries; ++i)
    table[i] = htobe64 (old->entries[i]);
  for (i = 0; i < g->nr_blocks; ++i)
    table[g->first_entry + i] =
      htobe64 ((g->area + i) << rc->cluster_bits);
}

/* The table and the blocks of the area, before they are written. */
static int
guard_area (const struct growth *g, uint64_t offset)
{
  struct layer *l = g->a->layer;
  uint64_t bytes = cluster_bytes (g->a), i;
  int r;

  r = guard_check (l, METADATA_NONE, offset,
                   (g->nr_blocks + g->table_clusters) * bytes,
                   "new refcount blocks");
  if (r == 0)
    r = guard_add_table (l, METADATA_REFCOUNT_TABLE,
                         offset + g->nr_blocks * bytes,
                         g->table_clusters * bytes);
  for (i = 0; i < g->nr_blocks && r == 0; ++i)
    r = guard_add (l, METADATA_REFCOUNT_BLOCK, offset + i * bytes);
  return r;
}

static void
unguard_area (const struct growth *g, uint64_t offset)
{
  struct layer *l = g->a->layer;
  uint64_t bytes = cluster_bytes (g->a), i;

  guard_remove_table (l, METADATA_REFCOUNT_TABLE,
                      offset + g->nr_blocks * bytes,
                      g->table_clusters * bytes);
  for (i = 0; i < g->nr_blocks; ++i)
    guard_remove (l, METADATA_REFCOUNT_BLOCK, offset + i * bytes);
}

/* Write one sector of the table, from entry FIRST on. */
static int
write_sector (struct allocator *a, uint64_t first,
              const uint64_t words[ENTRIES_PER_SECTOR], bool durable)
{
  const struct refcount_table *table = atomic_load (&a->rc->table);
  uint64_t offset = table->host_offset + first * 8;
  const uint64_t bytes = ENTRIES_PER_SECTOR * 8;
  int r;

  r = guard_check (a->layer, METADATA_REFCOUNT_TABLE, offset, bytes,
                   "the refcount table");
  if (r < 0)
    return r;
  r = qcow2_storage_write (a->layer->file, words, bytes, offset, durable);
  a->entries_unknown = r < 0;
  a->first_unknown = first;
  if (r < 0 && durable)
    committer_fail (a->committer, r);
  return r;
}

/* If writing a sector fails its new entries may be on disk all the same, and
 * name blocks in an area that nobody has.  The next area may be shorter, and
 * guests' data be written where these blocks would be, or the file end in
 * front of them: not before the sector is durable without them.
 */
int
refcount_settle_entries (struct allocator *a)
{
  const struct refcount_table *table = atomic_load (&a->rc->table);
  uint64_t words[ENTRIES_PER_SECTOR], i;
  int r;

  if (!a->entries_unknown)
    return 0;
  r = committer_state (a->committer);
  if (r < 0)
    return r;
  for (i = 0; i < ENTRIES_PER_SECTOR; ++i)
    words[i] = htobe64 (table->entries[a->first_unknown + i]);
  return write_sector (a, a->first_unknown, words, true);
}

/* Write the sector of the table that holds the new entries. */
static int
write_entries (const struct growth *g)
{
  const struct refcounts *rc = g->a->rc;
  const struct refcount_table *table = atomic_load (&rc->table);
  uint64_t first = g->first_entry / ENTRIES_PER_SECTOR * ENTRIES_PER_SECTOR;
  uint64_t words[ENTRIES_PER_SECTOR];
  uint64_t i;

  for (i = 0; i < ENTRIES_PER_SECTOR; ++i) {
    uint64_t block = first + i - g->first_entry;

    words[i] = htobe64 (block < g->nr_blocks ?
                        (g->area + block) << rc->cluster_bits :
                        table->entries[first + i]);
  }
  return write_sector (g->a, first, words, false);
}

static void
publish_entries (const struct growth *g, struct refcount_table *table)
{
  uint64_t i;

  for (i = 0; i < g->nr_blocks; ++i)
    table->entries[g->first_entry + i] =
      (g->area + i) << g->a->rc->cluster_bits;
}

/* The header names the new table; the old one is free then. */
static int
switch_table (const struct growth *g)
{
  struct refcounts *rc = g->a->rc;
  struct refcount_table *old = atomic_load (&rc->table), *table;
  uint64_t nr = g->table_clusters * cluster_bytes (g->a) / 8, i;
  uint64_t offset = (g->area + g->nr_blocks) << rc->cluster_bits;
  int r;

  table = calloc (1, sizeof *table + nr * 8);
  if (!table)
    return -ENOMEM;
  table->host_offset = offset;
  table->nr_entries = nr;
  table->older = old;
  for (i = 0; i < old->nr_entries; ++i)
    table->entries[i] = old->entries[i];
  publish_entries (g, table);

  r = header_writer_set_refcount_table (g->a->header, offset,
                                        (uint32_t) g->table_clusters);
  if (r < 0) {
    /* The header may name either table now. */
    committer_fail (g->a->committer, r);
    free (table);
    return r;
  }
  atomic_store (&rc->table, table);
  guard_remove_table (g->a->layer, METADATA_REFCOUNT_TABLE,
                      old->host_offset, old->nr_entries * 8);
  retire_now (g->a->retire, old->host_offset >> rc->cluster_bits,
              old->nr_entries * 8 >> rc->cluster_bits);
  return 0;
}

/* An error of the first write is about that alone, and growing can be tried
 * again; one of a durable write is not (commit.h), for lack of room neither,
 * since there was room.  And it is the first that makes the file longer: older
 * kernels did not make the new length durable with the bytes behind the old one
 * (ext4, O_DIRECT).
 */
static int
write_area (const struct growth *g, struct iovec *iov, uint64_t offset)
{
  const struct allocator *a = g->a;
  int r = qcow2_storage_writev (a->layer->file, iov, 1, offset, false);

  if (r < 0)
    return r;
  r = committer_write (a->committer, a->layer->file, iov, 1, offset);
  if (r == -ENOSPC) {
    r = -EIO;
    committer_fail (a->committer, r);
  }
  return r;
}

static int
write_growth (const struct growth *g, uint64_t offset)
{
  const struct allocator *a = g->a;
  uint64_t bytes = (g->nr_blocks + g->table_clusters) * cluster_bytes (a);
  struct iovec iov = { .iov_base = calloc (1, bytes), .iov_len = bytes };
  int r;

  if (!iov.iov_base)
    return -ENOMEM;
  fill_area (g, iov.iov_base);
  r = write_area (g, &iov, offset);
  free (iov.iov_base);
  if (r < 0)
    return r;

  if (g->table_clusters > 0)
    return switch_table (g);
  r = write_entries (g);
  if (r == 0)
    publish_entries (g, atomic_load (&a->rc->table));
  return r;
}

/* The area may be there or in part; the next one may be shorter. */
static void
give_up_area (const struct growth *g, uint64_t offset)
{
  unguard_area (g, offset);
  alloc_note_written (g->a, g->area + g->nr_blocks + g->table_clusters);
}

/* With the turn.  If another one has failed to switch tables the header may name
 * the one in his area: nothing may be laid down there.
 */
static int
grow (struct growth *g, uint64_t cluster)
{
  const struct allocator *a = g->a;
  uint64_t offset;
  int r;

  r = committer_state (a->committer);
  if (r == 0)
    r = refcount_settle_entries (g->a);
  if (r == 0)
    r = plan (g, cluster);
  if (r == 0) {
    offset = g->area << a->rc->cluster_bits;
    r = guard_area (g, offset);
    if (r == 0 && (r = write_growth (g, offset)) < 0)
      give_up_area (g, offset);
  }
  if (r < 0 && !guard_is_corrupt (a->layer))
    log_message (&a->layer->log, QCOW2_LOG_ERROR,
                 "%s: can't grow the refcount structures: %s",
                 a->layer->filename, strerror (-r));
  return r;
}

int
refcount_grow (struct allocator *a, uint64_t cluster)
{
  struct growth g = { .a = a };
  int r = 0;

  turn_take (a->turn);
  if (!refcounts_cover (a->rc, cluster))
    r = grow (&g, cluster);
  turn_give (a->turn);
  return r;
}

int
refcount_grow_run (struct allocator *a, uint64_t cluster, uint64_t nr,
                   uint64_t *first)
{
  struct growth g = { .a = a, .nr_after = nr };
  int r;

  turn_take (a->turn);
  r = grow (&g, cluster);
  turn_give (a->turn);
  *first = g.area + g.nr_blocks + g.table_clusters;
  return r;
}
