/* SPDX-License-Identifier: BSD-3-Clause */

/* What every storage has in common: whole reads over a storage that may
 * give less than was asked for, and what takes the place of members that
 * a storage does without.
 *
 * The one rule: zeros are made up only for what lies past the end of
 * the storage, and where the end is, is asked of the storage, never
 * concluded from a short read.
 */

#include <errno.h>
#include <string.h>

#include "storage.h"

/* After a read at OFFSET gave nothing: does the storage end there?
 * 1 if so, 0 if not, or a negative errno.
 */
static int
ends_before (struct qcow2_storage *s, uint64_t offset)
{
  int64_t size_bytes = s->ops->size (s);

  if (size_bytes < 0)
    return size_bytes;
  return offset >= (uint64_t) size_bytes;
}

/* Returns the number of bytes read, less than COUNT only if the storage
 * ends there, or a negative errno.
 */
static ssize_t
read_to_end (struct qcow2_storage *s, void *buf, size_t count,
             uint64_t offset)
{
  size_t done = 0;
  bool retried = false;

  while (done < count) {
    ssize_t r = s->ops->pread (s, (char *) buf + done, count - done,
                               offset + done);

    if (r < 0)
      return r;
    if (r > 0) {
      done += r;
      retried = false;
      continue;
    }

    r = ends_before (s, offset + done);
    if (r < 0)
      return r;
    if (r > 0)
      break;
    if (retried)
      return -EIO;
    retried = true;
  }
  return done;
}

int
qcow2_storage_read_data (struct qcow2_storage *s, void *buf, size_t count,
                         uint64_t offset)
{
  ssize_t r = read_to_end (s, buf, count, offset);

  if (r < 0)
    return r;
  if ((size_t) r < count)
    memset ((char *) buf + r, 0, count - r);
  return 0;
}

int
qcow2_storage_read_meta (struct qcow2_storage *s, void *buf, size_t count,
                         uint64_t offset)
{
  ssize_t r = read_to_end (s, buf, count, offset);

  if (r < 0)
    return r;
  return (size_t) r < count ? -EIO : 0;
}

int64_t
qcow2_storage_size (struct qcow2_storage *s)
{
  return s->ops->size (s);
}

int
qcow2_storage_hole (struct qcow2_storage *s, uint64_t offset,
                    bool *hole, uint64_t *length_bytes)
{
  int64_t size_bytes = s->ops->size (s);

  if (size_bytes < 0)
    return size_bytes;

  if (offset >= (uint64_t) size_bytes) {
    *hole = true;
    *length_bytes = UINT64_MAX - offset;
    if (*length_bytes == 0)
      *length_bytes = 1;
    return 0;
  }

  if (!s->ops->hole) {
    *hole = false;
    *length_bytes = size_bytes - offset;
    return 0;
  }

  return s->ops->hole (s, offset, hole, length_bytes);
}

int64_t
qcow2_storage_disk_bytes (struct qcow2_storage *s)
{
  return s->ops->disk_bytes ? s->ops->disk_bytes (s) : -EOPNOTSUPP;
}

bool
qcow2_storage_is_hole (struct qcow2_storage *s, uint64_t offset,
                       uint64_t count)
{
  uint64_t length_bytes;
  bool hole;

  return qcow2_storage_hole (s, offset, &hole, &length_bytes) == 0 &&
    hole && length_bytes >= count;
}

void
qcow2_storage_prefetch (struct qcow2_storage *s, uint64_t offset,
                        uint64_t count)
{
  if (s->ops->prefetch)
    s->ops->prefetch (s, offset, count);
}

int
qcow2_storage_writev (struct qcow2_storage *s, const struct iovec *iov,
                      int iovcnt, uint64_t offset, bool durable)
{
  if (!s->ops->pwritev)
    return -EROFS;
  return s->ops->pwritev (s, iov, iovcnt, offset, durable);
}

