/* SPDX-License-Identifier: BSD-3-Clause */

/* The metadata cache: what is found is always the slice that was asked
 * for, and who waits gets on.
 *
 * Each word of a slice is made of its key and its index, so that a mix-up
 * of any kind shows.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "slice-cache.h"
#include "tap.h"

#define SLICE_BYTES 4096
#define SLICE_WORDS (SLICE_BYTES / sizeof (uint64_t))
#define MIN_SLOTS 16
#define EXAMPLE_ERROR (-ENXIO)

static uint64_t
word_of (uint64_t key, size_t index)
{
  return (key + 1) * UINT64_C (0x9e3779b97f4a7c15) + index;
}

static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

/*----- Filling -----*/

/* OPAQUE of the fill function. */
struct source {
  atomic_uint nr_fills;
  atomic_uint nr_failures_left; /* so many fills fail */
  atomic_bool gate_closed;      /* fills wait until it is open */
};

static int
fill (void *opaque, uint64_t key, uint64_t *buf)
{
  struct source *source = opaque;
  unsigned left = atomic_load (&source->nr_failures_left);
  size_t i;

  atomic_fetch_add (&source->nr_fills, 1);
  while (atomic_load (&source->gate_closed))
    usleep (1000);
  while (left > 0)
    if (atomic_compare_exchange_weak (&source->nr_failures_left, &left,
                                      left - 1))
      return EXAMPLE_ERROR;
  for (i = 0; i < SLICE_WORDS; ++i)
    buf[i] = htobe64 (word_of (key, i));
  return 0;
}

static bool
holds (const struct slice_ref *ref, uint64_t key)
{
  size_t i;

  for (i = 0; i < SLICE_WORDS; ++i)
    if (slice_load (ref, i) != word_of (key, i))
      return false;
  return true;
}

static bool
is_found (struct slice_cache *cache, uint64_t key)
{
  struct slice_ref ref;

  return slice_cache_find (cache, key, &ref) && holds (&ref, key) &&
    slice_still_valid (&ref);
}

/* Pin and unpin at once. */
static int
touch (struct slice_cache *cache, uint64_t key, struct source *source)
{
  struct slice_ref ref;
  int r = slice_cache_pin (cache, key, fill, source, &ref);

  if (r == 0)
    slice_unpin (cache, &ref);
  return r;
}

static struct slice_cache_stats
stats_of (struct slice_cache *cache)
{
  struct slice_cache_stats stats;

  slice_cache_get_stats (cache, &stats);
  return stats;
}

/*----- Dirty slices -----*/

static int
cant_write (void *opaque)
{
  return -EIO;
}

static void
make_dirty (struct slice_cache *cache, uint64_t key, uint64_t word)
{
  struct source source = { 0 };
  struct slice_ref ref;

  if (slice_cache_pin (cache, key, fill, &source, &ref) < 0)
    abort ();
  slice_begin_change (&ref);
  slice_store (&ref, 0, word);
  slice_end_change (cache, &ref, 0, 1);
  slice_unpin (cache, &ref);
}

/* A cache in which no slot can be had. */
static struct slice_cache *
new_dirty (void)
{
  struct slice_cache *cache = slice_cache_new (0, SLICE_BYTES);
  uint64_t key;

  slice_cache_on_pressure (cache, cant_write, NULL);
  for (key = 0; key < MIN_SLOTS; ++key)
    make_dirty (cache, key, 1);
  return cache;
}

