/* SPDX-License-Identifier: BSD-3-Clause */

/* All operations at once, with caches of a few slices.
 *
 * Meanwhile the disk grows again and again, with the gate closed.
 *
 * This is for the thread sanitizer: unlike in test-write-model, threads
 * share nothing but the image, so that nothing of the test's own orders
 * what they do.  Nor is the content known then; it has to be the same
 * after closing, snapshots and backing files as before, and qemu-img
 * check finds nothing.
 *
 *   WRITE_REQUESTS  for each thread and image (default 400)
 */

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "dawdling-storage.h"
#include "grow-disk.h"
#include "qemu-image.h"
#include "random-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define KiB ((uint64_t) 1024)
#define MAX_BYTES (192 * KiB)
#define NR_THREADS 8
#define MAX_DISK_BYTES (64 * KiB * KiB)

struct worker {
  struct qcow2 *image;
  struct qcow2_view *view;
  const struct random_image *kinds;
  pthread_t thread;
  uint64_t seed;
  unsigned nr_requests;
  uint8_t *buf;
  int error;
  bool changed;                 /* a snapshot's content */
};

static unsigned
requests_per_thread (void)
{
  const char *value = getenv ("WRITE_REQUESTS");

  return value && value[0] ? (unsigned) strtoul (value, NULL, 0) : 400;
}

/*----- Requests -----*/

static int
ignore_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
               uint64_t count)
{
  return 0;
}

/* Views come and go with connections. */
static int
read_snapshot (struct worker *w, uint64_t offset, size_t count)
{
  const struct kept *kept = NULL;
  struct qcow2_error error;
  struct qcow2_view *view;
  unsigned i;
  int r;

  for (i = 0; i < w->kinds->nr_kept; ++i)
    if (w->kinds->kept[i].snapshot[0])
      kept = &w->kinds->kept[i];
  if (!kept || offset >= kept->bytes)
    return 0;
  if (count > kept->bytes - offset)
    count = kept->bytes - offset;
  r = qcow2_view_open (w->image,
                       (size_t) qcow2_snapshot_find (w->image,
                                                     kept->snapshot),
                       &view, &error);
  if (r < 0)
    return r;
  if (count > qcow2_view_size (view) - offset)
    count = qcow2_view_size (view) - offset;
  r = qcow2_pread (view, w->buf, count, offset);
  if (r == 0 && memcmp (w->buf, kept->content + offset, count) != 0)
    w->changed = true;
  qcow2_view_close (view);
  return r;
}

static int
request (struct worker *w)
{
  uint64_t disk = qcow2_view_size (w->view);
  uint64_t cluster = qcow2_cluster_size (w->image);
  uint64_t offset = random_below (&w->seed, disk);
  uint64_t count = 1 + random_below (&w->seed, MAX_BYTES);
  bool fua = random_below (&w->seed, 16) == 0;

  if (random_below (&w->seed, 2))
    offset -= offset % cluster;
  if (random_below (&w->seed, 2))
    offset %= 8 * cluster;
  if (random_below (&w->seed, 2))
    count = 1 + count % 5000;
  if (count > disk - offset)
    count = disk - offset;

  switch (random_below (&w->seed, 16)) {
  case 0: case 1:
    return qcow2_pread (w->view, w->buf, count, offset);
  case 2:
    return read_snapshot (w, offset, count);
  case 3:
    return qcow2_extents (w->view, count, offset, ignore_extent, NULL);
  case 4:
    return qcow2_prefetch (w->view, count, offset);
  case 5:
    return qcow2_flush (w->view);
  case 6: case 7:
    return qcow2_trim (w->view, count, offset, fua);
  case 8: case 9:
    return qcow2_zero (w->view, count, offset, true, false, fua);
  case 10: case 11:
    return qcow2_zero (w->view, count, offset, false, false, fua);
  }
  /* The end of the disk is where it grows. */
  if (random_below (&w->seed, 8) == 0)
    offset = disk - count;
  memset (w->buf, 1 + (int) random_below (&w->seed, 255), count);
  return qcow2_pwrite (w->view, w->buf, count, offset, fua);
}

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  struct qcow2_error error;
  unsigned i;

  w->error = qcow2_view_open (w->image, QCOW2_ACTIVE, &w->view, &error);
  for (i = 0; i < w->nr_requests && w->error == 0; ++i)
    w->error = request (w);
  qcow2_view_close (w->view);
  return NULL;
}

/*----- Growing -----*/

struct grower {
  struct qcow2 *image;
  pthread_t thread;
  uint64_t seed;
  atomic_bool stop;
  unsigned nr_growths;
  int error;
};

/* By a few bytes or by as much as one L1 entry covers.  Version 2 does
 * not grow with snapshots.
 */
