/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeros in what a guest writes.
 *
 * Data that is not zeros mostly shows that in its first bytes; to be sure
 * that all are zeros takes as long as to compare two buffers.  A write is
 * cut only where whole clusters are zeros: parts of one are written with
 * the data beside them.
 */

#include <string.h>

#include "detect-zeroes.h"
#include "write.h"
#include "zero.h"

/* Runs of smaller clusters are not worth a request of their own. */
#define MIN_CHUNK_BYTES 4096

struct detection {
  const char *buf;
  uint64_t offset;              /* guest */
  uint64_t count;
  uint64_t chunk_bytes;         /* whole clusters */
  uint64_t disk_bytes;
};

static bool
is_zeros (const char *buf, uint64_t count)
{
  static const char zeros[64];
  size_t head = count < sizeof zeros ? (size_t) count : sizeof zeros;

  return memcmp (buf, zeros, head) == 0 &&
    memcmp (buf, buf + head, count - head) == 0;
}

/* From POS to where the next chunk begins, or the buffer ends. */
static uint64_t
rest_of_chunk (const struct detection *d, uint64_t pos)
{
  uint64_t n = d->chunk_bytes - (d->offset + pos) % d->chunk_bytes;

  return n < d->count - pos ? n : d->count - pos;
}

/* The last chunk of the disk may be a short one. */
static bool
chunk_is_zeros (const struct detection *d, uint64_t pos)
{
  uint64_t n = rest_of_chunk (d, pos);

  if (n < d->chunk_bytes &&
      ((d->offset + pos) % d->chunk_bytes != 0 ||
       d->offset + pos + n < d->disk_bytes))
    return false;
  return is_zeros (d->buf + pos, n);
}

/* How many bytes from POS on are of one kind. */
static uint64_t
next_run (const struct detection *d, uint64_t pos, bool *zeros)
{
  uint64_t end = pos + rest_of_chunk (d, pos);

  *zeros = chunk_is_zeros (d, pos);
  while (end < d->count && chunk_is_zeros (d, end) == *zeros)
    end += rest_of_chunk (d, end);
  return end - pos;
}

static int
make_zeros (struct writer *w, struct epoch_ticket ticket,
            enum zero_mode mode, uint64_t count, uint64_t offset,
            bool *in_place)
{
  int r = zero_guest (w, ticket, mode, count, offset, in_place);

  *in_place = false;            /* its edges were not written durably */
  return r;
}

int
write_detecting_zeroes (struct writer *w, struct epoch_ticket ticket,
                        const void *buf, uint64_t count, uint64_t offset,
                        bool durable, bool *in_place)
{
  enum zero_mode mode = w->detect_zeroes == QCOW2_DETECT_ZEROES_UNMAP ?
    ZERO_UNMAP : ZERO_KEEP;
  struct detection d = {
    .buf = buf, .offset = offset, .count = count,
    .chunk_bytes = layer_cluster_bytes (w->top),
    .disk_bytes = w->top->size_bytes,
  };
  uint64_t pos, n;
  bool zeros;
  int r = 0;

  if (!zero_can_mark (w, mode))
    return write_guest (w, ticket, buf, count, offset, durable, in_place);
  if (is_zeros (buf, count))
    return make_zeros (w, ticket, mode, count, offset, in_place);
  if (d.chunk_bytes < MIN_CHUNK_BYTES)
    d.chunk_bytes = MIN_CHUNK_BYTES;
  for (pos = 0; pos < count && r == 0; pos += n) {
    n = next_run (&d, pos, &zeros);
    if (zeros)
      r = make_zeros (w, ticket, mode, n, offset + pos, in_place);
    else
      r = write_guest (w, ticket, d.buf + pos, n, offset + pos, durable,
                       in_place);
  }
  return r;
}
