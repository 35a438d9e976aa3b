/* SPDX-License-Identifier: BSD-3-Clause */

/* Snapshots of an image in use: what views see, what is refused, what is on
 * disk.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grow-disk.h"
#include "image.h"
#include "image-builder.h"
#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "snapshot-subject.h"
#include "tap.h"
#include "write-log.h"

#define CREATE "rm -rf *; qemu-img create -q -f qcow2 "
#define IO "qemu-io -f qcow2 -c "
#define KiB 1024u

static char said[1000];

static void
keep_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  snprintf (said, sizeof said, "%s", text);
}

static struct qcow2 *
open_image (bool writable)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  snapshot_subject_options (&options);
  options.writable = writable;
  options.no_backing = false;
  options.log = keep_message;
  said[0] = '\0';
  if (qcow2_open (SNAPSHOT_IMAGE, &options, &image, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return image;
}

static struct qcow2 *
open_logged (struct write_log *log)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  snapshot_subject_options (&options);
  write_log_use (log, &options);
  if (qcow2_open (SNAPSHOT_IMAGE, &options, &image, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return image;
}

static struct qcow2_view *
open_view (struct qcow2 *image, size_t snapshot)
{
  struct qcow2_error error;
  struct qcow2_view *view;

  if (qcow2_view_open (image, snapshot, &view, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return view;
}

static int
create (struct qcow2 *image, const char *name, const char *id)
{
  const struct qcow2_snapshot_params params = { .name = name, .id = id };

  return qcow2_snapshot_create (image, &params, NULL);
}

static int
fill (struct qcow2_view *view, uint8_t value, size_t count, uint64_t offset)
{
  uint8_t buf[64 * KiB];

  memset (buf, value, sizeof buf);
  return qcow2_pwrite (view, buf, count, offset, false);
}

/* The byte at OFFSET, or -1. */
static int
look (struct qcow2_view *view, uint64_t offset)
{
  uint8_t byte;

  return qcow2_pread (view, &byte, 1, offset) < 0 ? -1 : byte;
}

static void
close_and_check (struct qcow2 *image)
{
  is_int (qcow2_close (image), 0, "it can be closed");
  is_int (qemu_check (SNAPSHOT_IMAGE), 0, "the check is clean");
}

/*----- Views -----*/

static void
test_views (void)
{
  struct qcow2_view *view, *a, *b;
  struct qcow2 *image;

  run_command (CREATE "-o cluster_size=4k " SNAPSHOT_IMAGE " 1M");
  image = open_image (true);
  view = open_view (image, QCOW2_ACTIVE);
  is_int (fill (view, 1, 64 * KiB, 0) | create (image, "a", NULL) |
          fill (view, 2, 32 * KiB, 0) | create (image, "b", NULL) |
          fill (view, 3, 16 * KiB, 0), 0, "two snapshots");
  a = open_view (image, 0);
  b = open_view (image, 1);
  ok (look (a, 0) == 1 && look (b, 0) == 2 && look (view, 0) == 3,
      "each view has its own content");
  is_int (qcow2_snapshot_delete (image, 0, NULL), -EBUSY,
          "a snapshot with a view can't be deleted");
  qcow2_view_close (a);
  is_int (qcow2_snapshot_delete (image, 0, NULL), 0, "then it can");
  a = open_view (image, 0);
  ok (a == b, "the view of the one behind it is found by the new index");
  qcow2_view_close (a);
  is_int (look (b, 0), 2, "it reads as before");
  is_int (qcow2_snapshot_apply (image, 0, NULL), 0,
          "a snapshot with a view can be applied");
  ok (look (view, 0) == 2 && look (view, 20 * KiB) == 2 &&
      look (view, 40 * KiB) == 1, "the active layer's view has its content");
  is_int (fill (view, 4, 64 * KiB, 0), 0, "it can be written");
  ok (look (view, 0) == 4 && look (b, 0) == 2, "the snapshot stays");
  qcow2_view_close (b);
  qcow2_view_close (view);
  close_and_check (image);
}

struct mapping {
  struct qcow2_view *view;
  atomic_bool done;
};

static int
ignore_extent (void *opaque, const struct qcow2_map_extent *extent)
{
  return 0;
}

