/* SPDX-License-Identifier: BSD-3-Clause */

/* Making right what stands in L1 and L2 tables.
 *
 * One thread writes: a repair writes little, and always in the same order.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "l2-judge.h"
#include "l2-walk.h"
#include "repair-l2.h"

#define SECTOR_WORDS 64

struct l2_pass {
  struct l2_repair *rep;
  bool set;
  uint8_t *active;              /* a bit for each cluster */
};

static int
io_error (const struct l2_repair *rep, int r, const char *what,
          uint64_t offset)
{
  return qcow2_error_set (rep->error, -r, "can't %s at 0x%" PRIx64 ": %s",
                          what, offset, strerror (-r));
}

static void
tell (const struct l2_repair *rep, const char *what, uint64_t entry)
{
  char text[200];

  if (!rep->found)
    return;
  snprintf (text, sizeof text, "Repairing %s=%" PRIx64, what, entry);
  rep->found (rep->opaque, text);
}

/* ENTRY with the flag as it is to be now. */
static uint64_t
correct_flag (struct l2_pass *p, const char *what, uint64_t entry, bool want)
{
  struct l2_repair *rep = p->rep;

  if (!!(entry & ENTRY_COPIED) == want)
    return entry;
  if (want && !p->set) {
    rep->nr_missing++;
    return entry;
  }
  rep->nr_flags++;
  tell (rep, what, entry);
  return entry ^ ENTRY_COPIED;
}

/*----- L2 tables -----*/

/* Of an entry without a host cluster the flag means nothing; but with a
 * data file it says that there is one, at 0.  There all are ours.
 */
static uint64_t
correct_l2_flag (struct l2_pass *p, uint64_t entry)
{
  const char *what = "OFLAG_COPIED data cluster: l2_entry";
  const struct l2_repair *rep = p->rep;
  uint64_t host = entry & ENTRY_OFFSET_MASK;

  if (host == 0 || host & (layer_cluster_bytes (rep->layer) - 1))
    return entry;
  return correct_flag (p, what, entry, rep->layer->external_data ||
                       ref_map_count (rep->map,
                                      host >> rep->map->cluster_bits) == 1);
}

/* Where something else lies, too, words may be a guest's data: then those
 * that could be no entry are not touched.
 */
static bool
may_be_entry (const struct l2_repair *rep, const struct l2_judgement *j)
{
  uint64_t host = j->entry & ENTRY_OFFSET_MASK;

  return j->fault == L2_SOUND && (rep->layer->external_data ||
    host >> rep->map->cluster_bits < rep->map->nr_clusters);
}

/* Correct the entry at WORD; returns whether it changed. */
static bool
correct_entry (struct l2_pass *p, uint64_t cluster, uint64_t *word)
{
  struct l2_repair *rep = p->rep;
  bool extended = rep->layer->l2_entry_bits == 4;
  bool is_active = p->active[cluster / 8] >> cluster % 8 & 1;
  bool is_shared = ref_map_count (rep->map, cluster) !=
    ref_map_times (rep->map, cluster);
  uint64_t was = be64toh (word[0]), bitmap = extended ? be64toh (word[1]) : 0;
  struct l2_judgement j;

  l2_judge (rep->layer, was, bitmap, UINT64_MAX, &j);
  if (j.fault == L2_WRONG_FLAG && is_shared)
    rep->nr_left++;
  if (j.fault == L2_WRONG_FLAG && !is_shared && (is_active || rep->mend)) {
    rep->nr_flags++;
    tell (rep, "OFLAG_COPIED compressed cluster: l2_entry", was);
  }
  else if (j.fault == L2_MENDABLE && rep->mend && !is_shared) {
    rep->nr_mended++;
    tell (rep, j.problem, was);
  }
  else {
    j.entry = was;
    j.bitmap = bitmap;
  }
  if (is_active && !(was & ENTRY_COMPRESSED) &&
      (!is_shared || may_be_entry (rep, &j)))
    j.entry = correct_l2_flag (p, j.entry);
  if (j.entry == was && j.bitmap == bitmap)
    return false;
  word[0] = htobe64 (j.entry);
  if (extended)
    word[1] = htobe64 (j.bitmap);
  return true;
}

static int
correct_table (void *opaque, uint64_t cluster, uint64_t *words,
               struct parallel_unit *unit)
{
  struct l2_pass *p = opaque;
  const struct layer *l = p->rep->layer;
  size_t nr = layer_cluster_bytes (l) / 8, first, i;
  size_t words_per_entry = (size_t) 1 << (l->l2_entry_bits - 3);
  uint64_t offset = cluster << p->rep->map->cluster_bits;
  int r;

