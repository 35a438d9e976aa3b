/* SPDX-License-Identifier: BSD-3-Clause */

/* The allocator.
 *
 * On a regular file new clusters are taken at the end of the file: they
 * are known to read as zeros, so a write that fills only part of one has
 * nothing else to write.  Holes are used again when there are many of
 * them, or nothing else is left.
 *
 * Which clusters are free is known of those that became free since the
 * image was opened, and of those that a look at the refcounts finds: the
 * background worker looks for what earlier sessions have left, once.  When
 * there are too many ranges the highest are forgotten, but counted, and
 * looked for again when the lower ones are used up.  All looking goes in
 * steps, and under no lock.
 */

#include <errno.h>
#include <string.h>

#include "alloc.h"
#include "guard.h"

/* Holes are reused from this many bytes on, or this part of the file. */
#define MIN_HOLE_BYTES (UINT64_C (64) << 20)
#define HOLE_PART 8

/* A step of looking ends after this many slices or ranges. */
#define STEP_SLICES 64
#define STEP_RANGES 64

/* As long as the file can grow, an allocation looks no longer. */
#define MAX_STEPS 16

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
    a->ours_from = a->append;
    a->fresh_from = a->append;
    a->end = max_clusters (rc);
  }
  else {
    a->end = (uint64_t) size_bytes / cluster_bytes;
    a->append = a->end;
    a->ours_from = UINT64_MAX;
    a->fresh_from = UINT64_MAX;
  }
  a->count = 1;                 /* the header stays, whatever is counted */
  a->count_end = a->append;
  return 0;
}

void
allocator_destroy (struct allocator *a)
{
  pthread_mutex_destroy (&a->lock);
}

struct proposal {
  struct hole hole;
  bool appended;                /* it is at the end of the file */
};

static uint64_t
used_end_locked (const struct allocator *a)
{
  return a->append > a->fresh_from ? a->append : a->fresh_from;
}

uint64_t
alloc_used_end (struct allocator *a)
{
  uint64_t end;

  pthread_mutex_lock (&a->lock);
  end = used_end_locked (a);
  pthread_mutex_unlock (&a->lock);
  return end;
}

static void
restart_locked (struct allocator *a, uint64_t end)
{
  /* It was not cut, see cut_tail: there are better places than out there. */
  if (end > used_end_locked (a))
    return;
  /* Holes behind the end are gone with it.  There, nothing is left of what
   * clusters held: they are fresh again.
   */
  holes_cut (&a->holes, end);
  if (a->scan_end > end)
    a->scan_end = end;
  if (a->scan >= a->scan_end)
    a->nr_forgotten = 0;
  if (a->count_end > end)
    a->count_end = end;
  a->append = a->ours_from = end;
  a->fresh_from = end;
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
  restart_locked (a, end);
  pthread_mutex_unlock (&a->lock);
  return 0;
}

/*----- Holes -----*/

/* Returns how many clusters were not in the list before. */
static uint64_t
add_hole_locked (struct allocator *a, uint64_t first, uint64_t nr, bool ours)
{
  struct forgotten forgotten;
  uint64_t added = holes_add (&a->holes, (struct hole) { first, nr, ours },
                              &forgotten);

  if (forgotten.nr > 0) {
    if (a->scan > forgotten.first || a->scan >= a->scan_end)
      a->scan = forgotten.first;
    a->scan_end = a->append;
    a->nr_forgotten += forgotten.nr;
    a->times_forgotten++;
  }
  return added;
}

void
alloc_note_free (struct allocator *a, uint64_t first, uint64_t nr)
{
  pthread_mutex_lock (&a->lock);
  add_hole_locked (a, first, nr, true);
  pthread_mutex_unlock (&a->lock);
}

bool
alloc_is_ours (struct allocator *a, uint64_t cluster)
{
  bool ours;

  pthread_mutex_lock (&a->lock);
  ours = cluster >= a->ours_from || holes_have_ours (&a->holes, cluster);
  pthread_mutex_unlock (&a->lock);
  return ours;
}