static void
test_copy (void)
{
  const uint64_t other = MIN_SLOTS;
  struct slice_cache *cache = new_dirty ();
  struct source source = { 0 };
  struct slice_copy copy;
  struct slice_ref ref;

  is_int (touch (cache, other, &source), -EIO, "all slots are dirty");
  is_int (slice_cache_pin_or_copy (cache, other, fill, &source, &copy, &ref),
          0, "who only reads needs none");
  ok (holds (&ref, other) && slice_still_valid (&ref), "and has the slice");
  slice_unpin_or_forget (cache, &copy, &ref);
  ok (!is_found (cache, other), "which is not cached");
  atomic_store (&source.nr_failures_left, 1);
  is_int (slice_cache_pin_or_copy (cache, other, fill, &source, &copy, &ref),
          EXAMPLE_ERROR, "a copy that can't be read is an error");
  is_int (slice_cache_pin_or_copy (cache, 1, fill, &source, &copy, &ref), 0,
          "what is cached is found");
  ok (slice_load (&ref, 0) == 1, "as it is now");
  slice_unpin_or_forget (cache, &copy, &ref);
  slice_cache_free (cache);
}

/* While a copy is read somebody else finds a slot, and changes the slice. */
static struct slice_cache *changing;

static void
write_all (struct slice_cache *cache)
{
  struct sealed_slices sealed;

  if (sealed_slices_init (&sealed, cache, MIN_SLOTS * SLICE_BYTES) < 0)
    abort ();
  slice_cache_seal (cache, &sealed);
  while (slice_cache_copy (cache, &sealed))
    continue;
  slice_cache_release (cache, &sealed, sealed.nr_slots);
  slice_cache_unseal (cache, &sealed);
  sealed_slices_free (&sealed);
}

static int
change_and_fill (void *opaque, uint64_t key, uint64_t *buf)
{
  int r = fill (opaque, key, buf);

  write_all (changing);
  make_dirty (changing, key, 2);
  return r;
}

static void
test_copy_that_changes (void)
{
  struct source source = { 0 };
  struct slice_copy copy;
  struct slice_ref ref;

  changing = new_dirty ();
  is_int (slice_cache_pin_or_copy (changing, MIN_SLOTS, change_and_fill,
                                   &source, &copy, &ref), 0,
          "a slice is changed while it is copied");
  ok (slice_load (&ref, 0) == 2, "what is read is the changed one");
  slice_unpin_or_forget (changing, &copy, &ref);
  slice_cache_free (changing);
}

/*----- One thread -----*/

static void
test_find_and_pin (void)
{
  struct slice_cache *cache = slice_cache_new (1 << 20, SLICE_BYTES);
  struct source source = { 0 };
  struct slice_ref ref;

  ok (!slice_cache_find (cache, 7, &ref), "an empty cache finds nothing");
  is_int (slice_cache_pin (cache, 7, fill, &source, &ref), 0,
          "a slice is loaded");
  ok (holds (&ref, 7) && slice_still_valid (&ref), "it holds its words");
  slice_unpin (cache, &ref);
  ok (is_found (cache, 7), "it is found afterwards");
  is_int (touch (cache, 7, &source), 0, "it is pinned again");
  is_int (atomic_load (&source.nr_fills), 1, "without loading it again");
  is_int (stats_of (cache).nr_loads, 1, "one load is counted");
  slice_cache_free (cache);
}

static void
test_sizes (void)
{
  struct slice_cache *cache = slice_cache_new (0, SLICE_BYTES);
  struct source source = { 0 };
  uint64_t key;

  is_int (stats_of (cache).nr_slots, MIN_SLOTS, "the smallest cache");
  for (key = 0; key < 10 * MIN_SLOTS; ++key)
    touch (cache, key, &source);
  is_int (stats_of (cache).nr_slots_touched, MIN_SLOTS,
          "does not grow with what goes through it");
  slice_cache_free (cache);

  cache = slice_cache_new (1 << 20, 512);
  is_int (stats_of (cache).nr_slots, (1 << 20) / 512,
          "small slices make more slots");
  slice_cache_free (cache);
  slice_cache_free (NULL);
}

static long
resident_pages (void)
{
  FILE *fp = fopen ("/proc/self/statm", "r");
  long total, resident = -1;

  if (fp) {
    if (fscanf (fp, "%ld %ld", &total, &resident) != 2)
      resident = -1;
    fclose (fp);
  }
  return resident;
}

