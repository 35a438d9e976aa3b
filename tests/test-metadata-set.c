/* SPDX-License-Identifier: BSD-3-Clause */

/* The set of live metadata: against an array that says the same, and with
 * threads that look up while others add and remove.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "metadata-set.h"
#include "qemu-image.h"
#include "tap.h"

/*----- What the set should say -----*/

#define NR_CLUSTERS 4096
#define MAX_RANGES 40

/* How often each cluster was added as what, and the ranges. */
static unsigned nr_tables[NR_CLUSTERS], nr_blocks[NR_CLUSTERS];
static bool is_sticky[NR_CLUSTERS]; /* was METADATA_SEVERAL */
static struct metadata_range ranges[MAX_RANGES];
static size_t nr_ranges;

/* Ranges that overlap, by way of others too, count as one. */
static enum metadata_kind
expected_range_kind (uint64_t cluster)
{
  uint64_t first = cluster, end = cluster + 1;
  enum metadata_kind kind = METADATA_NONE;
  bool changed;
  size_t i;

  do {
    changed = false;
    for (i = 0; i < nr_ranges; ++i) {
      const struct metadata_range *r = &ranges[i];

      if (r->first >= end || r->end <= first)
        continue;
      if (kind == METADATA_NONE)
        kind = r->kind;
      else if (kind != r->kind)
        kind = METADATA_SEVERAL;
      if (r->first < first || r->end > end) {
        first = r->first < first ? r->first : first;
        end = r->end > end ? r->end : end;
        changed = true;
      }
    }
  } while (changed && kind != METADATA_NONE);
  return kind;
}

static enum metadata_kind
expected_kind (uint64_t cluster)
{
  enum metadata_kind range = expected_range_kind (cluster);
  enum metadata_kind own = is_sticky[cluster] ? METADATA_SEVERAL :
    nr_tables[cluster] ? METADATA_L2_TABLE :
    nr_blocks[cluster] ? METADATA_REFCOUNT_BLOCK : METADATA_NONE;

  if (range != METADATA_NONE && own != METADATA_NONE)
    return METADATA_SEVERAL;
  return range != METADATA_NONE ? range : own;
}

/* What each cluster is; made once for many look-ups. */
static enum metadata_kind expected[NR_CLUSTERS];

static void
compute_expected (void)
{
  uint64_t c;

  for (c = 0; c < NR_CLUSTERS; ++c)
    expected[c] = expected_kind (c);
}

static bool
answers_rightly (const struct metadata_set *set, enum metadata_kind kind,
                 uint64_t first, uint64_t nr)
{
  struct metadata_hit hit = { .cluster = UINT64_MAX };
  bool is = metadata_set_is (set, kind, first, nr, &hit);
  uint64_t c;

  for (c = first; c < first + nr; ++c)
    if (expected[c] != kind)
      break;
  if (c == first + nr)
    return is;
  /* Without metadata in mind, any that is there may be told. */
  if (kind == METADATA_NONE)
    return !is && hit.cluster >= first && hit.cluster < first + nr &&
      expected[hit.cluster] == hit.kind && hit.kind != METADATA_NONE;
  return !is && hit.cluster == c && hit.kind == expected[c];
}

static unsigned
nr_wrong (const struct metadata_set *set, uint64_t *state)
{
  unsigned wrong = 0, i;
  uint64_t c;

  compute_expected ();
  for (c = 0; c < NR_CLUSTERS; ++c)
    wrong += !answers_rightly (set, expected[c], c, 1) +
      !answers_rightly (set, METADATA_NONE, c, 1) +
      !answers_rightly (set, METADATA_L2_TABLE, c, 1);
  for (i = 0; i < 20000; ++i) {
    uint64_t first = random_below (state, NR_CLUSTERS - 200);
    uint64_t nr = 1 + random_below (state, i & 1 ? 8 : 200);

    wrong += !answers_rightly (set, METADATA_NONE, first, nr) +
      !answers_rightly (set, expected[first], first, nr);
  }
  return wrong;
}

/*----- Random changes -----*/

