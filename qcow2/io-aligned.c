/* SPDX-License-Identifier: BSD-3-Clause */

/* Any requests for a storage that takes only whole blocks.
 *
 * With O_DIRECT the kernel takes only whole blocks (the sectors of the
 * device, 512 to 4096 bytes), from and to buffers that are aligned.  The
 * engine asks for any bytes: L2 slices are written in sectors of 512 bytes,
 * compressed clusters begin anywhere, and a guest's request may begin and
 * end where it likes.  What is aligned goes straight to the file.  All else
 * goes through a bounce buffer of at most BOUNCE_BYTES for each request in
 * progress.
 *
 * Part of a block is written by reading it, changing some of its bytes and
 * writing it back.  Two things must not happen meanwhile, or bytes that
 * somebody else has written would be lost:
 *
 *   - another write into the same block, whole or in part.  So whoever
 *     writes parts of blocks locks his range, rounded to blocks, exclusively,
 *     and whoever writes whole blocks locks it shared: those don't read, so
 *     they may go together.  Zeroing, discarding and cutting the file do
 *     likewise.  A range is held over I/O, but whoever holds it waits for
 *     nothing but that I/O.
 *   - a write of another program.  QEMU's locks are against that.
 *
 * Reads take no lock: a block that is being written back has the same bytes
 * in it where nobody changes them, before, after and in between.  For the
 * same reason a power failure does no harm to the neighbours: they hold what
 * they held, however the write was torn.  That they become durable with it
 * is no harm either: a write that was completed may be durable at any time.
 *
 * The end of the file.  A block that reaches past the end is filled up with
 * zeros, so the file may become longer than it was meant to be.  The size
 * that is told is the one that was meant, as long as nothing was written
 * behind it (reading finds the zeros), and the file is cut to it when the
 * image comes to rest and on closing: no later than that, since then other
 * programs may write there.  After a crash up to a block of zeros is left,
 * which harms nobody: the engine takes what lies past the end for zeros.
 *
 * fallocate makes zeros in whole pages, as on devices (io-file.c): parts of
 * pages would go through the page cache.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io-aligned.h"
#include "range-lock.h"

#define BOUNCE_BYTES (1024 * 1024)

struct io_aligned {
  struct qcow2_storage storage;
  struct qcow2_storage *file;
  struct io_alignment alignment;
  uint64_t page_bytes;          /* what is locked and zeroed: blocks of at
                                   least a page */
  uint64_t max_bytes;           /* no block ends behind this */
  struct range_lock ranges;     /* of writes in progress */

  /* While the file's size is PADDED_BYTES, MEANT_BYTES is what it should
   * be.
   */
  pthread_mutex_t size_lock;
  _Atomic uint64_t padded_bytes;
  uint64_t meant_bytes;
};

static struct io_aligned *
io_aligned_of (struct qcow2_storage *s)
{
  return (struct io_aligned *) s;
}

static uint64_t
round_down (uint64_t n, uint64_t unit)
{
  return n & ~(unit - 1);
}

static uint64_t
round_up (uint64_t n, uint64_t unit)
{
  return round_down (n + unit - 1, unit);
}

static bool
buffer_is_aligned (const struct io_aligned *d, const void *buf)
{
  return (uintptr_t) buf % d->alignment.memory_bytes == 0;
}

static bool
is_whole_blocks (const struct io_aligned *d, uint64_t offset, uint64_t count)
{
  return (offset | count) % d->alignment.block_bytes == 0;
}

/* A buffer for [START, END), or as much of it as goes at a time. */
static char *
bounce_new (const struct io_aligned *d, uint64_t start, uint64_t end)
{
  size_t alignment = d->alignment.memory_bytes;
  void *buf;

  if (alignment < sizeof (void *))
    alignment = sizeof (void *);
  if (posix_memalign (&buf, alignment, end - start < BOUNCE_BYTES ?
                      end - start : BOUNCE_BYTES) != 0)
    return NULL;
  return buf;
}

/*----- Reading -----*/

static ssize_t
read_bounced (struct io_aligned *d, void *buf, size_t count, uint64_t offset)
{
  uint64_t block = d->alignment.block_bytes;
  uint64_t start = round_down (offset, block);
  uint64_t end = round_up (offset + count, block);
  size_t skip = (size_t) (offset - start);
  char *bounce = bounce_new (d, start, end);
  ssize_t r;

  if (!bounce)
    return -ENOMEM;
  if (end > start + BOUNCE_BYTES)
    end = start + BOUNCE_BYTES;
  r = d->file->ops->pread (d->file, bounce, end - start, start);
  if (r > 0) {
    r = (size_t) r > skip ? r - (ssize_t) skip : 0;
    if ((size_t) r > count)
      r = (ssize_t) count;
    memcpy (buf, bounce + skip, (size_t) r);
  }
  free (bounce);
  return r;
}

