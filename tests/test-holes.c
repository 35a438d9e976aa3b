/* SPDX-License-Identifier: BSD-3-Clause */

/* The list of free ranges holds just what was added and not taken; when it
 * is full, the lowest part of that, and it says what it forgot.
 */

#include <stdlib.h>

#include "holes.h"
#include "qemu-image.h"
#include "tap.h"

#define NR_CLUSTERS 20000
#define NR_STEPS 40000

enum { USED, FREE, OURS, FORGOTTEN };

static struct holes holes;
static uint8_t model[NR_CLUSTERS];

static void
start (void)
{
  memset (&holes, 0, sizeof holes);
  memset (model, USED, sizeof model);
}

static bool
is_known (uint64_t cluster)
{
  return model[cluster] == FREE || model[cluster] == OURS;
}

/* Add as the list should; what it forgets is the highest. */
static bool
add (uint64_t first, uint64_t nr, bool ours)
{
  struct forgotten forgotten;
  uint64_t i, added = 0, known_end = NR_CLUSTERS;
  uint64_t nr_forgotten = 0, got;

  for (i = first; i < first + nr; ++i)
    if (!is_known (i)) {
      model[i] = ours ? OURS : FREE;
      added++;
    }
  got = holes_add (&holes, (struct hole) { first, nr, ours }, &forgotten);
  if (forgotten.nr > 0) {
    known_end = holes.list[0].first + holes.list[0].nr;
    if (forgotten.first < known_end)
      return false;
  }
  for (i = known_end; i < NR_CLUSTERS; ++i)
    if (is_known (i)) {
      model[i] = FORGOTTEN;
      nr_forgotten++;
    }
  return got == added && nr_forgotten == forgotten.nr;
}

static bool
take (uint64_t nr)
{
  struct hole hole;
  uint64_t i, lowest = 0;
  bool got = holes_take (&holes, nr, &hole);

  while (lowest < NR_CLUSTERS && !is_known (lowest))
    lowest++;
  if (!got)
    return lowest == NR_CLUSTERS;
  if (hole.first != lowest || hole.nr == 0 || hole.nr > nr)
    return false;
  for (i = hole.first; i < hole.first + hole.nr; ++i) {
    if (model[i] != (hole.ours ? OURS : FREE))
      return false;
    model[i] = USED;
  }
  /* All of the range that is of one kind, if that was asked for. */
  return hole.nr == nr || i == NR_CLUSTERS ||
    model[i] != (hole.ours ? OURS : FREE);
}

/* Cut somewhere; what is above is as if nobody had ever told of it. */
static void
cut (uint64_t end)
{
  uint64_t i;

  holes_cut (&holes, end);
  for (i = end; i < NR_CLUSTERS; ++i)
    model[i] = USED;
}

/* Sorted, joined, and what the model says. */
static bool
is_right (void)
{
  uint64_t i, clusters = 0, ranges = 0;

  for (i = 0; i < NR_CLUSTERS; ++i) {
    clusters += is_known (i);
    ranges += is_known (i) && (i == 0 || model[i] != model[i - 1]);
    if (holes_have_ours (&holes, i) != (model[i] == OURS))
      return false;
  }
  return clusters == holes.clusters && ranges == holes.nr;
}

static void
test_random (unsigned take_percent, unsigned max_nr, const char *what)
{
  uint64_t seed = 42;
  unsigned i, most = 0;
  bool good = true;

  start ();
  for (i = 0; i < NR_STEPS && good; ++i) {
    uint64_t nr = 1 + random_below (&seed, max_nr);

    if (i % 1000 == 999)
      cut (NR_CLUSTERS - random_below (&seed, NR_CLUSTERS / 8));
    else if (random_below (&seed, 100) < take_percent)
      good = take (nr);
    else
      good = add (random_below (&seed, NR_CLUSTERS - nr), nr,
                  random_below (&seed, 3) > 0);
    if (i % 500 == 0)
      good = good && is_right ();
    if (holes.nr > most)
      most = holes.nr;
  }
  ok (good && is_right (), "%s: the list is right (at most %u holes)", what,
      most);
}

static void
test_join (void)
{
  start ();
  add (10, 5, true);
  add (20, 5, true);
  is_int (holes.nr, 2, "two holes");
  add (15, 5, true);
  ok (holes.nr == 1 && holes.clusters == 15, "what lies between joins them");
  add (25, 5, false);
  is_int (holes.nr, 2, "but not what another session has left");
  add (12, 10, true);
  ok (holes.clusters == 20, "what is known is not counted again");
  add (5, 40, false);
  ok (holes.clusters == 40 && holes_have_ours (&holes, 12) &&
      !holes_have_ours (&holes, 8), "nor does it change");
}

int
main (void)
{
  test_join ();
  test_random (60, 20, "few holes");
  test_random (40, 3, "many holes");
  test_random (2, 1, "too many holes");
  return tap_done ();
}
