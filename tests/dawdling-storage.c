/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage that dawdles. */

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "dawdling-storage.h"
#include "qcow2/write-queue.h"
#include "qemu-image.h"

struct slow {
  struct qcow2_storage storage;
  struct qcow2_storage *next;
  const struct dawdling *how;
  bool fixed_size;
  struct write_queue queue;
};

static struct qcow2_storage *
next_of (struct qcow2_storage *s)
{
  return ((struct slow *) s)->next;
}

static void
dawdle (struct qcow2_storage *s)
{
  static _Atomic uint64_t nr_threads;
  static __thread uint64_t seed;
  const struct dawdling *how = ((struct slow *) s)->how;

  if (seed == 0)
    seed = atomic_fetch_add (&nr_threads, 1) * 7919 + 1;
  if (random_below (&seed, 1024) >= how->per_1024)
    return;
  switch (random_below (&seed, 64)) {
  case 0:                       /* others do a lot in the meantime */
    usleep ((useconds_t) random_below (&seed, 100 * how->max_usec));
    break;
  case 1 ... 31:
    usleep ((useconds_t) random_below (&seed, how->max_usec));
    break;
  default:
    sched_yield ();
  }
}

static ssize_t
slow_pread (struct qcow2_storage *s, void *buf, size_t count,
            uint64_t offset)
{
  ssize_t r;

  dawdle (s);
  r = next_of (s)->ops->pread (next_of (s), buf, count, offset);
  dawdle (s);
  return r;
}

static int64_t
slow_size (struct qcow2_storage *s)
{
  return qcow2_storage_size (next_of (s));
}

static bool
slow_can_grow (struct qcow2_storage *s)
{
  return !((struct slow *) s)->fixed_size &&
    qcow2_storage_can_grow (next_of (s));
}

static int
slow_hole (struct qcow2_storage *s, uint64_t offset, bool *hole,
           uint64_t *length_bytes)
{
  return qcow2_storage_hole (next_of (s), offset, hole, length_bytes);
}

static void
slow_prefetch (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  qcow2_storage_prefetch (next_of (s), offset, count);
}

struct slow_write {
  struct write_job job;
  struct qcow2_storage *s;
  const struct iovec *iov;
  int iovcnt;
  uint64_t offset;
};

static int
run_slow_write (struct write_job *job)
{
  const struct slow_write *w = (const struct slow_write *) job;
  int r;

  dawdle (w->s);
  r = qcow2_storage_writev (next_of (w->s), w->iov, w->iovcnt, w->offset,
                            false);
  dawdle (w->s);
  return r;
}

static int
slow_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
              uint64_t offset, bool durable)
{
  struct slow *slow = (struct slow *) s;
  struct slow_write w = { { .run = run_slow_write }, s, iov, iovcnt, offset };
  int i;

  for (i = 0; i < iovcnt; ++i)
    w.job.bytes += iov[i].iov_len;
  if (!slow_can_grow (s) && offset + w.job.bytes > (uint64_t) slow_size (s))
    return -ENOSPC;
  return durable ? run_slow_write (&w.job) :
    write_queue_run (&slow->queue, &w.job);
}

static int
slow_flush (struct qcow2_storage *s)
{
  dawdle (s);
  return 0;
}

static int
slow_zero (struct qcow2_storage *s, uint64_t offset, uint64_t count,
           bool may_punch)
{
  dawdle (s);
  return next_of (s)->ops->zero (next_of (s), offset, count, may_punch);
}

static void
slow_discard (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  dawdle (s);
  qcow2_storage_discard (next_of (s), offset, count);
}

static int
slow_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  if (!slow_can_grow (s))
    return -EOPNOTSUPP;
  dawdle (s);
  return qcow2_storage_truncate (next_of (s), size_bytes);
}

static void
slow_threads (struct qcow2_storage *s, bool on)
{
  struct slow *slow = (struct slow *) s;

  if (slow->how->queued)
    write_queue_switch (&slow->queue, on);
  else
    qcow2_storage_threads (slow->next, on);
}

static void
slow_close (struct qcow2_storage *s)
{
  write_queue_destroy (&((struct slow *) s)->queue);
  qcow2_storage_close (next_of (s));
  free (s);
}

static const struct qcow2_storage_ops read_ops = {
  .pread = slow_pread,
  .size = slow_size,
  .hole = slow_hole,
  .prefetch = slow_prefetch,
  .close = slow_close,
};

static const struct qcow2_storage_ops write_ops = {
  .pread = slow_pread,
  .size = slow_size,
  .hole = slow_hole,
  .prefetch = slow_prefetch,
  .pwritev = slow_pwritev,
  .flush = slow_flush,
  .zero = slow_zero,
  .discard = slow_discard,
  .truncate = slow_truncate,
  .threads = slow_threads,
  .can_grow = slow_can_grow,
  .close = slow_close,
};

static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  struct slow *slow = malloc (sizeof *slow);

  if (!slow)
    return -ENOMEM;
  slow->storage.ops = (*s)->ops->pwritev ? &write_ops : &read_ops;
  slow->next = *s;
  slow->how = opaque;
  write_queue_init (&slow->queue);
  slow->fixed_size = slow->how->fixed_size && role == QCOW2_STORAGE_IMAGE;
  *s = &slow->storage;
  return 0;
}

void
dawdling_init (const struct dawdling *d, struct qcow2_options *options)
{
  options->wrap = wrap;
  options->opaque = (void *) d;
}