static void *
map_disk (void *opaque)
{
  struct mapping *m = opaque;

  qcow2_map (m->view, 1024 * KiB, 0, ignore_extent, NULL);
  m->done = true;
  return NULL;
}

/* An operation replaces the L1 table: nobody may look at it meanwhile. */
static void
test_map_waits (void)
{
  struct mapping m = { .done = false };
  struct qcow2 *image;
  pthread_t thread;

  run_command (CREATE SNAPSHOT_IMAGE " 1M");
  image = open_image (true);
  m.view = open_view (image, QCOW2_ACTIVE);
  gate_close (&image->gate);
  pthread_create (&thread, NULL, map_disk, &m);
  usleep (50000);
  ok (!m.done, "a map waits for an operation");
  gate_open (&image->gate);
  pthread_join (thread, NULL);
  ok (m.done, "and no longer");
  qcow2_view_close (m.view);
  close_and_check (image);
}

/* Flags that come back on disk have to come back in caches, too. */
static void
test_caches (void)
{
  struct qcow2_view *view;
  struct qcow2 *image;
  unsigned i;

  run_command (CREATE "-o cluster_size=4k,compat=0.10 " SNAPSHOT_IMAGE " 1M");
  image = open_image (true);
  view = open_view (image, QCOW2_ACTIVE);
  for (i = 0; i < 3; ++i)
    is_int (fill (view, 1, 64 * KiB, i * 64 * KiB), 0, "data");
  is_int (create (image, "a", NULL), 0, "a snapshot");
  qcow2_view_close (view);
  close_and_check (image);
  image = open_image (true);
  view = open_view (image, QCOW2_ACTIVE);
  is_int (look (view, 5 * KiB), 1, "a slice is cached, without flags");
  is_int (qcow2_snapshot_delete (image, 0, NULL), 0, "it is deleted");
  is_int (fill (view, 2, 4 * KiB, 200 * KiB), 0, "an entry beside changes");
  is_int (qcow2_flush (view), 0, "and is on disk");
  is_int (qemu_check (SNAPSHOT_IMAGE), 0, "all flags are still there");
  qcow2_view_close (view);
  close_and_check (image);
}

/* Write to what eight tables map. */
static int
fill_eight (struct qcow2_view *view, uint8_t value, size_t count,
            uint64_t offset)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < 8 && r == 0; ++i)
    r = fill (view, value, count, i * 32 * KiB + offset);
  return r;
}

/* Tables that lie in a row, with slots for the larger slices of a backing
 * file.  A flag that stays in the cache shows when the table is the active
 * layer's alone again, but not its data.
 */
static void
test_cache_with_backing (void)
{
  struct qcow2_view *view, *b;
  struct qcow2 *image;
  unsigned i;

  run_command (CREATE "-o cluster_size=64k base.qcow2 256k && "
               "qemu-img create -q -f qcow2 -o cluster_size=512 "
               "-b base.qcow2 -F qcow2 " SNAPSHOT_IMAGE " && "
               IO "'write -z 0 256k' " SNAPSHOT_IMAGE " > qemu.log");
  image = open_image (true);
  view = open_view (image, QCOW2_ACTIVE);
  is_int (fill_eight (view, 1, 512, 0) | create (image, "a", NULL) |
          fill_eight (view, 2, 512, 512) | create (image, "b", NULL), 0,
          "two snapshots that share data, but no tables");
  is_int (qcow2_snapshot_apply (image, 0, NULL) |
          qcow2_snapshot_delete (image, 0, NULL), 0, "the first comes back");
  is_int (fill_eight (view, 3, 512, 0), 0, "and is written to");
  b = open_view (image, 0);
  for (i = 0; i < 8 && look (b, i * 32 * KiB) == 1; ++i)
    ;
  is_int (i, 8, "the second has what it had");
  qcow2_view_close (b);
  qcow2_view_close (view);
  close_and_check (image);
}

