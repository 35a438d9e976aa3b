/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting what all L2 tables name, with many threads.
 *
 * They count in the same map, whose words are atomic: no two of them are
 * likely to need the same one.
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "count-refs.h"
#include "format.h"
#include "l2-judge.h"
#include "l2-walk.h"

/*----- Entries -----*/

static int
tell (const struct ref_counter *c, const struct l2_judgement *j,
      const struct ref_place *at)
{
  enum ref_problem kind = j->fault == L2_BAD ? PROBLEM_BAD :
    j->fault == L2_MENDABLE ? PROBLEM_MENDABLE : PROBLEM_FLAG;

  return ref_problem (c, kind, at, j->problem);
}

static int
count_entry (const struct ref_counter *c, uint64_t entry, uint64_t bitmap,
             uint64_t guest, uint32_t times, const struct ref_place *at)
{
  unsigned cluster_bits = c->layer->header.cluster_bits;
  struct l2_judgement j;
  bool good;
  int r = 0;

  l2_judge (c->layer, entry, bitmap, guest, &j);
  if (j.fault != L2_SOUND)
    r = tell (c, &j, at);
  if (r < 0 || !(c->walk->mend ? j.counts_mended : j.counts))
    return r;
  if (entry & ENTRY_COMPRESSED)
    return ref_count (c, REF_DATA, compressed_offset (entry, cluster_bits),
                      compressed_bytes (entry, cluster_bits), times, at,
                      &good);
  return ref_count (c, REF_DATA, entry & ENTRY_OFFSET_MASK,
                    c->cluster_bytes, times, at, &good);
}

static int
count_table (void *opaque, uint64_t cluster, uint64_t *words,
             struct parallel_unit *unit)
{
  const struct ref_counter *c = opaque;
  const struct ref_map *map = c->walk->map;
  struct ref_place at = {
    "L2 table", cluster << map->cluster_bits, 0, unit,
  };
  unsigned words_per_entry = 1u << (c->layer->l2_entry_bits - 3);
  uint64_t nr = c->cluster_bytes >> c->layer->l2_entry_bits;
  uint64_t guest = UINT64_MAX;
  uint32_t times = ref_map_times (map, cluster);
  int r = 0;

  if (c->l1_index && c->l1_index[cluster] > 0)
    guest = (c->l1_index[cluster] - 1) * nr << map->cluster_bits;
  for (at.index = 0; r == 0 && at.index < nr; ++at.index) {
    uint64_t entry = be64toh (words[at.index * words_per_entry]);
    uint64_t bitmap = words_per_entry == 2 ?
      be64toh (words[at.index * 2 + 1]) : 0;

    if (entry == 0 && bitmap == 0)
      continue;
    r = count_entry (c, entry, bitmap, guest == UINT64_MAX ? guest :
                     guest + (at.index << map->cluster_bits), times, &at);
  }
  return r;
}

/*----- All of them -----*/

static int
failed (void *opaque, uint64_t cluster, int why)
{
  const struct ref_counter *c = opaque;

  return qcow2_error_set (c->error, -why, "can't read the L2 table at "
                          "0x%" PRIx64 ": %s",
                          cluster << c->walk->map->cluster_bits,
                          strerror (-why));
}

static void
progress (void *opaque, uint64_t nr_clusters)
{
  const struct ref_counter *c = opaque;

  if (c->walk->progress)
    c->walk->progress (c->walk->opaque, nr_clusters);
}

int
count_l2_tables (struct ref_counter *c)
{
  struct l2_walk walk = {
    .layer = c->layer, .map = c->walk->map, .nr_threads = c->walk->nr_threads,
    .table = count_table, .failed = failed, .progress = progress,
    .opaque = c,
  };
  int r = l2_walk (&walk);

  return r == -ENOMEM ? qcow2_error_set (c->error, ENOMEM, "out of memory") :
    r;
}
