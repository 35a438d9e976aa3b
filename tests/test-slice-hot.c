/* SPDX-License-Identifier: BSD-3-Clause */

/* A slot can be had however often the others look at all slices: hits take
 * no lock, so the clock may find each slice used again.
 */

#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "slice-cache.h"
#include "tap.h"

#define SLICE_BYTES 512
#define NR_THREADS 8
#define NR_PINS 3000000         /* less when they take long */
#define SECONDS 5

static struct slice_cache *cache;
static _Atomic uint64_t newest;
static atomic_bool stop;

static int
fill (void *opaque, uint64_t key, uint64_t *buf)
{
  memset (buf, 0, SLICE_BYTES);
  return 0;
}

/* Those that are in the cache, as far as there can be any. */
static void *
look_at_all (void *opaque)
{
  struct slice_ref ref;
  uint64_t key, last;

  while (!stop) {
    last = newest;
    for (key = last < 20 ? 0 : last - 20; key <= last; ++key)
      slice_cache_find (cache, key * SLICE_BYTES, &ref);
  }
  return NULL;
}

int
main (void)
{
  pthread_t threads[NR_THREADS];
  struct slice_ref ref;
  time_t end = time (NULL) + SECONDS;
  unsigned i;

  alarm (120);                  /* or wait forever */
  cache = slice_cache_new (0, SLICE_BYTES);
  for (i = 0; i < NR_THREADS; ++i)
    if (!cache || pthread_create (&threads[i], NULL, look_at_all, NULL) != 0)
      abort ();
  for (i = 0; i < NR_PINS && time (NULL) < end; ++i) {
    newest = i;
    if (slice_cache_pin (cache, i * SLICE_BYTES, fill, NULL, &ref) < 0)
      abort ();
    slice_unpin (cache, &ref);
  }
  stop = true;
  for (i = 0; i < NR_THREADS; ++i)
    pthread_join (threads[i], NULL);
  slice_cache_free (cache);
  is_int (i, NR_THREADS, "a slice is pinned many times");
  return tap_done ();
}
