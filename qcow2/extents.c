/* SPDX-License-Identifier: BSD-3-Clause */

/* What a range of the disk is made of.
 *
 * Metadata tells data from zeros; within data, the storage may know of
 * holes (raw layers, preallocated clusters).
 */

#include "image.h"

/* How much one call may do, so that no request takes forever: a client
 * asks again from where the answer ended.
 */
#define MAX_STEPS 65536

struct walk {
  qcow2_extent_fn *fn;
  void *opaque;
  unsigned nr_steps;

  /* What is not yet reported, since it may go on. */
  enum qcow2_extent type;
  uint64_t offset;
  uint64_t count;
};

static int
report (struct walk *w)
{
  if (w->count == 0)
    return 0;
  return w->fn (w->opaque, w->type, w->offset, w->count);
}

static int
add (struct walk *w, enum qcow2_extent type, uint64_t count)
{
  int r;

  w->nr_steps++;
  if (w->count > 0 && w->type != type) {
    r = report (w);
    if (r != 0)
      return r;
    w->offset += w->count;
    w->count = 0;
  }
  w->type = type;
  w->count += count;
  return 0;
}

/* Storage that can't tell is taken to be data.  A hole in a qcow2 file
 * is a cluster that was allocated beforehand.
 */
static int
add_data (struct walk *w, const struct run *run)
{
  enum qcow2_extent hole_type =
    run->layer->is_raw ? QCOW2_EXTENT_HOLE : QCOW2_EXTENT_ZERO;
  uint64_t done = 0, length;
  bool hole;
  int r;

  while (done < run->length_bytes && w->nr_steps < MAX_STEPS) {
    if (qcow2_storage_hole (run->layer->data, run->host_offset + done,
                            &hole, &length) < 0) {
      hole = false;
      length = UINT64_MAX;
    }
    if (length > run->length_bytes - done)
      length = run->length_bytes - done;
    r = add (w, hole ? hole_type : QCOW2_EXTENT_DATA, length);
    if (r != 0)
      return r;
    done += length;
  }
  return 0;
}

static int
add_run (struct walk *w, const struct run *run)
{
  switch (run->kind) {
  case RUN_DATA:
    return add_data (w, run);
  case RUN_COMPRESSED:
    return add (w, QCOW2_EXTENT_DATA, run->length_bytes);
  case RUN_UNALLOCATED:
  case RUN_ZERO:
    return add (w, QCOW2_EXTENT_HOLE, run->length_bytes);
  }
  return 0;
}

static int
walk (struct qcow2_view *view, uint64_t count, uint64_t offset,
      qcow2_extent_fn *fn, void *opaque)
{
  struct walk w = { .fn = fn, .opaque = opaque, .offset = offset };
  uint64_t end = offset + count;
  struct run run;
  int r;

  while (offset < end && w.nr_steps < MAX_STEPS) {
    r = view_lookup (view, offset, end - offset, &run);
    if (r < 0) {
      /* What is known up to here is an answer, too. */
      if (w.nr_steps > 0)
        break;
      return r;
    }
    r = add_run (&w, &run);
    if (r != 0)
      return r;
    offset += run.length_bytes;
  }
  return report (&w);
}

int
qcow2_extents (struct qcow2_view *view, uint64_t count, uint64_t offset,
               qcow2_extent_fn *fn, void *opaque)
{
  struct epoch_ticket ticket = gate_enter (&view->image->gate);
  int r;

  r = walk (view, count, offset, fn, opaque);
  epoch_leave (ticket);
  return r;
}
