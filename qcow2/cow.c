/* SPDX-License-Identifier: BSD-3-Clause */

/* Copy-on-write areas.
 *
 * Head and tail are read once into one buffer of at most two clusters,
 * and written together with the guest's bytes by one pwritev.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cow.h"
#include "image.h"

/* How much of an area there is: the last cluster may go beyond the end of the
 * disk, and what follows are zeros.  The VM state begins further behind.
 */
static size_t
bytes_there (const struct layer *top, uint64_t offset, size_t count)
{
  uint64_t disk_bytes = top->size_bytes;

  if (layer_is_vm_state (top, offset) || offset + count <= disk_bytes)
    return count;
  return offset < disk_bytes ? disk_bytes - offset : 0;
}

/* Read an area into BUF.  *COUNT becomes 0 if it need not be written. */
static int
read_area (struct writer *w, void *buf, size_t *count, uint64_t offset,
           bool fresh)
{
  struct l1_table l1 = w->top->l1;
  size_t n = bytes_there (w->top, offset, *count);
  bool zeros;
  int r;

  if (*count == 0)
    return 0;
  l1.alone = layer_is_vm_state (w->top, offset);
  r = chain_reads_as_zeros (&w->image->chain, &l1, offset, n, &zeros);
  if (r < 0)
    return r;
  if (zeros) {
    if (fresh)
      *count = 0;
    else
      memset (buf, 0, *count);
    return 0;
  }
  memset ((char *) buf + n, 0, *count - n);
  return image_read (w->image, &l1, buf, n, offset);
}

static int
write_all (struct writer *w, const void *head, size_t head_bytes,
           const void *buf, size_t count, const void *tail,
           size_t tail_bytes, uint64_t host)
{
  struct iovec iov[3];
  int n = 0;

  if (head_bytes > 0) {
    iov[n].iov_base = (void *) head;
    iov[n++].iov_len = head_bytes;
  }
  iov[n].iov_base = (void *) buf;
  iov[n++].iov_len = count;
  if (tail_bytes > 0) {
    iov[n].iov_base = (void *) tail;
    iov[n++].iov_len = tail_bytes;
  }
  return qcow2_storage_writev (w->top->data, iov, n, host - head_bytes,
                               false);
}

int
cow_write (struct writer *w, struct epoch_ticket ticket,
           const void *buf, size_t count, uint64_t offset,
           uint64_t host, size_t head_bytes, size_t tail_bytes, bool fresh)
{
  char *areas = NULL;
  int r = 0;

  if (head_bytes + tail_bytes > 0) {
    areas = malloc (head_bytes + tail_bytes);
    if (!areas)
      return -ENOMEM;
  }
  if (r == 0)
    r = read_area (w, areas, &head_bytes, offset - head_bytes, fresh);
  if (r == 0)
    r = read_area (w, areas + head_bytes, &tail_bytes, offset + count, fresh);
  if (r == 0)
    r = write_all (w, areas, head_bytes, buf, count, areas + head_bytes,
                   tail_bytes, host);
  epoch_note_write (ticket);
  free (areas);
  return r;
}
