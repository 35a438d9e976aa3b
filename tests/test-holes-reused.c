/* SPDX-License-Identifier: BSD-3-Clause */

/* Freed space is used again, however scattered: with more than ten thousand
 * holes the file stays bounded, also where they are those of an earlier
 * session.  And what is cut off at the end was in use in this session:
 * clusters that nobody counts, but that may hold data, stay.  What was used as
 * a hole is not taken for new at the end.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "storage-fault.h"
#include "tap.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)

#define CLUSTER_BYTES (4 * KiB)
#define NR_CLUSTERS 80000       /* of the disk */
#define NR_BEFORE 40000         /* written in the beginning */
#define NR_ROUNDS 3
#define NR_PER_ROUND 15000

/* Kept free without being used again: a part of the file, or a little. */
#define SLACK (64 * MiB / CLUSTER_BYTES)

static struct qcow2 *image;
static struct qcow2_view *view;
static uint8_t buf[CLUSTER_BYTES];

/* Clusters of the disk in any order, those in use first. */
static uint32_t order[NR_CLUSTERS];
static unsigned nr_used;

static void
must (bool good, const char *what)
{
  if (!good) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

static void
open_image (bool discard)
{
  struct qcow2_options options;
  struct qcow2_error error;

  qcow2_options_init (&options);
  options.writable = true;
  options.discard = discard;
  must (qcow2_open ("disk.qcow2", &options, &image, &error) == 0 &&
        qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) == 0,
        "can't open the image");
}

static void
close_image (void)
{
  qcow2_view_close (view);
  must (qcow2_close (image) == 0, "can't close the image");
}

static uint64_t
file_clusters (const char *filename)
{
  struct stat st;

  must (stat (filename, &st) == 0, filename);
  return ((uint64_t) st.st_size + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
}

static void
swap (unsigned i, unsigned j)
{
  uint32_t c = order[i];

  order[i] = order[j];
  order[j] = c;
}

/* One that is not in use. */
static void
write_one (uint64_t *seed)
{
  unsigned i = nr_used +
    (unsigned) random_below (seed, NR_CLUSTERS - nr_used);
  uint32_t c = order[i];

  swap (i, nr_used++);
  memset (buf, (int) (c % 255 + 1), sizeof buf);
  must (qcow2_pwrite (view, buf, sizeof buf, c * CLUSTER_BYTES, false) == 0,
        "can't write");
}

static void
trim_one (unsigned i)
{
  uint32_t c = order[i];

  swap (i, --nr_used);
  must (qcow2_trim (view, CLUSTER_BYTES, c * CLUSTER_BYTES, false) == 0,
        "can't trim");
}

/* The background worker would do that every few seconds. */
static void
free_trimmed (void)
{
  must (qcow2_flush (view) == 0 && worker_reclaim (image->writer) == 0,
        "can't free");
}

static void
write_before (void)
{
  unsigned i;

  for (i = 0; i < NR_CLUSTERS; ++i)
    order[i] = i;
  nr_used = 0;
  while (nr_used < NR_BEFORE) {
    memset (buf, (int) (nr_used % 255 + 1), sizeof buf);
    must (qcow2_pwrite (view, buf, sizeof buf, nr_used * CLUSTER_BYTES,
                        false) == 0, "can't write");
    nr_used++;
  }
}

static void
trim_every_other (void)
{
  unsigned i;

  for (i = 0; i < nr_used; ++i)
    trim_one (i);               /* the last one takes its place */
  free_trimmed ();
}

static void
some_rounds (uint64_t *seed)
{
  unsigned i, round;

  for (round = 0; round < NR_ROUNDS; ++round) {
    for (i = 0; i < NR_PER_ROUND; ++i)
      write_one (seed);
    for (i = 0; i < NR_PER_ROUND; ++i)
      trim_one ((unsigned) random_below (seed, nr_used));
    free_trimmed ();
  }
}

/* What may be: all that was in use at once, and a part that is free. */
static uint64_t
bound (uint64_t most_used)
{
  uint64_t tables = 100 + NR_CLUSTERS / 256;
  uint64_t nr = (most_used + tables) * 8 / 7;

  return most_used + tables + SLACK > nr ? most_used + tables + SLACK : nr;
}

static bool
has_content (void)
{
  unsigned i, j;

  for (i = 0; i < NR_CLUSTERS; ++i) {
    int byte = i < nr_used ? (int) (order[i] % 255 + 1) : 0;

    if (qcow2_pread (view, buf, sizeof buf, order[i] * CLUSTER_BYTES) < 0)
      return false;
    for (j = 0; j < sizeof buf; ++j)
      if (buf[j] != byte)
        return false;
  }
  return true;
}

static void
test_rounds (bool discard)
{
  uint64_t seed = 4711, got, most;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 "
               "-o cluster_size=4k disk.qcow2 %" PRIu64,
               NR_CLUSTERS * CLUSTER_BYTES);
  open_image (discard);
  write_before ();
  trim_every_other ();
  some_rounds (&seed);
  got = file_clusters ("disk.qcow2");
  most = NR_BEFORE > nr_used + NR_PER_ROUND ? NR_BEFORE :
    nr_used + NR_PER_ROUND;
  ok (got <= bound (most), "discard=%s: at most %" PRIu64 " clusters in use, "
      "the file has %" PRIu64, discard ? "unmap" : "ignore", most, got);
  ok (has_content (), "all data is there");

  close_image ();
  run_command ("qemu-img check -q disk.qcow2");
}