static void
change_cluster (struct metadata_set *set, uint64_t c, uint64_t *state)
{
  enum metadata_kind kind = 1 + random_below (state, 2);
  unsigned *counts = kind == METADATA_L2_TABLE ? nr_tables : nr_blocks;

  if (counts[c] > 0 && random_below (state, 4)) {
    metadata_set_remove (set, kind, c);
    counts[c]--;
  }
  else {
    if (nr_tables[c] + nr_blocks[c] > 0)
      is_sticky[c] = true;
    if (metadata_set_add (set, kind, c) < 0)
      abort ();
    counts[c]++;
  }
}

static void
change_range (struct metadata_set *set, uint64_t *state)
{
  struct metadata_range *r;

  if (nr_ranges == MAX_RANGES || (nr_ranges > 0 && random_below (state, 2))) {
    r = &ranges[random_below (state, nr_ranges)];
    metadata_set_remove_range (set, r);
    *r = ranges[--nr_ranges];
    return;
  }
  r = &ranges[nr_ranges++];
  r->first = random_below (state, NR_CLUSTERS - 100);
  r->end = r->first + 1 + random_below (state, 30);
  r->kind = METADATA_HEADER + random_below (state, 6);
  if (metadata_set_add_ranges (set, r, 1) < 0)
    abort ();
}

/* SPARSE: clusters far from each other mostly. */
static void
test_random (unsigned seed, unsigned nr_changes, bool sparse)
{
  struct metadata_set set;
  uint64_t state = seed + 1;
  unsigned i, wrong = 0;

  memset (nr_tables, 0, sizeof nr_tables);
  memset (nr_blocks, 0, sizeof nr_blocks);
  memset (is_sticky, 0, sizeof is_sticky);
  nr_ranges = 0;
  if (metadata_set_init (&set, seed % 2 ? 0 : 1000) < 0)
    abort ();
  for (i = 0; i < nr_changes; ++i) {
    uint64_t c = random_below (&state, NR_CLUSTERS);

    change_cluster (&set, sparse ? c & ~UINT64_C (7) : c, &state);
    if (i % 8 == 0)
      change_range (&set, &state);
    if (i % (nr_changes / 4) == 0)
      wrong += nr_wrong (&set, &state);
  }
  wrong += nr_wrong (&set, &state);
  is_int (wrong, 0, "seed %u: %u changes, all look-ups are right", seed,
          nr_changes);
  metadata_set_destroy (&set);
}

/*----- Limits -----*/

static void
test_limits (void)
{
  const uint64_t last = (UINT64_C (1) << 47) - 1;
  struct metadata_range all = { 0, UINT64_C (1) << 47, METADATA_SNAPSHOT_L1 };
  struct metadata_set set;
  struct metadata_hit hit;

  if (metadata_set_init (&set, 0) < 0)
    abort ();
  ok (metadata_set_is (&set, METADATA_NONE, 0, UINT64_C (1) << 20, &hit),
      "an empty set has nothing");
  is_int (metadata_set_add (&set, METADATA_L2_TABLE, last), 0,
          "the last cluster that there can be");
  is_int (metadata_set_add (&set, METADATA_L2_TABLE, 0), 0, "the first");
  ok (metadata_set_is (&set, METADATA_L2_TABLE, last, 1, &hit) &&
      metadata_set_is (&set, METADATA_L2_TABLE, 0, 1, &hit) &&
      metadata_set_is (&set, METADATA_NONE, last - 8, 8, &hit),
      "both are found, and nothing beside them");
  is_int (metadata_set_add (&set, METADATA_REFCOUNT_BLOCK, last + 1), 0,
          "one beyond all offsets is no error");
  ok (metadata_set_is (&set, METADATA_NONE, last + 1, 8, &hit),
      "and is not found");
  is_int (metadata_set_add_ranges (&set, &all, 1), 0, "a range of all");
  ok (!metadata_set_is (&set, METADATA_NONE, 12345, 1, &hit) &&
      hit.kind == METADATA_SNAPSHOT_L1 && hit.cluster == 12345,
      "it is found");
  ok (!metadata_set_is (&set, METADATA_L2_TABLE, 0, 1, &hit) &&
      hit.kind == METADATA_SEVERAL, "what lies in it is both");
  metadata_set_remove_range (&set, &all);
  ok (metadata_set_is (&set, METADATA_L2_TABLE, 0, 1, &hit),
      "without it all is as before");
  metadata_set_destroy (&set);
}