/* As much as can be read at once: the caller asks for the rest. */
static ssize_t
io_aligned_pread (struct qcow2_storage *s, void *buf, size_t count,
                 uint64_t offset)
{
  struct io_aligned *d = io_aligned_of (s);
  uint64_t block = d->alignment.block_bytes;

  if (count == 0 || offset >= d->max_bytes)
    return 0;
  if (count > d->max_bytes - offset)
    count = d->max_bytes - offset;
  if (offset % block == 0 && count >= block && buffer_is_aligned (d, buf))
    return d->file->ops->pread (d->file, buf, round_down (count, block),
                                offset);
  return read_bounced (d, buf, count, offset);
}

/* The block at START, with zeros behind the end of the file: *GOT_BYTES
 * are before it.  Zeros are made up for nothing else.
 */
static int
read_block (struct io_aligned *d, void *buf, uint64_t start,
            uint64_t *got_bytes)
{
  uint64_t block = d->alignment.block_bytes;
  int64_t size_bytes;
  unsigned tries;
  ssize_t r;

  for (tries = 0; tries < 3; ++tries) {
    r = d->file->ops->pread (d->file, buf, block, start);
    if (r < 0)
      return (int) r;
    *got_bytes = (uint64_t) r;
    if (*got_bytes == block)
      return 0;
    size_bytes = qcow2_storage_size (d->file);
    if (size_bytes < 0)
      return (int) size_bytes;
    if (start + *got_bytes >= (uint64_t) size_bytes) {
      memset ((char *) buf + r, 0, block - *got_bytes);
      return 0;
    }
  }
  return -EIO;
}

/*----- The size -----*/

static int64_t
io_aligned_size (struct qcow2_storage *s)
{
  struct io_aligned *d = io_aligned_of (s);
  int64_t size_bytes = qcow2_storage_size (d->file);

  if (size_bytes < 0 ||
      (uint64_t) size_bytes != atomic_load (&d->padded_bytes))
    return size_bytes;
  pthread_mutex_lock (&d->size_lock);
  if ((uint64_t) size_bytes == d->padded_bytes)
    size_bytes = (int64_t) d->meant_bytes;
  pthread_mutex_unlock (&d->size_lock);
  return size_bytes;
}

/* Bytes up to END will be written; with them the file, which ended at
 * FILE_END, will be filled up to BLOCK_END.
 */
static void
note_padding (struct io_aligned *d, uint64_t end, uint64_t file_end,
              uint64_t block_end)
{
  pthread_mutex_lock (&d->size_lock);
  if (block_end >= d->padded_bytes) {
    d->padded_bytes = block_end;
    d->meant_bytes = end > file_end ? end : file_end;
  }
  pthread_mutex_unlock (&d->size_lock);
}

static void
forget_padding (struct io_aligned *d)
{
  pthread_mutex_lock (&d->size_lock);
  d->padded_bytes = d->meant_bytes = 0;
  pthread_mutex_unlock (&d->size_lock);
}

/* Bytes up to END will be written: perhaps they take the place of zeros
 * with which the file was filled up.
 */
static void
note_end (struct io_aligned *d, uint64_t end)
{
  uint64_t padded_bytes = atomic_load (&d->padded_bytes);

  if (end + d->alignment.block_bytes <= padded_bytes || padded_bytes == 0)
    return;
  pthread_mutex_lock (&d->size_lock);
  if (end > d->padded_bytes)
    end = d->padded_bytes;
  if (end > d->meant_bytes)
    d->meant_bytes = end;
  pthread_mutex_unlock (&d->size_lock);
}

/*----- Writing -----*/

/* What is left of a write. */
struct source {
  const struct iovec *iov;
  size_t skip;                  /* bytes of IOV that are done */
};

static void
take_bytes (struct source *source, char *to, size_t count)
{
  while (count > 0) {
    size_t n = source->iov->iov_len - source->skip;

    if (n > count)
      n = count;
    if (n > 0)
      memcpy (to, (const char *) source->iov->iov_base + source->skip, n);
    to += n;
    count -= n;
    source->skip += n;
    if (source->skip == source->iov->iov_len) {
      source->iov++;
      source->skip = 0;
    }
  }
}

/* Read the blocks of which [OFFSET, END) is only a part into BOUNCE, which
 * begins at START and ends at BLOCK_END.
 */
