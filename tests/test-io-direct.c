/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage past the page cache: any request works, whatever the file asks
 * for; neighbours in one block never lose each other's bytes; the size is
 * the one that was meant.
 *
 * Over storage in memory that is strict about alignment and dawdles, on
 * files, on block devices with sectors of 512 and 4096 bytes, and on a
 * filesystem on such devices.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "neighbours.h"
#include "qcow2/io-aligned.h"
#include "qcow2/io-direct.h"
#include "qcow2/io-file.h"
#include "qemu-image.h"
#include "storage-place.h"
#include "strict-storage.h"
#include "tap.h"

static const struct io_alignment alignments[] = {
  { 512, 512 }, { 512, 4096 }, { 4096, 4096 }, { 4, 512 }, { 1, 1 },
  { 4096, 16384 },
};

#define NR_ALIGNMENTS (sizeof alignments / sizeof alignments[0])

static struct qcow2_storage *
over (struct strict_storage *how, size_t size_bytes)
{
  struct qcow2_storage *s = NULL;

  must (qcow2_io_aligned_new (strict_storage_new (how, size_bytes),
                              &how->alignment, &s) == 0, "new");
  return s;
}

static struct qcow2_storage *
direct (int fd)
{
  struct qcow2_storage *s = NULL;
  struct qcow2_error error;

  if (qcow2_io_direct_new (fd, "NAME", QCOW2_IO_FILE_WRITE, &s, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return s;
}

/*----- Over strict storage -----*/

static void
strict_neighbours (void)
{
  unsigned i;

  for (i = 0; i < NR_ALIGNMENTS; ++i) {
    struct strict_storage how = {
      .alignment = alignments[i], .max_bytes = 1 << 20, .max_usec = 60,
      .short_reads = true,
    };
    struct neighbours n = {
      .nr_threads = 8, .nr_requests = 400, .seed = i + 1,
    };

    /* The file ends within a block, and grows. */
    n.s = over (&how, 5001);
    ok (neighbours_run (&n), "blocks of %u bytes, buffers aligned to %u: "
        "neighbours lose nothing", (unsigned) how.alignment.block_bytes,
        (unsigned) how.alignment.memory_bytes);
    is_int (how.nr_refused, 0, "... and the storage gets what it wants");
    qcow2_storage_close (n.s);
  }
}

static void
straight (void)
{
  static char buf[16384] __attribute__ ((__aligned__ (4096)));
  struct strict_storage how = {
    .alignment = { 512, 4096 }, .max_bytes = 1 << 20,
  };
  struct qcow2_storage *s = over (&how, 65536);
  struct iovec iov[2] = { { buf, 4096 }, { buf + 8192, 8192 } };

  is_int (qcow2_storage_write (s, buf, 8192, 4096, true), 0,
          "what is aligned is written");
  ok (how.last_buf == buf, "... from where it is");
  ok (how.nr_writes == 1 && how.nr_reads == 0 && how.nr_durable == 1,
      "... durably, and nothing else is done");
  is_int (qcow2_storage_writev (s, iov, 2, 8192, false), 0,
          "so are several pieces");
  ok (how.last_buf == buf && how.nr_writes == 2 && how.nr_reads == 0,
      "... at once");
  is_int (qcow2_storage_write (s, buf + 8, 8192, 4096, true), 0,
          "a buffer that is not aligned");
  ok (how.nr_writes == 3 && how.nr_reads == 0 && how.nr_durable == 2,
      "... is copied, no more");
  is_int (qcow2_storage_write (s, buf, 10000, 3, true), 0,
          "parts of blocks");
  ok (how.nr_writes == 4 && how.nr_reads == 2 && how.nr_durable == 3,
      "... are read, and written durably");
  is_int (qcow2_storage_write (s, buf, 3, 4100, false), 0, "part of one");
  is_int (how.nr_reads, 3, "... needs one read");
  must (qcow2_storage_read_meta (s, buf, 10000, 4096) == 0, "read");
  ok (how.nr_reads == 5, "what is aligned is read at once, then the rest");
  qcow2_storage_close (s);
}

/* Much is written and read in pieces. */
static void
bounded (void)
{
  const size_t bytes = 5 << 20;
  struct strict_storage how = {
    .alignment = { 4096, 4096 }, .max_bytes = 8 << 20,
  };
  struct qcow2_storage *s = over (&how, 100);
  uint8_t *buf = malloc (bytes + 1), *got = malloc (bytes + 1);
  uint64_t seed = 1;
  size_t i;

  must (buf && got, "malloc");
  for (i = 0; i < bytes + 1; ++i)
    buf[i] = (uint8_t) random_next (&seed);
  is_int (qcow2_storage_write (s, buf + 1, bytes, 77777, false), 0,
          "5 MiB that are not aligned");
  is_int (qcow2_storage_read_meta (s, got + 1, bytes, 77777), 0,
          "... can be read again");
  ok (memcmp (buf + 1, got + 1, bytes) == 0, "... as they were");
  is_int ((int64_t) how.longest_bytes, 1 << 20,
          "... a MiB at a time");
  is_int (qcow2_storage_size (s), (int64_t) bytes + 77777,
          "the size is as it should be");
  free (buf);
  free (got);
  qcow2_storage_close (s);
}

static void
faults (void)
{
  struct strict_storage how = {
    .alignment = { 512, 4096 }, .max_bytes = 65536,
  };
  struct qcow2_storage *s = over (&how, 16384);
  char buf[20000] = "";

  how.read_errno = EIO;
  is_int (qcow2_storage_write (s, buf, 3, 100, false), -EIO,
          "a block that can't be read is not changed");
  is_int (how.nr_writes, 0, "... nor written");
  how.read_bytes = 512;
  is_int (qcow2_storage_write (s, "abc", 3, 8000, false), 0,
          "one that comes short is read again");
  must (qcow2_storage_read_meta (s, buf, 3, 8000) == 0, "read");
  ok (how.nr_reads == 4 && memcmp (buf, "abc", 3) == 0, "... and changed");
  how.read_bytes = 512;
  is_int (qcow2_storage_read_meta (s, buf, 3, 8000), 0,
          "so does one that is only read");
  is_int (qcow2_storage_write (s, buf, 20000, 60000, false), -ENOSPC,
          "there is an end of space");
  is_int (qcow2_storage_write (s, buf, 1, (uint64_t) INT64_MAX, false),
          -EFBIG, "nothing is written where there are no offsets");
  is_int (qcow2_storage_write (s, buf, 2, UINT64_MAX - 1, false), -EFBIG,
          "... nor behind");
  is_int (qcow2_storage_read_data (s, buf, 100, UINT64_MAX - 200), 0,
          "nothing is there to be read");
  qcow2_storage_close (s);

  how.alignment.block_bytes = 3000;
  is_int (qcow2_io_aligned_new (strict_storage_new (&how, 0), &how.alignment,
                                &s), -EINVAL, "blocks are powers of 2");
  how.alignment.block_bytes = 2 << 20;
  is_int (qcow2_io_aligned_new (strict_storage_new (&how, 0), &how.alignment,
                                &s), -EINVAL, "... that are not too long");
}

/*----- The size -----*/

static void
sizes (void)
{
  struct qcow2_storage *s = direct (make_file (0, O_RDWR));
  char path[300];
  int fd;
  char buf[9000];
  struct stat st;

  ok (qcow2_storage_can_grow (s), "%s: a file can grow", where);
  is_int (qcow2_storage_write (s, "abc", 3, 5000, false), 0,
          "a few bytes are written past the end");
  is_int (qcow2_storage_size (s), 5003, "... which is then behind them");
  is_int (qcow2_storage_read_data (s, buf, 3, 5002), 0, "... and reading");
  ok (memcmp (buf, "c\0\0", 3) == 0, "... gives zeros behind it");
  is_int (qcow2_storage_write (s, "defg", 4, 5003, true), 0, "some more");
  is_int (qcow2_storage_size (s), 5007, "... move it");
  is_int (qcow2_storage_write (s, "x", 1, 100, true), 0, "one before");
  is_int (qcow2_storage_size (s), 5007, "... does not");
  is_int (qcow2_storage_zero (s, 4999, 100000, true), 0, "zeros past the end");
  is_int (qcow2_storage_size (s), 5007, "... do not either");
  is_int (qcow2_storage_write (s, "abcdefg", 7, 5000, false), 0, "a write");
  is_int (qcow2_storage_truncate (s, 5002), 0, "the file is cut");
  is_int (qcow2_storage_size (s), 5002, "... to what was asked for");
  is_int (qcow2_storage_truncate (s, 9000), 0, "it grows");
  must (qcow2_storage_read_meta (s, buf, 9000, 0) == 0, "read");
  ok (memcmp (buf + 4999, "\0ab\0\0\0\0\0", 8) == 0, "... by zeros");
  is_int (qcow2_storage_size (s), 9000, "... to that size");
  for (size_t size = 12800; size <= 16384; size += 512)
    ok (qcow2_storage_write (s, "abc", 3, 12345, false) == 0 &&
        qcow2_storage_truncate (s, size) == 0 &&
        qcow2_storage_size (s) == (int64_t) size &&
        qcow2_storage_truncate (s, 9000) == 0,
        "... or to %zu, where a write had filled it up to", size);
  is_int (qcow2_storage_write (s, "abc", 3, 12345, false), 0, "a last write");
  qcow2_storage_close (s);
  snprintf (path, sizeof path, "%s/file", place_dir);
  fd = open (path, O_RDONLY | O_CLOEXEC);
  must (fd != -1 && fstat (fd, &st) == 0, "fstat");
  is_int (st.st_size, 12348, "... is the last of the file when it is closed");
  must (pread (fd, buf, 3, 12345) == 3, "pread");
  ok (memcmp (buf, "abc", 3) == 0, "... and is there");
  close (fd);
}

/*----- Files and devices -----*/

static void
neighbours_in (struct qcow2_storage *s, const char *what)
{
  struct neighbours n = {
    .s = s, .nr_threads = 8, .nr_requests = 300, .seed = 3,
  };

  ok (neighbours_run (&n), "%s: %s: neighbours lose nothing", where, what);
  qcow2_storage_close (s);
}

static void
on_a_device (unsigned sector_bytes)
{
  const int64_t size = 1 << 20;
  int file = make_file (size, O_RDWR);
  struct qcow2_storage *s =
    direct (make_loop_device (dup (file), sector_bytes));
  char buf[10000] = "";

  is_int (qcow2_storage_size (s), size, "a device with sectors of %u bytes",
          sector_bytes);
  ok (!qcow2_storage_can_grow (s), "... can't grow");
  is_int (qcow2_storage_write (s, "abcd", 4, (uint64_t) size - 2, false),
          -ENOSPC, "... has no space past its end");
  is_int (qcow2_storage_write (s, buf, 10000, (uint64_t) size - 9999, false),
          -ENOSPC, "... not for more either");
  is_int (qcow2_storage_write (s, "ab", 2, (uint64_t) size - 2, false), 0,
          "... but up to it");
  is_int (qcow2_storage_size (s), size, "... and is as large as it was");
  must (qcow2_storage_read_meta (s, buf, 4, (uint64_t) size - 4) == 0,
        "read");
  ok (memcmp (buf, "\0\0ab", 4) == 0, "... what was written is there");
  must (qcow2_storage_zero (s, 0, (uint64_t) size, false) == 0, "zero");
  close (file);
  neighbours_in (s, sector_bytes == 512 ? "a device with 512-byte sectors" :
                 "a device with 4096-byte sectors");
}

static void
on_a_filesystem (unsigned sector_bytes)
{
  int file = make_file (32 << 20, O_RDWR);
  int loop = make_loop_device (file, sector_bytes);
  char device[64] = "", path[300];

  snprintf (path, sizeof path, "/proc/self/fd/%d", loop);
  must (readlink (path, device, sizeof device - 1) > 0, "readlink");
  device[strcspn (device, " \n")] = '\0';
  run_command ("mke2fs -q -F -t ext4 -b 4096 %s", device);
  snprintf (path, sizeof path, "%s/mnt", place_dir);
  must (mkdir (path, 0700) == 0 &&
        mount (device, path, "ext4", 0, NULL) == 0, "mount");
  close (loop);
  snprintf (path, sizeof path, "%s/mnt/file", place_dir);
  neighbours_in (direct (open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)),
                 sector_bytes == 512 ?
                 "a filesystem on 512-byte sectors" :
                 "a filesystem on 4096-byte sectors");
  snprintf (path, sizeof path, "%s/mnt", place_dir);
  must (umount (path) == 0 && rmdir (path) == 0, "umount");
}

static void
refused (void)
{
  struct qcow2_storage *s;
  struct qcow2_error error;
  int fd = open ("/proc/version", O_RDONLY | O_CLOEXEC);

  must (fd != -1, "/proc/version");
  is_int (qcow2_io_direct_new (fd, "NAME", 0, &s, &error), -EINVAL,
          "a file that knows no O_DIRECT is refused");
  ok (strstr (error.message, "NAME: ") == error.message &&
      strstr (error.message, "file system may not support O_DIRECT"),
      "... so it says: %s", error.message);
  ok (fcntl (fd, F_GETFD) == -1, "... and closed");
}

static void
read_only (void)
{
  struct qcow2_storage *s;
  char buf[6000];

  must (qcow2_io_direct_new (make_file (5000, O_RDONLY), "NAME", 0, &s,
                             NULL) == 0, "new");
  is_int (qcow2_storage_write (s, "a", 1, 0, false), -EROFS,
          "what is open for reading is not written");
  is_int (qcow2_storage_truncate (s, 1), -EROFS, "... nor cut");
  is_int (qcow2_storage_read_meta (s, buf, 4999, 1), 0, "... but read");
  is_int (qcow2_storage_read_meta (s, buf, 5000, 1), -EIO,
          "... up to its end");
  qcow2_storage_prefetch (s, 0, 5000);
  qcow2_storage_close (s);
}

static void
tests (void)
{
  sizes ();
  read_only ();
  neighbours_in (direct (make_file (5001, O_RDWR)), "a file that grows");
  for (unsigned sector_bytes = 512; sector_bytes <= 4096; sector_bytes *= 8) {
    on_a_device (sector_bytes);
    on_a_filesystem (sector_bytes);
  }
}

int
main (void)
{
  const char *tmp = getenv ("TMPDIR");

  strict_neighbours ();
  straight ();
  bounded ();
  faults ();
  refused ();
  in_place (tmp ? tmp : "/var/tmp", "disk", tests);
  return tap_done ();
}
