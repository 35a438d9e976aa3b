/* SPDX-License-Identifier: BSD-3-Clause */

/* Writes through the storage vtable: all of them arrives however little
 * the kernel takes at a time, is durable where it is said to be, takes
 * the space that it should, and fails as it should.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2/io-file.h"
#include "qcow2/storage.h"
#include "storage-fault.h"
#include "storage-place.h"
#include "tap.h"

/*----- Writing -----*/

static void
long_vectors (void)
{
  enum { NR = 3000 };
  static struct iovec iov[NR];
  static char from[NR * 2], to[NR * 2];
  struct qcow2_storage *s = file_storage (0);
  unsigned i;

  for (i = 0; i < NR * 2; ++i)
    from[i] = (char) (i * 7 + i / 256);
  for (i = 0; i < NR; ++i)
    iov[i] = (struct iovec) { from + i * 2, 2 };
  no_faults ();
  is_int (qcow2_storage_writev (s, iov, NR, 100, false), 0,
          "%s: more pieces are written than the kernel takes", where);
  is_int (calls.writes, 3, "... in three writes");
  is_int (qcow2_storage_size (s), NR * 2 + 100, "... and the file grows");
  must (qcow2_storage_read_meta (s, to, sizeof to, 100) == 0, "read");
  ok (memcmp (from, to, sizeof to) == 0, "... and has them");
  is_int (qcow2_storage_writev (s, iov, 0, 100, false), 0,
          "no pieces are none");
  is_int (qcow2_storage_write (s, from, 0, 1 << 20, true), 0,
          "... and no bytes");
  is_int (qcow2_storage_size (s), NR * 2 + 100, "... the file stays");
  qcow2_storage_close (s);
}

static void
durable_writes (void)
{
  struct qcow2_storage *s = file_storage (0);
  struct iovec iov[2] = { { "abc", 3 }, { "defg", 4 } };

  no_faults ();
  is_int (qcow2_storage_writev (s, iov, 2, 0, true), 0,
          "%s: a durable write", where);
  ok (calls.dsyncs == 1 && calls.fdatasyncs == 0, "... is one write");
  is_int (qcow2_storage_writev (s, iov, 2, 0, false), 0, "a plain one");
  ok (calls.dsyncs == 1 && calls.fdatasyncs == 0, "... is not durable");
  is_int (qcow2_storage_flush (s), 0, "a flush");
  is_int (calls.fdatasyncs, 1, "... is one fdatasync");

  no_faults ();
  fault.most = 2;
  is_int (qcow2_storage_writev (s, iov, 2, 0, true), 0,
          "a durable write in parts");
  ok (calls.dsyncs == calls.writes && calls.writes >= 4 &&
      calls.fdatasyncs == 0, "... is durable in each");

  no_faults ();
  fault.dsync_errno = EIO;
  is_int (qcow2_storage_writev (s, iov, 2, 0, true), -EIO,
          "one that fails, fails");
  ok (calls.writes == 1 && calls.fdatasyncs == 0, "... and is not repeated");

  no_faults ();
  fault.dsync_errno = EOPNOTSUPP;
  is_int (qcow2_storage_writev (s, iov, 2, 0, true), 0,
          "where the kernel knows no durable writes");
  is_int (calls.fdatasyncs, 1, "... there is fdatasync");
  is_int (qcow2_storage_writev (s, iov, 2, 0, true), 0, "the next time");
  ok (calls.dsyncs == 1 && calls.fdatasyncs == 2, "... it is not asked");
  fault.fdatasync_errno = EIO;
  is_int (qcow2_storage_writev (s, iov, 2, 0, true), -EIO,
          "fdatasync may fail");
  is_int (qcow2_storage_flush (s), -EIO, "... for a flush, too");
  is_int (calls.fdatasyncs, 4, "... and is not repeated");
  qcow2_storage_close (s);

  s = file_storage (0);
  no_faults ();
  fault.dsync_errno = ENODEV;
  is_int (qcow2_storage_writev (s, iov, 2, 0, true), -ENODEV,
          "a device that is gone does not know less");
  is_int (calls.fdatasyncs, 0, "... and is asked for nothing else");
  qcow2_storage_close (s);
}

