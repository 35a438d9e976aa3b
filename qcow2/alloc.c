/* SPDX-License-Identifier: BSD-3-Clause */

/* The allocator.
 *
 * On a regular file new clusters are taken at the end of the file: they
 * are known to read as zeros, so a write that fills only part of one has
 * nothing else to write.  Holes are used again when there are many of
 * them, or nothing else is left.  Holes are those that became free since
 * the image was opened, and, on a device, those that a scan of the
 * refcounts finds.
 */

#include <errno.h>
#include <string.h>

#include "alloc.h"

/* Holes are reused from this many bytes on, or this part of the file. */
#define MIN_HOLE_BYTES (UINT64_C (64) << 20)
#define HOLE_PART 8

/* Host offsets have 56 bits. */
static uint64_t
max_clusters (const struct refcounts *rc)
{
  return UINT64_C (1) << (56 - rc->cluster_bits);
}

int
allocator_init (struct allocator *a, struct refcounts *rc,
                struct turn *turn, struct header_writer *header,
                struct retire *retire)
{
  int64_t size_bytes = qcow2_storage_size (rc->layer->file);
  uint64_t cluster_bytes = UINT64_C (1) << rc->cluster_bits;

  if (size_bytes < 0)
    return (int) size_bytes;
  memset (a, 0, sizeof *a);
  a->rc = rc;
  a->layer = rc->layer;
  a->turn = turn;
  a->header = header;
  a->retire = retire;
  pthread_mutex_init (&a->lock, NULL);
  if (qcow2_storage_can_grow (rc->layer->file)) {
    a->append = ((uint64_t) size_bytes + cluster_bytes - 1) / cluster_bytes;
    a->fresh_from = a->append;
    a->end = max_clusters (rc);
  }
  else {
    a->end = (uint64_t) size_bytes / cluster_bytes;
    a->append = a->end;
    a->fresh_from = UINT64_MAX;
  }
  return 0;
}

void
allocator_destroy (struct allocator *a)
{
  pthread_mutex_destroy (&a->lock);
}

/* Holes behind the end are gone with it.  There, nothing is left of what
 * clusters held: they are fresh again.
 */
static void
forget_holes_locked (struct allocator *a, uint64_t end)
{
  unsigned i, kept = 0;

  a->hole_clusters = 0;
  for (i = 0; i < a->nr_holes; ++i) {
    struct cluster_range hole = a->holes[i];

    if (hole.first >= end)
      continue;
    if (hole.nr > end - hole.first)
      hole.nr = end - hole.first;
    a->holes[kept++] = hole;
    a->hole_clusters += hole.nr;
  }
  a->nr_holes = kept;
}

int
alloc_restart (struct allocator *a)
{
  int64_t size_bytes = qcow2_storage_size (a->layer->file);
  uint64_t end;

  if (size_bytes < 0)
    return (int) size_bytes;
  if (!qcow2_storage_can_grow (a->layer->file))
    return 0;
  end = ((uint64_t) size_bytes >> a->rc->cluster_bits) +
    !!((uint64_t) size_bytes & ((UINT64_C (1) << a->rc->cluster_bits) - 1));
  pthread_mutex_lock (&a->lock);
  forget_holes_locked (a, end);
  if (a->scan > end)
    a->scan = end;
  a->append = a->fresh_from = end;
  pthread_mutex_unlock (&a->lock);
  return 0;
}

/*----- Proposals, under the lock -----*/

static void
add_hole_locked (struct allocator *a, uint64_t first, uint64_t nr)
{
  struct cluster_range *last;

  if (nr == 0)
    return;
  if (a->nr_holes > 0) {
    last = &a->holes[a->nr_holes - 1];
    if (last->first + last->nr == first) {
      last->nr += nr;
      a->hole_clusters += nr;
      return;
    }
  }
  if (a->nr_holes == MAX_HOLES) {
    /* Forget it; a scan finds it again. */
    if (first < a->scan)
      a->scan = first;
    return;
  }
  a->holes[a->nr_holes].first = first;
  a->holes[a->nr_holes++].nr = nr;
  a->hole_clusters += nr;
}

/* Holes near the end may be clusters that were given back because the
 * storage refused to grow: put the lowest one last.
 */
static void
prefer_lowest_locked (struct allocator *a)
{
  struct cluster_range *last = &a->holes[a->nr_holes - 1], was = *last;
  unsigned i, lowest = a->nr_holes - 1;

  for (i = 0; i < a->nr_holes; ++i)
    if (a->holes[i].first < a->holes[lowest].first)
      lowest = i;
  *last = a->holes[lowest];
  a->holes[lowest] = was;
}

