/* SPDX-License-Identifier: BSD-3-Clause */

/* What is durable when, where one request meets another one or an error
 * at the worst moment; and entries that can't be trusted.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "image.h"
#include "l2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "writer.h"

#define KiB ((uint64_t) 1024)
#define CLUSTER_BYTES (64 * KiB)

/*----- Storage that something happens in -----*/

struct hooked {
  struct qcow2_storage storage;
  struct qcow2_storage *next;
};

/* Called before each write and flush; an error takes its place. */
static int (*_Atomic before_write) (bool durable);
static int (*_Atomic before_flush) (void);

/* No byte can be written from here on; 0: there is room for all. */
static _Atomic uint64_t room_bytes;

static struct qcow2_storage *
next_of (struct qcow2_storage *s)
{
  return ((struct hooked *) s)->next;
}

static ssize_t
hooked_pread (struct qcow2_storage *s, void *buf, size_t count,
              uint64_t offset)
{
  return next_of (s)->ops->pread (next_of (s), buf, count, offset);
}

static int64_t
hooked_size (struct qcow2_storage *s)
{
  return next_of (s)->ops->size (next_of (s));
}

static int
hooked_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
                uint64_t offset, bool durable)
{
  int (*hook) (bool) = before_write;
  int r = hook ? hook (durable) : 0;
  uint64_t end = offset;
  int i;

  for (i = 0; i < iovcnt; ++i)
    end += iov[i].iov_len;
  if (room_bytes > 0 && end > room_bytes)
    r = -ENOSPC;
  return r < 0 ? r :
    next_of (s)->ops->pwritev (next_of (s), iov, iovcnt, offset, durable);
}

static int
hooked_flush (struct qcow2_storage *s)
{
  int (*hook) (void) = before_flush;
  int r = hook ? hook () : 0;

  return r < 0 ? r : next_of (s)->ops->flush (next_of (s));
}

static int
hooked_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  return next_of (s)->ops->truncate (next_of (s), size_bytes);
}

static bool
hooked_can_grow (struct qcow2_storage *s)
{
  return next_of (s)->ops->can_grow (next_of (s));
}

static void
hooked_close (struct qcow2_storage *s)
{
  next_of (s)->ops->close (next_of (s));
  free (s);
}

static const struct qcow2_storage_ops hooked_ops = {
  .pread = hooked_pread,
  .size = hooked_size,
  .pwritev = hooked_pwritev,
  .flush = hooked_flush,
  .truncate = hooked_truncate,
  .can_grow = hooked_can_grow,
  .close = hooked_close,
};

static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  struct hooked *hooked = calloc (1, sizeof *hooked);

  if (!hooked)
    return -ENOMEM;
  hooked->storage.ops = &hooked_ops;
  hooked->next = *s;
  *s = &hooked->storage;
  return 0;
}

/*----- The image -----*/

static struct qcow2 *image;
static struct qcow2_view *view;
static uint8_t buf[4 * CLUSTER_BYTES];

static size_t cache_bytes;      /* 0: as usual */

static void
open_image (const char *filename)
{
  struct qcow2_options options;
  struct qcow2_error error;

  qcow2_options_init (&options);
  options.writable = true;
  options.lock = false;
  options.wrap = wrap;
  if (cache_bytes > 0)
    options.cache_bytes = cache_bytes;
  if (qcow2_open (filename, &options, &image, &error) < 0 ||
      qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0) {
    printf ("# %s\n", error.message);
    abort ();
  }
}

static int
close_image (void)
{
  before_write = NULL;
  before_flush = NULL;
  qcow2_view_close (view);
  return qcow2_close (image);
}

static int
write_bytes (char byte, size_t count, uint64_t offset, bool fua)
{
  uint8_t *bytes = malloc (count);
  int r;

  if (!bytes)
    abort ();
  memset (bytes, byte, count);
  r = qcow2_pwrite (view, bytes, count, offset, fua);
  free (bytes);
  return r;
}

/* An image whose first cluster is durable. */
static void
make_image (const char *options)
{
  run_command ("rm -f disk.qcow2 && qemu-img create -q -f qcow2 %s disk.qcow2 "
               "8M", options);
  open_image ("disk.qcow2");
  if (write_bytes ('A', CLUSTER_BYTES, 0, false) < 0 ||
      qcow2_flush (view) < 0)
    abort ();
}