/* What the kernel tells of once, and perhaps somebody else. */
static void
lost_writes (void)
{
  struct qcow2_storage *s = file_storage (0);

  no_faults ();
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), 0, "%s: written", where);
  is_int (qcow2_storage_flush (s), 0, "... and flushed");
  ok (calls.dsyncs == 1 && calls.fdatasyncs == 1 && calls.witnesses == 2,
      "... and nothing was lost");
  fault.lost_errno = ENOSPC;
  is_int (qcow2_storage_flush (s), -EIO, "a flush, where something was");
  is_int (qcow2_storage_flush (s), -EIO, "... and another");
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), -EIO,
          "... and a durable write");
  is_int (qcow2_storage_write (s, "abc", 3, 0, false), 0,
          "... but not a plain one");
  qcow2_storage_close (s);

  s = file_storage (0);
  fault.lost_errno = EIO;
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), -EIO,
          "a durable write, where something was lost");
  qcow2_storage_close (s);
}

static void
no_room (void)
{
  struct qcow2_storage *s = file_storage (0);

  no_faults ();
  fault.dsync_errno = ENOSPC;
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), -ENOSPC,
          "%s: no room for a durable write", where);
  is_int (calls.writes, 1, "... which is not repeated");
  fault.lost_errno = ENOSPC;
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), -EIO,
          "or for what was written before");
  fault.write_errno = ENOSPC;
  is_int (qcow2_storage_write (s, "abc", 3, 0, false), -EIO,
          "of which a plain write may be told, too");
  qcow2_storage_close (s);

  s = file_storage (0);
  no_faults ();
  fault.no_witness = true;
  fault.dsync_errno = ENOSPC;
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), -EIO,
          "room for a plain write is room");
  fault.write_errno = ENOSPC;
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), -ENOSPC,
          "no room for one is none");
  is_int (calls.witnesses, 1, "the kernel was asked whether it knows once");
  no_faults ();
  fault.dsync_errno = EOPNOTSUPP;
  fault.fdatasync_errno = ENOSPC;
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), -EIO,
          "bytes that were written had room");
  qcow2_storage_close (s);
}

static void
never_flushed (void)
{
  struct qcow2_storage *s;

  must (qcow2_io_file_new (make_file (0, O_RDWR), "NAME", QCOW2_IO_FILE_WRITE |
                           QCOW2_IO_FILE_NO_FLUSH, &s, NULL) == 0, "new");
  no_faults ();
  is_int (qcow2_storage_write (s, "abc", 3, 0, true), 0, "%s: written, but "
          "not durably", where);
  is_int (qcow2_storage_flush (s), 0, "... nor flushed");
  ok (calls.dsyncs + calls.fdatasyncs + calls.witnesses == 0,
      "... nothing is asked for");
  qcow2_storage_close (s);
}

/* A device whose host has no room for all that was written to it. */
static void
told_to_another (void)
{
  char dir[sizeof place_dir + 10], path[sizeof dir + 10];
  struct qcow2_storage *s;
  int fd;

  snprintf (dir, sizeof dir, "%s/small", place_dir);
  snprintf (path, sizeof path, "%s/file", dir);
  must (mkdir (dir, 0700) == 0 &&
        mount ("none", dir, "tmpfs", 0, "size=256k") == 0, "mount");
  fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  must (fd != -1 && ftruncate (fd, 8 << 20) == 0, path);
  fd = make_loop_device (fd, 512);
  s = storage_of (fd);
  no_faults ();
  must (qcow2_storage_write (s, "first", 5, 0, true) == 0, "write");
  fill (s, 1 << 20);
  ok (fdatasync (fd) == -1, "one thread is told that data was lost");
  is_int (qcow2_storage_write (s, "again", 5, 0, true), -EIO,
          "so is another one");
  is_int (qcow2_storage_flush (s), -EIO, "and a third one");
  qcow2_storage_close (s);
  must (umount2 (dir, MNT_DETACH) == 0, "umount");
}