static bool
take_hole_locked (struct allocator *a, uint64_t nr, struct cluster_range *out)
{
  struct cluster_range *hole;

  if (a->nr_holes == 0)
    return false;
  if (a->full)
    prefer_lowest_locked (a);
  hole = &a->holes[a->nr_holes - 1];
  out->first = hole->first;
  out->nr = hole->nr < nr ? hole->nr : nr;
  hole->first += out->nr;
  hole->nr -= out->nr;
  a->hole_clusters -= out->nr;
  if (hole->nr == 0)
    a->nr_holes--;
  return true;
}

static bool
holes_are_many_locked (const struct allocator *a)
{
  uint64_t min = MIN_HOLE_BYTES >> a->rc->cluster_bits;

  return a->hole_clusters > min && a->hole_clusters > a->append / HOLE_PART;
}

/* *APPENDED: the proposal is at the end of the file. */
static bool
propose (struct allocator *a, uint64_t nr, struct cluster_range *out,
         bool *appended)
{
  bool found = true;

  pthread_mutex_lock (&a->lock);
  *appended = false;
  if (!((a->full || holes_are_many_locked (a)) &&
        take_hole_locked (a, nr, out))) {
    if (a->append < a->end) {
      out->first = a->append;
      out->nr = a->end - a->append < nr ? a->end - a->append : nr;
      a->append += out->nr;
      *appended = true;
    }
    else
      found = take_hole_locked (a, nr, out);
  }
  pthread_mutex_unlock (&a->lock);
  return found;
}

/* What was proposed and not taken.  Only what came from the end of the
 * file goes back there: it is as fresh as before.
 */
static void
put_back (struct allocator *a, uint64_t first, uint64_t nr, bool appended)
{
  pthread_mutex_lock (&a->lock);
  if (appended && first + nr == a->append)
    a->append = first;
  else
    add_hole_locked (a, first, nr);
  pthread_mutex_unlock (&a->lock);
}

void
alloc_note_free (struct allocator *a, uint64_t first, uint64_t nr)
{
  pthread_mutex_lock (&a->lock);
  add_hole_locked (a, first, nr);
  pthread_mutex_unlock (&a->lock);
}

void
alloc_note_full (struct allocator *a)
{
  atomic_store (&a->full, true);
}

/* No cluster is known to be free: look for one from a->scan on, outside
 * the lock.  A second thread that looks at the same time does no harm.
 */
static int
scan_for_hole (struct allocator *a)
{
  uint64_t from, end;
  struct cluster_range found;
  int r;

  pthread_mutex_lock (&a->lock);
  from = a->scan;
  end = a->append;
  pthread_mutex_unlock (&a->lock);

  r = refcounts_next_free (a->rc, from, end, &found.first, &found.nr);
  if (r < 0)
    return r;
  pthread_mutex_lock (&a->lock);
  /* Not if holes were forgotten meanwhile that are further back. */
  if (a->scan == from)
    a->scan = found.first + found.nr;
  add_hole_locked (a, found.first, found.nr);
  pthread_mutex_unlock (&a->lock);
  return found.nr > 0 ? 0 : -ENOSPC;
}

/* Claim what was proposed, with a refcount block if there is none. */
static int64_t
claim (struct allocator *a, const struct cluster_range *range)
{
  int64_t n = refcounts_claim (a->rc, range->first, range->nr);
  int r;

  if (n != -ENOENT)
    return n;
  r = refcount_grow (a, range->first);
  if (r < 0)
    return r;
  return refcounts_claim (a->rc, range->first, range->nr);
}

int
alloc_clusters (struct allocator *a, uint64_t nr,
                uint64_t *first, uint64_t *got, bool *fresh)
{
  struct cluster_range range;
  bool appended;
  int64_t n, passed;
  int r;

  do {
    while (!propose (a, nr, &range, &appended)) {
      r = scan_for_hole (a);
      if (r < 0)
        return r;
    }
    n = claim (a, &range);
    if (n < 0) {
      put_back (a, range.first, range.nr, appended);
      return (int) n;
    }
    /* A cluster that is in use is passed over. */
    passed = n > 0 ? n : 1;
    put_back (a, range.first + (uint64_t) passed,
              range.nr - (uint64_t) passed, appended);
  } while (n == 0);

  *first = range.first;
  *got = (uint64_t) n;
  *fresh = appended && range.first >= a->fresh_from;
  return 0;
}