static int
read_edges (struct io_aligned *d, char *bounce, uint64_t start,
            uint64_t offset, uint64_t end, uint64_t block_end)
{
  uint64_t block = d->alignment.block_bytes, last = block_end - block, got;
  int r;

  if (offset > start && last > start) {
    r = read_block (d, bounce, start, &got);
    if (r < 0)
      return r;
  }
  if (end == block_end && !(offset > start && last == start))
    return 0;
  r = read_block (d, bounce + (last - start), last, &got);
  if (r == 0 && got < block && end < block_end &&
      qcow2_storage_can_grow (d->file))
    note_padding (d, end, last + got, block_end);
  return r;
}

/* The range is locked: exclusively, if it is not whole blocks. */
static int
write_bounced (struct io_aligned *d, const struct iovec *iov,
               uint64_t offset, uint64_t count, bool durable)
{
  uint64_t block = d->alignment.block_bytes, end = offset + count;
  struct source source = { .iov = iov };
  char *bounce = bounce_new (d, round_down (offset, block),
                             round_up (end, block));
  int r = 0;

  if (!bounce)
    return -ENOMEM;
  while (offset < end && r == 0) {
    uint64_t start = round_down (offset, block);
    uint64_t piece_end = end - start > BOUNCE_BYTES ? start + BOUNCE_BYTES :
      end;
    uint64_t block_end = round_up (piece_end, block);

    r = read_edges (d, bounce, start, offset, piece_end, block_end);
    if (r == 0) {
      take_bytes (&source, bounce + (offset - start), piece_end - offset);
      r = qcow2_storage_write (d->file, bounce, block_end - start, start,
                               durable);
    }
    offset = piece_end;
  }
  free (bounce);
  return r;
}

static bool
goes_straight (const struct io_aligned *d, const struct iovec *iov,
               int iovcnt, uint64_t offset)
{
  int i;

  if (offset % d->alignment.block_bytes != 0)
    return false;
  for (i = 0; i < iovcnt; ++i)
    if (iov[i].iov_len % d->alignment.block_bytes != 0 ||
        (iov[i].iov_len > 0 && !buffer_is_aligned (d, iov[i].iov_base)))
      return false;
  return true;
}

static void
lock_range (struct io_aligned *d, struct range_hold *hold, uint64_t offset,
            uint64_t count, bool exclusive)
{
  range_lock_take (&d->ranges, hold, round_down (offset, d->page_bytes),
                   round_up (offset + count, d->page_bytes), exclusive);
}

static int
io_aligned_pwritev (struct qcow2_storage *s, const struct iovec *iov,
                   int iovcnt, uint64_t offset, bool durable)
{
  struct io_aligned *d = io_aligned_of (s);
  struct range_hold hold;
  uint64_t count = 0;
  int i, r;

  for (i = 0; i < iovcnt; ++i)
    count += iov[i].iov_len;
  if (count == 0)
    return 0;
  if (offset > d->max_bytes || count > d->max_bytes - offset)
    return -EFBIG;

  lock_range (d, &hold, offset, count, !is_whole_blocks (d, offset, count));
  note_end (d, offset + count);
  r = goes_straight (d, iov, iovcnt, offset) ?
    qcow2_storage_writev (d->file, iov, iovcnt, offset, durable) :
    write_bounced (d, iov, offset, count, durable);
  range_lock_release (&d->ranges, &hold);
  return r;
}

static int
io_aligned_flush (struct qcow2_storage *s)
{
  return qcow2_storage_flush (io_aligned_of (s)->file);
}

/*----- Zeros -----*/

static int
zero_edge (struct io_aligned *d, uint64_t offset, uint64_t count)
{
  static uint8_t zeros[4096] __attribute__ ((__aligned__ (4096)));

  while (count > 0) {
    struct iovec iov = {
      .iov_base = zeros,
      .iov_len = count < sizeof zeros ? (size_t) count : sizeof zeros,
    };
    int r = write_bounced (d, &iov, offset, iov.iov_len, false);

    if (r < 0)
      return r;
    offset += iov.iov_len;
    count -= iov.iov_len;
  }
  return 0;
}

/* The pages first: only they can turn out to be impossible. */
static int
io_aligned_zero (struct qcow2_storage *s, uint64_t offset, uint64_t count,
                bool may_punch)
{
  struct io_aligned *d = io_aligned_of (s);
  uint64_t end = offset + count, first, last;
  struct range_hold hold;
  int r = 0;

  if (!d->file->ops->zero)
    return -EOPNOTSUPP;
  if (offset > d->max_bytes || count > d->max_bytes - offset)
    return -EFBIG;
  first = round_up (offset, d->page_bytes);
  last = round_down (end, d->page_bytes);

  lock_range (d, &hold, offset, count, first > offset || last < end);
  if (first >= last)
    r = zero_edge (d, offset, count);
  else {
    r = d->file->ops->zero (d->file, first, last - first, may_punch);
    if (r == 0)
      r = zero_edge (d, offset, first - offset);
    if (r == 0)
      r = zero_edge (d, last, end - last);
  }
  range_lock_release (&d->ranges, &hold);
  return r;
}