static void
failing_writes (void)
{
  struct qcow2_storage *s = file_storage (0);

  no_faults ();
  fault.write_errno = ENOSPC;
  is_int (qcow2_storage_write (s, "abc", 3, 0, false), -ENOSPC,
          "an error of a write is passed on");
  no_faults ();
  fault.write_nothing = true;
  is_int (qcow2_storage_write (s, "abc", 3, 0, false), -ENOSPC,
          "a write that takes nothing has no space");
  no_faults ();
  fault.fallocate_errno = EIO;
  must (qcow2_storage_truncate (s, 8192) == 0, "truncate");
  is_int (qcow2_storage_zero (s, 0, 100, true), -EIO,
          "an error of fallocate is passed on");
  no_faults ();
  is_int (qcow2_storage_write (s, "abc", 3, UINT64_MAX - 1, false), -EFBIG,
          "nothing is written where there are no offsets");
  is_int (qcow2_storage_truncate (s, UINT64_MAX), -EFBIG,
          "... nor does a file grow so far");
  qcow2_storage_close (s);
}

/*----- Zeros, holes and the size -----*/

static void
space (void)
{
  const size_t size = 1 << 20, half = size / 2;
  static uint8_t buf[1 << 20];
  int fd = make_file (0, O_RDWR);
  struct qcow2_storage *s = storage_of (fd);
  int64_t full;

  no_faults ();
  fill (s, size);
  full = blocks_of (fd);
  is_int (qcow2_storage_zero (s, 0, half, false), 0,
          "%s: zeros that take space", where);
  ok (blocks_of (fd) >= full, "... take it");
  must (qcow2_storage_read_meta (s, buf, size, 0) == 0, "read");
  ok (buf[0] == 0 && !memcmp (buf, buf + 1, half - 1) && buf[half] == 'x',
      "... and are zeros, no more of them");
  is_int (qcow2_storage_zero (s, 0, half, true), 0, "a hole");
  ok (blocks_of (fd) < full, "... takes none");
  is_int (qcow2_storage_zero (s, 0, half, false), 0, "zeros in a hole");
  ok (blocks_of (fd) >= full, "... take space again");
  qcow2_storage_discard (s, half, half);
  ok (blocks_of (fd) < full, "so does what is discarded not");
  is_int (qcow2_storage_zero (s, half, UINT64_MAX - half, true), 0,
          "zeros past the end");
  is_int (qcow2_storage_zero (s, size, 4096, false), 0, "... and at the end");
  qcow2_storage_discard (s, size - 4096, UINT64_MAX - size);
  is_int (qcow2_storage_size (s), size, "... don't make the file longer");
  qcow2_storage_close (s);
}

static void
without_fallocate (void)
{
  struct qcow2_storage *s = file_storage (0);
  uint8_t byte;

  no_faults ();
  fill (s, 1 << 20);
  no_faults ();
  fault.fallocate_errno = EOPNOTSUPP;
  is_int (qcow2_storage_zero (s, 0, (1 << 20) - 1, true), 0,
          "zeros are written where the kernel makes none");
  ok (calls.fallocates == 2 && calls.writes == 1, "... having been asked");
  must (qcow2_storage_read_meta (s, &byte, 1, (1 << 20) - 1) == 0, "read");
  ok (byte == 'x', "... and no more than that");
  is_int (qcow2_storage_zero (s, 0, 3 << 20, false), 0, "... up to the end");
  ok (calls.fallocates == 2, "... and it is asked once");
  is_int (qcow2_storage_size (s), 1 << 20, "... the file stays");
  qcow2_storage_discard (s, 0, 1 << 20);
  ok (calls.fallocates == 2, "... so with discards");
  qcow2_storage_close (s);
}

