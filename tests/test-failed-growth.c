/* SPDX-License-Identifier: BSD-3-Clause */

/* New refcount blocks and tables that were written, but not put in use
 * because of an error, are no zeros: what is allocated in their place
 * later does not let them come to light.  And entries of the refcount table
 * that may be on disk though writing them has failed are made away with
 * before anything can rely on that.  Nor is anything laid down where, for all
 * that an image with a missing block says, nothing is.  When nobody knows which
 * L1 table the header names, nothing is written any more.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grow-disk.h"
#include "hooked-storage.h"
#include "image.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)
#define CLUSTER_BYTES 512
#define NR_CLUSTERS 400

static struct qcow2 *image;
static struct qcow2_view *view;
static uint64_t fail_from_bytes = UINT64_MAX;
static unsigned nr_failed;
static uint64_t table_offset;   /* the refcount table's sector to be hooked */
static bool fail_table;
static unsigned nr_table_writes, nr_durable;
static bool fail_header, header_failed;
static unsigned nr_after;       /* writes since */

/* The error of a large write comes when all of it is there. */
static int
hooked_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
                uint64_t offset, bool durable)
{
  int r = real_pwritev (s, iov, iovcnt, offset, durable);

  nr_after += header_failed;
  if (fail_header && offset == 0) {
    header_failed = true;
    return -ENOSPC;
  }
  if (table_offset && offset == table_offset) {
    nr_table_writes++;
    nr_durable += durable;
    if (fail_table)
      return -EIO;
  }
  if (r < 0 || iov[0].iov_len < fail_from_bytes)
    return r;
  nr_failed++;
  return -EIO;
}

static void
open_image (void)
{
  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 "
               "-o cluster_size=512,refcount_bits=64 disk.qcow2 1M");
  open_hooked (hooked_pwritev, &image, &view);
}

/* A byte in each cluster, which is all that is written of it. */
static int
write_bytes (void)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < NR_CLUSTERS && r == 0; ++i)
    r = qcow2_pwrite (view, "x", 1, i * CLUSTER_BYTES + 100, false);
  return r;
}

static unsigned
count_wrong (void)
{
  uint8_t *buf = malloc (NR_CLUSTERS * CLUSTER_BYTES);
  unsigned nr = 0, i;

  if (!buf || qcow2_pread (view, buf, NR_CLUSTERS * CLUSTER_BYTES, 0) < 0)
    abort ();
  for (i = 0; i < NR_CLUSTERS * CLUSTER_BYTES; ++i)
    nr += buf[i] != (i % CLUSTER_BYTES == 100 ? 'x' : 0);
  free (buf);
  return nr;
}

static void
close_image (void)
{
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
}

static uint64_t
refcount_table_offset (void)
{
  return atomic_load (&image->writer->rc->table)->host_offset;
}

static void
test_entries (void)
{
  open_image ();
  table_offset = refcount_table_offset ();
  fail_table = true;
  is_int (write_bytes (), -EIO,
          "entries of the refcount table can't be written");
  is_int (nr_durable, 0, "there was nothing to be durable");
  fail_table = false;
  nr_table_writes = 0;
  is_int (write_bytes (), 0, "the next try succeeds");
  ok (nr_table_writes >= 1 && nr_durable == 1,
      "the entries are durable before what follows");
  table_offset = 0;
  is_int (count_wrong (), 0, "and all was written");
  close_image ();
}

/* The last words: the image is closed, and nothing can be named past its end,
 * nor where others may be.
 */
static void
test_entries_at_rest (void)
{
  open_image ();
  table_offset = refcount_table_offset ();
  fail_table = true;
  is_int (write_bytes (), -EIO, "entries can't be written once more");
  fail_table = false;
  nr_durable = 0;
  close_image ();
  is_int (nr_durable, 1, "the table is durable without them");
  table_offset = 0;
}

/* Entry INDEX of the refcount table on disk. */
static uint64_t
entry_on_disk (uint64_t index)
{
  uint64_t word;

  if (qcow2_storage_read_meta (image->writer->top->file, &word, sizeof word,
                               refcount_table_offset () + index * 8) < 0)
    abort ();
  return be64toh (word);
}