int
qcow2_storage_write (struct qcow2_storage *s, const void *buf,
                     size_t count, uint64_t offset, bool durable)
{
  struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };

  return qcow2_storage_writev (s, &iov, 1, offset, durable);
}

int
qcow2_storage_flush (struct qcow2_storage *s)
{
  return s->ops->flush ? s->ops->flush (s) : 0;
}

/* How many of COUNT bytes from OFFSET on lie before the end of the
 * storage, or a negative errno.
 */
static int64_t
clip_to_end (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  int64_t size_bytes = s->ops->size (s);

  if (size_bytes < 0)
    return size_bytes;
  if (offset >= (uint64_t) size_bytes)
    return 0;
  if (count > (uint64_t) size_bytes - offset)
    count = (uint64_t) size_bytes - offset;
  return (int64_t) count;
}

/* Never written to.  It would take space in the program file if it were
 * const.
 */
static uint8_t zeros[64 * 1024] __attribute__ ((__aligned__ (4096)));

static int
write_zeros (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  while (count > 0) {
    struct iovec iov[16];
    uint64_t piece = 0;
    int n = 0, r;

    while (n < 16 && piece < count) {
      size_t len = sizeof zeros;

      if (len > count - piece)
        len = (size_t) (count - piece);
      iov[n].iov_base = zeros;
      iov[n++].iov_len = len;
      piece += len;
    }
    r = qcow2_storage_writev (s, iov, n, offset, false);
    if (r < 0)
      return r;
    offset += piece;
    count -= piece;
  }
  return 0;
}

int
qcow2_storage_zero (struct qcow2_storage *s, uint64_t offset,
                    uint64_t count, bool may_punch)
{
  int64_t clipped;
  int r;

  if (!s->ops->pwritev)
    return -EROFS;
  clipped = clip_to_end (s, offset, count);
  if (clipped <= 0)
    return (int) clipped;

  r = s->ops->zero ? s->ops->zero (s, offset, (uint64_t) clipped, may_punch) :
    -EOPNOTSUPP;
  if (r != -EOPNOTSUPP)
    return r;
  return write_zeros (s, offset, (uint64_t) clipped);
}

int
qcow2_storage_punch (struct qcow2_storage *s, uint64_t offset,
                     uint64_t count)
{
  int64_t clipped;

  if (!s->ops->zero)
    return -EOPNOTSUPP;
  clipped = clip_to_end (s, offset, count);
  if (clipped <= 0)
    return (int) clipped;
  return s->ops->zero (s, offset, (uint64_t) clipped, true);
}

void
qcow2_storage_discard (struct qcow2_storage *s, uint64_t offset,
                       uint64_t count)
{
  int64_t clipped;

  if (!s->ops->discard)
    return;
  clipped = clip_to_end (s, offset, count);
  if (clipped > 0)
    s->ops->discard (s, offset, (uint64_t) clipped);
}

int
qcow2_storage_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  if (!s->ops->pwritev)
    return -EROFS;
  return s->ops->truncate ? s->ops->truncate (s, size_bytes) : -EOPNOTSUPP;
}

int
qcow2_storage_allocate (struct qcow2_storage *s, uint64_t offset,
                        uint64_t count)
{
  if (!s->ops->pwritev)
    return -EROFS;
  return s->ops->allocate ? s->ops->allocate (s, offset, count) :
    -EOPNOTSUPP;
}

int
qcow2_storage_settle (struct qcow2_storage *s)
{
  return s->ops->settle ? s->ops->settle (s) : 0;
}

void
qcow2_storage_threads (struct qcow2_storage *s, bool on)
{
  if (s->ops->threads)
    s->ops->threads (s, on);
}

bool
qcow2_storage_can_grow (struct qcow2_storage *s)
{
  return s->ops->can_grow && s->ops->can_grow (s);
}

void
qcow2_storage_close (struct qcow2_storage *s)
{
  if (s)
    s->ops->close (s);
}
