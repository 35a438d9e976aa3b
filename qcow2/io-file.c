/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device.
 *
 * A read is one pread, nothing else.  The size is asked of the kernel
 * each time, since devices and files grow while they are open.  lseek
 * is used for SEEK_DATA and SEEK_HOLE alone: it moves the file
 * position, which nothing here reads.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file-lock.h"
#include "io-file.h"

struct io_file {
  struct qcow2_storage storage;
  int fd;
  bool is_block_device;

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

static void
io_file_close (struct qcow2_storage *s)
{
  struct io_file *file = io_file_of (s);

  pthread_mutex_destroy (&file->data_lock);
  close (file->fd);
  free (file);
}

static const struct qcow2_storage_ops io_file_ops = {
  .pread = io_file_pread,
  .size = io_file_size,
  .hole = io_file_hole,
  .prefetch = io_file_prefetch,
  .close = io_file_close,
};

/* What the file is made for, as opposed to what it is named. */
static int
check_descriptor (int fd, const char *filename, bool *is_block_device,
                  struct qcow2_error *error)
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
  *is_block_device = S_ISBLK (st.st_mode);
  return 0;
}

int
qcow2_io_file_new (int fd, const char *filename, bool lock,
                   struct qcow2_storage **s, struct qcow2_error *error)
{
  struct io_file *file;
  bool is_block_device = false;
  int r;

  r = check_descriptor (fd, filename, &is_block_device, error);
  if (r == 0 && lock)
    r = qcow2_file_lock_read (fd, filename, error);
  if (r < 0)
    goto err;

  file = calloc (1, sizeof *file);
  if (!file) {
    r = qcow2_error_set (error, ENOMEM, "%s: %s", filename,
                         strerror (ENOMEM));
    goto err;
  }
  file->storage.ops = &io_file_ops;
  file->fd = fd;
  file->is_block_device = is_block_device;
  pthread_mutex_init (&file->data_lock, NULL);
  *s = &file->storage;
  return 0;

 err:
  close (fd);
  return r;
}
