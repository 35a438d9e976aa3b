/* SPDX-License-Identifier: BSD-3-Clause */

/* Wherever corruption is met, the corrupt bit is set, and what was under way
 * ends without harm.
 */

#include <unistd.h>

#include "damaged-image.h"
#include "guard.h"
#include "scratch-dir.h"
#include "writer.h"

static char buf[CLUSTER];

/* A data cluster with refcount 0 is given up. */
static void
test_underflow (void)
{
  uint64_t bytes;
  uint8_t *before, *after;

  build (3);
  set_refcount (image_get (&img, image_l2_entry (&img, L1_SPAN), 8) &
                ENTRY_OFFSET_MASK, 0);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  free (before);
  open_image (true, false);
  is_int (operate (TRIM, L1_SPAN), 0, "data with refcount 0 is trimmed");
  is_int (qcow2_flush (view), 0, "that is committed");
  is_int (qcow2_finish (image), -EIO, "it can't be given up");
  ok (says_corrupt () && write_log_said (&logged, "is 0 while"),
      "the message says so");
  is_int (close_image (), 0, "closed");
  after = file_content (IMAGE, &bytes);
  ok (after[INCOMPATIBLE_LOW] & INCOMPAT_CORRUPT, "the corrupt bit is set");
  free (after);
}

/*----- Other entries -----*/

static void
test_zero_flag (void)
{
  build (2);
  image_map (&img, BAD, image_get (&img, image_l2_entry (&img, SOUND), 8) |
             ENTRY_ZERO, 0);
  close (img.fd);
  expect_refused ("version 2, zero flag", TRIM, BAD, false);
}

static void
test_subclusters (void)
{
  uint64_t entry;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 14, .size_bytes = DISK,
      .incompatible = INCOMPAT_EXTENDED_L2 });
  entry = image_add_data (&img, SOUND, 0x11) | ENTRY_COPIED;
  image_map (&img, BAD, entry, (uint64_t) 1 << 32 | 1);
  image_close (&img);
  expect_refused ("subcluster allocated and zero", WRITE, BAD, false);

  image_reopen (&img);
  image_put (&img, INCOMPATIBLE_LOW, 1, INCOMPAT_EXTENDED_L2);
  image_map (&img, BAD, 0, 1);
  close (img.fd);
  expect_refused ("subcluster allocated nowhere", ZERO, BAD, false);
}

/* The data file is not written, either. */
static void
test_data_file (void)
{
  struct image data;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = DISK,
      .incompatible = INCOMPAT_DATA_FILE });
  image_map (&img, SOUND, SOUND | ENTRY_COPIED, 0);
  image_map (&img, SOUND + 16 * KiB, (SOUND + 16 * KiB) | ENTRY_COPIED, 0);
  image_put (&img, img.l1_offset + 8, 8, (2 * CLUSTER + 512) | ENTRY_COPIED);
  image_close (&img);
  data = img;
  data.path = data_file = "disk.raw";
  run_command ("head -c %u /dev/zero | tr '\\0' '\\021' > disk.raw",
               (unsigned) (32 * KiB));
  expect_refused ("external data file", WRITE, L1_SPAN, false);
  image_reopen (&data);
  is_int (image_get (&data, SOUND + 16 * KiB, 8), 0x1111111111111111,
          "the data file is unharmed");
  close (data.fd);
  data_file = NULL;
}

/*----- What only a mistake in the engine could lead to -----*/

enum mistake { GIVE_UP, L2_SECTOR, L1_SECTOR, REFCOUNT_SECTOR, BEGIN };

static void
make_mistake (enum mistake mistake)
{
  struct writer *w = image->writer;

  switch (mistake) {
  case GIVE_UP:
    retire_now (&w->retire, place[L1_TABLE] / CLUSTER, 1);
    break;
  case L2_SECTOR:
    guard_add (w->top, METADATA_L2_TABLE, place[L2_TABLE]);
    break;
  case L1_SECTOR:
    guard_add (w->top, METADATA_REFCOUNT_BLOCK, place[L1_TABLE]);
    break;
  case REFCOUNT_SECTOR:
    guard_add (w->top, METADATA_L2_TABLE, place[REFCOUNT_BLOCK]);
    break;
  case BEGIN:
    guard_add_table (w->top, METADATA_SNAPSHOT_L1, 0, 1);
  }
}

