/* SPDX-License-Identifier: BSD-3-Clause */

/* Many threads read one image.
 *
 * The image has all that is shared between requests: a chain of three,
 * compressed clusters, extents with subclusters, and snapshots, whose
 * views are opened and closed all the time.  Caches are much too small.
 * Whatever is read is compared with what QEMU reads; in a second round
 * reads of the storage fail now and then.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "faulty-storage.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define KiB ((uint64_t) 1024)
#define MiB (1024 * KiB)
#define NR_THREADS 8
#define NR_DISKS 3
#define MAX_READ_BYTES (150 * KiB)

static uint64_t seed = 31337;

/* What can be viewed: the active layer and two snapshots. */
struct disk {
  const char *snapshot;         /* NULL: the active layer */
  size_t index;                 /* of qcow2_view_open */
  uint8_t *content;
  uint64_t bytes;
};

static struct disk disks[NR_DISKS] = {
  { .snapshot = NULL }, { .snapshot = "old" }, { .snapshot = "older" },
};

static void
make_images (void)
{
  unsigned i;

  run_command ("qemu-img create -q -f raw base.raw %" PRIu64, 3 * MiB);
  random_writes ("raw", "base.raw", 3 * MiB, 200 * KiB, 512, 20, 0, &seed);
  run_command ("qemu-img create -q -f qcow2 -F raw -b base.raw "
               "-o cluster_size=4k,compression_type=zstd mid.qcow2 5M");
  random_writes ("qcow2", "mid.qcow2", 5 * MiB, 30 * KiB, 4 * KiB, 150,
                 WRITE_ZEROES | WRITE_COMPRESSED, &seed);
  run_command ("qemu-img create -q -f qcow2 -F qcow2 -b mid.qcow2 "
               "-o cluster_size=16k,extended_l2=on top.qcow2 6M");
  random_writes ("qcow2", "top.qcow2", 6 * MiB, 60 * KiB, 16 * KiB, 60,
                 WRITE_ZEROES | WRITE_COMPRESSED, &seed);
  run_command ("qemu-img snapshot -c older top.qcow2");
  random_writes ("qcow2", "top.qcow2", 6 * MiB, 60 * KiB, 16 * KiB, 30,
                 WRITE_UNMAP, &seed);
  run_command ("qemu-img snapshot -c old top.qcow2");
  random_writes ("qcow2", "top.qcow2", 6 * MiB, 60 * KiB, 16 * KiB, 30,
                 WRITE_ZEROES, &seed);
  for (i = 0; i < NR_DISKS; ++i)
    disks[i].content = qemu_content ("top.qcow2", disks[i].snapshot,
                                     &disks[i].bytes);
}

struct reader {
  pthread_t thread;
  struct qcow2 *image;
  uint64_t seed;
  unsigned nr_views;
  unsigned nr_reads;
  unsigned nr_failed;           /* with EIO */
  unsigned nr_wrong;
};

static bool
extent_is_right (const struct disk *disk, enum qcow2_extent type,
                 uint64_t offset, uint64_t count)
{
  if (type == QCOW2_EXTENT_DATA)
    return true;
  for (; count > 0; ++offset, --count)
    if (disk->content[offset] != 0)
      return false;
  return true;
}

static int
check_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
              uint64_t count)
{
  return extent_is_right (opaque, type, offset, count) ? 0 : 1;
}

static void
read_once (struct reader *reader, const struct disk *disk,
           struct qcow2_view *view, uint8_t *buf)
{
  uint64_t offset = random_below (&reader->seed, disk->bytes);
  uint64_t count = 1 + random_below (&reader->seed, MAX_READ_BYTES);
  int r;

  if (random_below (&reader->seed, 2))
    count = 1 + count % 6000;
  if (count > disk->bytes - offset)
    count = disk->bytes - offset;

  switch (random_below (&reader->seed, 8)) {
  case 0:
    r = qcow2_extents (view, count, offset, check_extent, (void *) disk);
    break;
  case 1:
    r = qcow2_prefetch (view, count, offset);
    break;
  default:
    memset (buf, 0xa5, count);
    r = qcow2_pread (view, buf, count, offset);
    if (r == 0 && memcmp (buf, disk->content + offset, count) != 0)
      r = 1;
  }
  reader->nr_reads++;
  if (r == -EIO)
    reader->nr_failed++;
  else if (r != 0)
    reader->nr_wrong++;
}