static void
test_memory (void)
{
  long before = resident_pages (), after;
  struct slice_cache *cache = slice_cache_new ((size_t) 1 << 30, SLICE_BYTES);
  struct source source = { 0 };
  uint64_t key;

  is_int (stats_of (cache).nr_slots_touched, 0, "a new cache is untouched");
  for (key = 0; key < 100; ++key) {
    touch (cache, key, &source);
    touch (cache, key / 2, &source);
  }
  is_int (stats_of (cache).nr_slots_touched, 100,
          "a slot is touched for each slice");
  after = resident_pages ();
  ok (before > 0 && (after - before) * sysconf (_SC_PAGESIZE) < 64 << 20,
      "a cache for 1 GiB takes no memory before it is used (%ld pages)",
      after - before);
  slice_cache_free (cache);
}

/* Overlays are made alike, so their tables lie at the same offsets. */
static void
test_layers_alike (void)
{
  struct slice_cache *cache = slice_cache_new (4 << 20, SLICE_BYTES);
  struct source source = { 0 };
  unsigned layer, nr_found = 0;

  for (layer = 0; layer < 250; ++layer)
    touch (cache, (uint64_t) layer << 56 | 0x40000, &source);
  for (layer = 0; layer < 250; ++layer)
    nr_found += is_found (cache, (uint64_t) layer << 56 | 0x40000);
  is_int (nr_found, 250,
          "slices at one offset in 250 layers are found without the lock");
  slice_cache_free (cache);
}

static void
test_failing_fill (void)
{
  struct slice_cache *cache = slice_cache_new (0, SLICE_BYTES);
  struct source source = { .nr_failures_left = 1 };
  struct slice_ref ref;
  uint64_t key;

  is_int (touch (cache, 5, &source), EXAMPLE_ERROR,
          "the error of a load is the caller's");
  ok (!slice_cache_find (cache, 5, &ref), "nothing is kept of it");
  is_int (touch (cache, 5, &source), 0, "the next load succeeds");
  ok (is_found (cache, 5), "and is kept");

  for (key = 100; key < 100 + 10 * MIN_SLOTS; ++key) {
    atomic_store (&source.nr_failures_left, 1);
    if (touch (cache, key, &source) == 0 ||
        slice_cache_find (cache, key, &ref))
      break;
  }
  is_int (key, 100 + 10 * MIN_SLOTS, "failing loads use up no slots");
  slice_cache_free (cache);
}

/*----- Several threads, step by step -----*/

struct pinner {
  pthread_t thread;
  struct slice_cache *cache;
  struct source *source;
  uint64_t key;
  atomic_bool done;
  int result;
  bool right;
};

static void *
pin_thread (void *opaque)
{
  struct pinner *p = opaque;
  struct slice_ref ref;

  p->result = slice_cache_pin (p->cache, p->key, fill, p->source, &ref);
  if (p->result == 0) {
    p->right = holds (&ref, p->key) && slice_still_valid (&ref);
    slice_unpin (p->cache, &ref);
  }
  atomic_store (&p->done, true);
  return NULL;
}

static void
start (struct pinner *p, struct slice_cache *cache, struct source *source,
       uint64_t key)
{
  p->cache = cache;
  p->source = source;
  p->key = key;
  atomic_init (&p->done, false);
  p->right = false;
  pthread_create (&p->thread, NULL, pin_thread, p);
}

static void
wait_for_fills (struct source *source, unsigned nr_fills)
{
  while (atomic_load (&source->nr_fills) < nr_fills)
    usleep (1000);
}

#define NR_PINNERS 8