/*----- FUA -----*/

/* While the first cluster is written, another request links the second. */
static int
link_second (bool durable)
{
  if (!durable)
    return 0;
  before_write = NULL;
  return write_bytes ('B', 4 * KiB, CLUSTER_BYTES, false);
}

static void
test_fua_after_link (void)
{
  uint8_t *content;
  uint64_t bytes;

  make_image ("");
  before_write = link_second;
  is_int (write_bytes ('C', 2 * CLUSTER_BYTES, 0, true), 0,
          "two clusters are written with FUA");
  ok (before_write == NULL, "the second was linked meanwhile");
  run_command ("cp disk.qcow2 crashed.qcow2");
  content = qemu_content ("crashed.qcow2", NULL, &bytes);
  ok (content[0] == 'C' && content[2 * CLUSTER_BYTES - 1] == 'C',
      "if the server dies then, they are there");
  free (content);
  is_int (close_image (), 0, "closed");
}

static int
fail_flush_once (void)
{
  before_flush = NULL;
  return -EIO;
}

/* The kernel tells of a write-back error once.  While the FUA write is being
 * made durable another request's flush is told that it was lost.
 */
static int
flush_that_fails (bool durable)
{
  if (!durable)
    return 0;
  before_write = NULL;
  before_flush = fail_flush_once;
  if (write_bytes ('B', 4 * KiB, 8 * KiB, false) < 0)
    abort ();
  is_int (qcow2_flush (view), -EIO, "a flush fails");
  return 0;
}

static void
test_fua_beside_failed_flush (void)
{
  make_image ("");
  before_write = flush_that_fails;
  is_int (write_bytes ('C', 4 * KiB, 0, true), -EIO,
          "a FUA write that it may have been about is not answered");
  is_int (close_image (), -EIO, "nor is the image closed properly");
}

/*----- Flushes that another one is told of -----*/

static int
other_was_told (void)
{
  before_flush = NULL;
  committer_fail (&image->writer->committer, -EIO);
  return 0;
}

static void
test_commit_other_was_told (void)
{
  make_image ("");
  worker_stop (image->writer);
  if (qcow2_trim (view, CLUSTER_BYTES, 0, false) < 0)
    abort ();
  before_flush = other_was_told;
  is_int (qcow2_flush (view), -EIO, "a flush that another one is told of");
  ok (before_flush == NULL && retire_has_unlinked (&image->writer->retire) &&
      image->writer->retire.durable.nr == 0, "frees nothing");
  is_int (close_image (), -EIO, "the image is not closed properly");
}

static int
other_was_told_meanwhile (bool durable)
{
  if (durable) {
    before_write = NULL;
    other_was_told ();
  }
  return 0;
}

static unsigned
count_refcount_blocks (void)
{
  const struct refcount_table *table = atomic_load (&image->writer->rc->table);
  unsigned nr = 0;
  uint64_t i;

  for (i = 0; i < table->nr_entries; ++i)
    nr += table->entries[i] != 0;
  return nr;
}

static void
test_growth_other_was_told (void)
{
  uint64_t offset;
  unsigned nr;
  int r = 0;

  make_image ("-o cluster_size=512,refcount_bits=64");
  worker_stop (image->writer);
  nr = count_refcount_blocks ();
  before_write = other_was_told_meanwhile;
  for (offset = 0; r == 0 && before_write; offset += 4 * KiB)
    r = write_bytes ('B', 4 * KiB, CLUSTER_BYTES + offset, false);
  is_int (r, -EIO, "so with the durable write of new refcount blocks");
  is_int (count_refcount_blocks (), nr, "which no table names");
  is_int (close_image (), -EIO, "the image is not closed properly");
}

/*----- Retiring -----*/

