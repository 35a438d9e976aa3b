/* SPDX-License-Identifier: BSD-3-Clause */

/* Dirty slices: a seal takes all of them, and whoever finds no room for
 * another slice gets on, though requests, the background worker and the
 * end of writing all need slots.
 */

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "slice-cache.h"
#include "tap.h"

#define KiB ((uint64_t) 1024)
#define MiB (1024 * KiB)

/*----- Sealing -----*/

#define SLICE_BYTES 4096
#define NR_SEALS 30000
#define NR_OTHERS 500           /* slices of the other thread */

static struct slice_cache *cache;
static struct sealed_slices sealed;
static atomic_bool stop;

static int
fill (void *opaque, uint64_t key, uint64_t *buf)
{
  memset (buf, 0, SLICE_BYTES);
  return 0;
}

static void
make_dirty (uint64_t key)
{
  struct slice_ref ref;

  if (slice_cache_pin (cache, key, fill, NULL, &ref) < 0)
    abort ();
  slice_begin_change (&ref);
  slice_store (&ref, 0, 1);
  slice_end_change (cache, &ref, 0, 1);
  slice_unpin (cache, &ref);
}

static void *
make_others_dirty (void *opaque)
{
  unsigned i;

  for (i = 0; !stop; i = (i + 1) % NR_OTHERS)
    make_dirty ((i + 1) * SLICE_BYTES);
  return NULL;
}

static bool
seal_has (uint64_t key)
{
  bool found = false;
  size_t i;

  slice_cache_seal (cache, &sealed);
  while (slice_cache_copy (cache, &sealed))
    for (i = 0; i < sealed.nr_sectors; ++i)
      found |= sealed.sectors[i].key == key;
  slice_cache_release (cache, &sealed, sealed.nr_slots);
  slice_cache_unseal (cache, &sealed);
  return found;
}

static void
test_seal (void)
{
  unsigned i, nr_missed = 0;
  pthread_t thread;

  cache = slice_cache_new (8 * MiB, SLICE_BYTES);
  if (!cache || sealed_slices_init (&sealed, cache, 64 * KiB) < 0 ||
      pthread_create (&thread, NULL, make_others_dirty, NULL) != 0)
    abort ();
  for (i = 0; i < NR_SEALS; ++i) {
    make_dirty (0);
    nr_missed += !seal_has (0);
  }
  stop = true;
  pthread_join (thread, NULL);
  sealed_slices_free (&sealed);
  slice_cache_free (cache);
  is_int (nr_missed, 0, "a change made before a seal is in it");
}

/*----- Small caches -----*/

#define DISK_BYTES (16 * MiB)
#define PATIENCE_SECONDS 100

static struct qcow2 *image;
static struct qcow2_view *view;

/* The fewest slots that there can be, for refcounts too: with clusters of
 * 512 bytes they cover 2 MiB of the file.
 */
static void
open_small (void)
{
  struct qcow2_options options;
  struct qcow2_error error;

  run_command ("rm -f small.qcow2 && "
               "qemu-img create -q -f qcow2 -o cluster_size=512 small.qcow2 "
               "%" PRIu64, DISK_BYTES);
  qcow2_options_init (&options);
  options.writable = true;
  options.cache_bytes = 8 * KiB;
  if (qcow2_open ("small.qcow2", &options, &image, &error) < 0 ||
      qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0) {
    printf ("# %s\n", error.message);
    abort ();
  }
  /* Who hangs dies. */
  alarm (PATIENCE_SECONDS);
}

static void
close_small (const char *after)
{
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "the image is closed after %s", after);
  alarm (0);
  run_command ("qemu-img check -q small.qcow2");
}

/* One thread, and no flush. */
static void
test_one_thread (void)
{
  size_t bytes = MiB;
  uint8_t *buf = malloc (bytes);
  uint64_t offset;
  int r = 0;

  if (!buf)
    abort ();
  memset (buf, 'x', bytes);
  open_small ();
  for (offset = 0; r == 0 && offset < DISK_BYTES; offset += bytes)
    r = qcow2_pwrite (view, buf, bytes, offset, false);
  is_int (r, 0, "all of the disk is written");
  is_int (qcow2_trim (view, DISK_BYTES, 0, false), 0, "all is trimmed");
  close_small ("trimming");
  free (buf);
}

#define NR_THREADS 8
#define NR_REQUESTS 1500

static atomic_uint nr_failed;

static void *
write_and_trim (void *opaque)
{
  uint64_t state = (uint64_t) (uintptr_t) opaque;
  uint8_t buf[4096] = { 'q' };
  unsigned i;

  for (i = 0; i < NR_REQUESTS; ++i) {
    uint64_t offset = random_below (&state, DISK_BYTES / sizeof buf) *
      sizeof buf;
    int r = random_below (&state, 3) == 0 ?
      qcow2_trim (view, sizeof buf, offset, false) :
      qcow2_pwrite (view, buf, sizeof buf, offset, false);

    if (r < 0)
      nr_failed++;
  }
  return NULL;
}

/* Freeing waits for requests, some of which wait for slots. */
static void
test_many_threads (void)
{
  pthread_t threads[NR_THREADS];
  uintptr_t i;

  open_small ();
  for (i = 0; i < NR_THREADS; ++i)
    if (pthread_create (&threads[i], NULL, write_and_trim,
                        (void *) (i + 1)) != 0)
      abort ();
  for (i = 0; i < NR_THREADS; ++i)
    pthread_join (threads[i], NULL);
  is_int (nr_failed, 0, "writes and trims of many threads all end well");
  close_small ("writes and trims of many threads");
}

int
main (void)
{
  scratch_dir_enter ();
  test_seal ();
  test_one_thread ();
  test_many_threads ();
  return tap_done ();
}