/* Of the rounds before. */
static void
test_next_session (void)
{
  uint64_t seed = 815, before = file_clusters ("disk.qcow2"), got;
  unsigned i;

  open_image (false);
  write_one (&seed);
  while (alloc_count_some (&image->writer->alloc))
    ;
  for (i = 0; i < NR_PER_ROUND; ++i)
    write_one (&seed);
  got = file_clusters ("disk.qcow2");
  ok (got <= bound (nr_used) || got <= before,
      "another session: %u clusters in use, the file grows from %" PRIu64
      " to %" PRIu64, nr_used, before, got);
  ok (has_content (), "all data is there");
  close_image ();
  run_command ("qemu-img check -q disk.qcow2");
}

/*----- The end of the file -----*/

/* In an image that qemu-img has just made. */
#define REFCOUNT_BLOCK 0x20000
#define END (1 * MiB + 5 * 64 * KiB)    /* of the file */

/* The refcount of a cluster of 64 KiB becomes 0, though it is in use. */
static void
lose_refcount (uint64_t cluster)
{
  FILE *fp = fopen ("disk.qcow2", "r+");
  static const uint8_t zeros[2];

  must (fp && fseek (fp, (long) (REFCOUNT_BLOCK + cluster * 2), SEEK_SET) == 0
        && fwrite (zeros, 2, 1, fp) == 1 && fclose (fp) == 0,
        "can't damage the image");
}

/* The last clusters are 16 of data; LOST of them are not counted.  The
 * disk's part from TRIM_FROM on is trimmed.
 */
static uint64_t
size_after (unsigned lost, uint64_t trim_from)
{
  unsigned i;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 disk.qcow2 4M "
               "&& qemu-io -f qcow2 -c 'write -q -P 7 0 1M' disk.qcow2");
  for (i = 0; i < lost; ++i)
    lose_refcount (END / (64 * KiB) - 1 - i);
  open_image (false);
  /* New clusters, free again when the image is closed. */
  must (qcow2_pwrite (view, buf, 1, 2 * MiB, false) == 0 &&
        qcow2_trim (view, 4 * MiB - trim_from, trim_from, false) == 0,
        "can't write");
  close_image ();
  return file_clusters ("disk.qcow2") * CLUSTER_BYTES;
}