/* Dies of the alarm if it hangs. */
static void
test_commit_before_unlink (void)
{
  const struct l2_entry zero = { .entry = ENTRY_ZERO };
  struct l2_entry old;

  make_image ("");
  if (l2_read (image->writer, 0, 1, &old) < 0 ||
      l2_link (image->writer, 0, 1, &zero) < 0 || qcow2_flush (view) < 0)
    abort ();
  l2_unlink (image->writer, &old);
  alarm (30);
  is_int (close_image (), 0,
          "closed, though a commit came between link and unlink");
  alarm (0);
  run_command ("qemu-img check -q disk.qcow2");
}

/*----- Errors -----*/

static int
fail_durable (bool durable)
{
  return durable ? -EIO : 0;
}

static void
test_failed_durable_write (void)
{
  make_image ("");
  before_write = fail_durable;
  is_int (write_bytes ('B', 4 * KiB, 0, true), -EIO, "a FUA write fails");
  before_write = NULL;
  is_int (qcow2_flush (view), -EIO, "flushes fail from then on");
  is_int (write_bytes ('C', 4 * KiB, 0, false), -EROFS, "so do writes");
  is_int (close_image (), -EIO, "and closing");
}

static int
fail_no_room (bool durable)
{
  return -ENOSPC;
}

static void
test_no_room_for_durable_write (void)
{
  make_image ("");
  before_write = fail_no_room;
  is_int (write_bytes ('B', 4 * KiB, 0, true), -ENOSPC,
          "a FUA write finds no room");
  before_write = NULL;
  is_int (write_bytes ('C', 4 * KiB, 0, true), 0, "the next one does");
  is_int (close_image (), 0, "closed");
}

/* Space that was trimmed is used again where the file can't grow. */
static void
test_room_within_the_file (void)
{
  const size_t half = 4096 * KiB;
  unsigned i, nr_failed = 0;

  make_image ("");
  room_bytes = half + 16 * CLUSTER_BYTES;
  is_int (write_bytes ('B', half, 0, false), 0, "half of the disk is written");
  is_int (write_bytes ('C', half, half, false), -ENOSPC,
          "the other half finds no room");
  if (qcow2_trim (view, half, 0, false) < 0 || qcow2_flush (view) < 0)
    abort ();
  for (i = 0; i < 8; ++i)
    nr_failed += write_bytes ('D', half / 16, half + i * half / 16,
                              false) < 0;
  is_int (nr_failed, 0, "it does after the first half was trimmed");
  room_bytes = 0;
  is_int (close_image (), 0, "closed");
  run_command ("qemu-img check -q disk.qcow2");
}

static atomic_uint nr_durable_writes, nr_flushes;

static int
fail_and_count_durable (bool durable)
{
  nr_durable_writes += durable;
  return fail_durable (durable);
}

static int
fail_flush (void)
{
  return -EIO;
}

static int
count_flush (void)
{
  nr_flushes++;
  return 0;
}

/* New refcount blocks are written durably, and nothing else is flushed for
 * them.
 */
static void
test_growth_without_flush (void)
{
  unsigned nr, nr_failed = 0;
  uint64_t offset;

  make_image ("-o cluster_size=512,refcount_bits=64");
  worker_stop (image->writer);
  nr = count_refcount_blocks ();
  before_flush = count_flush;
  for (offset = 0; offset < 4096 * KiB; offset += 4 * KiB)
    nr_failed += write_bytes ('B', 4 * KiB, offset, false) < 0;
  before_flush = NULL;
  ok (nr_failed == 0 && count_refcount_blocks () >= nr + 128,
      "4 MiB are written, with 128 new refcount blocks");
  is_int (nr_flushes, 0, "without a flush");
  is_int (close_image (), 0, "closed");
  run_command ("qemu-img check -q disk.qcow2");
}

/* The durable write of a new refcount block fails. */
static void
test_failed_growth (void)
{
  uint64_t offset;
  int r = 0;

  make_image ("-o cluster_size=512");
  before_write = fail_and_count_durable;
  for (offset = 0; r == 0 && offset < 8192 * KiB; offset += CLUSTER_BYTES)
    r = write_bytes ('B', CLUSTER_BYTES, offset, false);
  before_write = NULL;
  is_int (r, -EIO, "growing the refcount structures fails");
  is_int (nr_durable_writes, 1, "after one durable write");
  is_int (qcow2_flush (view), -EIO, "flushes fail from then on");
  is_int (close_image (), -EIO, "and closing");
}

