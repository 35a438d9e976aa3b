/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in memory that is strict about alignment. */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemu-image.h"
#include "storage-place.h"
#include "strict-storage.h"

struct strict {
  struct qcow2_storage storage;
  struct strict_storage *how;
  pthread_mutex_t lock;
  uint8_t *bytes;
  size_t size_bytes;
};

static struct strict *
strict_of (struct qcow2_storage *s)
{
  return (struct strict *) s;
}

static uint64_t
draw (uint64_t limit)
{
  static _Atomic uint64_t nr_threads;
  static __thread uint64_t seed;

  if (seed == 0)
    seed = atomic_fetch_add (&nr_threads, 1) * 7919 + 1;
  return random_below (&seed, limit);
}

static void
dawdle (const struct strict *t)
{
  if (t->how->max_usec > 0 && draw (3) == 0)
    usleep ((useconds_t) draw (t->how->max_usec));
}

static void
note_length (struct strict_storage *how, size_t count)
{
  size_t longest = how->longest_bytes;

  while (count > longest &&
         !atomic_compare_exchange_weak (&how->longest_bytes, &longest, count))
    ;
}

static bool
is_refused (struct strict_storage *how, const void *buf, size_t count,
            uint64_t offset)
{
  if ((uintptr_t) buf % how->alignment.memory_bytes == 0 &&
      (count | offset) % how->alignment.block_bytes == 0)
    return false;
  how->nr_refused++;
  return true;
}

static ssize_t
strict_pread (struct qcow2_storage *s, void *buf, size_t count,
              uint64_t offset)
{
  struct strict *t = strict_of (s);
  struct strict_storage *how = t->how;
  int bytes = atomic_exchange (&how->read_bytes, 0);
  int err = atomic_exchange (&how->read_errno, 0);
  size_t block = how->alignment.block_bytes;

  how->nr_reads++;
  note_length (how, count);
  if (is_refused (how, buf, count, offset))
    return -EINVAL;
  if (err)
    return -err;
  dawdle (t);
  if (how->short_reads && count > block && draw (4) == 0)
    count = (1 + draw (count / block)) * block;
  if (bytes > 0)
    count = (size_t) bytes;
  pthread_mutex_lock (&t->lock);
  if (offset >= t->size_bytes)
    count = 0;
  else if (count > t->size_bytes - offset)
    count = t->size_bytes - offset;
  memcpy (buf, t->bytes + offset, count);
  pthread_mutex_unlock (&t->lock);
  dawdle (t);
  return (ssize_t) count;
}

static int64_t
strict_size (struct qcow2_storage *s)
{
  struct strict *t = strict_of (s);
  int64_t size_bytes;

  pthread_mutex_lock (&t->lock);
  size_bytes = (int64_t) t->size_bytes;
  pthread_mutex_unlock (&t->lock);
  return size_bytes;
}

static int
strict_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
                uint64_t offset, bool durable)
{
  struct strict *t = strict_of (s);
  size_t count = 0;
  int i;

  t->how->nr_writes++;
  t->how->nr_durable += durable;
  for (i = 0; i < iovcnt; ++i) {
    if (is_refused (t->how, iov[i].iov_base, iov[i].iov_len, offset))
      return -EINVAL;
    count += iov[i].iov_len;
  }
  note_length (t->how, count);
  if (t->how->max_usec == 0)
    t->how->last_buf = iov[0].iov_base;
  if (offset > t->how->max_bytes || count > t->how->max_bytes - offset)
    return -ENOSPC;
  dawdle (t);
  pthread_mutex_lock (&t->lock);
  for (i = 0; i < iovcnt; ++i) {
    memcpy (t->bytes + offset, iov[i].iov_base, iov[i].iov_len);
    offset += iov[i].iov_len;
  }
  if (offset > t->size_bytes)
    t->size_bytes = offset;
  pthread_mutex_unlock (&t->lock);
  dawdle (t);
  return 0;
}

static int
strict_zero (struct qcow2_storage *s, uint64_t offset, uint64_t count,
             bool may_punch)
{
  struct strict *t = strict_of (s);

  (void) may_punch;
  t->how->nr_zeroes++;
  if ((offset | count) % 4096 != 0)
    return -EINVAL;
  dawdle (t);
  pthread_mutex_lock (&t->lock);
  memset (t->bytes + offset, 0, count);
  pthread_mutex_unlock (&t->lock);
  dawdle (t);
  return 0;
}

static void
strict_discard (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  struct strict *t = strict_of (s);

  if ((offset | count) % 4096 != 0) {
    t->how->nr_refused++;
    return;
  }
  pthread_mutex_lock (&t->lock);
  memset (t->bytes + offset, 0xdd, count);
  pthread_mutex_unlock (&t->lock);
}

static int
strict_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  struct strict *t = strict_of (s);

  pthread_mutex_lock (&t->lock);
  if (size_bytes < t->size_bytes)
    memset (t->bytes + size_bytes, 0, t->size_bytes - size_bytes);
  t->size_bytes = size_bytes;
  pthread_mutex_unlock (&t->lock);
  return 0;
}

static bool
strict_can_grow (struct qcow2_storage *s)
{
  (void) s;
  return true;
}

static void
strict_close (struct qcow2_storage *s)
{
  struct strict *t = strict_of (s);

  pthread_mutex_destroy (&t->lock);
  free (t->bytes);
  free (t);
}

struct qcow2_storage *
strict_storage_new (struct strict_storage *how, size_t size_bytes)
{
  static const struct qcow2_storage_ops ops = {
    .pread = strict_pread,
    .size = strict_size,
    .pwritev = strict_pwritev,
    .zero = strict_zero,
    .discard = strict_discard,
    .truncate = strict_truncate,
    .can_grow = strict_can_grow,
    .close = strict_close,
  };
  struct strict *t = calloc (1, sizeof *t);

  must (t && (t->bytes = calloc (1, how->max_bytes + 1)), "calloc");
  t->storage.ops = &ops;
  t->how = how;
  t->size_bytes = size_bytes;
  pthread_mutex_init (&t->lock, NULL);
  return &t->storage;
}

const uint8_t *
strict_storage_bytes (struct qcow2_storage *s, size_t *size_bytes)
{
  *size_bytes = strict_of (s)->size_bytes;
  return strict_of (s)->bytes;
}