/* What a step of looking finds. */
struct found {
  struct cluster_range ranges[STEP_RANGES];
  unsigned nr;
  uint64_t next;                /* where the next step begins */
};

/* Where there is no refcount block, a file that can grow has better places
 * for new clusters.
 */
static bool
is_usable (const struct allocator *a, uint64_t cluster)
{
  return !qcow2_storage_can_grow (a->layer->file) ||
    refcounts_cover (a->rc, cluster);
}

/* Refcounts that can't be read are passed over: whoever needs them gets
 * the error.  Behind all refcount blocks nothing is usable, however far the
 * end of a sparse file is.
 */
static void
look (struct allocator *a, uint64_t from, uint64_t end, struct found *found)
{
  uint64_t step = (uint64_t) STEP_SLICES << a->rc->slice_bits;
  uint64_t block = UINT64_C (1) << a->rc->block_bits;

  found->nr = 0;
  found->next = end;
  if (qcow2_storage_can_grow (a->layer->file) &&
      from >= refcounts_end (a->rc))
    return;
  if (end - from > step)
    end = from + step;
  found->next = end;
  while (from < end && found->nr < STEP_RANGES) {
    struct cluster_range *range = &found->ranges[found->nr];

    if (refcounts_next_free (a->rc, from, end, &range->first,
                             &range->nr) < 0)
      return;
    from = range->first + range->nr;
    if (range->nr > 0 && !is_usable (a, range->first))
      from = (range->first | (block - 1)) + 1;
    else if (range->nr > 0)
      found->nr++;
  }
  found->next = from;
}

static uint64_t
add_found_locked (struct allocator *a, const struct found *found)
{
  uint64_t added = 0;
  unsigned i;

  for (i = 0; i < found->nr; ++i)
    added += add_hole_locked (a, found->ranges[i].first,
                              found->ranges[i].nr, false);
  return added;
}

/* What is found may be taken by others meanwhile, or be found by two
 * threads at once: that does no harm, since claiming decides.
 */
bool
alloc_count_some (struct allocator *a)
{
  struct found found;
  uint64_t from, end;

  pthread_mutex_lock (&a->lock);
  from = a->count;
  end = a->count_end;
  pthread_mutex_unlock (&a->lock);
  if (from >= end)
    return false;
  look (a, from, end, &found);
  pthread_mutex_lock (&a->lock);
  add_found_locked (a, &found);
  if (a->count == from)
    a->count = found.next;
  pthread_mutex_unlock (&a->lock);
  return found.next < end;
}

/* Look for those that were forgotten.  False if there are none. */
static bool
find_forgotten (struct allocator *a)
{
  struct found found;
  uint64_t from, end, times, added;

  pthread_mutex_lock (&a->lock);
  from = a->scan;
  end = a->scan_end;
  times = a->times_forgotten;
  pthread_mutex_unlock (&a->lock);
  if (from >= end)
    return false;
  look (a, from, end, &found);
  pthread_mutex_lock (&a->lock);
  /* Not if some were forgotten that this step may have passed. */
  if (a->scan == from && a->times_forgotten == times) {
    a->scan = found.next;
    if (found.next >= end)
      a->nr_forgotten = 0;
  }
  added = add_found_locked (a, &found);
  a->nr_forgotten -= added < a->nr_forgotten ? added : a->nr_forgotten;
  pthread_mutex_unlock (&a->lock);
  return true;
}

/* The list is empty. */
static bool
find_holes (struct allocator *a)
{
  return find_forgotten (a) || alloc_count_some (a);
}

/* Whoever claims these clusters later does so after the error was seen by
 * whoever had the turn, so he sees this, too.
 */
void
alloc_note_written (struct allocator *a, uint64_t end)
{
  pthread_mutex_lock (&a->lock);
  if (a->fresh_from < end)
    a->fresh_from = end;
  pthread_mutex_unlock (&a->lock);
}

void
alloc_note_full (struct allocator *a)
{
  atomic_store (&a->full, true);
}

/*----- Proposals -----*/

static bool
holes_are_many_locked (const struct allocator *a)
{
  uint64_t min = MIN_HOLE_BYTES >> a->rc->cluster_bits;
  uint64_t nr = a->holes.clusters + a->nr_forgotten;

  return nr > min && nr > a->append / HOLE_PART;
}