static bool
all_are (uint8_t byte, size_t count, uint64_t offset)
{
  size_t i;

  if (count > sizeof buf || qcow2_pread (view, buf, count, offset) < 0)
    return false;
  for (i = 0; i < count && buf[i] == byte; ++i)
    continue;
  return i == count;
}

/* Nothing can be written any more, and no slot of the cache becomes free. */
static void
test_reads_when_all_is_dirty (void)
{
  uint64_t offset;
  int r = 0;

  run_command ("for i in base mid; do qemu-img create -q -f qcow2 "
               "-o cluster_size=512 $b $i.qcow2 8M; "
               "b=\"-b $i.qcow2 -F qcow2\"; done; qemu-io -f qcow2 "
               "-c 'write -q -P 7 4M 256k' base.qcow2");
  cache_bytes = 8 * KiB;
  make_image ("-o cluster_size=512 -b mid.qcow2 -F qcow2");
  cache_bytes = 0;
  worker_stop (image->writer);
  before_flush = fail_flush;
  for (offset = 1024 * KiB; r == 0 && offset < 4096 * KiB; offset += 32 * KiB)
    r = write_bytes ('B', 512, offset, false);
  before_flush = NULL;
  is_int (r, -EIO, "there are no slots after a flush that failed");
  ok (all_are ('B', 512, 1024 * KiB), "what was written can be read");
  ok (all_are ('A', CLUSTER_BYTES, 0), "and what was there before");
  ok (all_are (7, 4 * CLUSTER_BYTES, 4096 * KiB), "in a backing file, too");
  ok (all_are (0, 4 * CLUSTER_BYTES, 6144 * KiB), "or nowhere");
  is_int (close_image (), -EIO, "the image is not closed properly");
}

/*----- Entries -----*/

/* Where an L1 entry lies in an image that qemu-img has just made. */
#define L1_OFFSET 0x30000

static void
test_l1_flag_without_table (void)
{
  uint8_t *content;
  uint64_t bytes;

  run_command ("qemu-img create -q -f qcow2 flag.qcow2 1M && "
               "printf '\\200' | dd of=flag.qcow2 bs=1 seek=%d conv=notrunc "
               "status=none", L1_OFFSET);
  open_image ("flag.qcow2");
  is_int (write_bytes ('A', 4 * KiB, 0, false), 0,
          "written where an L1 entry has a flag, but no table");
  is_int (close_image (), 0, "closed");
  content = qemu_content ("flag.qcow2", NULL, &bytes);
  ok (content[0] == 'A', "QEMU reads it");
  free (content);
  run_command ("qemu-img check -q flag.qcow2");
}

static void
test_zero_short_compressed (void)
{
  const uint64_t size_bytes = 16 * CLUSTER_BYTES + 12 * KiB;
  const uint64_t last = 16 * CLUSTER_BYTES;

  run_command ("head -c %" PRIu64 " /dev/zero | tr '\\0' z > disk.raw && "
               "qemu-img convert -c -f raw -O qcow2 -o extended_l2=on "
               "disk.raw short.qcow2", size_bytes);
  open_image ("short.qcow2");
  is_int (qcow2_zero (view, size_bytes - last, last, true, false, false), 0,
          "a compressed last cluster, not whole, becomes zeros");
  is_int (qcow2_pread (view, buf, size_bytes - last, last), 0, "it is read");
  ok (buf[0] == 0 && memcmp (buf, buf + 1, size_bytes - last - 1) == 0,
      "as zeros");
  is_int (close_image (), 0, "closed");
  run_command ("qemu-img check -q short.qcow2");
}

int
main (void)
{
  scratch_dir_enter ();
  test_fua_after_link ();
  test_fua_beside_failed_flush ();
  test_commit_other_was_told ();
  test_growth_other_was_told ();
  test_growth_without_flush ();
  test_commit_before_unlink ();
  test_failed_durable_write ();
  test_no_room_for_durable_write ();
  test_room_within_the_file ();
  test_failed_growth ();
  test_reads_when_all_is_dirty ();
  test_l1_flag_without_table ();
  test_zero_short_compressed ();
  return tap_done ();
}
