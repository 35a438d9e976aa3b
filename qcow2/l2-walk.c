/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading many L2 tables.
 *
 * A unit of work is a row of tables that lie side by side, as many as a
 * buffer holds.
 */

#include "l2-walk.h"

static bool
is_wanted (const struct l2_walk *w, uint64_t cluster)
{
  if (ref_map_kind (w->map, cluster) != REF_L2)
    return false;
  return !w->only || w->only[cluster / 8] >> cluster % 8 & 1;
}

/* The next row. */
static bool
deal (void *opaque, uint64_t *first, uint64_t *nr)
{
  struct l2_walk *w = opaque;
  uint64_t max = L2_WALK_BYTES >> w->map->cluster_bits, from = w->cursor;
  uint64_t i = from, end = w->map->nr_clusters;

  while (i < end && !is_wanted (w, i))
    i++;
  *first = i;
  do
    i++;
  while (i < end && i - *first < max && is_wanted (w, i));
  *nr = *first < end ? i - *first : 0;
  w->cursor = *first + *nr;
  if (w->progress)
    w->progress (w->opaque, w->cursor - from);
  return *nr > 0;
}

/* Some sector of it can't be read: which table that is matters. */
static int
read_one_by_one (const struct l2_walk *w, uint64_t first, uint64_t nr,
                 struct parallel_unit *unit)
{
  uint64_t cluster_bytes = layer_cluster_bytes (w->layer), i;
  int r = 0;

  for (i = first; r == 0 && i < first + nr; ++i) {
    r = qcow2_storage_read_meta (w->layer->file, unit->buffer, cluster_bytes,
                                 i << w->map->cluster_bits);
    if (r == 0)
      r = w->table (w->opaque, i, unit->buffer, unit);
    else {
      parallel_wait_turn (unit);
      r = w->failed (w->opaque, i, r);
    }
  }
  return r;
}

static int
read_row (const struct l2_walk *w, uint64_t first, uint64_t nr,
          struct parallel_unit *unit)
{
  uint64_t cluster_bytes = layer_cluster_bytes (w->layer), i;
  uint64_t *words = unit->buffer;
  int r = qcow2_storage_read_meta (w->layer->file, words, nr * cluster_bytes,
                                   first << w->map->cluster_bits);

  if (r < 0)
    return read_one_by_one (w, first, nr, unit);
  for (i = 0; r == 0 && i < nr; ++i)
    r = w->table (w->opaque, first + i, words + i * cluster_bytes / 8, unit);
  return r;
}

uint64_t
l2_walk_alike (const struct layer *l, uint64_t first, uint64_t end,
               bool *hole)
{
  unsigned bits = l->header.cluster_bits;
  uint64_t length, nr;

  if (qcow2_storage_hole (l->file, first << bits, hole, &length) < 0) {
    *hole = false;
    return end - first;
  }
  nr = length >> bits;
  if (*hole && nr == 0)
    *hole = false;
  if (!*hole && nr << bits < length)
    nr++;
  return nr == 0 ? 1 : nr < end - first ? nr : end - first;
}

/* A file may claim that it has many tables, which were never written: what
 * is a hole is not read.
 */
static int
run (void *opaque, struct parallel_unit *unit)
{
  const struct l2_walk *w = opaque;
  uint64_t first = unit->first, end = first + unit->nr, nr;
  bool hole;
  int r = 0;

  for (; r == 0 && first < end; first += nr) {
    nr = l2_walk_alike (w->layer, first, end, &hole);
    if (!hole)
      r = read_row (w, first, nr, unit);
  }
  return r;
}

int
l2_walk (struct l2_walk *w)
{
  const struct parallel_work work = {
    .nr_threads = w->nr_threads,
    .buffer_bytes = w->map->cluster_bits > 20 ?
      UINT64_C (1) << w->map->cluster_bits : L2_WALK_BYTES,
    .deal = deal, .run = run, .opaque = w,
  };

  return parallel_run (&work);
}
