/* SPDX-License-Identifier: BSD-3-Clause */

/* The state of virtual machines.
 *
 * It lies in the guest address space behind the disk, from the first L1 entry
 * on that the disk does not need, and is read and written like the disk; but
 * nothing of it is in a backing file, whatever that has at this offset.
 *
 * Writing moves the L1 table when that is too short (l1-grow.c), with some
 * entries to spare: more is coming.  What has been written belongs to the
 * active layer until a snapshot takes it, or it is dropped.
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "l1-grow.h"
#include "l2.h"
#include "writer.h"

/* QEMU has no snapshots of such images, so no VM state either. */
static bool
can_have_vm_state (const struct layer *top)
{
  return !top->is_raw && !top->external_data;
}

/*----- Reading -----*/

/* What a snapshot has of it may end before the state that it tells of. */
static int
check_range (const struct qcow2_view *view, size_t count, uint64_t offset)
{
  const struct layer *top = view->image->chain.layers[0];
  uint64_t end;
  int r;

  if (view->snapshot == QCOW2_ACTIVE)
    return 0;
  if (count > view->vm_state_bytes || offset > view->vm_state_bytes - count)
    return -EINVAL;
  end = offset;
  r = layer_vm_state_offset (top, view->size_bytes, count, &end);
  if (r == 0 && header_disk_l1_entries (&top->header, end + count) <=
      view->l1->nr_entries)
    return 0;
  log_message (&top->log, QCOW2_LOG_ERROR, "%s: snapshot table entry %zu: the "
               "L1 table has no room for a VM state of %" PRIu64 " bytes",
               top->filename, view->snapshot, view->vm_state_bytes);
  return -EIO;
}

static int
read_vm_state (struct qcow2_view *view, void *buf, size_t count,
               uint64_t offset)
{
  const struct layer *top = view->image->chain.layers[0];
  struct l1_table l1 = *view->l1;
  int r = check_range (view, count, offset);

  l1.alone = true;
  if (r == 0)
    r = layer_vm_state_offset (top, view->size_bytes, count, &offset);
  return r < 0 ? r : image_read (view->image, &l1, buf, count, offset);
}

int
qcow2_vmstate_pread (struct qcow2_view *view, void *buf, size_t count,
                     uint64_t offset)
{
  struct epoch_ticket ticket;
  int r;

  if (!can_have_vm_state (view->image->chain.layers[0]))
    return -ENOTSUP;
  ticket = gate_enter (&view->image->gate);
  r = read_vm_state (view, buf, count, offset);
  epoch_leave (ticket);
  return r;
}

/*----- Writing -----*/

/* With the gate closed and the image at rest, as when the disk grows. */
static int
move_table (struct writer *w, uint32_t nr_entries)
{
  int r = writer_rest (w);

  if (r == 0)
    r = writer_begin_beside (w);
  if (r == 0)
    r = l1_grow (&w->l1, &w->alloc, nr_entries, false,
                 w->top->header.size_bytes);
  return r;
}

/* Unless another request was faster. */
static int
make_room (struct writer *w, size_t count, uint64_t offset)
{
  const struct layer *top = w->top;
  uint64_t nr_entries;
  int r;

  gate_close (&w->image->gate);
  r = layer_vm_state_offset (top, top->size_bytes, count, &offset);
  if (r == 0) {
    nr_entries = header_disk_l1_entries (&top->header, offset + count);
    if (nr_entries > top->l1.nr_entries)
      r = move_table (w, (uint32_t) nr_entries);
  }
  gate_open (&w->image->gate);
  return r;
}

int
qcow2_vmstate_pwrite (struct qcow2_view *view, const void *buf, size_t count,
                      uint64_t offset)
{
  bool too_short;
  int r;

  if (!can_have_vm_state (view->image->chain.layers[0]))
    return -ENOTSUP;
  do {
    r = request_write_vm_state (view, buf, count, offset, &too_short);
    if (too_short)
      r = make_room (view->image->writer, count, offset);
  } while (too_short && r == 0);
  return r;
}

/*----- Dropping -----*/

/* The first L1 entry from INDEX on that names a table. */
static uint64_t
next_table (const struct layer *top, uint64_t index)
{
  while (index < top->l1.nr_entries && top->l1.entries[index] == 0)
    index++;
  return index;
}

static uint64_t
first_table (const struct layer *top)
{
  return next_table (top, header_disk_l1_entries (&top->header,
                                                  top->size_bytes));
}

/* The references of the active layer; what a snapshot has, too, that keeps. */
static int
drop (struct writer *w)
{
  const struct layer *top = w->top;
  uint64_t i = first_table (top);
  int r = 0;

  /* An epoch for each table, so that the worker need not wait for all. */
  for (; i < top->l1.nr_entries && r == 0; i = next_table (top, i + 1)) {
    struct epoch_ticket ticket = epoch_enter (&w->image->epoch);

    r = l2_drop_table (w, (uint32_t) i, false);
    epoch_leave (ticket);
  }
  return r;
}

int
qcow2_vmstate_discard (struct qcow2_view *view)
{
  struct qcow2 *image = view->image;
  struct writer *w;
  int r = -EROFS;

  if (!can_have_vm_state (image->chain.layers[0]))
    return -ENOTSUP;
  gate_close (&image->gate);
  w = view->snapshot == QCOW2_ACTIVE ? image->writer : NULL;
  if (w && first_table (w->top) >= w->top->l1.nr_entries)
    r = 0;
  else if (w) {
    r = writer_begin_beside (w);
    if (r == 0)
      r = drop (w);
  }
  gate_open (&image->gate);
  return r < 0 ? r : commit (&w->committer);
}