static void
test_sizes (void)
{
  struct qcow2_view *view;
  struct qcow2 *image;

  run_command (CREATE "-o cluster_size=512 " SNAPSHOT_IMAGE " 100k");
  image = open_image (true);
  view = open_view (image, QCOW2_ACTIVE);
  is_int (fill (view, 1, 50 * KiB, 50 * KiB) | create (image, "a", NULL) |
          grow_disk (image, 4096 * KiB + 7, NULL) |
          fill (view, 2, 10 * KiB, 4000 * KiB) | create (image, "b", NULL), 0,
          "snapshots of two sizes");
  is_int (qcow2_snapshot_apply (image, 0, NULL), -EBUSY,
          "the smaller one can't be applied beside a view");
  is_int (qcow2_view_size (view), 4096 * KiB + 7, "nothing has changed");
  qcow2_view_close (view);
  is_int (qcow2_snapshot_apply (image, 0, NULL), 0, "then it can");
  view = open_view (image, QCOW2_ACTIVE);
  is_int (qcow2_view_size (view), 100 * KiB, "the view has its size");
  is_int (fill (view, 3, 50 * KiB, 50 * KiB), 0, "it can be written");
  is_int (grow_disk (image, 4000 * KiB, NULL), 0, "it can grow");
  is_int (look (view, 3999 * KiB), 0, "nothing comes to light");
  is_int (qcow2_snapshot_apply (image, 1, NULL), 0, "the larger one");
  is_int (qcow2_view_size (view), 4096 * KiB + 7, "its size, to the byte");
  ok (look (view, 4000 * KiB) == 2 && look (view, 60 * KiB) == 1,
      "its content");
  qcow2_view_close (view);
  close_and_check (image);
}

/* Storage of fixed size: in holes, or not at all. */
static void
test_device (void)
{
  struct write_log log;
  struct qcow2 *image;
  unsigned nr;
  int r;

  run_command (CREATE "-o cluster_size=512 " SNAPSHOT_IMAGE " 1M && "
               IO "'write -P 1 0 20k' " SNAPSHOT_IMAGE " > log && "
               "truncate -s 60k " SNAPSHOT_IMAGE);
  write_log_init (&log);
  log.fixed_size = true;
  image = open_logged (&log);
  for (nr = 0; (r = create (image, "a", NULL)) == 0; ++nr)
    ;
  is_int (r, -ENOSPC, "after %u snapshots there is no room", nr);
  is_int (qcow2_snapshot_delete (image, 0, NULL), 0, "one is deleted");
  is_int (create (image, "b", NULL), 0, "then there is");
  ok (nr > 5, "there were some");
  close_and_check (image);
  write_log_clear (&log);
}

/*----- Storage that fails -----*/

/* All writes behind the next two of the header: these set the dirty bit, and
 * switch.
 */
static int
fail_after_switch (void *opaque, const struct log_event *event)
{
  atomic_int *headers = opaque;

  if (event->kind != LOG_WRITE || *headers < 0)
    return 0;
  if (*headers == 0)
    return -EIO;
  *headers -= event->offset == 0;
  return 0;
}

static bool
has_valid_bitmaps (void)
{
  uint64_t bytes;
  uint8_t *header = file_content (SNAPSHOT_IMAGE, &bytes);
  bool valid = header[95] & 1;

  free (header);
  return valid;
}

/* If an operation can't bring the image to rest, bitmaps are valid until the
 * disk is written to, and no longer.
 */
static void
test_bitmaps (void)
{
  atomic_int headers = -1;
  struct qcow2_view *view;
  struct write_log log;
  struct qcow2 *image;

  run_command (CREATE "-o cluster_size=4k " SNAPSHOT_IMAGE " 1M && "
               "qemu-img bitmap --add " SNAPSHOT_IMAGE " dirty");
  write_log_init (&log);
  log.hook = fail_after_switch;
  log.opaque = &headers;
  image = open_logged (&log);
  view = open_view (image, QCOW2_ACTIVE);
  is_int (create (image, "a", NULL), 0, "a snapshot");
  headers = 2;
  is_int (create (image, "b", NULL), 0, "one that can't clean up");
  is_int (headers, 0, "writes have failed");
  headers = -1;
  ok (has_valid_bitmaps (), "the disk's bitmap is valid");
  is_int (fill (view, 1, 4 * KiB, 0), 0, "the disk is written to");
  ok (!has_valid_bitmaps (), "now it is not");
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "it can be closed");
  is_int (qemu_check (SNAPSHOT_IMAGE), 3, "the check finds the bitmap alone");
  ok (!damage_is_dirty (SNAPSHOT_IMAGE), "the dirty bit is gone");
  write_log_clear (&log);
}

