/* SPDX-License-Identifier: BSD-3-Clause */

/* Whole reads over a storage that may give less than was asked for.
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

void
qcow2_storage_prefetch (struct qcow2_storage *s, uint64_t offset,
                        uint64_t count)
{
  if (s->ops->prefetch)
    s->ops->prefetch (s, offset, count);
}

void
qcow2_storage_close (struct qcow2_storage *s)
{
  if (s)
    s->ops->close (s);
}