static bool
take_hole_locked (struct allocator *a, uint64_t nr, struct proposal *p)
{
  p->appended = false;
  return holes_take (&a->holes, nr, &p->hole);
}

static bool
append_locked (struct allocator *a, uint64_t nr, struct proposal *p)
{
  if (a->append >= a->end)
    return false;
  p->hole.first = a->append;
  p->hole.nr = a->end - a->append < nr ? a->end - a->append : nr;
  p->hole.ours = true;
  p->appended = true;
  a->append += p->hole.nr;
  return true;
}

/* False: nothing is known; or with LOOK_FIRST, something may be found that is
 * better than the end of the file.
 */
static bool
propose (struct allocator *a, uint64_t nr, bool look_first,
         struct proposal *p)
{
  bool found;

  pthread_mutex_lock (&a->lock);
  if (atomic_load (&a->full) || holes_are_many_locked (a))
    found = take_hole_locked (a, nr, p) ||
      (!look_first && append_locked (a, nr, p));
  else
    found = append_locked (a, nr, p) || take_hole_locked (a, nr, p);
  pthread_mutex_unlock (&a->lock);
  return found;
}

/* Whoever can have the end of the file looks for a while only. */
static bool
propose_or_look (struct allocator *a, uint64_t nr, struct proposal *p)
{
  bool look_first = true;
  unsigned steps = 0;

  while (!propose (a, nr, look_first, p)) {
    if (!look_first)
      return false;
    look_first = find_holes (a) &&
      (++steps < MAX_STEPS || atomic_load (&a->full) ||
       !qcow2_storage_can_grow (a->layer->file));
  }
  return true;
}

/* What was proposed and not taken.  Only what came from the end of the
 * file goes back there: it is as fresh as before.  Not if it may have been
 * looked at meanwhile: then it is known as a hole, too, and whoever gets that
 * may write to it, and give it up again.  So the end never goes back below
 * SCAN_END.
 */
static void
put_back (struct allocator *a, const struct proposal *p, uint64_t passed)
{
  uint64_t first = p->hole.first + passed, nr = p->hole.nr - passed;

  if (nr == 0)
    return;
  pthread_mutex_lock (&a->lock);
  if (p->appended && first + nr == a->append && first >= a->scan_end)
    a->append = first;
  else
    add_hole_locked (a, first, nr, p->hole.ours);
  pthread_mutex_unlock (&a->lock);
}

/* Claim what was proposed, with a refcount block if there is none. */
static int64_t
claim (struct allocator *a, const struct proposal *p)
{
  int64_t n = refcounts_claim (a->rc, p->hole.first, p->hole.nr);
  int r;

  if (n != -ENOENT)
    return n;
  r = refcount_grow (a, p->hole.first);
  if (r < 0)
    return r;
  return refcounts_claim (a->rc, p->hole.first, p->hole.nr);
}

int
alloc_clusters (struct allocator *a, uint64_t nr,
                uint64_t *first, uint64_t *got, bool *fresh)
{
  struct proposal p;
  int64_t n;
  int r;

  do {
    if (!propose_or_look (a, nr, &p))
      return -ENOSPC;
    n = claim (a, &p);
    if (n < 0) {
      /* A hole that has no room for its refcount block stays away. */
      if (p.appended || n != -ENOSPC)
        put_back (a, &p, 0);
      return (int) n;
    }
    /* A cluster that is in use is passed over. */
    put_back (a, &p, n > 0 ? (uint64_t) n : 1);
  } while (n == 0);

  /* Nothing is given back then: nobody may have these clusters. */
  r = guard_check (a->layer, METADATA_NONE,
                   p.hole.first << a->rc->cluster_bits,
                   (uint64_t) n << a->rc->cluster_bits,
                   "a cluster with refcount 0");
  if (r < 0)
    return r;
  *first = p.hole.first;
  *got = (uint64_t) n;
  *fresh = p.appended && p.hole.first >= a->fresh_from;
  return 0;
}