/* Two sectors of 64 entries, the first of which fails. */
static void
test_entries_of_two_sectors (void)
{
  struct allocator *a;
  const uint64_t low = 70, high = 130;
  unsigned bits;

  open_image ();
  a = &image->writer->alloc;
  bits = a->rc->block_bits;
  if (write_bytes () < 0 || refcount_grow (a, UINT64_C (200) << bits) < 0)
    abort ();
  table_offset = refcount_table_offset () + 512;
  fail_table = true;
  is_int (refcount_grow (a, low << bits), -EIO, "one sector fails");
  ok (entry_on_disk (low) != 0, "but is there");
  fail_table = false;
  is_int (refcount_grow (a, high << bits), 0, "another one does not");
  is_int (entry_on_disk (low), 0, "nothing is left of the first one then");
  ok (entry_on_disk (high) != 0, "and the other one is there");
  table_offset = 0;
  close_image ();
}

static void
test_area (void)
{
  struct qcow2_error error;

  open_image ();
  /* A disk so large that its L1 table needs a larger refcount table. */
  fail_from_bytes = 4 * KiB;
  ok (grow_disk (image, 16 * 1024 * MiB, &error) < 0 && nr_failed == 1,
      "growing fails when refcount blocks are written: %s", error.message);
  fail_from_bytes = UINT64_MAX;
  is_int (write_bytes (), 0, "a byte is written to each of some clusters");
  is_int (count_wrong (), 0, "around each of them is zeros");
  close_image ();
}

/* Which L1 table the header names is not known then: nothing may be written any
 * more, in another place neither.
 */
static void
test_switch (void)
{
  struct qcow2_error error;
  int status;

  open_image ();
  is_int (write_bytes (), 0, "the first change is over");
  fail_header = true;
  ok (grow_disk (image, 64 * MiB, &error) < 0 && header_failed,
      "growing fails when the header is to name the new L1 table: %s",
      error.message);
  is_int (nr_after, 0, "nothing is written after that");
  fail_header = header_failed = false;
  ok (qcow2_pwrite (view, "x", 1, 0, false) < 0, "nor later");
  qcow2_view_close (view);
  ok (qcow2_close (image) < 0, "closing tells of it");
  status = qemu_check ("disk.qcow2");
  ok (status == 0 || status == 3, "there are but leaks");
}

/* Which refcount table the header names is not known then. */
static void
test_table_switch (void)
{
  struct allocator *a;
  unsigned bits;
  int status;

  open_image ();
  a = &image->writer->alloc;
  bits = a->rc->block_bits;
  is_int (write_bytes (), 0, "the first change is over");
  fail_header = true;
  ok (refcount_grow (a, UINT64_C (70) << bits) < 0 && header_failed,
      "growing fails when the header is to name the new refcount table");
  nr_after = 0;
  ok (refcount_grow (a, UINT64_C (75) << bits) < 0,
      "so it does for those who have waited");
  is_int (nr_after, 0, "who write nothing over that table");
  fail_header = header_failed = false;
  qcow2_view_close (view);
  ok (qcow2_close (image) < 0, "closing tells of it");
  status = qemu_check ("disk.qcow2");
  ok (status == 0 || status == 3, "there are but leaks");
}

/* Refcount block 1, of host offsets from 32 KiB on, is gone. */
static void
lose_block (void)
{
  int fd = open ("disk.qcow2", O_RDWR | O_CLOEXEC);
  uint64_t offset, entry;

  if (fd == -1 || pread (fd, &offset, 8, 48) != 8 ||
      pread (fd, &entry, 8, (off_t) be64toh (offset) + 8) != 8 || entry == 0)
    abort ();
  entry = 0;
  if (pwrite (fd, &entry, 8, (off_t) be64toh (offset) + 8) != 8)
    abort ();
  close (fd);
}

static void
test_missing_block (void)
{
  static uint8_t buf[32 * KiB];
  unsigned nr_wrong = 0;
  size_t i;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 "
               "-o cluster_size=512,refcount_bits=64 disk.qcow2 1M && "
               "qemu-io -f qcow2 -c 'write -q -P 3 0 32k' disk.qcow2");
  lose_block ();
  open_hooked (hooked_pwritev, &image, &view);
  is_int (qcow2_pwrite (view, buf, sizeof buf, 512 * KiB, false), 0,
          "written to an image with a missing refcount block");
  is_int (qcow2_flush (view), 0, "and flushed");
  is_int (qcow2_pread (view, buf, sizeof buf, 0), 0, "what was there is read");
  for (i = 0; i < sizeof buf; ++i)
    nr_wrong += buf[i] != 3;
  is_int (nr_wrong, 0, "nothing was laid down over it");
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
}

int
main (void)
{
  scratch_dir_enter ();
  test_area ();
  test_switch ();
  test_table_switch ();
  test_entries ();
  test_entries_at_rest ();
  test_entries_of_two_sectors ();
  test_missing_block ();
  return tap_done ();
}
