/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device.
 *
 * A read is one pread, a write one pwrite or pwritev, nothing else; where
 * many write to a file at once, one thread does it for them (write-queue.h).
 * Whatever is made durable is so only if the witness has nothing to tell.
 * The size is asked of the kernel each time, since devices and files grow
 * while they are open.  lseek is used for SEEK_DATA and SEEK_HOLE alone:
 * it moves the file position, which nothing here reads.
 *
 * Zeros.  fallocate is trusted on both kinds of file: PUNCH_HOLE and
 * ZERO_RANGE give zeros or an error.  BLKDISCARD, which devices may take
 * for a hint, serves for discarding alone.  On a device these calls go
 * past the page cache: someone who writes to another part of the same
 * page at that moment may have read the old bytes with it, and would put
 * them back.  So they are made for whole pages (or sectors, where these
 * are larger), and the edges are written through the page cache, like
 * everything else.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "file-lock.h"
#include "io-file.h"
#include "io-witness.h"
#include "write-queue.h"

struct io_file {
  struct qcow2_storage storage;
  int fd;
  bool is_block_device;
  bool no_flush;
  struct write_queue queue;     /* for what need not be durable at once */
  struct io_witness witness;    /* none where nothing is made durable */
  /* What zeroing and discarding on a device must be aligned to. */
  uint64_t block_bytes;
  /* What the kernel has refused once is not tried again. */
  _Atomic bool no_dsync;
  _Atomic bool no_punch;
  _Atomic bool no_zero_range;

  /* The last range of data that SEEK_HOLE told of.  To find where data
   * ends, the kernel may walk through every page up to there, so it is
   * not asked again within the range.  Should there be a hole in it by
   * now, to call that data is no lie.
   */
  pthread_mutex_t data_lock;
  uint64_t data_start, data_end;
};

static struct io_file *
io_file_of (struct qcow2_storage *s)
{
  return (struct io_file *) s;
}

static ssize_t
io_file_pread (struct qcow2_storage *s, void *buf, size_t count,
               uint64_t offset)
{
  ssize_t r;

  /* The kernel knows offsets up to INT64_MAX, and fails a read that
   * would go beyond, instead of making it shorter.
   */
  if (offset >= INT64_MAX)
    return 0;
  if (count > INT64_MAX - offset)
    count = INT64_MAX - offset;

  do
    r = pread (io_file_of (s)->fd, buf, count, offset);
  while (r == -1 && errno == EINTR);

  return r == -1 ? -errno : r;
}

static int64_t
io_file_size (struct qcow2_storage *s)
{
  struct io_file *file = io_file_of (s);
  struct stat st;
  uint64_t size_bytes;

  if (file->is_block_device) {
    if (ioctl (file->fd, BLKGETSIZE64, &size_bytes) == -1)
      return -errno;
    return size_bytes;
  }

  if (fstat (file->fd, &st) == -1)
    return -errno;
  return st.st_size;
}

static int64_t
io_file_disk_bytes (struct qcow2_storage *s)
{
  struct stat st;

  if (fstat (io_file_of (s)->fd, &st) == -1)
    return -errno;
  return (int64_t) st.st_blocks * 512;
}

/* How much known data there is from OFFSET on. */
static uint64_t
known_data_bytes (struct io_file *file, uint64_t offset)
{
  uint64_t bytes = 0;

  pthread_mutex_lock (&file->data_lock);
  if (offset >= file->data_start && offset < file->data_end)
    bytes = file->data_end - offset;
  pthread_mutex_unlock (&file->data_lock);
  return bytes;
}

static void
remember_data (struct io_file *file, uint64_t offset, uint64_t bytes)
{
  pthread_mutex_lock (&file->data_lock);
  file->data_start = offset;
  file->data_end = offset + bytes;
  pthread_mutex_unlock (&file->data_lock);
}

/* Where a filesystem knows no holes, or gives an answer that makes no
 * sense, all is data: a hole is claimed only up to where the filesystem
 * says that data begins, or that there is none up to the end.
 */
