/* SPDX-License-Identifier: BSD-3-Clause */

/* What each host cluster is used for, and how often. */

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "ref-map.h"

#define COUNT_BITS 28
#define MAX_COUNT ((UINT32_C (1) << COUNT_BITS) - 1)

int
ref_map_init (struct ref_map *map, uint64_t file_bytes,
              unsigned cluster_bits)
{
  uint64_t nr = (file_bytes >> cluster_bits) +
    !!(file_bytes & ((UINT64_C (1) << cluster_bits) - 1));

  memset (map, 0, sizeof *map);
  if (nr > REF_MAP_MAX_BYTES / sizeof *map->words)
    return -EFBIG;
  map->words = calloc (nr + 1, sizeof *map->words);
  map->others = calloc (nr + 1, sizeof *map->others);
  if (!map->words || !map->others) {
    ref_map_clear (map);
    return -ENOMEM;
  }
  map->cluster_bits = cluster_bits;
  map->file_bytes = file_bytes;
  map->nr_clusters = nr;
  map->room = nr + 1;
  map->first_outside = UINT64_MAX;
  return 0;
}

void
ref_map_clear (struct ref_map *map)
{
  free ((void *) map->words);
  free ((void *) map->others);
  memset (map, 0, sizeof *map);
}

static uint32_t
load (const _Atomic uint32_t *word)
{
  return atomic_load_explicit (word, memory_order_relaxed);
}

static void
store (_Atomic uint32_t *word, uint32_t value)
{
  atomic_store_explicit (word, value, memory_order_relaxed);
}

static bool
is_within_file (const struct ref_map *map, enum ref_kind kind,
                uint64_t offset, uint64_t bytes)
{
  if (offset >= map->file_bytes)
    return false;
  if (kind == REF_DATA)
    return ((offset + bytes - 1) >> map->cluster_bits) < map->nr_clusters;
  return bytes <= map->file_bytes - offset;
}

/* Something lies, in part at least, past the end.  Where that is must not
 * become the place of anything else.
 */
static void
note_outside (struct ref_map *map, uint64_t offset)
{
  uint64_t cluster = offset >> map->cluster_bits;
  uint64_t first = atomic_load (&map->first_outside);

  if (cluster < map->nr_clusters)
    cluster = map->nr_clusters;
  while (cluster < first &&
         !atomic_compare_exchange_weak (&map->first_outside, &first, cluster))
    ;
}

static bool
may_share (enum ref_kind kind)
{
  return kind == REF_DATA || kind == REF_L2;
}

/* Add TIMES to *WORD, whose upper bits stay, or become KIND's if it is 0.
 * False if it would be too many.
 */
static bool
add_times (_Atomic uint32_t *word, uint32_t kind_bits, uint32_t times)
{
  uint32_t was = load (word), is;

  do {
    if (times > MAX_COUNT - (was & MAX_COUNT))
      return false;
    is = (was == 0 ? kind_bits : was) + times;
  } while (!atomic_compare_exchange_weak_explicit (word, &was, is,
                                                   memory_order_relaxed,
                                                   memory_order_relaxed));
  return true;
}

static enum ref_verdict
add_one (struct ref_map *map, enum ref_kind kind, uint64_t cluster,
         uint32_t times)
{
  enum ref_kind is = load (&map->words[cluster]) >> COUNT_BITS;

  if (is != REF_NONE && is != kind) {
    atomic_store_explicit (&map->has_others, true, memory_order_relaxed);
    return add_times (&map->others[cluster], 0, times) ? REF_SHARED :
      REF_TOO_MANY;
  }
  if (!add_times (&map->words[cluster], (uint32_t) kind << COUNT_BITS, times))
    return REF_TOO_MANY;
  return is != REF_NONE && !may_share (kind) ? REF_SHARED : REF_GOOD;
}

