/* SPDX-License-Identifier: BSD-3-Clause */

/* Free ranges of host clusters, sorted, in an array: the highest one is
 * first, so the lowest one is taken without moving the others.
 */

#include <string.h>

#include "holes.h"

static uint64_t
end_of (const struct hole *hole)
{
  return hole->first + hole->nr;
}

/* The index of the hole that CLUSTER is in, or of the next one below. */
static unsigned
find (const struct holes *h, uint64_t cluster)
{
  unsigned low = 0, high = h->nr;

  while (low < high) {
    unsigned middle = (low + high) / 2;

    if (h->list[middle].first <= cluster)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

static void
remove_at (struct holes *h, unsigned i)
{
  h->nr--;
  memmove (&h->list[i], &h->list[i + 1], (h->nr - i) * sizeof h->list[0]);
}

static void
forget (struct holes *h, const struct hole *hole,
        struct forgotten *forgotten)
{
  forgotten->nr += hole->nr;
  if (forgotten->first > hole->first)
    forgotten->first = hole->first;
  h->clusters -= hole->nr;
}

/* Put HOLE, which touches no other, in front of index I. */
static void
insert_at (struct holes *h, unsigned i, const struct hole *hole,
           struct forgotten *forgotten)
{
  if (h->nr < MAX_HOLES) {
    memmove (&h->list[i + 1], &h->list[i],
             (h->nr - i) * sizeof h->list[0]);
    h->nr++;
    h->list[i] = *hole;
    return;
  }
  if (i == 0) {
    forget (h, hole, forgotten);
    return;
  }
  forget (h, &h->list[0], forgotten);
  memmove (&h->list[0], &h->list[1], (i - 1) * sizeof h->list[0]);
  h->list[i - 1] = *hole;
}

/* Add HOLE, which lies between those with index I - 1 and I. */
static void
add_between (struct holes *h, unsigned i, const struct hole *hole,
             struct forgotten *forgotten)
{
  struct hole *below = i < h->nr ? &h->list[i] : NULL;
  struct hole *above = i > 0 ? &h->list[i - 1] : NULL;
  bool joins_below = below && below->ours == hole->ours &&
    end_of (below) == hole->first;
  bool joins_above = above && above->ours == hole->ours &&
    above->first == end_of (hole);

  h->clusters += hole->nr;
  if (joins_below) {
    below->nr += hole->nr;
    if (joins_above) {
      below->nr += above->nr;
      remove_at (h, i - 1);
    }
  }
  else if (joins_above) {
    above->first = hole->first;
    above->nr += hole->nr;
  }
  else
    insert_at (h, i, hole, forgotten);
}

uint64_t
holes_add (struct holes *h, struct hole hole, struct forgotten *forgotten)
{
  uint64_t end = end_of (&hole), added = 0;

  forgotten->first = UINT64_MAX;
  forgotten->nr = 0;
  while (hole.first < end) {
    unsigned i = find (h, hole.first);
    uint64_t next = end;

    if (i < h->nr && end_of (&h->list[i]) > hole.first)
      next = end_of (&h->list[i]);      /* known already */
    else {
      if (i > 0 && h->list[i - 1].first < end)
        next = h->list[i - 1].first;
      hole.nr = next - hole.first;
      added += hole.nr;
      add_between (h, i, &hole, forgotten);
    }
    hole.first = next;
  }
  return added;
}

bool
holes_take (struct holes *h, uint64_t nr, struct hole *out)
{
  struct hole *lowest;

  if (h->nr == 0)
    return false;
  lowest = &h->list[h->nr - 1];
  *out = *lowest;
  if (out->nr > nr)
    out->nr = nr;
  lowest->first += out->nr;
  lowest->nr -= out->nr;
  if (lowest->nr == 0)
    h->nr--;
  h->clusters -= out->nr;
  return true;
}

void
holes_cut (struct holes *h, uint64_t end)
{
  unsigned above = 0;

  while (above < h->nr && h->list[above].first >= end)
    h->clusters -= h->list[above++].nr;
  h->nr -= above;
  memmove (&h->list[0], &h->list[above], h->nr * sizeof h->list[0]);
  if (h->nr > 0 && end_of (&h->list[0]) > end) {
    h->clusters -= end_of (&h->list[0]) - end;
    h->list[0].nr = end - h->list[0].first;
  }
}

bool
holes_have_ours (const struct holes *h, uint64_t cluster)
{
  unsigned i = find (h, cluster);

  return i < h->nr && h->list[i].ours && cluster < end_of (&h->list[i]);
}