static int
io_file_hole (struct qcow2_storage *s, uint64_t offset,
              bool *hole, uint64_t *length_bytes)
{
  struct io_file *file = io_file_of (s);
  /* Asked first: what is appended meanwhile is not part of the answer. */
  int64_t size_bytes = io_file_size (s);
  uint64_t known_bytes;
  off_t pos;

  if (size_bytes < 0)
    return size_bytes;

  *hole = false;
  *length_bytes = offset < (uint64_t) size_bytes ? size_bytes - offset : 1;
  if (file->is_block_device || offset >= (uint64_t) size_bytes)
    return 0;
  known_bytes = known_data_bytes (file, offset);
  if (known_bytes > 0) {
    *length_bytes = known_bytes;
    return 0;
  }

  pos = lseek (file->fd, offset, SEEK_DATA);
  if (pos == -1) {
    *hole = errno == ENXIO;     /* nothing but a hole up to the end */
    return 0;
  }
  if ((uint64_t) pos > offset) {
    *hole = true;
    if (pos < size_bytes)
      *length_bytes = pos - offset;
    return 0;
  }

  pos = lseek (file->fd, offset, SEEK_HOLE);
  if (pos != -1 && (uint64_t) pos > offset && pos < size_bytes)
    *length_bytes = pos - offset;
  remember_data (file, offset, *length_bytes);
  return 0;
}

static void
io_file_prefetch (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  if (offset >= INT64_MAX)
    return;
  if (count > INT64_MAX - offset)
    count = INT64_MAX - offset;
  if (count > 0)                /* posix_fadvise takes 0 for "to the end" */
    posix_fadvise (io_file_of (s)->fd, offset, count, POSIX_FADV_WILLNEED);
}

/*----- Writing -----*/

/* One write, durable if the kernel knows how; else *DURABLE is cleared. */
static ssize_t
write_some (struct io_file *file, const struct iovec *iov, int iovcnt,
            uint64_t offset, bool *durable)
{
  ssize_t r;

  for (;;) {
    if (*durable && atomic_load_explicit (&file->no_dsync,
                                          memory_order_relaxed))
      *durable = false;
    if (*durable)
      r = pwritev2 (file->fd, iov, iovcnt, (off_t) offset, RWF_DSYNC);
    else if (iovcnt == 1)       /* less to do for the kernel */
      r = pwrite (file->fd, iov->iov_base, iov->iov_len, (off_t) offset);
    else
      r = pwritev (file->fd, iov, iovcnt, (off_t) offset);
    if (r != -1)
      return r;
    /* Not ENODEV, which a device gives that is gone. */
    if (*durable && (errno == EOPNOTSUPP || errno == ENOSYS))
      atomic_store (&file->no_dsync, true);
    else if (errno != EINTR)
      return -errno;
  }
}

static int
io_file_flush (struct qcow2_storage *s)
{
  struct io_file *file = io_file_of (s);

  return file->no_flush ? 0 : io_witness_sync (&file->witness, file->fd);
}

/* The kernel has no room, for these bytes or for what was written before,
 * by others too: a durable write, and on network filesystems any, may be told
 * of that, and nobody else is.  -ENOSPC if it can only be the former.
 */
static int
judge_no_room (struct io_file *file, const struct iovec *iov, int iovcnt,
               uint64_t offset, bool durable)
{
  bool plain = false;

  if (io_witness_ask (&file->witness) < 0)
    return -EIO;
  if (!durable || io_witness_is_there (&file->witness))
    return -ENOSPC;
  return write_some (file, iov, iovcnt, offset, &plain) > 0 ? -EIO : -ENOSPC;
}

/* How much of IOV, whose first SKIP bytes are done, makes one write: a
 * piece of an element that was begun goes alone, so that IOV needs
 * neither be changed nor copied.
 */
static int
next_iov (const struct iovec *iov, int iovcnt, size_t skip,
          struct iovec *rest, const struct iovec **out)
{
  if (skip == 0) {
    *out = iov;
    return iovcnt < IOV_MAX ? iovcnt : IOV_MAX;
  }
  rest->iov_base = (char *) iov->iov_base + skip;
  rest->iov_len = iov->iov_len - skip;
  *out = rest;
  return 1;
}

