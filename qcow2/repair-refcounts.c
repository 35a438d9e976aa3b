/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the refcounts on disk what a ref_map says.
 *
 * New blocks are put where nothing is referenced, and so is a larger
 * table; their own references go into the map, so that what is written
 * counts them.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "count-refs.h"
#include "format.h"
#include "refcount-word.h"
#include "repair-refcounts.h"

#define SECTOR_WORDS 64

/* "Refcount table entry": bits that must be 0. */
#define REFCOUNT_TABLE_RESERVED UINT64_C (0x1ff)

static unsigned
order_of (const struct refcount_repair *rep)
{
  return rep->layer->header.refcount_order;
}

static uint64_t
cluster_bytes (const struct refcount_repair *rep)
{
  return layer_cluster_bytes (rep->layer);
}

/* log2 of the refcounts in a block. */
static unsigned
block_bits (const struct refcount_repair *rep)
{
  return rep->layer->header.cluster_bits + 3 - order_of (rep);
}

static int
io_error (const struct refcount_repair *rep, int r, const char *what)
{
  return qcow2_error_set (rep->error, -r, "can't %s: %s", what,
                          strerror (-r));
}

static int
out_of_memory (const struct refcount_repair *rep)
{
  return qcow2_error_set (rep->error, ENOMEM, "out of memory");
}

/*----- The plan -----*/

/* Make the table reach to entry INDEX. */
static int
extend_table (struct refcount_repair *rep, uint64_t index)
{
  uint64_t room = index + index / 2 + SECTOR_WORDS, *table;
  bool *is_new;

  if (index >= MAX_REFCOUNT_TABLE_BYTES / 8)
    return qcow2_error_set (rep->error, EFBIG,
                            "the refcount table would be too large");
  if (index >= rep->room) {
    table = realloc (rep->table, room * sizeof *table);
    if (table)
      rep->table = table;
    is_new = realloc (rep->is_new, room * sizeof *is_new);
    if (is_new)
      rep->is_new = is_new;
    if (!table || !is_new)
      return out_of_memory (rep);
    memset (table + rep->room, 0, (room - rep->room) * sizeof *table);
    memset (is_new + rep->room, 0, (room - rep->room) * sizeof *is_new);
    rep->room = room;
  }
  if (index >= rep->nr_entries)
    rep->nr_entries = index + 1;
  return 0;
}

/* Block CLUSTER is to be replaced, and is in use until then. */
static int
add_old_block (struct refcount_repair *rep, uint64_t cluster)
{
  uint64_t room = rep->old_room * 2 + 16, *old = rep->old_blocks;

  if (rep->nr_old_blocks == rep->old_room) {
    old = realloc (old, room * sizeof *old);
    if (!old)
      return out_of_memory (rep);
    rep->old_blocks = old;
    rep->old_room = room;
  }
  old[rep->nr_old_blocks++] = cluster;
  return 0;
}

/* What can't be used as it is becomes 0.  A block that was not counted,
 * since its entry has bits that it must not have, is in use all the same.
 */
static int
judge_entry (struct refcount_repair *rep, uint64_t index)
{
  uint64_t entry = rep->table[index];
  uint64_t offset = entry & ~REFCOUNT_TABLE_RESERVED;

  if (entry == 0 || is_refcount_block_good (rep->map, entry))
    return 0;
  rep->table[index] = 0;
  rep->is_new[index] = true;
  if (!is_refcount_block_counted (rep->map, offset))
    return 0;
  if (offset != entry)
    ref_map_add (rep->map, REF_REFCOUNT_BLOCK, offset, cluster_bytes (rep),
                 1);
  return add_old_block (rep, offset >> rep->map->cluster_bits);
}

/* None of the entries of a table that is bad can be trusted: its blocks
 * were not counted.
 */
static int
read_table (struct refcount_repair *rep)
{
  const struct header *h = &rep->layer->header;
  uint64_t i;
  int r;

  rep->table_entries = rep->table_is_bad ? 0 :
    ((uint64_t) h->refcount_table_clusters << h->cluster_bits) / 8;
  if (rep->table_entries == 0)
    return 0;
  r = extend_table (rep, rep->table_entries - 1);
  if (r < 0)
    return r;
  r = qcow2_storage_read_meta (rep->layer->file, rep->table,
                               rep->table_entries * 8,
                               h->refcount_table_offset);
  if (r < 0)
    return io_error (rep, r, "read the refcount table");
  for (i = 0; r == 0 && i < rep->table_entries; ++i) {
    rep->table[i] = be64toh (rep->table[i]);
    r = judge_entry (rep, i);
  }
  return r;
}