static void
io_aligned_discard (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  struct io_aligned *d = io_aligned_of (s);
  struct range_hold hold;
  uint64_t first, last;

  if (offset > d->max_bytes || count > d->max_bytes - offset)
    return;
  first = round_up (offset, d->page_bytes);
  last = round_down (offset + count, d->page_bytes);
  if (first >= last)
    return;
  lock_range (d, &hold, first, last - first, false);
  qcow2_storage_discard (d->file, first, last - first);
  range_lock_release (&d->ranges, &hold);
}

/* The last block of the file, before or after, may be one that is being
 * written in part.
 */
static int
io_aligned_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  struct io_aligned *d = io_aligned_of (s);
  struct range_hold hold;
  int r;

  range_lock_take (&d->ranges, &hold, 0, UINT64_MAX, true);
  r = qcow2_storage_truncate (d->file, size_bytes);
  if (r == 0)
    forget_padding (d);
  range_lock_release (&d->ranges, &hold);
  return r;
}

/*----- The rest -----*/

static int
io_aligned_hole (struct qcow2_storage *s, uint64_t offset, bool *hole,
                uint64_t *length_bytes)
{
  return qcow2_storage_hole (io_aligned_of (s)->file, offset, hole,
                             length_bytes);
}

static bool
io_aligned_can_grow (struct qcow2_storage *s)
{
  return qcow2_storage_can_grow (io_aligned_of (s)->file);
}

/* Cut the zeros with which the last block was filled up, if it is the last
 * one still.
 */
static int
io_aligned_settle (struct qcow2_storage *s)
{
  struct io_aligned *d = io_aligned_of (s);
  int64_t size_bytes = io_aligned_size (s);

  if (d->padded_bytes == 0 || size_bytes <= 0)
    return 0;
  if (qcow2_storage_size (d->file) > size_bytes)
    return io_aligned_truncate (s, (uint64_t) size_bytes);
  forget_padding (d);
  return 0;
}

static void
io_aligned_close (struct qcow2_storage *s)
{
  struct io_aligned *d = io_aligned_of (s);

  io_aligned_settle (s);
  qcow2_storage_close (d->file);
  range_lock_destroy (&d->ranges);
  pthread_mutex_destroy (&d->size_lock);
  free (d);
}

/* Nothing is prefetched: it would go to the page cache. */
static const struct qcow2_storage_ops read_only_ops = {
  .pread = io_aligned_pread,
  .size = io_aligned_size,
  .hole = io_aligned_hole,
  .close = io_aligned_close,
};

static const struct qcow2_storage_ops writable_ops = {
  .pread = io_aligned_pread,
  .size = io_aligned_size,
  .hole = io_aligned_hole,
  .pwritev = io_aligned_pwritev,
  .flush = io_aligned_flush,
  .zero = io_aligned_zero,
  .discard = io_aligned_discard,
  .truncate = io_aligned_truncate,
  .settle = io_aligned_settle,
  .can_grow = io_aligned_can_grow,
  .close = io_aligned_close,
};

/*----- Opening -----*/

static bool
is_power_of_2 (uint64_t n)
{
  return n > 0 && (n & (n - 1)) == 0;
}

int
qcow2_io_aligned_new (struct qcow2_storage *file,
                      const struct io_alignment *alignment,
                      struct qcow2_storage **s)
{
  uint64_t page_bytes = (uint64_t) sysconf (_SC_PAGESIZE);
  struct io_aligned *d = NULL;
  int r = -EINVAL;

  if (is_power_of_2 (alignment->memory_bytes) &&
      is_power_of_2 (alignment->block_bytes) &&
      alignment->memory_bytes <= IO_ALIGNED_MAX_BLOCK_BYTES &&
      alignment->block_bytes <= IO_ALIGNED_MAX_BLOCK_BYTES) {
    d = calloc (1, sizeof *d);
    r = -ENOMEM;
  }
  if (!d) {
    qcow2_storage_close (file);
    return r;
  }
  d->storage.ops = file->ops->pwritev ? &writable_ops : &read_only_ops;
  d->file = file;
  d->alignment = *alignment;
  d->page_bytes = page_bytes > alignment->block_bytes ? page_bytes :
    alignment->block_bytes;
  d->max_bytes = round_down (INT64_MAX, d->page_bytes);
  range_lock_init (&d->ranges);
  pthread_mutex_init (&d->size_lock, NULL);
  *s = &d->storage;
  return 0;
}