static int
write_all (struct io_file *file, const struct iovec *iov, int iovcnt,
           uint64_t offset, bool durable)
{
  bool synced = durable && !file->no_flush; /* all of it, by RWF_DSYNC */
  size_t skip = 0;
  int err;

  for (;;) {
    const struct iovec *out;
    struct iovec rest;
    ssize_t r;
    int n;

    while (iovcnt > 0 && skip >= iov->iov_len) {
      skip -= iov->iov_len;
      iov++;
      iovcnt--;
    }
    if (iovcnt == 0)
      break;

    if (offset > INT64_MAX)
      return -EFBIG;
    n = next_iov (iov, iovcnt, skip, &rest, &out);
    r = write_some (file, out, n, offset, &synced);
    if (r == -ENOSPC)
      return judge_no_room (file, out, n, offset, synced);
    if (r < 0)
      return (int) r;
    if (r == 0)
      return -ENOSPC;
    offset += (uint64_t) r;
    skip += (size_t) r;
  }
  if (!durable)
    return 0;
  err = synced ? io_witness_ask (&file->witness)
    : io_file_flush (&file->storage);
  return err == -ENOSPC ? -EIO : err; /* there was room for these bytes */
}

struct queued_write {
  struct write_job job;
  struct io_file *file;
  const struct iovec *iov;
  int iovcnt;
  uint64_t offset;
};

static int
run_queued (struct write_job *job)
{
  const struct queued_write *w = (const struct queued_write *) job;

  return write_all (w->file, w->iov, w->iovcnt, w->offset, false);
}

/* A durable write spends its time waiting for the disk, which many can do at
 * once.
 */
static int
io_file_pwritev (struct qcow2_storage *s, const struct iovec *iov,
                 int iovcnt, uint64_t offset, bool durable)
{
  struct io_file *file = io_file_of (s);
  struct queued_write w = {
    .job.run = run_queued,
    .file = file,
    .iov = iov,
    .iovcnt = iovcnt,
    .offset = offset,
  };
  int i;

  if (durable)
    return write_all (file, iov, iovcnt, offset, true);
  for (i = 0; i < iovcnt; ++i)
    w.job.bytes += iov[i].iov_len;
  return write_queue_run (&file->queue, &w.job);
}

/* Does the filesystem let in one writer at a time, whose write ends in the page
 * cache?  Devices have many at a time, others (ZFS, FUSE) may.  And who waits
 * for the disk with each write had better not wait alone.
 */
static bool
has_one_writer (const struct io_file *file)
{
  struct statfs fs;
  int flags = 0;

  if (file->is_block_device || fstatfs (file->fd, &fs) == -1 ||
      fs.f_flags & ST_SYNCHRONOUS)
    return false;
  if (ioctl (file->fd, FS_IOC_GETFLAGS, &flags) == 0 && flags & FS_SYNC_FL)
    return false;
  switch ((unsigned long) fs.f_type) {
  case BTRFS_SUPER_MAGIC:
  case EXT4_SUPER_MAGIC:
  case TMPFS_MAGIC:
  case XFS_SUPER_MAGIC:
    return true;
  }
  return false;
}

static void
io_file_threads (struct qcow2_storage *s, bool on)
{
  struct io_file *file = io_file_of (s);

  write_queue_switch (&file->queue, on && has_one_writer (file));
}

/*----- Zeros -----*/

/* Is ERR the kernel's word for "this can't be done here at all"? */
static bool
means_unsupported (int err)
{
  return err == EOPNOTSUPP || err == ENOSYS || err == ENODEV;
}

static int
try_fallocate (struct io_file *file, int mode, uint64_t offset,
               uint64_t count, _Atomic bool *refused)
{
  int r;

  if (atomic_load_explicit (refused, memory_order_relaxed))
    return -EOPNOTSUPP;
  do
    r = fallocate (file->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t) offset,
                   (off_t) count);
  while (r == -1 && errno == EINTR);
  if (r == 0)
    return 0;
  /* Pages of a device that cannot be dropped from the page cache now. */
  if (errno == EBUSY)
    return -EOPNOTSUPP;
  if (!means_unsupported (errno))
    return -errno;
  atomic_store (refused, true);
  return -EOPNOTSUPP;
}