static int
check_counts (const struct refcount_repair *rep)
{
  uint64_t max = refcount_max (order_of (rep)), i;

  for (i = 0; i < rep->map->nr_clusters; ++i)
    if (ref_map_count (rep->map, i) > max)
      return qcow2_error_set (rep->error, EINVAL,
                              "the cluster at 0x%" PRIx64 " has %" PRIu32
                              " references, more than its refcount of %u "
                              "bits can count", i << rep->map->cluster_bits,
                              ref_map_count (rep->map, i),
                              1u << order_of (rep));
  return 0;
}

/* Is there a reference that block INDEX counts? */
static bool
has_references (const struct refcount_repair *rep, uint64_t index)
{
  uint64_t i = index << block_bits (rep), end = (index + 1) << block_bits (rep);

  while (i < end && i < rep->map->nr_clusters) {
    if (ref_map_count (rep->map, i) > 0)
      return true;
    i++;
  }
  return false;
}

static bool
is_block_missing (const struct refcount_repair *rep, uint64_t index)
{
  if (index < rep->nr_entries && rep->table[index] != 0)
    return false;
  return has_references (rep, index) ||
    (rep->keep && index < rep->nr_entries && rep->is_new[index]) ||
    (rep->keep && rep->table_is_bad);
}

static int
take (struct refcount_repair *rep, enum ref_kind kind, uint64_t nr,
      uint64_t *first)
{
  int r;

  /* Where nobody knows what is free, or where the blocks are that are in
   * use until the table is replaced.
   */
  if ((rep->keep || rep->table_is_bad) && *first < rep->old_clusters)
    *first = rep->old_clusters;
  r = ref_map_take (rep->map, kind, nr,
                    qcow2_storage_can_grow (rep->layer->file), first);
  return r < 0 ? io_error (rep, r, "find room for refcounts") : 0;
}

/* *FREE_FROM: below it no cluster is free. */
static int
add_block (struct refcount_repair *rep, uint64_t index, uint64_t *free_from)
{
  int r = extend_table (rep, index);

  if (r == 0)
    r = take (rep, REF_REFCOUNT_BLOCK, 1, free_from);
  if (r < 0)
    return r;
  rep->table[index] = *free_from << rep->map->cluster_bits;
  rep->is_new[index] = true;
  return 0;
}

/* A new block may lie where another one is missing: then once more. */
static int
add_missing_blocks (struct refcount_repair *rep)
{
  uint64_t index, free_from = 0;
  bool added;
  int r;

  do {
    added = false;
    for (index = 0; index << block_bits (rep) < rep->map->nr_clusters;
         ++index) {
      if (!is_block_missing (rep, index))
        continue;
      added = true;
      r = add_block (rep, index, &free_from);
      if (r < 0)
        return r;
    }
  } while (added);
  return 0;
}

/* Blocks that are there, beyond all references, count too. */
static int
plan_table (struct refcount_repair *rep)
{
  uint64_t max = MAX_REFCOUNT_TABLE_BYTES / cluster_bytes (rep);
  uint64_t entries;
  int r;

  for (;;) {
    r = add_missing_blocks (rep);
    if (r < 0)
      return r;
    entries = rep->new_table_clusters > 0 ?
      rep->new_table_clusters * cluster_bytes (rep) / 8 : rep->table_entries;
    if (rep->nr_entries <= entries)
      return 0;
    /* It needs blocks of its own, so there is room to spare. */
    ref_map_drop (rep->map, REF_REFCOUNT_TABLE, rep->new_table,
                  rep->new_table_clusters);
    rep->new_table_clusters =
      (rep->nr_entries * 2 * 8 + cluster_bytes (rep) - 1) /
      cluster_bytes (rep);
    if (rep->new_table_clusters > max)
      rep->new_table_clusters = max;
    rep->new_table = 0;
    r = take (rep, REF_REFCOUNT_TABLE, rep->new_table_clusters,
              &rep->new_table);
    if (r < 0)
      return r;
  }
}

/* What is replaced has kept its place until room was found for all that is
 * new.  From the switch on nothing refers to it: the map is what shall be
 * then, and refcounts are lowered only after it.
 */
static void
drop_replaced (struct refcount_repair *rep)
{
  const struct header *h = &rep->layer->header;
  uint64_t i;

  for (i = 0; i < rep->nr_old_blocks; ++i)
    ref_map_drop (rep->map, REF_REFCOUNT_BLOCK, rep->old_blocks[i], 1);
  if (rep->new_table_clusters > 0 && rep->table_counted)
    ref_map_drop (rep->map, REF_REFCOUNT_TABLE,
                  h->refcount_table_offset >> rep->map->cluster_bits,
                  h->refcount_table_clusters);
}

