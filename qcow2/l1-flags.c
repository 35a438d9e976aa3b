/* SPDX-License-Identifier: BSD-3-Clause */

/* COPIED flags of all that an L1 table names. */

#include <errno.h>
#include <stdlib.h>

#include "format.h"
#include "l1-refs.h"
#include "l1-walk.h"

#define SECTOR_WORDS 64

/*----- Clearing -----*/

static unsigned
words_per_entry (const struct writer *w)
{
  return 1u << (w->top->l2_entry_bits - 3);
}

static int
clear_table (void *opaque, const struct walked_table *t)
{
  const struct writer *w = opaque;
  size_t nr = layer_cluster_bytes (w->top) / 8, i;

  for (i = 0; t->words && i < nr; i += words_per_entry (w))
    if (t->words[i] & htobe64 (ENTRY_COPIED)) {
      t->words[i] &= htobe64 (~ENTRY_COPIED);
      t->changed[i / SECTOR_WORDS] = 1;
    }
  return 0;
}

int
l1_flags_clear (struct writer *w, const struct l1_table *l1, uint32_t nr,
                bool is_active)
{
  const struct l1_walk walk = {
    .w = w, .l1 = l1, .nr_entries = nr, .is_active = is_active,
    .fn = clear_table, .opaque = w,
  };
  uint32_t i;
  int r = l1_walk (&walk);

  for (i = 0; r == 0 && is_active && i < nr; ++i)
    if (l1->entries[i] & ENTRY_COPIED)
      r = l1_set (&w->l1, i, l1->entries[i] & ~ENTRY_COPIED);
  return r;
}

/*----- Setting -----*/

/* Of which clusters in the map is the refcount 1?  Their bits are set. */
struct setting {
  struct writer *w;
  const struct ref_map *map;
  uint8_t *is_one;
};

static uint64_t
find_one (void *opaque, uint64_t cluster, uint64_t value)
{
  const struct setting *s = opaque;

  if (value == 1 && ref_map_count (s->map, cluster) > 0)
    s->is_one[cluster / 8] |= (uint8_t) (1u << (cluster & 7));
  return value;
}

/* Is this an entry, of either table, whose flag is missing? */
static bool
is_missing (const struct setting *s, uint64_t entry)
{
  uint64_t cluster = (entry & ENTRY_OFFSET_MASK) >> s->map->cluster_bits;

  return !(entry & (ENTRY_COPIED | ENTRY_COMPRESSED)) && cluster > 0 &&
    cluster < s->map->nr_clusters &&
    (s->is_one[cluster / 8] >> (cluster & 7) & 1);
}

static int
set_table (void *opaque, const struct walked_table *t)
{
  const struct setting *s = opaque;
  size_t nr = layer_cluster_bytes (s->w->top) / 8, i;

  for (i = 0; t->words && i < nr; i += words_per_entry (s->w))
    if (is_missing (s, be64toh (t->words[i]))) {
      t->words[i] |= htobe64 (ENTRY_COPIED);
      t->changed[i / SECTOR_WORDS] = 1;
    }
  return 0;
}

static int
set_flags (const struct setting *s)
{
  struct writer *w = s->w;
  const struct l1_table *l1 = &w->top->l1;
  const struct l1_walk walk = {
    .w = w, .l1 = l1, .nr_entries = l1->nr_entries, .is_active = true,
    .fn = set_table, .opaque = (void *) s,
  };
  uint64_t done;
  uint32_t i;
  int r;

  r = refcounts_each (w->rc, 0, s->map->nr_clusters, find_one, (void *) s,
                      &done);
  if (r == 0)
    r = l1_walk (&walk);
  for (i = 0; r == 0 && i < l1->nr_entries; ++i)
    if (is_missing (s, l1->entries[i]))
      r = l1_set (&w->l1, i, l1->entries[i] | ENTRY_COPIED);
  return r;
}

int
l1_flags_set (struct writer *w, const struct ref_map *map)
{
  struct setting s = {
    .w = w, .map = map, .is_one = calloc (map->nr_clusters / 8 + 1, 1),
  };
  int r;

  if (!s.is_one)
    return -ENOMEM;
  r = set_flags (&s);
  free (s.is_one);
  return r;
}