/* Where no hole can be made, zeros that take space are as good. */
static int
zero_blocks (struct io_file *file, uint64_t offset, uint64_t count,
             bool may_punch)
{
  int r = -EOPNOTSUPP;

  if (count == 0)
    return 0;
  if (may_punch)
    r = try_fallocate (file, FALLOC_FL_PUNCH_HOLE, offset, count,
                       &file->no_punch);
  if (r == -EOPNOTSUPP)
    r = try_fallocate (file, FALLOC_FL_ZERO_RANGE, offset, count,
                       &file->no_zero_range);
  return r;
}

/* The blocks that lie wholly in the range; none: *COUNT is 0. */
static void
align_inwards (const struct io_file *file, uint64_t *offset, uint64_t *count)
{
  uint64_t block = file->block_bytes;
  uint64_t begin = (*offset + block - 1) / block * block;
  uint64_t end = (*offset + *count) / block * block;

  *offset = begin;
  *count = end > begin ? end - begin : 0;
}

static int
write_edge (struct io_file *file, uint64_t offset, uint64_t count)
{
  static uint8_t zeros[4096];

  while (count > 0) {
    size_t len = count < sizeof zeros ? (size_t) count : sizeof zeros;
    struct iovec iov = { .iov_base = zeros, .iov_len = len };
    int r = io_file_pwritev (&file->storage, &iov, 1, offset, false);

    if (r < 0)
      return r;
    offset += len;
    count -= len;
  }
  return 0;
}

/* The blocks first: only they can turn out to be impossible. */
static int
zero_on_device (struct io_file *file, uint64_t offset, uint64_t count,
                bool may_punch)
{
  uint64_t first = offset, blocks = count, end = offset + count;
  int r;

  align_inwards (file, &first, &blocks);
  if (blocks == 0)
    return write_edge (file, offset, count);
  r = zero_blocks (file, first, blocks, may_punch);
  if (r == 0)
    r = write_edge (file, offset, first - offset);
  if (r == 0)
    r = write_edge (file, first + blocks, end - (first + blocks));
  return r;
}

static int
io_file_zero (struct qcow2_storage *s, uint64_t offset, uint64_t count,
              bool may_punch)
{
  struct io_file *file = io_file_of (s);

  if (offset > INT64_MAX || count > INT64_MAX - offset)
    return -EFBIG;
  if (file->is_block_device)
    return zero_on_device (file, offset, count, may_punch);
  return zero_blocks (file, offset, count, may_punch);
}

static void
io_file_discard (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  struct io_file *file = io_file_of (s);

  if (offset > INT64_MAX || count > INT64_MAX - offset)
    return;
  if (file->is_block_device) {
    uint64_t range[2] = { offset, count };

    align_inwards (file, &range[0], &range[1]);
    if (range[1] > 0)
      ioctl (file->fd, BLKDISCARD, range);
  }
  else if (count > 0)
    try_fallocate (file, FALLOC_FL_PUNCH_HOLE, offset, count,
                   &file->no_punch);
}

/*----- The size -----*/

static int
io_file_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  struct io_file *file = io_file_of (s);
  int r;

  if (file->is_block_device)
    return -EOPNOTSUPP;
  if (size_bytes > INT64_MAX)
    return -EFBIG;
  do
    r = ftruncate (file->fd, (off_t) size_bytes);
  while (r == -1 && errno == EINTR);

  return r == -1 ? -errno : 0;
}

/* Asked for rarely, so what was refused before is not remembered. */
static int
io_file_allocate (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  struct io_file *file = io_file_of (s);
  _Atomic bool refused = false;

  if (file->is_block_device)
    return -EOPNOTSUPP;
  if (offset > INT64_MAX || count > INT64_MAX - offset)
    return -EFBIG;
  return count > 0 ? try_fallocate (file, 0, offset, count, &refused) : 0;
}

static bool
io_file_can_grow (struct qcow2_storage *s)
{
  return !io_file_of (s)->is_block_device;
}