  for (first = 0; first < nr; first += SECTOR_WORDS) {
    bool changed = false;

    for (i = first; i < first + SECTOR_WORDS; i += words_per_entry)
      if (words[i] != 0 && correct_entry (p, cluster, &words[i]))
        changed = true;
    if (!changed)
      continue;
    r = qcow2_storage_write (l->file, words + first, SECTOR_WORDS * 8,
                             offset + first * 8, false);
    if (r < 0)
      return io_error (p->rep, r, "write the L2 table", offset);
  }
  return 0;
}

static int
failed (void *opaque, uint64_t cluster, int why)
{
  const struct l2_pass *p = opaque;

  return io_error (p->rep, why, "read the L2 table",
                   cluster << p->rep->map->cluster_bits);
}

static int
correct_tables (struct l2_pass *p)
{
  const struct l2_repair *rep = p->rep;
  struct l2_walk walk = {
    .layer = rep->layer, .map = rep->map, .nr_threads = 1,
    .only = rep->mend ? NULL : p->active,
    .table = correct_table, .failed = failed, .opaque = p,
  };
  int r = l2_walk (&walk);

  return r == -ENOMEM ?
    qcow2_error_set (rep->error, ENOMEM, "out of memory") : r;
}

/*----- The L1 table -----*/

static void
find_active (struct l2_pass *p)
{
  const struct l2_repair *rep = p->rep;
  const struct l1_table *l1 = &rep->layer->l1;
  uint64_t below = layer_cluster_bytes (rep->layer) - 1, cluster;
  uint32_t i;

  for (i = 0; i < l1->nr_entries; ++i) {
    cluster = (l1->entries[i] & ENTRY_OFFSET_MASK) >> rep->map->cluster_bits;
    if (cluster < rep->map->nr_clusters &&
        !(l1->entries[i] & ENTRY_OFFSET_MASK & below))
      p->active[cluster / 8] |= (uint8_t) (1u << cluster % 8);
  }
}

/* Does something else lie where the table does? */
static bool
is_l1_shared (const struct l2_repair *rep)
{
  const struct header *h = &rep->layer->header;
  uint64_t cluster = h->l1_offset >> h->cluster_bits, last;

  last = (h->l1_offset + h->l1_entries * UINT64_C (8) - 1) >> h->cluster_bits;
  for (; cluster <= last; ++cluster)
    if (ref_map_count (rep->map, cluster) != 1)
      return true;
  return false;
}

/* Should the flag of L1 entry ENTRY be set?  Of one that is not aligned, too,
 * as QEMU has it; never without a table.
 */
static bool
wants_flag (const struct l2_repair *rep, uint64_t entry)
{
  uint64_t table = entry & ENTRY_OFFSET_MASK;

  if (table == 0)
    return false;
  return ref_map_count (rep->map, table >> rep->map->cluster_bits) == 1;
}

static void
count_left (struct l2_repair *rep)
{
  const struct l1_table *l1 = &rep->layer->l1;
  uint32_t i;

  for (i = 0; i < l1->nr_entries; ++i)
    rep->nr_left += wants_flag (rep, l1->entries[i]) !=
      !!(l1->entries[i] & ENTRY_COPIED);
}

/* The entries of a sector, FIRST the first. */
static int
correct_l1_sector (struct l2_pass *p, uint32_t first)
{
  const struct l2_repair *rep = p->rep;
  struct layer *l = rep->layer;
  uint64_t words[SECTOR_WORDS], offset = l->header.l1_offset + first * 8;
  uint32_t nr = l->l1.nr_entries - first, i;
  bool changed = false;
  int r;

  if (nr > SECTOR_WORDS)
    nr = SECTOR_WORDS;
  for (i = 0; i < nr; ++i) {
    uint64_t was = l->l1.entries[first + i];
    uint64_t is = correct_flag (p, "OFLAG_COPIED L2 cluster: l1_entry", was,
                                wants_flag (rep, was));

    changed = changed || is != was;
    words[i] = htobe64 (is);
  }
  if (!changed)
    return 0;
  r = qcow2_storage_write (l->file, words, nr * sizeof *words, offset, false);
  if (r < 0)
    return io_error (rep, r, "write the L1 table", offset);
  for (i = 0; i < nr; ++i)
    l->l1.entries[first + i] = be64toh (words[i]);
  return 0;
}

int
l2_repair (struct l2_repair *rep, bool set)
{
  struct layer *l = rep->layer;
  struct l2_pass p = {
    .rep = rep, .set = set,
    .active = calloc (rep->map->nr_clusters / 8 + 1, 1),
  };
  uint32_t first;
  int r;

  if (!p.active)
    return qcow2_error_set (rep->error, ENOMEM, "out of memory");
  rep->nr_missing = rep->nr_left = 0;
  find_active (&p);
  r = correct_tables (&p);
  if (l->l1.nr_entries > 0 && is_l1_shared (rep))
    count_left (rep);
  else
    for (first = 0; r == 0 && first < l->l1.nr_entries; first += SECTOR_WORDS)
      r = correct_l1_sector (&p, first);
  free (p.active);
  return r;
}