/* The file system is full: the file has this size, at most. */
static int
refuse_growth (void *opaque, const struct log_event *event)
{
  const uint64_t *limit = opaque;

  return (event->kind == LOG_WRITE || event->kind == LOG_TRUNCATE) &&
    event->offset + event->count > *limit ? -ENOSPC : 0;
}

/* Free clusters are behind those of both snapshots. */
static void
test_full (void)
{
  uint64_t limit = UINT64_MAX;
  struct write_log log;
  struct qcow2 *image;

  run_command (CREATE "-o cluster_size=512 " SNAPSHOT_IMAGE " 1M && "
               IO "'write -P 1 0 20k' " SNAPSHOT_IMAGE " > log && "
               "qemu-img snapshot -c a " SNAPSHOT_IMAGE " && "
               "qemu-img snapshot -c b " SNAPSHOT_IMAGE " && "
               IO "'write -P 2 0 50k' -c 'write -z -u 0 50k' "
               SNAPSHOT_IMAGE " > log");
  write_log_init (&log);
  log.hook = refuse_growth;
  log.opaque = &limit;
  image = open_logged (&log);
  limit = (uint64_t) qcow2_storage_size (image->chain.layers[0]->file);
  is_int (create (image, "c", NULL), 0, "a snapshot, while the disk is full");
  is_int (qcow2_snapshot_delete (image, 0, NULL), 0, "one is deleted");
  is_int (qcow2_snapshot_apply (image, 0, NULL), 0, "another one applied");
  close_and_check (image);
  write_log_clear (&log);
}

static int
count_table_reads (void *opaque, const struct log_event *event)
{
  unsigned *nr = opaque;

  *nr += event->kind == LOG_READ && event->offset < 0x50000 &&
    event->offset + event->count > 0x40000;
  return 0;
}

/* A file may claim to have any number of tables that were never written. */
static void
test_table_is_hole (void)
{
  struct write_log log;
  struct qcow2 *image;
  unsigned nr = 0;

  run_command (CREATE SNAPSHOT_IMAGE " 1M && "
               IO "'write -P 1 0 64k' " SNAPSHOT_IMAGE " > log && "
               "fallocate -p -o 256k -l 64k " SNAPSHOT_IMAGE);
  write_log_init (&log);
  log.hook = count_table_reads;
  log.opaque = &nr;
  image = open_logged (&log);
  is_int (create (image, "a", NULL), 0, "a snapshot of an L2 table of zeros");
  is_int (qcow2_snapshot_apply (image, 0, NULL), 0, "it is applied");
  is_int (qcow2_snapshot_delete (image, 0, NULL), 0, "and deleted");
  is_int (nr, 0, "the table is not read");
  is_int (qcow2_close (image), 0, "it can be closed");
  is_int (qemu_check (SNAPSHOT_IMAGE), 3, "the check finds a leak, of before");
  write_log_clear (&log);
}

/*----- Ids, limits -----*/

static void
is_id (struct qcow2 *image, size_t index, const char *id)
{
  struct qcow2_snapshot_info info;

  qcow2_snapshot_get (image, index, &info);
  is_str (info.id, id, "its id");
}