/* In what order do they come? */
static bool
overlap (const char *order)
{
  static const struct metadata_range range = { 10, 20, METADATA_L1_TABLE };
  struct metadata_set set;
  bool r;

  if (metadata_set_init (&set, 0) < 0)
    abort ();
  for (; *order; ++order)
    switch (*order) {
    case 'r': metadata_set_add_ranges (&set, &range, 1); break;
    case 'i': metadata_set_add (&set, METADATA_L2_TABLE, 15); break;
    case 'b': metadata_set_add (&set, METADATA_REFCOUNT_BLOCK, 15); break;
    case 'o': metadata_set_add (&set, METADATA_L2_TABLE, 20); break;
    default: metadata_set_add (&set, METADATA_L2_TABLE, 9);
    }
  r = metadata_set_has_overlaps (&set);
  metadata_set_destroy (&set);
  return r;
}

static void
test_overlaps (void)
{
  ok (!overlap ("") && !overlap ("ro9") && !overlap ("o9r") &&
      !overlap ("i9o"), "without overlaps, none is noted");
  ok (overlap ("ri"), "a table in a range");
  ok (overlap ("oir"), "a range over a table");
  ok (overlap ("ii"), "a table twice");
  ok (overlap ("ib"), "a table that is a block");
}

/*----- Threads -----*/

#define NR_READERS 3
#define NR_CHANGERS 2
#define NR_ROUNDS 1000000

/* Multiples of 4 are always there, odd clusters never; the others come and
 * go, and so do ranges, and clusters further on that have nothing beside
 * them, so that the table grows and its words move.
 */
#define STRESS_CLUSTERS UINT64_C (3000)
#define RANGE_FIRST UINT64_C (5000)
#define LONELY_FIRST UINT64_C (10000)
#define ROUNDS_PER_TURN (STRESS_CLUSTERS / 4 / NR_CHANGERS)

struct stress {
  struct metadata_set set;
  _Atomic unsigned nr_changing;
  _Atomic unsigned nr_wrong;
};

static void *
changer (void *opaque)
{
  struct stress *s = opaque;
  static _Atomic unsigned next_changer;
  unsigned me = next_changer++ % NR_CHANGERS, round;
  struct metadata_range range = {
    RANGE_FIRST + 100 * me, RANGE_FIRST + 100 * me + 9, METADATA_L1_TABLE,
  };

  for (round = 0; round < NR_ROUNDS; ++round) {
    uint64_t n = round % ROUNDS_PER_TURN * NR_CHANGERS + me;
    uint64_t c = 4 * n + 2, lonely = LONELY_FIRST + 16 * n;

    if (round / ROUNDS_PER_TURN % 2) {
      metadata_set_remove (&s->set, METADATA_L2_TABLE, c);
      metadata_set_remove (&s->set, METADATA_L2_TABLE, lonely);
    }
    else if (metadata_set_add (&s->set, METADATA_L2_TABLE, c) < 0 ||
             metadata_set_add (&s->set, METADATA_L2_TABLE, lonely) < 0)
      s->nr_wrong++;
    if (round % 16 == 0 && metadata_set_add_ranges (&s->set, &range, 1) < 0)
      s->nr_wrong++;
    if (round % 16 == 8)
      metadata_set_remove_range (&s->set, &range);
  }
  s->nr_changing--;
  return NULL;
}

static void *
reader (void *opaque)
{
  struct stress *s = opaque;
  static _Atomic uint64_t next_seed = 1;
  uint64_t state = next_seed++;

  while (s->nr_changing > 0) {
    uint64_t c = random_below (&state, STRESS_CLUSTERS / 4) * 4;
    struct metadata_hit hit;

    if (!metadata_set_is (&s->set, METADATA_REFCOUNT_BLOCK, c, 1, &hit) ||
        !metadata_set_is (&s->set, METADATA_NONE, c + 1, 1, &hit) ||
        !metadata_set_is (&s->set, METADATA_NONE, c + 3, 1, &hit) ||
        (metadata_set_is (&s->set, METADATA_NONE, c, 40, &hit) ||
         (hit.kind == METADATA_REFCOUNT_BLOCK) != (hit.cluster % 4 == 0)))
      s->nr_wrong++;
    if (!metadata_set_is (&s->set, METADATA_NONE, RANGE_FIRST, 300, &hit) &&
        (hit.kind != METADATA_L1_TABLE || (hit.cluster - RANGE_FIRST) % 100))
      s->nr_wrong++;
    if (!metadata_set_is (&s->set, METADATA_NONE, LONELY_FIRST + 4 * c, 16,
                          &hit) &&
        (hit.kind != METADATA_L2_TABLE || (hit.cluster - LONELY_FIRST) % 16))
      s->nr_wrong++;
  }
  return NULL;
}