static void *
reader_thread (void *opaque)
{
  struct reader *reader = opaque;
  uint8_t *buf = malloc (MAX_READ_BYTES);
  unsigned i, k;

  for (i = 0; i < reader->nr_views; ++i) {
    const struct disk *disk = &disks[random_below (&reader->seed, NR_DISKS)];
    struct qcow2_view *view;
    struct qcow2_error error;
    int r = qcow2_view_open (reader->image, disk->index, &view, &error);

    if (r < 0) {
      reader->nr_failed += r == -EIO;
      reader->nr_wrong += r != -EIO || error.message[0] == '\0';
      continue;
    }
    if (qcow2_view_size (view) != disk->bytes)
      reader->nr_wrong++;
    for (k = 0; k < 6; ++k)
      read_once (reader, disk, view, buf);
    qcow2_view_close (view);
  }
  free (buf);
  return NULL;
}

/* While the readers run, let a read fail every now and then. */
static void
fail_some (struct faults *faults, unsigned msec)
{
  unsigned i;

  for (i = 0; i < msec; ++i) {
    atomic_store (&faults->countdown, 1 + random_below (&seed, 30));
    usleep (1000);
  }
  atomic_store (&faults->countdown, 0);
}

static void
test_readers (const char *what, uint64_t cache_bytes,
              uint64_t compressed_cache_bytes, unsigned delay_usec,
              bool failing)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct faults faults;
  struct reader readers[NR_THREADS];
  struct reader sum = { .nr_reads = 0 };
  struct qcow2 *image;
  unsigned i;

  qcow2_options_init (&options);
  options.cache_bytes = cache_bytes;
  options.compressed_cache_bytes = compressed_cache_bytes;
  faults_init (&faults, &options);
  if (!ok (qcow2_open ("top.qcow2", &options, &image, &error) == 0,
           "%s: opens", what))
    return;
  for (i = 0; i < NR_DISKS; ++i)
    disks[i].index = disks[i].snapshot ?
      (size_t) qcow2_snapshot_find (image, disks[i].snapshot) : QCOW2_ACTIVE;
  atomic_store (&faults.delay_usec, delay_usec);

  for (i = 0; i < NR_THREADS; ++i) {
    readers[i] = (struct reader) {
      .image = image, .seed = random_next (&seed), .nr_views = 100,
    };
    pthread_create (&readers[i].thread, NULL, reader_thread, &readers[i]);
  }
  if (failing)
    fail_some (&faults, 300);
  for (i = 0; i < NR_THREADS; ++i) {
    pthread_join (readers[i].thread, NULL);
    sum.nr_reads += readers[i].nr_reads;
    sum.nr_failed += readers[i].nr_failed;
    sum.nr_wrong += readers[i].nr_wrong;
  }
  is_int (sum.nr_wrong, 0, "%s: %u requests give nothing wrong", what,
          sum.nr_reads);
  if (failing)
    ok (sum.nr_failed > 0, "%s: and some fail (%u)", what, sum.nr_failed);
  else
    is_int (sum.nr_failed, 0, "%s: and none fails", what);
  qcow2_close (image);
  is_int (atomic_load (&faults.nr_open), 0, "%s: all files are closed", what);
}

int
main (void)
{
  unsigned i;

  alarm (280);
  scratch_dir_enter ();
  make_images ();
  test_readers ("large caches", 1 * MiB, 8 * MiB, 0, false);
  test_readers ("smallest caches", 0, 0, 0, false);
  test_readers ("small caches, slow storage", 0, 64 * KiB, 30, false);
  test_readers ("large caches, failing reads", 1 * MiB, 8 * MiB, 30, true);
  test_readers ("smallest caches, failing reads", 0, 0, 30, true);
  test_readers ("small caches, failing reads", 0, 64 * KiB, 30, true);
  for (i = 0; i < NR_DISKS; ++i)
    free (disks[i].content);
  return tap_done ();
}