/* Something is changed, and the mistake is made before it is committed. */
static void
test_mistake (const char *what, enum mistake mistake)
{
  uint64_t bytes, after_bytes;
  uint8_t *before, *after;

  build (3);
  set_l1_entry (2, 0);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  open_image (true, false);
  if (mistake == BEGIN)
    make_mistake (mistake);
  is_int (operate (WRITE, L1_SPAN + BAD), mistake == BEGIN ? -EIO : 0,
          "%s: first write", what);
  is_int (operate (WRITE, 2 * L1_SPAN), mistake == BEGIN ? -EIO : 0,
          "%s: second write", what);
  if (mistake != BEGIN)
    make_mistake (mistake);
  is_int (mistake == GIVE_UP ? qcow2_finish (image) : qcow2_flush (view),
          -EIO, "%s: refused", what);
  close_image ();               /* the worker may be the one that tells */
  ok (says_corrupt (), "%s: the message says so", what);

  after = file_content (IMAGE, &after_bytes);
  ok (after[INCOMPATIBLE_LOW] & INCOMPAT_CORRUPT, "%s: the corrupt bit is "
      "set", what);
  if (mistake != GIVE_UP)
    ok (memcmp (before + place[L1_TABLE], after + place[L1_TABLE],
                CLUSTER) == 0, "%s: the L1 table is as before", what);
  if (mistake == GIVE_UP)
    ok (after[place[REFCOUNT_BLOCK] + 2 * (place[L1_TABLE] / CLUSTER) + 1],
        "%s: it is not free", what);
  if (mistake == L2_SECTOR)
    ok (memcmp (before + place[L2_TABLE], after + place[L2_TABLE],
                CLUSTER) == 0, "%s: it is as before", what);
  if (mistake == REFCOUNT_SECTOR)
    ok (memcmp (before + place[REFCOUNT_BLOCK], after + place[REFCOUNT_BLOCK],
                CLUSTER) == 0, "%s: it is as before", what);
  free (before);
  free (after);
}

/*----- Reads -----*/

static void
test_reads (void)
{
  uint64_t bytes;
  uint8_t *before;

  build (3);
  image_map (&img, BAD, place[L2_TABLE] + 512, 0);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  open_image (true, false);
  is_int (qcow2_pread (view, buf, CLUSTER, BAD), -EIO,
          "a read meets corruption");
  ok (says_corrupt (), "the message says so");
  ok (refuses_all (), "nothing is written any more");
  ok (reads_as (SOUND, 0x11), "what is sound can be read");
  is_int (qcow2_pread (view, buf, CLUSTER, BAD), -EIO, "the rest can't");
  close_image ();
  ok (file_is_unharmed (before, bytes) && corrupt_bit_is_set (),
      "nothing was written but the corrupt bit");
  free (before);
}

static void
test_read_only (void)
{
  uint64_t bytes, after_bytes;
  uint8_t *before, *after;

  build (3);
  image_map (&img, BAD, place[L2_TABLE] + 512, 0);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  open_image (false, false);
  is_int (qcow2_pread (view, buf, CLUSTER, BAD), -EIO,
          "opened read-only, it is EIO");
  ok (strstr (logged.message, "the image is corrupt: guest offset 0x10000: "
              "data cluster is not aligned; use") != NULL, "with a message");
  close_image ();
  after = file_content (IMAGE, &after_bytes);
  ok (bytes == after_bytes && memcmp (before, after, bytes) == 0,
      "and nothing is written");
  free (before);
  free (after);
}

/*----- What was under way -----*/

/* An image of QEMU's, sound but for the entry of BAD. */
static void
make_by_qemu (void)
{
  run_command ("qemu-img create -q -f qcow2 -o cluster_size=4k %s 8M && "
               "qemu-io -f qcow2 -c 'write -q -P 17 0 4k' %s", IMAGE, IMAGE);
  image_reopen (&img);
  img.l1_offset = image_get (&img, offsetof (struct disk_header,
                                             l1_table_offset), 8);
  image_map (&img, BAD, img.l1_offset | ENTRY_COPIED, 0);
  close (img.fd);
}

/* Take the damage away, and see whether there is any other: clusters may have
 * leaked (3).  Returns the content.
 */
static uint8_t *
content_without_damage (void)
{
  uint64_t bytes;

  image_reopen (&img);
  image_map (&img, BAD, 0, 0);
  image_put (&img, INCOMPATIBLE_LOW, 1, 0);
  close (img.fd);
  run_command ("qemu-img check -q %s > check.log 2>&1 || test $? -eq 3 || "
               "{ cat check.log; false; }", IMAGE);
  return qemu_content (IMAGE, NULL, &bytes);
}