static void
test_ids (void)
{
  char name[300];
  struct qcow2 *image;

  run_command (CREATE "-o cluster_size=4k " SNAPSHOT_IMAGE " 1M");
  image = open_image (true);
  memset (name, 'x', sizeof name);
  is_int (create (image, "one", NULL), 0, "without an id");
  is_id (image, 0, "1");
  is_int (create (image, "two", "7th"), 0, "with one");
  is_int (create (image, "two", "7th"), -EEXIST, "with the same");
  is_int (create (image, "8", NULL), 0, "without");
  is_id (image, 2, "8");
  is_int (create (image, "x", "18446744073709551615"), 0, "the highest");
  is_int (create (image, "y", NULL), 0, "one more");
  is_id (image, 4, "0");
  is_int (create (image, "z", NULL), 0, "and one more");
  is_id (image, 5, "2");
  is_int (qcow2_snapshot_find (image, "8"), 2, "an id is found");
  is_int (qcow2_snapshot_find_name (image, "7th"), -ENOENT, "an id is none");
  is_int (qcow2_snapshot_find_name (image, "two"), 1, "a name is");
  name[256] = '\0';
  is_int (create (image, name, NULL), -EINVAL, "a name of 256 bytes");
  is_int (create (image, "id", name), -EINVAL, "such an id");
  name[255] = '\0';
  is_int (create (image, name, NULL), 0, "a name of 255 bytes");
  is_int (qcow2_snapshot_delete (image, 7, NULL), -ENOENT, "no such index");
  is_int (qcow2_snapshot_apply (image, 7, NULL), -ENOENT, "no such index");
  close_and_check (image);
}

static void
test_refused (void)
{
  struct qcow2 *image;

  run_command (CREATE SNAPSHOT_IMAGE " 1M && qemu-img snapshot -c a "
               SNAPSHOT_IMAGE);
  image = open_image (false);
  is_int (create (image, "b", NULL), -EROFS, "an image open for reading");
  is_int (qcow2_snapshot_delete (image, 0, NULL), -EROFS, "likewise");
  qcow2_close (image);
  image = open_image (true);
  qcow2_finish (image);
  is_int (create (image, "b", NULL), -ESHUTDOWN, "one that is being closed");
  qcow2_close (image);
}

/* Another size, which the image can't have. */
static void
test_refused_sizes (void)
{
  struct qcow2_error error;
  struct qcow2 *image;
  struct image img;

  run_command (CREATE "-o compat=0.10 " SNAPSHOT_IMAGE " 1M && "
               "qemu-img snapshot -c a " SNAPSHOT_IMAGE);
  img.path = SNAPSHOT_IMAGE;
  image_reopen (&img);
  image_put_header (&img, size, 512 * KiB);
  close (img.fd);
  image = open_image (true);
  is_int (qcow2_snapshot_apply (image, 0, &error), -ENOTSUP, "version 2: %s",
          error.message);
  close_and_check (image);

  run_command (CREATE SNAPSHOT_IMAGE " 1M && qemu-img snapshot -c a "
               SNAPSHOT_IMAGE " && qemu-img resize -q " SNAPSHOT_IMAGE " 2M");
  image = open_image (true);
  is_int (create (image, "b", NULL), 0, "one more");
  image->snapshots.snapshots[1].has_disk_size = false;
  is_int (qcow2_snapshot_apply (image, 0, &error), -ENOTSUP, "no size: %s",
          error.message);
  image->snapshots.snapshots[1].has_disk_size = true;
  is_int (qcow2_snapshot_apply (image, 0, &error), 0, "with it");
  close_and_check (image);
}

static void
test_too_many (void)
{
  struct image_options options = { .cluster_bits = 16 };
  struct image_snapshot *sn = calloc (MAX_SNAPSHOTS, sizeof *sn);
  struct qcow2_snapshot_params params = { .name = "x" };
  struct qcow2_error error;
  struct qcow2 *image;
  struct image img;
  unsigned i;

  run_command ("rm -rf *");
  for (i = 0; i < MAX_SNAPSHOTS; ++i)
    sn[i] = (struct image_snapshot) { .id = "1", .name = "a",
                                      .extra_bytes = 24 };
  image_create (&img, SNAPSHOT_IMAGE, &options);
  image_set_snapshots (&img, sn, MAX_SNAPSHOTS);
  image_close (&img);
  free (sn);
  image = open_image (true);
  is_int (qcow2_snapshot_create (image, &params, &error), -EFBIG,
          "too many: %s", error.message);
  is_int (qcow2_snapshot_delete (image, 0, &error), 0, "one is deleted");
  is_int (qcow2_snapshot_create (image, &params, &error), 0, "then one fits");
  is_int (qcow2_nr_snapshots (image), MAX_SNAPSHOTS, "as many as can be");
  qcow2_close (image);
}