static void
test_one_load (void)
{
  struct slice_cache *cache = slice_cache_new (0, SLICE_BYTES);
  struct source source = { .gate_closed = true };
  struct pinner p[NR_PINNERS];
  unsigned i, nr_right = 0;

  for (i = 0; i < NR_PINNERS; ++i)
    start (&p[i], cache, &source, 3);
  wait_for_fills (&source, 1);
  usleep (50000);
  atomic_store (&source.gate_closed, false);
  for (i = 0; i < NR_PINNERS; ++i) {
    pthread_join (p[i].thread, NULL);
    nr_right += p[i].right;
  }
  is_int (nr_right, NR_PINNERS, "all who pin a slice at a time get it");
  is_int (atomic_load (&source.nr_fills), 1, "with one load");
  slice_cache_free (cache);
}

static void
test_waiters_try_themselves (void)
{
  struct slice_cache *cache = slice_cache_new (0, SLICE_BYTES);
  struct source source = { .gate_closed = true, .nr_failures_left = 2 };
  struct pinner p[NR_PINNERS];
  unsigned i, nr_right = 0, nr_errors = 0;

  for (i = 0; i < NR_PINNERS; ++i)
    start (&p[i], cache, &source, 3);
  wait_for_fills (&source, 1);
  usleep (50000);
  atomic_store (&source.gate_closed, false);
  for (i = 0; i < NR_PINNERS; ++i) {
    pthread_join (p[i].thread, NULL);
    nr_right += p[i].right;
    nr_errors += p[i].result == EXAMPLE_ERROR;
  }
  is_int (nr_errors, 2, "two loads fail: two callers get the error");
  is_int (nr_right, NR_PINNERS - 2, "all others get the slice");
  is_int (atomic_load (&source.nr_fills), 3, "with one load more");
  slice_cache_free (cache);
}

/* Pins NR slots.  One thread may have several pins here, since there
 * are slots for all of them.
 */
static void
pin_many (struct slice_cache *cache, struct source *source, unsigned nr,
          struct slice_ref refs[])
{
  unsigned i;

  for (i = 0; i < nr; ++i)
    slice_cache_pin (cache, i, fill, source, &refs[i]);
}

static unsigned
nr_untouched (unsigned nr, const struct slice_ref refs[])
{
  unsigned i, n = 0;

  for (i = 0; i < nr; ++i)
    n += holds (&refs[i], i) && slice_still_valid (&refs[i]);
  return n;
}

static void
test_all_pinned (void)
{
  struct slice_cache *cache = slice_cache_new (0, SLICE_BYTES);
  struct source source = { 0 };
  struct slice_ref refs[MIN_SLOTS];
  struct pinner p[NR_PINNERS];
  unsigned i, nr_done = 0, nr_right = 0;

  pin_many (cache, &source, MIN_SLOTS, refs);
  for (i = 0; i < NR_PINNERS; ++i)
    start (&p[i], cache, &source, 100 + i / 2);
  usleep (100000);
  for (i = 0; i < NR_PINNERS; ++i)
    nr_done += atomic_load (&p[i].done);
  is_int (nr_done, 0, "who needs a slot waits while all are pinned");
  is_int (touch (cache, 3, &source), 0, "what is there is still pinned");

  slice_unpin (cache, &refs[MIN_SLOTS - 1]);
  for (i = 0; i < NR_PINNERS; ++i) {
    pthread_join (p[i].thread, NULL);
    nr_right += p[i].right;
  }
  is_int (nr_right, NR_PINNERS, "one slot is enough for all to get on");
  is_int (nr_untouched (MIN_SLOTS - 1, refs), MIN_SLOTS - 1,
          "slices that are pinned stay as they are");
  for (i = 0; i < MIN_SLOTS - 1; ++i)
    slice_unpin (cache, &refs[i]);
  slice_cache_free (cache);
}