static void
io_file_close (struct qcow2_storage *s)
{
  struct io_file *file = io_file_of (s);

  write_queue_destroy (&file->queue);
  pthread_mutex_destroy (&file->data_lock);
  io_witness_destroy (&file->witness);
  close (file->fd);
  free (file);
}

static const struct qcow2_storage_ops read_only_ops = {
  .pread = io_file_pread,
  .size = io_file_size,
  .hole = io_file_hole,
  .disk_bytes = io_file_disk_bytes,
  .prefetch = io_file_prefetch,
  .close = io_file_close,
};

static const struct qcow2_storage_ops writable_ops = {
  .pread = io_file_pread,
  .size = io_file_size,
  .hole = io_file_hole,
  .disk_bytes = io_file_disk_bytes,
  .prefetch = io_file_prefetch,
  .pwritev = io_file_pwritev,
  .flush = io_file_flush,
  .zero = io_file_zero,
  .discard = io_file_discard,
  .truncate = io_file_truncate,
  .allocate = io_file_allocate,
  .threads = io_file_threads,
  .can_grow = io_file_can_grow,
  .close = io_file_close,
};

/*----- Opening -----*/

/* What the file is made for, as opposed to what it is named. */
static int
check_descriptor (int fd, const char *filename, bool writable,
                  bool *is_block_device, struct qcow2_error *error)
{
  struct stat st;
  int flags;

  if (fstat (fd, &st) == -1 || (flags = fcntl (fd, F_GETFL)) == -1)
    return qcow2_error_set (error, errno, "%s: %s", filename,
                            strerror (errno));
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode))
    return qcow2_error_set (error, EINVAL,
                            "%s: not a regular file or a block device",
                            filename);
  if ((flags & O_PATH) || (flags & O_ACCMODE) == O_WRONLY)
    return qcow2_error_set (error, EINVAL, "%s: not open for reading",
                            filename);
  /* With O_APPEND, pwrite does not heed the offset. */
  if (writable && ((flags & O_ACCMODE) != O_RDWR || flags & O_APPEND))
    return qcow2_error_set (error, EINVAL, "%s: not open for writing",
                            filename);
  *is_block_device = S_ISBLK (st.st_mode);
  return 0;
}

static int
take_locks (int fd, const char *filename, unsigned flags,
            struct qcow2_error *error)
{
  if (!(flags & QCOW2_IO_FILE_LOCK))
    return 0;
  if (flags & QCOW2_IO_FILE_WRITE)
    return qcow2_file_lock_write (fd, filename, error);
  return qcow2_file_lock_read (fd, filename, error);
}

static uint64_t
device_block_bytes (int fd)
{
  long page_bytes = sysconf (_SC_PAGESIZE);
  int sector_bytes;

  if (ioctl (fd, BLKSSZGET, &sector_bytes) == 0 && sector_bytes > page_bytes)
    return (uint64_t) sector_bytes;
  return (uint64_t) page_bytes;
}

int
qcow2_io_file_new (int fd, const char *filename, unsigned flags,
                   struct qcow2_storage **s, struct qcow2_error *error)
{
  bool writable = flags & QCOW2_IO_FILE_WRITE;
  struct io_file *file;
  bool is_block_device = false;
  int r;

  r = check_descriptor (fd, filename, writable, &is_block_device, error);
  if (r == 0)
    r = take_locks (fd, filename, flags, error);
  if (r < 0)
    goto err;

  file = calloc (1, sizeof *file);
  if (!file) {
    r = qcow2_error_set (error, ENOMEM, "%s: %s", filename,
                         strerror (ENOMEM));
    goto err;
  }
  file->storage.ops = writable ? &writable_ops : &read_only_ops;
  file->fd = fd;
  file->is_block_device = is_block_device;
  file->no_flush = flags & QCOW2_IO_FILE_NO_FLUSH;
  if (is_block_device)
    file->block_bytes = device_block_bytes (fd);
  pthread_mutex_init (&file->data_lock, NULL);
  write_queue_init (&file->queue);
  io_witness_init (&file->witness, fd, writable && !file->no_flush);
  *s = &file->storage;
  return 0;

 err:
  close (fd);
  return r;
}