static void
sizes (void)
{
  struct qcow2_storage *s = file_storage (0);
  char buf[8];

  no_faults ();
  ok (qcow2_storage_can_grow (s), "a file can grow");
  must (qcow2_storage_write (s, "abcdefgh", 8, 0, false) == 0, "write");
  is_int (qcow2_storage_truncate (s, 4), 0, "it is cut");
  is_int (qcow2_storage_size (s), 4, "... and is shorter");
  is_int (qcow2_storage_truncate (s, 8), 0, "it grows");
  must (qcow2_storage_read_meta (s, buf, 8, 0) == 0, "read");
  ok (memcmp (buf, "abcd\0\0\0\0", 8) == 0, "... by zeros");
  qcow2_storage_close (s);
}

static void
read_only (void)
{
  struct qcow2_storage *s;
  struct qcow2_error error;
  int fd = make_file (4096, O_RDONLY);

  must (qcow2_io_file_new (fd, "NAME", 0, &s, NULL) == 0, "new");
  is_int (qcow2_storage_write (s, "a", 1, 0, false), -EROFS,
          "what is open for reading is not written");
  is_int (qcow2_storage_zero (s, 0, 1, true), -EROFS, "... nor zeroed");
  is_int (qcow2_storage_truncate (s, 1), -EROFS, "... nor cut");
  is_int (qcow2_storage_flush (s), 0, "... and has nothing to flush");
  ok (!qcow2_storage_can_grow (s), "... nor can it grow");
  qcow2_storage_discard (s, 0, 4096);
  is_int (qcow2_storage_size (s), 4096, "... it is as before");
  qcow2_storage_close (s);

  for (int i = 0; i < 2; ++i) {
    fd = make_file (0, i == 0 ? O_RDONLY : O_RDWR | O_APPEND);
    is_int (qcow2_io_file_new (fd, "NAME", QCOW2_IO_FILE_WRITE, &s, &error),
            -EINVAL, "a descriptor that can't write anywhere is refused");
    is_str (error.message, "NAME: not open for writing", "... so it says");
    ok (fcntl (fd, F_GETFD) == -1, "... and closed");
  }
}

/*----- A storage that can only write -----*/

struct writes_only {
  struct qcow2_storage storage;
  uint64_t next, most;
  unsigned nr_writes;
};

static int64_t
only_size (struct qcow2_storage *s)
{
  (void) s;
  return INT64_C (10000000);
}

static int
only_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
              uint64_t offset, bool durable)
{
  struct writes_only *w = (struct writes_only *) s;
  uint64_t sum = 0;

  for (; iovcnt > 0; --iovcnt, ++iov) {
    const char *p = iov->iov_base;

    if (p[0] != 0 || memcmp (p, p + 1, iov->iov_len - 1) != 0)
      return -EILSEQ;
    sum += iov->iov_len;
  }
  if (offset != w->next || durable)
    return -EILSEQ;
  w->next += sum;
  if (sum > w->most)
    w->most = sum;
  w->nr_writes++;
  return 0;
}

static void
optional_members (void)
{
  static const struct qcow2_storage_ops ops = {
    .size = only_size, .pwritev = only_pwritev,
  };
  struct writes_only w = { .storage.ops = &ops, .next = 12345 };

  is_int (qcow2_storage_zero (&w.storage, 12345, UINT64_MAX - 12345, true),
          0, "zeros are written where there is nothing else");
  is_int ((int64_t) w.next, 10000000, "... up to the end");
  ok (w.most <= 1 << 20 && w.nr_writes == 10, "... in bounded pieces");
  is_int (qcow2_storage_flush (&w.storage), 0, "flush may be missing");
  is_int (qcow2_storage_truncate (&w.storage, 1), -EOPNOTSUPP,
          "... and truncate");
  qcow2_storage_discard (&w.storage, 0, 1);
  ok (!qcow2_storage_can_grow (&w.storage), "... and all others");
}

static void
tests (void)
{
  long_vectors ();
  durable_writes ();
  lost_writes ();
  no_room ();
  never_flushed ();
  failing_writes ();
  space ();
  without_fallocate ();
  sizes ();
  read_only ();
}

int
main (void)
{
  in_each_place (tests);
  in_place ("/dev/shm", "full device", told_to_another);
  optional_members ();
  return tap_done ();
}