static void
test_tail (void)
{
  uint8_t *content;
  uint64_t bytes;

  is_int (size_after (0, 1 * MiB), END, "what this session added is cut off");
  is_int (size_after (0, 512 * KiB), END - 512 * KiB,
          "and what it has freed");
  is_int (size_after (2, 1 * MiB), END,
          "not what was there before, if nobody counts it");
  content = qemu_content ("disk.qcow2", NULL, &bytes);
  ok (content[MiB - 1] == 7, "it can be read");
  free (content);
}

/*----- Holes at the end -----*/

#define NR_FAILING 16           /* clusters of the request that fails */

static int
write_byte (uint64_t cluster, unsigned nr, int byte)
{
  static uint8_t data[NR_FAILING * CLUSTER_BYTES];

  memset (data, byte, sizeof data);
  return qcow2_pwrite (view, data, nr * CLUSTER_BYTES,
                       cluster * CLUSTER_BYTES, false);
}

static void *
failing (void *opaque)
{
  int *result = opaque;

  *result = write_byte (0, NR_FAILING, 'T');
  return NULL;
}

static uint64_t
append_of (struct allocator *a)
{
  uint64_t append;

  pthread_mutex_lock (&a->lock);
  append = a->append;
  pthread_mutex_unlock (&a->lock);
  return append;
}

/* More ranges become free than the list holds.  That nobody really gets these
 * does no harm.
 */
static void
overflow (struct allocator *a)
{
  uint64_t i;

  for (i = 0; i <= MAX_HOLES; ++i)
    alloc_note_free (a, 2 * i + 1, 1);
}

/* A request has clusters at the end, but no refcounts for them.  When the list
 * overflows they may be found as holes, though the request gives them back.
 */
static void
give_back_the_end (struct writer *w)
{
  uint64_t append = append_of (&w->alloc);
  pthread_t thread;
  int result;

  turn_take (&w->turn);
  pthread_create (&thread, NULL, failing, &result);
  while (append_of (&w->alloc) == append)
    usleep (1000);
  overflow (&w->alloc);
  fault.write_errno = EIO;
  turn_give (&w->turn);
  pthread_join (thread, NULL);
  no_faults ();
  is_int (result, -EIO, "refcounts can't grow");
}

static void
test_end_not_fresh (void)
{
  uint64_t next = NR_FAILING;
  struct writer *w;
  unsigned i;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 "
               "-o cluster_size=4k disk.qcow2 256M");
  open_image (false);
  w = image->writer;
  while (append_of (&w->alloc) <= 2 * MAX_HOLES + 2 ||
         refcounts_cover (w->rc, append_of (&w->alloc)))
    must (write_byte (next++, 1, 'x') == 0, "can't write");
  worker_stop (w);              /* only the test commits */

  give_back_the_end (w);
  must (write_byte (next++, 1, 'x') == 0, "can't write at the end");
  alloc_note_full (&w->alloc);
  must (write_byte (next, 1, 'B') == 0 &&
        qcow2_trim (view, CLUSTER_BYTES, next * CLUSTER_BYTES, false) == 0 &&
        qcow2_flush (view) == 0 && worker_round (w) == 0,
        "can't use a hole");
  atomic_store (&w->alloc.full, false);
  must (qcow2_pwrite (view, "A", 1, next * CLUSTER_BYTES, false) == 0 &&
        qcow2_pread (view, buf, sizeof buf, next * CLUSTER_BYTES) == 0,
        "can't write at the end");
  for (i = 1; i < sizeof buf && buf[i] == 0; ++i)
    ;
  ok (i == sizeof buf && buf[0] == 'A',
      "what was trimmed does not come back in a new cluster");
  close_image ();
}

int
main (void)
{
  scratch_dir_enter ();
  no_faults ();
  test_rounds (false);
  test_next_session ();
  fault.fallocate_errno = EOPNOTSUPP;
  test_rounds (true);
  no_faults ();
  test_tail ();
  test_end_not_fresh ();
  return tap_done ();
}