static void
test_threads (void)
{
  pthread_t threads[NR_READERS + NR_CHANGERS];
  static struct stress s;
  uint64_t c;
  unsigned i;

  if (metadata_set_init (&s.set, 0) < 0)
    abort ();
  for (c = 0; c < STRESS_CLUSTERS + 40; c += 4)
    metadata_set_add (&s.set, METADATA_REFCOUNT_BLOCK, c);
  s.nr_changing = NR_CHANGERS;
  for (i = 0; i < NR_READERS + NR_CHANGERS; ++i)
    if (pthread_create (&threads[i], NULL, i < NR_CHANGERS ? changer : reader,
                        &s) != 0)
      abort ();
  for (i = 0; i < NR_READERS + NR_CHANGERS; ++i)
    pthread_join (threads[i], NULL);
  is_int (s.nr_wrong, 0, "look-ups are right while others change the set");
  metadata_set_destroy (&s.set);
}

/* What was added before a look-up began is found, whoever added it. */
static void *
hand_over (void *opaque)
{
  struct stress *s = opaque;
  uint64_t c;

  for (c = 1; c < 20000; ++c) {
    metadata_set_add (&s->set, METADATA_L2_TABLE, 9 * c);
    atomic_store_explicit (&s->nr_changing, (unsigned) c,
                           memory_order_release);
  }
  return NULL;
}

static void
test_visible (void)
{
  static struct stress s;
  struct metadata_hit hit;
  pthread_t thread;
  uint64_t c = 0;

  if (metadata_set_init (&s.set, 0) < 0 ||
      pthread_create (&thread, NULL, hand_over, &s) != 0)
    abort ();
  while (c < 20000 - 1) {
    c = atomic_load_explicit (&s.nr_changing, memory_order_acquire);
    if (c > 0 &&
        !metadata_set_is (&s.set, METADATA_L2_TABLE, 9 * c, 1, &hit))
      s.nr_wrong++;
  }
  pthread_join (thread, NULL);
  is_int (s.nr_wrong, 0, "what another thread has added is found");
  metadata_set_destroy (&s.set);
}

/* Multiples of a Fibonacci number, which a multiplication by the golden ratio
 * brings together: they are looked for one after another then.
 */
#define NR_CHOSEN 131072
#define STEP (UINT64_C (39088169) * 8)

static void
test_chosen (void)
{
  struct metadata_set set;
  struct metadata_hit hit;
  unsigned wrong = 0;
  clock_t before = clock ();
  uint64_t i;

  if (metadata_set_init (&set, NR_CHOSEN) < 0)
    abort ();
  for (i = 0; i < NR_CHOSEN; ++i)
    metadata_set_add (&set, METADATA_L2_TABLE, i * STEP);
  for (i = 0; i < NR_CHOSEN; i += 16)
    wrong += !metadata_set_is (&set, METADATA_L2_TABLE, i * STEP, 1, &hit);
  is_int (wrong, 0, "clusters that were chosen to meet are found");
  ok (clock () - before < 2 * CLOCKS_PER_SEC, "quickly (%.2f seconds)",
      (double) (clock () - before) / CLOCKS_PER_SEC);
  metadata_set_destroy (&set);
}

int
main (void)
{
  unsigned seed;

  for (seed = 0; seed < 4; ++seed)
    test_random (seed, 400 << 2 * seed, seed & 1);
  test_limits ();
  test_overlaps ();
  test_threads ();
  test_visible ();
  test_chosen ();
  return tap_done ();
}
