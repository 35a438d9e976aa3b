/* SPDX-License-Identifier: BSD-3-Clause */

/* System calls that write, made to fail and counted. */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "storage-fault.h"

struct storage_fault fault;
struct storage_calls calls;

void
no_faults (void)
{
  memset (&fault, 0, sizeof fault);
  calls.writes = calls.dsyncs = calls.fdatasyncs = calls.witnesses = 0;
  calls.in_progress = calls.most_at_once = 0;
  calls.fallocates = calls.discards = calls.parts_of_pages = 0;
}

static bool
fails (int err)
{
  if (fault.interrupts > 0) {
    fault.interrupts--;
    err = EINTR;
  }
  if (err)
    errno = err;
  return err != 0;
}

static void
note_begin (void)
{
  unsigned now = atomic_fetch_add (&calls.in_progress, 1) + 1;
  unsigned most = atomic_load (&calls.most_at_once);

  while (most < now &&
         !atomic_compare_exchange_weak (&calls.most_at_once, &most, now))
    ;
}

static ssize_t
write_a_part (int fd, const struct iovec *iov, int iovcnt, off_t offset,
              int flags)
{
  struct iovec part[1024];
  size_t left = fault.most;
  ssize_t r;
  int n = 0;

  if (iovcnt > 1024) {
    errno = EINVAL;
    return -1;
  }
  for (; n < iovcnt && (fault.most == 0 || left > 0); ++n) {
    part[n] = iov[n];
    if (fault.most > 0 && part[n].iov_len > left)
      part[n].iov_len = left;
    left -= fault.most > 0 ? part[n].iov_len : 0;
  }
  note_begin ();
  if (fault.delay_us > 0)
    usleep (fault.delay_us);
  r = syscall (SYS_pwritev2, fd, part, (long) n, (long) offset, 0L,
               (long) flags);
  atomic_fetch_sub (&calls.in_progress, 1);
  return r;
}

ssize_t
pwritev2 (int fd, const struct iovec *iov, int iovcnt, off_t offset,
          int flags)
{
  calls.writes++;
  if (fails (fault.write_errno))
    return -1;
  if (fault.write_nothing)
    return 0;
  if (flags & RWF_DSYNC) {
    calls.dsyncs++;
    if (fails (fault.dsync_errno))
      return -1;
  }
  return write_a_part (fd, iov, iovcnt, offset, flags);
}

ssize_t
pwritev (int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
  return pwritev2 (fd, iov, iovcnt, offset, 0);
}

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  struct iovec iov = { (void *) buf, count };

  return pwritev2 (fd, &iov, 1, offset, 0);
}

int
fdatasync (int fd)
{
  calls.fdatasyncs++;
  if (fails (fault.fdatasync_errno))
    return -1;
  return (int) syscall (SYS_fdatasync, fd);
}

int
sync_file_range (int fd, off_t offset, off_t nbytes, unsigned flags)
{
  int err = fault.no_witness ? ENOSYS : fault.lost_errno;

  calls.witnesses++;
  fault.lost_errno = 0;
  if (fails (err))
    return -1;
  return (int) syscall (SYS_sync_file_range, fd, (long) offset, (long) nbytes,
                        (long) flags);
}

int
fallocate (int fd, int mode, off_t offset, off_t len)
{
  calls.fallocates++;
  calls.parts_of_pages += (offset | len) % sysconf (_SC_PAGESIZE) != 0;
  if (fails (fault.fallocate_errno))
    return -1;
  return (int) syscall (SYS_fallocate, fd, (long) mode, (long) offset,
                        (long) len);
}

int
ioctl (int fd, unsigned long request, ...)
{
  va_list args;
  void *arg;

  va_start (args, request);
  arg = va_arg (args, void *);
  va_end (args);
  if (request == BLKDISCARD) {
    const uint64_t *range = arg;

    calls.discards++;
    calls.parts_of_pages += (range[0] | range[1]) %
      (uint64_t) sysconf (_SC_PAGESIZE) != 0;
  }
  return (int) syscall (SYS_ioctl, fd, request, arg);
}