/*----- The state of a virtual machine -----*/

static void
test_vm_state (void)
{
  const struct qcow2_snapshot_params params = {
    .name = "a", .vm_state_bytes = 300 * KiB, .icount = QCOW2_NO_ICOUNT,
  };
  struct qcow2 *image;

  run_command (CREATE "-o cluster_size=4k " SNAPSHOT_IMAGE " 1M && "
               IO "'write -P 1 0 1M' -c 'write -b -P 9 0 300k' "
               SNAPSHOT_IMAGE " > log");
  image = open_image (true);
  is_int (qcow2_snapshot_create (image, &params, NULL), 0,
          "a snapshot with a VM's state");
  close_and_check (image);
  run_command (IO "'read -b -P 0 0 300k' " SNAPSHOT_IMAGE " > log");
  is_int (system ("grep -q fail log"), 256, "the active layer has it no more");
  run_command ("qemu-img snapshot -a a " SNAPSHOT_IMAGE " && "
               IO "'read -b -P 9 0 300k' -c 'read -P 1 0 1M' " SNAPSHOT_IMAGE
               " > log");
  is_int (system ("grep -q fail log"), 256, "QEMU finds it in the snapshot");
  run_command ("qemu-img snapshot -l " SNAPSHOT_IMAGE " | grep -q '300 KiB'");
}

/*----- Damaged images -----*/

/* The image has a snapshot with an L1 table of its own; PATCH changes it. */
static void
damaged (void (*patch) (struct image *, uint64_t l1_offset), const char *what)
{
  struct image img;
  struct image_options options = { .cluster_bits = 12, .size_bytes = 1 << 20 };
  struct image_snapshot sn = { .id = "1", .name = "a", .l1_size = 1,
                               .disk_size = 1 << 20, .extra_bytes = 24 };
  struct qcow2 *image;
  struct qcow2_error error = { "" };
  int r;

  run_command ("rm -rf *");
  image_create (&img, SNAPSHOT_IMAGE, &options);
  image_add_data (&img, 0, 1);
  sn.l1_offset = image_copy_tables (&img);
  image_set_snapshots (&img, &sn, 1);
  patch (&img, sn.l1_offset);
  image_close (&img);
  run_command ("cp " SNAPSHOT_IMAGE " before");
  image = open_image (true);
  r = qcow2_snapshot_delete (image, 0, &error);
  ok (r < 0, "%s: not deleted: %s", what, said[0] ? said : error.message);
  r = qcow2_snapshot_apply (image, 0, &error);
  ok (r < 0, "%s: not applied: %s", what, said[0] ? said : error.message);
  qcow2_close (image);
  run_command ("cmp -i 512 before " SNAPSHOT_IMAGE);
}

static void
no_patch (struct image *img, uint64_t l1_offset)
{
}

static void
misaligned (struct image *img, uint64_t l1_offset)
{
  image_put (img, l1_offset, 8, image_get (img, l1_offset, 8) + 512);
}

static void
past_the_end (struct image *img, uint64_t l1_offset)
{
  image_put (img, l1_offset, 8, UINT64_C (1) << 40);
}

static void
the_refcount_table (struct image *img, uint64_t l1_offset)
{
  image_put (img, l1_offset, 8, 1 << 12);
}

static void
data_is_the_header (struct image *img, uint64_t l1_offset)
{
  image_put (img, image_get (img, l1_offset, 8), 8, 3 << 12);
}

static void
test_damaged (void)
{
  damaged (no_patch, "refcounts too low");
  damaged (misaligned, "an L2 table that is not aligned");
  damaged (past_the_end, "one past the end");
  damaged (the_refcount_table, "one that is the refcount table");
  damaged (data_is_the_header, "data that is the L1 table");
}

int
main (void)
{
  scratch_dir_enter ();
  test_views ();
  test_map_waits ();
  test_caches ();
  test_cache_with_backing ();
  test_sizes ();
  test_device ();
  test_bitmaps ();
  test_full ();
  test_table_is_hole ();
  test_ids ();
  test_refused ();
  test_refused_sizes ();
  test_too_many ();
  test_vm_state ();
  test_damaged ();
  return tap_done ();
}