static void
test_failure_frees_slot (void)
{
  struct slice_cache *cache = slice_cache_new (0, SLICE_BYTES);
  struct source source = { 0 };
  struct source failing = { .gate_closed = true, .nr_failures_left = 1 };
  struct slice_ref refs[MIN_SLOTS - 1];
  struct pinner fails, waits;
  unsigned i;

  pin_many (cache, &source, MIN_SLOTS - 1, refs);
  start (&fails, cache, &failing, 100);
  wait_for_fills (&failing, 1);
  start (&waits, cache, &source, 101);
  usleep (50000);
  atomic_store (&failing.gate_closed, false);
  pthread_join (fails.thread, NULL);
  pthread_join (waits.thread, NULL);
  is_int (fails.result, EXAMPLE_ERROR, "a load fails in the last slot");
  ok (waits.right, "who waited for a slot gets this one");
  for (i = 0; i < MIN_SLOTS - 1; ++i)
    slice_unpin (cache, &refs[i]);
  slice_cache_free (cache);
}

/*----- Storms -----*/

#define NR_STORM_THREADS 6
#define STORM_SLICE_BYTES 512
#define STORM_SLICE_WORDS (STORM_SLICE_BYTES / sizeof (uint64_t))

struct storm {
  struct slice_cache *cache;
  unsigned nr_keys;
  unsigned fail_one_in;         /* 0: no load fails */
  unsigned nr_rounds;
  atomic_uint seed;

  atomic_uint nr_found;
  atomic_uint nr_pinned;
  atomic_uint nr_failed;
  atomic_uint nr_wrong;
};

/* OPAQUE is a counter of the thread's own, for failures in turn. */
struct storm_fill {
  unsigned fail_one_in;
  unsigned count;
};

static int
storm_fill (void *opaque, uint64_t key, uint64_t *buf)
{
  struct storm_fill *f = opaque;
  size_t i;

  if (f->fail_one_in > 0 && ++f->count % f->fail_one_in == 0)
    return EXAMPLE_ERROR;
  for (i = 0; i < STORM_SLICE_WORDS; ++i)
    buf[i] = htobe64 (word_of (key, i));
  return 0;
}

/* A few words, from the first to the last. */
static bool
sample_holds (const struct slice_ref *ref, uint64_t key, bool *right)
{
  size_t i;

  *right = true;
  for (i = 0; i < STORM_SLICE_WORDS; i += 9)
    if (slice_load (ref, i) != word_of (key, i))
      *right = false;
  return slice_still_valid (ref);
}

static void *
storm_thread (void *opaque)
{
  struct storm *storm = opaque;
  struct storm_fill f = { .fail_one_in = storm->fail_one_in };
  uint64_t state = 88172645463325252 + atomic_fetch_add (&storm->seed, 1);
  unsigned round, nr_found = 0, nr_pinned = 0, nr_failed = 0;
  struct slice_ref ref;
  bool right;

  for (round = 0; round < storm->nr_rounds; ++round) {
    uint64_t key = next_random (&state) % storm->nr_keys << 12;

    if (slice_cache_find (storm->cache, key, &ref) &&
        sample_holds (&ref, key, &right))
      nr_found++;
    else if (slice_cache_pin (storm->cache, key, storm_fill, &f, &ref) == 0) {
      right = sample_holds (&ref, key, &right) && right;
      slice_unpin (storm->cache, &ref);
      nr_pinned++;
    }
    else {
      nr_failed++;
      continue;
    }
    if (!right)
      atomic_fetch_add (&storm->nr_wrong, 1);
  }
  atomic_fetch_add (&storm->nr_found, nr_found);
  atomic_fetch_add (&storm->nr_pinned, nr_pinned);
  atomic_fetch_add (&storm->nr_failed, nr_failed);
  return NULL;
}

