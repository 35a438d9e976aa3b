/* SPDX-License-Identifier: BSD-3-Clause */

/* What each host cluster is used for, and how often. */

#include <errno.h>
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
  if (!map->words)
    return -ENOMEM;
  map->cluster_bits = cluster_bits;
  map->file_bytes = file_bytes;
  map->nr_clusters = nr;
  map->room = nr + 1;
  return 0;
}

void
ref_map_clear (struct ref_map *map)
{
  free (map->words);
  memset (map, 0, sizeof *map);
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

static bool
may_share (enum ref_kind kind)
{
  return kind == REF_DATA || kind == REF_L2;
}

static enum ref_verdict
judge (uint32_t word, enum ref_kind kind, uint32_t times)
{
  enum ref_kind is = word >> COUNT_BITS;

  if (is != REF_NONE && (is != kind || !may_share (kind)))
    return REF_OVERLAP;
  return times > MAX_COUNT - (word & MAX_COUNT) ? REF_TOO_MANY : REF_GOOD;
}

enum ref_verdict
ref_map_add (struct ref_map *map, enum ref_kind kind, uint64_t offset,
             uint64_t bytes, uint32_t times)
{
  uint64_t first = offset >> map->cluster_bits, last, i;
  enum ref_verdict verdict;

  if (bytes == 0)
    return REF_GOOD;
  if (!is_within_file (map, kind, offset, bytes))
    return REF_OUTSIDE;
  last = (offset + bytes - 1) >> map->cluster_bits;
  for (i = first; i <= last; ++i) {
    verdict = judge (map->words[i], kind, times);
    if (verdict != REF_GOOD)
      return verdict;
  }
  for (i = first; i <= last; ++i)
    map->words[i] = (uint32_t) kind << COUNT_BITS |
      ((map->words[i] & MAX_COUNT) + times);
  return REF_GOOD;
}

void
ref_map_remove (struct ref_map *map, uint64_t first, uint64_t nr)
{
  memset (map->words + first, 0, nr * sizeof *map->words);
}

enum ref_kind
ref_map_kind (const struct ref_map *map, uint64_t cluster)
{
  return cluster < map->nr_clusters ? map->words[cluster] >> COUNT_BITS :
    REF_NONE;
}

uint32_t
ref_map_count (const struct ref_map *map, uint64_t cluster)
{
  return cluster < map->nr_clusters ? map->words[cluster] & MAX_COUNT : 0;
}

/* Make NR_CLUSTERS of them. */
static int
grow (struct ref_map *map, uint64_t nr_clusters)
{
  uint64_t room = nr_clusters + nr_clusters / 64 + 64;
  uint32_t *words;

  if (nr_clusters > map->room) {
    words = realloc (map->words, room * sizeof *words);
    if (!words)
      return -ENOMEM;
    memset (words + map->room, 0, (room - map->room) * sizeof *words);
    map->words = words;
    map->room = room;
  }
  map->nr_clusters = nr_clusters;
  return 0;
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
    run = map->words[i] == 0 ? run + 1 : 0;
  if (run < nr) {
    if (!can_grow)
      return -ENOSPC;
    r = grow (map, i + nr - run);
    if (r < 0)
      return r;
    i += nr - run;
  }
  *first = i - nr;
  for (i = *first; i < *first + nr; ++i)
    map->words[i] = (uint32_t) kind << COUNT_BITS | 1;
  return 0;
}