enum ref_verdict
ref_map_add (struct ref_map *map, enum ref_kind kind, uint64_t offset,
             uint64_t bytes, uint32_t times)
{
  uint64_t first = offset >> map->cluster_bits, last, i;
  enum ref_verdict verdict = REF_GOOD, v;

  if (bytes == 0)
    return REF_GOOD;
  if (!is_within_file (map, kind, offset, bytes)) {
    note_outside (map, offset);
    return REF_OUTSIDE;
  }
  last = (offset + bytes - 1) >> map->cluster_bits;
  for (i = first; i <= last; ++i) {
    v = add_one (map, kind, i, times);
    if (v > verdict)
      verdict = v;
  }
  return verdict;
}

void
ref_map_drop (struct ref_map *map, enum ref_kind kind, uint64_t first,
              uint64_t nr)
{
  uint64_t i;

  for (i = first; i < first + nr; ++i) {
    uint32_t word = load (&map->words[i]);

    if (word >> COUNT_BITS != (uint32_t) kind || (word & MAX_COUNT) == 0)
      store (&map->others[i], load (&map->others[i]) - 1);
    else
      store (&map->words[i], (word & MAX_COUNT) == 1 ? 0 : word - 1);
  }
}

enum ref_kind
ref_map_kind (const struct ref_map *map, uint64_t cluster)
{
  return cluster < map->nr_clusters ?
    load (&map->words[cluster]) >> COUNT_BITS : REF_NONE;
}

uint32_t
ref_map_times (const struct ref_map *map, uint64_t cluster)
{
  return cluster < map->nr_clusters ?
    load (&map->words[cluster]) & MAX_COUNT : 0;
}

/* In an image that is sound nothing has others, so their memory is left
 * alone.
 */
uint32_t
ref_map_count (const struct ref_map *map, uint64_t cluster)
{
  if (cluster >= map->nr_clusters)
    return 0;
  return (load (&map->words[cluster]) & MAX_COUNT) +
    (atomic_load_explicit (&map->has_others, memory_order_relaxed) ?
     load (&map->others[cluster]) : 0);
}

void
ref_map_raise (struct ref_map *map, uint64_t cluster, uint64_t count)
{
  uint64_t have = ref_map_count (map, cluster);

  if (count > MAX_COUNT)
    count = MAX_COUNT;
  if (have < count)
    ref_map_add (map, REF_DATA, cluster << map->cluster_bits, 1,
                 (uint32_t) (count - have));
}

/* More room, zeroed. */
static _Atomic uint32_t *
enlarge (_Atomic uint32_t *words, uint64_t from, uint64_t to)
{
  words = realloc ((void *) words, to * sizeof *words);
  if (words)
    memset ((void *) (words + from), 0, (to - from) * sizeof *words);
  return words;
}

/* Make NR_CLUSTERS of them. */
static int
grow (struct ref_map *map, uint64_t nr_clusters)
{
  uint64_t room = nr_clusters + nr_clusters / 64 + 64;
  _Atomic uint32_t *words, *others;

  if (nr_clusters > map->room) {
    words = enlarge (map->words, map->room, room);
    if (words)
      map->words = words;
    others = enlarge (map->others, map->room, room);
    if (others)
      map->others = others;
    if (!words || !others)
      return -ENOMEM;
    map->room = room;
  }
  map->nr_clusters = nr_clusters;
  return 0;
}

static bool
is_free (const struct ref_map *map, uint64_t cluster)
{
  return load (&map->words[cluster]) == 0 &&
    (!map->has_others || load (&map->others[cluster]) == 0);
}

int
ref_map_take (struct ref_map *map, enum ref_kind kind, uint64_t nr,
              bool can_grow, uint64_t *first)
{
  /* A device may have a part of a cluster at its end. */
  uint64_t end = can_grow ? map->nr_clusters :
    map->file_bytes >> map->cluster_bits;
  uint64_t i, run = 0;
  int r;

  for (i = *first; i < end && run < nr; ++i)
    run = is_free (map, i) ? run + 1 : 0;
  if (run < nr) {
    if (!can_grow || i + nr - run > map->first_outside)
      return -ENOSPC;
    r = grow (map, i + nr - run);
    if (r < 0)
      return r;
    i += nr - run;
  }
  *first = i - nr;
  for (i = *first; i < *first + nr; ++i)
    store (&map->words[i], (uint32_t) kind << COUNT_BITS | 1);
  return 0;
}
