/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the refcounts on disk what a ref_map says.
 *
 * New blocks are put where nothing is referenced, and so is a larger
 * table; their own references go into the map, so that what is written
 * counts them.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "refcount-word.h"
#include "repair-refcounts.h"

#define SECTOR_WORDS 64

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

static int
read_table (struct refcount_repair *rep)
{
  const struct header *h = &rep->layer->header;
  uint64_t i;
  int r;

  rep->table_entries =
    ((uint64_t) h->refcount_table_clusters << h->cluster_bits) / 8;
  r = extend_table (rep, rep->table_entries - 1);
  if (r < 0)
    return r;
  r = qcow2_storage_read_meta (rep->layer->file, rep->table,
                               rep->table_entries * 8,
                               h->refcount_table_offset);
  if (r < 0)
    return io_error (rep, r, "read the refcount table");
  for (i = 0; i < rep->table_entries; ++i)
    rep->table[i] = be64toh (rep->table[i]);
  return 0;
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
  return (index >= rep->nr_entries || rep->table[index] == 0) &&
    has_references (rep, index);
}

static int
take (struct refcount_repair *rep, enum ref_kind kind, uint64_t nr,
      uint64_t *first)
{
  int r = ref_map_take (rep->map, kind, nr,
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
    ref_map_remove (rep->map, rep->new_table, rep->new_table_clusters);
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

int
refcount_repair_plan (struct refcount_repair *rep)
{
  int r = read_table (rep);

  if (r == 0)
    r = check_counts (rep);
  return r == 0 ? plan_table (rep) : r;
}

void
refcount_repair_clear (struct refcount_repair *rep)
{
  free (rep->table);
  free (rep->is_new);
}

/*----- Blocks -----*/

/* Set what is too low in BLOCK, and what is too high if LOWER.  Sectors that
 * change are marked in CHANGED.  Returns whether any does.
 */
static bool
correct_block (struct refcount_repair *rep, uint64_t index, bool lower,
               uint64_t *block, bool *changed)
{
  unsigned order = order_of (rep);
  uint64_t first = index << block_bits (rep), i;
  uint64_t nr = UINT64_C (1) << block_bits (rep);
  bool any = false;

  for (i = 0; i < nr; ++i) {
    uint64_t *word = &block[i >> (6 - order)];
    uint64_t want = ref_map_count (rep->map, first + i), have;

    if (*word == 0 && want == 0)
      continue;
    have = refcount_word_get (order, be64toh (*word), i);
    if (have == want || (have > want && !lower))
      continue;
    *word = htobe64 (refcount_word_set (order, be64toh (*word), i, want));
    changed[(i >> (6 - order)) / SECTOR_WORDS] = any = true;
    if (have < want)
      rep->nr_raised++;
    else
      rep->nr_lowered++;
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
correct_on_disk (struct refcount_repair *rep, uint64_t index, bool lower,
                 uint64_t *block, bool *changed)
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
  if (!correct_block (rep, index, lower, block, changed))
    return 0;
  return write_changed_sectors (rep, block, rep->table[index], changed);
}

static int
write_new_block (struct refcount_repair *rep, uint64_t index,
                 uint64_t *block, bool *changed)
{
  int r;

  memset (block, 0, cluster_bytes (rep));
  correct_block (rep, index, false, block, changed);
  r = qcow2_storage_write (rep->layer->file, block, cluster_bytes (rep),
                           rep->table[index], false);
  return r < 0 ? io_error (rep, r, "write a refcount block") : 0;
}

enum pass { PASS_NEW, PASS_RAISE, PASS_LOWER };

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
    else if (pass == PASS_LOWER || (pass == PASS_RAISE && !rep->is_new[i]))
      r = correct_on_disk (rep, i, pass == PASS_LOWER, block, changed);
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
  ref_map_remove (rep->map,
                  h->refcount_table_offset >> rep->map->cluster_bits,
                  h->refcount_table_clusters);
  h->refcount_table_offset = offset;
  h->refcount_table_clusters = (uint32_t) rep->new_table_clusters;
  return 0;
}