int
refcount_repair_plan (struct refcount_repair *rep)
{
  int r;

  rep->old_clusters = rep->map->nr_clusters;
  r = read_table (rep);
  if (r == 0)
    r = plan_table (rep);
  if (r < 0)
    return r;
  drop_replaced (rep);
  return check_counts (rep);
}

void
refcount_repair_clear (struct refcount_repair *rep)
{
  free (rep->table);
  free (rep->is_new);
  free (rep->old_blocks);
}

/*----- Blocks -----*/

enum pass { PASS_NEW, PASS_RAISE, PASS_LOWER, PASS_LOWER_ONLY };

static void
tell (const struct refcount_repair *rep, uint64_t cluster, uint64_t have,
      uint64_t want)
{
  char text[100];

  if (!rep->found)
    return;
  snprintf (text, sizeof text, "Repairing cluster %" PRIu64 " refcount=%"
            PRIu64 " reference=%" PRIu64, cluster, have, want);
  rep->found (rep->opaque, text);
}

/* What becomes of the refcount HAVE of CLUSTER in this pass. */
static uint64_t
corrected (struct refcount_repair *rep, enum pass pass, uint64_t cluster,
           uint64_t have)
{
  uint64_t want = ref_map_count (rep->map, cluster);

  if (pass == PASS_NEW) {
    rep->nr_raised += want > 0;
    return want;
  }
  if (have < want) {
    if (pass == PASS_LOWER_ONLY)
      return have;
    rep->nr_raised++;
  }
  else if (have > want) {
    if (pass == PASS_RAISE) {
      if (rep->keep)
        ref_map_raise (rep->map, cluster, have);
      return have;
    }
    rep->nr_lowered++;
  }
  if (have != want)
    tell (rep, cluster, have, want);
  return want;
}

/* Correct BLOCK; sectors that change are marked in CHANGED.  Returns whether
 * any does.
 */
static bool
correct_block (struct refcount_repair *rep, uint64_t index, enum pass pass,
               uint64_t *block, bool *changed)
{
  unsigned order = order_of (rep);
  uint64_t first = index << block_bits (rep), i;
  uint64_t nr = UINT64_C (1) << block_bits (rep);
  bool any = false;

  for (i = 0; i < nr; ++i) {
    uint64_t *word = &block[i >> (6 - order)], have, is;

    if (*word == 0 && ref_map_count (rep->map, first + i) == 0)
      continue;
    have = refcount_word_get (order, be64toh (*word), i);
    is = corrected (rep, pass, first + i, have);
    if (is == have)
      continue;
    *word = htobe64 (refcount_word_set (order, be64toh (*word), i, is));
    changed[(i >> (6 - order)) / SECTOR_WORDS] = any = true;
  }
  return any;
}

static int
write_changed_sectors (struct refcount_repair *rep, const uint64_t *block,
                       uint64_t offset, const bool *changed)
{
  uint64_t nr = cluster_bytes (rep) / 512, first, end;
  int r;

  for (first = 0; first < nr; first = end + 1) {
    for (end = first; end < nr && changed[end]; ++end)
      ;
    if (end == first)
      continue;
    r = qcow2_storage_write (rep->layer->file, block + first * SECTOR_WORDS,
                             (end - first) * 512, offset + first * 512,
                             false);
    if (r < 0)
      return io_error (rep, r, "write refcounts");
  }
  return 0;
}

/* A block of zeros that was never written, and should be one, takes no time. */
static int
correct_on_disk (struct refcount_repair *rep, uint64_t index,
                 enum pass pass, uint64_t *block, bool *changed)
{
  int r;

  if (!has_references (rep, index) &&
      qcow2_storage_is_hole (rep->layer->file, rep->table[index],
                             cluster_bytes (rep)))
    return 0;
  r = qcow2_storage_read_meta (rep->layer->file, block, cluster_bytes (rep),
                               rep->table[index]);
  if (r < 0)
    return io_error (rep, r, "read refcounts");
  memset (changed, 0, cluster_bytes (rep) / 512 * sizeof *changed);
  if (!correct_block (rep, index, pass, block, changed))
    return 0;
  return write_changed_sectors (rep, block, rep->table[index], changed);
}