static void *
grow (void *opaque)
{
  struct grower *g = opaque;
  uint64_t cluster = qcow2_cluster_size (g->image);
  struct qcow2_error error;
  struct qcow2_view *view = NULL;

  g->error = qcow2_view_open (g->image, QCOW2_ACTIVE, &view, &error);
  while (g->error == 0 && !atomic_load (&g->stop)) {
    uint64_t more = 1 + random_below (&g->seed, 700);

    if (random_below (&g->seed, 3) == 0)
      more += cluster * (1 + random_below (&g->seed, cluster / 8));
    if (qcow2_view_size (view) + more < MAX_DISK_BYTES) {
      g->error = grow_disk (g->image, qcow2_view_size (view) + more, &error);
      g->nr_growths += g->error == 0;
    }
    usleep (500);
  }
  if (g->error == -ENOTSUP && g->nr_growths == 0)
    g->error = 0;
  qcow2_view_close (view);
  return NULL;
}

/*----- An image -----*/

static void
print_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  printf ("# log: %s\n", text);
}

static struct qcow2 *
open_image (const struct random_image *kinds, uint64_t cache_bytes,
            bool queued)
{
  static const struct dawdling dawdling[2] = {
    { .per_1024 = 100, .max_usec = 100 },
    { .per_1024 = 100, .max_usec = 100, .queued = true },
  };
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  qcow2_options_init (&options);
  options.data_file = kinds->data_file;
  options.writable = true;
  options.discard = true;
  options.cache_bytes = cache_bytes;
  options.compressed_cache_bytes = 4 * kinds->cluster_bytes;
  options.log = print_message;
  dawdling_init (&dawdling[queued], &options);
  if (qcow2_open (kinds->filename, &options, &image, &error) == 0)
    return image;
  printf ("# %s\n", error.message);
  return NULL;
}

static bool
run_threads (struct qcow2 *image, const struct random_image *kinds,
             uint64_t *seed)
{
  struct worker workers[NR_THREADS];
  struct grower grower = { .image = image, .seed = random_next (seed) | 1 };
  bool good = true;
  unsigned i;

  memset (workers, 0, sizeof workers);
  pthread_create (&grower.thread, NULL, grow, &grower);
  for (i = 0; i < NR_THREADS; ++i) {
    workers[i].image = image;
    workers[i].kinds = kinds;
    workers[i].seed = random_next (seed) | 1;
    workers[i].nr_requests = requests_per_thread ();
    workers[i].buf = malloc (MAX_BYTES);
    pthread_create (&workers[i].thread, NULL, work, &workers[i]);
  }
  for (i = 0; i < NR_THREADS; ++i) {
    pthread_join (workers[i].thread, NULL);
    free (workers[i].buf);
    if (workers[i].error < 0)
      printf ("# thread %u: %s\n", i, strerror (-workers[i].error));
    if (workers[i].changed)
      printf ("# thread %u: a snapshot has changed\n", i);
    good = good && workers[i].error == 0 && !workers[i].changed;
  }
  atomic_store (&grower.stop, true);
  pthread_join (grower.thread, NULL);
  printf ("# the disk has grown %u times\n", grower.nr_growths);
  if (grower.error < 0)
    printf ("# growing: %s\n", strerror (-grower.error));
  return good && grower.error == 0;
}

static bool
closes_with_content (struct qcow2 *image, const struct random_image *kinds)
{
  uint8_t *content = malloc (kinds->size_bytes), *now;
  struct qcow2_error error;
  struct qcow2_view *view;
  uint64_t bytes;
  bool good;

  good = qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) == 0 &&
    qcow2_pread (view, content, kinds->size_bytes, 0) == 0;
  good = qcow2_close (image) == 0 && good;
  now = qemu_content (kinds->filename, NULL, &bytes);
  if (bytes > kinds->size_bytes)
    bytes = kinds->size_bytes;
  good = good && memcmp (now, content, bytes) == 0;
  free (content);
  free (now);
  return good;
}

static void
test_trait (enum image_trait trait, uint64_t cache_bytes, bool queued)
{
  uint64_t seed = trait * 1000 + 77;
  struct random_image kinds;
  struct qcow2 *image;
  char command[100];

  random_image_make (&kinds, trait, &seed);
  image = open_image (&kinds, cache_bytes, queued);
  if (ok (image != NULL, "%s", kinds.description)) {
    ok (run_threads (image, &kinds, &seed), "all requests succeed");
    ok (closes_with_content (image, &kinds), "QEMU reads the same");
    snprintf (command, sizeof command, "qemu-img check -q -f qcow2 %s",
              kinds.filename);
    is_int (system (command), 0, "qemu-img check finds nothing");
    ok (random_image_kept (&kinds), "snapshots and backing files are kept");
  }
  random_image_remove (&kinds);
}

int
main (void)
{
  alarm (800);
  scratch_dir_enter ();
  test_trait (TRAIT_SMALL_CLUSTERS, 0, false);
  test_trait (TRAIT_SNAPSHOTS, 64 * KiB, true);
  test_trait (TRAIT_ZSTD, 64 * KiB, false);
  test_trait (TRAIT_BACKING, 0, true);
  test_trait (TRAIT_EXTENDED_COMPRESSED, 64 * KiB, false);
  test_trait (TRAIT_EXTENDED_SNAPSHOTS, 1024 * KiB, false);
  test_trait (TRAIT_DATA_FILE, 64 * KiB, true);
  test_trait (TRAIT_LAZY_REFCOUNTS, 64 * KiB, false);
  return tap_done ();
}