static void
test_storm (const char *what, unsigned nr_keys, unsigned fail_one_in,
            unsigned nr_rounds)
{
  struct storm storm = {
    .cache = slice_cache_new (0, STORM_SLICE_BYTES),
    .nr_keys = nr_keys, .fail_one_in = fail_one_in, .nr_rounds = nr_rounds,
  };
  pthread_t threads[NR_STORM_THREADS];
  unsigned i;

  for (i = 0; i < NR_STORM_THREADS; ++i)
    pthread_create (&threads[i], NULL, storm_thread, &storm);
  for (i = 0; i < NR_STORM_THREADS; ++i)
    pthread_join (threads[i], NULL);

  is_int (atomic_load (&storm.nr_wrong), 0,
          "%s: no slice is taken for another (%u found, %u pinned, %u "
          "failed)", what, atomic_load (&storm.nr_found),
          atomic_load (&storm.nr_pinned), atomic_load (&storm.nr_failed));
  ok (atomic_load (&storm.nr_found) > 0 && atomic_load (&storm.nr_pinned) > 0
      && (atomic_load (&storm.nr_failed) > 0) == (fail_one_in > 0),
      "%s: slices are found, loaded%s", what,
      fail_one_in ? ", and loads fail" : "");
  is_int (stats_of (storm.cache).nr_slots_touched, MIN_SLOTS,
          "%s: in the few slots there are", what);
  slice_cache_free (storm.cache);
}

/*----- Slices that can never be loaded -----*/

#define NR_BAD_KEYS 4
#define BAD_SECONDS 2

struct bad_slices {
  struct slice_cache *cache;
  atomic_bool stop;
  atomic_uint nr_found;
};

static int
never_fill (void *opaque, uint64_t key, uint64_t *buf)
{
  return EXAMPLE_ERROR;
}

static void *
find_bad_thread (void *opaque)
{
  struct bad_slices *bad = opaque;
  struct slice_ref ref;
  uint64_t key = 0;

  while (!atomic_load_explicit (&bad->stop, memory_order_relaxed)) {
    if (slice_cache_find (bad->cache, 1000 + key, &ref)) {
      slice_load (&ref, 0);
      if (slice_still_valid (&ref))
        atomic_fetch_add (&bad->nr_found, 1);
    }
    key = (key + 1) % NR_BAD_KEYS;
  }
  return NULL;
}

/* A reader that comes by a slot while its load fails must not take the
 * old words in it for the slice.
 */
static void
test_failing_under_readers (void)
{
  struct bad_slices bad = { .cache = slice_cache_new (0, SLICE_BYTES) };
  struct source source = { 0 };
  pthread_t threads[2];
  time_t end = time (NULL) + BAD_SECONDS;
  struct slice_ref ref;
  unsigned i;

  for (i = 0; i < MIN_SLOTS; ++i)
    touch (bad.cache, i, &source);
  for (i = 0; i < 2; ++i)
    pthread_create (&threads[i], NULL, find_bad_thread, &bad);
  while (time (NULL) < end && atomic_load (&bad.nr_found) == 0)
    slice_cache_pin (bad.cache, 1000 + ++i % NR_BAD_KEYS, never_fill, NULL,
                     &ref);
  atomic_store (&bad.stop, true);
  for (i = 0; i < 2; ++i)
    pthread_join (threads[i], NULL);
  is_int (atomic_load (&bad.nr_found), 0,
          "a slice whose load fails is never found");
  slice_cache_free (bad.cache);
}

int
main (void)
{
  alarm (240);
  test_find_and_pin ();
  test_copy ();
  test_copy_that_changes ();
  test_sizes ();
  test_memory ();
  test_layers_alike ();
  test_failing_fill ();
  test_one_load ();
  test_waiters_try_themselves ();
  test_all_pinned ();
  test_failure_frees_slot ();
  test_storm ("evictions", 4 * MIN_SLOTS, 0, 60000);
  test_storm ("few evictions", MIN_SLOTS + 1, 0, 100000);
  test_storm ("failures", MIN_SLOTS + 4, 2, 60000);
  test_failing_under_readers ();
  return tap_done ();
}