/* Nobody knows which clusters are free. */
static void
keep_all (struct refcount_repair *rep, uint64_t index)
{
  uint64_t i = index << block_bits (rep), end = (index + 1) << block_bits (rep);

  for (; i < end && i < rep->old_clusters; ++i)
    ref_map_raise (rep->map, i, 1);
}

static int
write_new_block (struct refcount_repair *rep, uint64_t index,
                 uint64_t *block, bool *changed)
{
  int r;

  if (rep->keep)
    keep_all (rep, index);
  memset (block, 0, cluster_bytes (rep));
  correct_block (rep, index, PASS_NEW, block, changed);
  r = qcow2_storage_write (rep->layer->file, block, cluster_bytes (rep),
                           rep->table[index], false);
  return r < 0 ? io_error (rep, r, "write a refcount block") : 0;
}

static int
for_each_block (struct refcount_repair *rep, enum pass pass)
{
  uint64_t *block = malloc (cluster_bytes (rep));
  bool *changed = malloc (cluster_bytes (rep) / 512 * sizeof *changed);
  uint64_t i;
  int r = block && changed ? 0 : out_of_memory (rep);

  for (i = 0; r == 0 && i < rep->nr_entries; ++i)
    if (rep->table[i] == 0)
      continue;
    else if (pass == PASS_NEW && rep->is_new[i])
      r = write_new_block (rep, i, block, changed);
    else if (pass >= PASS_LOWER || (pass == PASS_RAISE && !rep->is_new[i]))
      r = correct_on_disk (rep, i, pass, block, changed);
  free (block);
  free (changed);
  return r;
}

int
refcount_repair_raise (struct refcount_repair *rep)
{
  return for_each_block (rep, PASS_RAISE);
}

int
refcount_repair_lower (struct refcount_repair *rep)
{
  return for_each_block (rep, PASS_LOWER);
}

int
refcount_repair_lower_only (struct refcount_repair *rep)
{
  int r = read_table (rep);

  return r == 0 ? for_each_block (rep, PASS_LOWER_ONLY) : r;
}

/*----- The table -----*/

/* Entries FIRST and up in disk order; what is behind the last is 0. */
static void
encode_entries (const struct refcount_repair *rep, uint64_t first,
                uint64_t nr, uint64_t *out)
{
  uint64_t i;

  for (i = 0; i < nr; ++i)
    out[i] = first + i < rep->nr_entries ? htobe64 (rep->table[first + i]) :
      0;
}

static int
write_new_table (struct refcount_repair *rep)
{
  uint64_t bytes = rep->new_table_clusters * cluster_bytes (rep);
  uint64_t *words = malloc (bytes);
  int r;

  if (!words)
    return out_of_memory (rep);
  encode_entries (rep, 0, bytes / 8, words);
  r = qcow2_storage_write (rep->layer->file, words, bytes,
                           rep->new_table << rep->map->cluster_bits, false);
  free (words);
  return r < 0 ? io_error (rep, r, "write the refcount table") : 0;
}

int
refcount_repair_write_new (struct refcount_repair *rep)
{
  int r = for_each_block (rep, PASS_NEW);

  if (r == 0 && rep->new_table_clusters > 0)
    r = write_new_table (rep);
  return r;
}

/* The sectors that name new blocks. */
static int
write_entries (struct refcount_repair *rep)
{
  uint64_t words[SECTOR_WORDS], first, i;
  int r;

  for (first = 0; first < rep->table_entries; first += SECTOR_WORDS) {
    bool changed = false;

    for (i = first; i < first + SECTOR_WORDS && i < rep->nr_entries; ++i)
      changed = changed || rep->is_new[i];
    if (!changed)
      continue;
    encode_entries (rep, first, SECTOR_WORDS, words);
    r = qcow2_storage_write (rep->layer->file, words, sizeof words,
                             rep->layer->header.refcount_table_offset +
                             first * 8, false);
    if (r < 0)
      return io_error (rep, r, "write the refcount table");
  }
  return 0;
}

int
refcount_repair_switch (struct refcount_repair *rep,
                        struct header_writer *header)
{
  struct header *h = &rep->layer->header;
  uint64_t offset = rep->new_table << rep->map->cluster_bits;
  int r;

  if (rep->new_table_clusters == 0)
    return write_entries (rep);
  r = header_writer_set_refcount_table (header, offset,
                                        (uint32_t) rep->new_table_clusters);
  if (r < 0)
    return io_error (rep, r, "write the header");
  h->refcount_table_offset = offset;
  h->refcount_table_clusters = (uint32_t) rep->new_table_clusters;
  return 0;
}
