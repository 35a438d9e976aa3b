/* SPDX-License-Identifier: BSD-3-Clause */

/* Allocating many clusters in a row, for a table that moves.
 *
 * It is looked for behind the end of the file, or on storage that can't grow
 * (or has refused to) among all clusters, where refcount blocks are; if there
 * is none, blocks are made for one.
 */

#include <errno.h>

#include "alloc.h"

/* In [FROM, END).  -ENOSPC if there is none. */
static int
find_run (struct refcounts *rc, uint64_t from, uint64_t end, uint64_t nr,
          uint64_t *first)
{
  uint64_t run_nr = 0, cluster, n;

  while (from < end) {
    int r = refcounts_next_free (rc, from, end, &cluster, &n);

    if (r < 0)
      return r;
    if (n == 0)
      break;
    if (!refcounts_cover (rc, cluster)) {
      from = ((cluster >> rc->block_bits) + 1) << rc->block_bits;
      run_nr = 0;
      continue;
    }
    if (run_nr == 0 || *first + run_nr != cluster) {
      *first = cluster;
      run_nr = 0;
    }
    run_nr += n;
    if (run_nr >= nr)
      return 0;
    from = cluster + n;
  }
  return -ENOSPC;
}

static int
claim_run (struct allocator *a, uint64_t first, uint64_t nr)
{
  uint64_t done = 0;

  while (done < nr) {
    int64_t n = refcounts_claim (a->rc, first + done, nr - done);

    if (n <= 0) {
      if (done > 0)
        retire_now (a->retire, first, done);
      return n < 0 ? (int) n : -EIO;
    }
    done += (uint64_t) n;
  }
  return 0;
}

/* What comes next at the end comes after the run. */
static void
move_append (struct allocator *a, uint64_t first, uint64_t nr)
{
  uint64_t was;

  pthread_mutex_lock (&a->lock);
  was = a->append;
  if (was < first + nr)
    a->append = first + nr;
  pthread_mutex_unlock (&a->lock);
  if (was < first)
    alloc_note_free (a, was, first - was);
}

int
alloc_run (struct allocator *a, uint64_t nr, uint64_t *first)
{
  bool can_grow = qcow2_storage_can_grow (a->layer->file);
  uint64_t from = can_grow && !a->full ? a->append : 1;
  uint64_t covered = refcounts_end (a->rc);
  uint64_t behind = can_grow && a->append > covered ? a->append : covered;
  int r;

  r = find_run (a->rc, from, covered < a->end ? covered : a->end, nr, first);
  if (r == -ENOSPC)
    r = refcount_grow_run (a, behind, nr, first);
  if (r == 0)
    r = claim_run (a, *first, nr);
  if (r == 0 && can_grow)
    move_append (a, *first, nr);
  return r;
}