/* What was flushed is there, what was not is not half there. */
static void
test_unflushed (void)
{
  uint8_t *content;

  make_by_qemu ();
  open_image (true, false);
  is_int (operate (WRITE, 128 * KiB), 0, "a cluster is written");
  is_int (qcow2_flush (view), 0, "and flushed");
  is_int (operate (WRITE, 192 * KiB), 0, "another one is not flushed");
  is_int (operate (WRITE, BAD), -EIO, "then corruption is met");
  ok (reads_as (128 * KiB, 0x77) && reads_as (192 * KiB, 0x77),
      "both can be read");
  is_int (close_image (), -EIO, "closing says so");

  content = content_without_damage ();
  ok (content[128 * KiB] == 0x77, "without the bad entry all is sound, and "
      "what was flushed is there");
  is_int (content[192 * KiB], 0, "what was not is not");
  free (content);
}

/* Each thread writes and flushes clusters of its own, in place and new ones,
 * until it is refused; it counts what was flushed.
 */
#define NR_THREADS 4
#define CLUSTERS_EACH 400

static unsigned nr_flushed[NR_THREADS];

static uint64_t
own_cluster (unsigned thread, unsigned i)
{
  return L1_SPAN + (i * NR_THREADS + thread) * CLUSTER;
}

static void *
write_until_refused (void *opaque)
{
  unsigned me = (unsigned) (uintptr_t) opaque, i;
  char bytes[CLUSTER];

  for (i = 0; i < CLUSTERS_EACH; ++i) {
    memset (bytes, (int) (me + 1), sizeof bytes);
    if (qcow2_pwrite (view, bytes, CLUSTER, own_cluster (me, i), false) < 0 ||
        qcow2_pwrite (view, bytes, 512, own_cluster (me, i / 2), false) < 0)
      break;
    if (i % 8 == 7) {
      if (qcow2_flush (view) < 0)
        break;
      nr_flushed[me] = i + 1;
    }
  }
  return NULL;
}

static void
test_threads (unsigned pause_usec)
{
  pthread_t threads[NR_THREADS];
  unsigned i, j, nr_lost = 0;
  uint8_t *content;

  make_by_qemu ();
  open_image (true, false);
  memset (nr_flushed, 0, sizeof nr_flushed);
  for (i = 0; i < NR_THREADS; ++i)
    if (pthread_create (&threads[i], NULL, write_until_refused,
                        (void *) (uintptr_t) i) != 0)
      abort ();
  usleep (pause_usec);
  is_int (operate (WRITE, BAD), -EIO, "corruption while others write");
  ok (refuses_all (), "nothing is written any more");
  for (i = 0; i < NR_THREADS; ++i)
    pthread_join (threads[i], NULL);
  close_image ();
  ok (corrupt_bit_is_set (), "the corrupt bit is set");

  content = content_without_damage ();
  for (i = 0; i < NR_THREADS; ++i)
    for (j = 0; j < nr_flushed[i]; ++j)
      nr_lost += content[own_cluster (i, j)] != i + 1;
  is_int (nr_lost, 0, "what was flushed (%u clusters of the first thread) is "
          "there, and all is sound", nr_flushed[0]);
  free (content);
}

static int
fail_header (void *opaque, const struct log_event *event)
{
  return event->kind == LOG_WRITE && event->durable && event->offset == 0 ?
    -EIO : 0;
}

static void
test_bit_fails (void)
{
  build (3);
  patch_entry (L1_TABLE, OWNED);
  close (img.fd);
  open_image (true, false);
  is_int (operate (WRITE, 128 * KiB), 0, "written");
  logged.hook = fail_header;
  is_int (operate (WRITE, BAD), -EIO, "corruption, and a broken disk");
  ok (strstr (logged.message, "further writes are refused; use \"qcow2-img "
              "check -r all\"; the corrupt bit can't be set: ") != NULL,
      "the message tells both");
  ok (refuses_all (), "nothing is written any more");
  logged.hook = NULL;
  close_image ();
}

int
main (void)
{
  scratch_dir_enter ();
  test_underflow ();
  test_zero_flag ();
  test_subclusters ();
  test_data_file ();
  test_mistake ("metadata is given up", GIVE_UP);
  test_mistake ("a sector of an L2 table", L2_SECTOR);
  test_mistake ("a sector of the L1 table", L1_SECTOR);
  test_mistake ("a sector of a refcount block", REFCOUNT_SECTOR);
  test_mistake ("the first change", BEGIN);
  test_reads ();
  test_read_only ();
  test_unflushed ();
  test_threads (100);
  test_threads (3000);
  test_threads (20000);
  test_bit_fails ();
  return tap_done ();
}
