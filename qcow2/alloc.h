/* SPDX-License-Identifier: BSD-3-Clause */

/* The allocator of host clusters.
 *
 * It only proposes clusters; refcounts_claim decides, so no two threads
 * ever get the same one, whatever the allocator believes.
 */

#ifndef QCOW2_ALLOC_H
#define QCOW2_ALLOC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "holes.h"
#include "refcount.h"
#include "retire.h"
#include "turn.h"

struct committer;
struct header_writer;

struct cluster_range {
  uint64_t first;
  uint64_t nr;
};

struct allocator {
  struct refcounts *rc;
  struct layer *layer;
  struct turn *turn;
  struct header_writer *header;
  struct retire *retire;
  struct committer *committer;  /* to be told of failed flushes */
  /* A sector of the refcount table may hold anything on disk, the one from
   * entry FIRST_UNKNOWN on: see refcount-grow.c; with the turn.
   */
  bool entries_unknown;
  uint64_t first_unknown;

  /* From here on no cluster ever held anything, and all of it reads as
   * zeros: the end of the file when it was opened.  UINT64_MAX where
   * nothing is known, as on a device.  Raised while allocations go on.
   */
  _Atomic uint64_t fresh_from;
  uint64_t ours_from;           /* what is free there is this session's */
  uint64_t end;                 /* there are no clusters from here on */
  _Atomic bool full;            /* the storage refused to grow: look for
                                   room within it first */

  pthread_mutex_t lock;         /* for what follows */
  uint64_t append;              /* the next cluster at the end */
  struct holes holes;
  /* Clusters that are free and no longer in HOLES: from where to where, how
   * many, about, and how often some were forgotten.  SCAN_END is never above
   * APPEND, though some below it may be proposed and not yet claimed.
   */
  uint64_t scan, scan_end;
  uint64_t nr_forgotten;
  uint64_t times_forgotten;
  /* Nobody has yet looked for those that were free at open, from here to
   * COUNT_END.
   */
  uint64_t count;
  uint64_t count_end;
};

extern int allocator_init (struct allocator *a, struct refcounts *rc,
                           struct turn *turn, struct header_writer *header,
                           struct retire *retire);
extern void allocator_destroy (struct allocator *a);

/* The free tail of the file was cut: what is allocated next goes where
 * the file ends now; goes on as before if that is behind alloc_used_end.
 * No request is in progress.
 */
extern int alloc_restart (struct allocator *a);

/* Allocate up to NR adjacent clusters, at least one: their refcounts are
 * 1 in memory.  *FRESH: they read as zeros in the file.  -ENOSPC if
 * there are none.  May write refcount structures, and wait for the turn;
 * no lock may be held.
 */
extern int alloc_clusters (struct allocator *a, uint64_t nr,
                           uint64_t *first, uint64_t *got, bool *fresh);

/* NR clusters from FIRST on are free now (refcount 0). */
extern void alloc_note_free (struct allocator *a, uint64_t first,
                             uint64_t nr);

/* Look for a few of the clusters that are free since before the image was
 * opened.  False when all have been looked at.  May wait for a slot of a
 * refcount slice; no lock may be held.
 */
extern bool alloc_count_some (struct allocator *a);

/* Is this cluster free, and was that done since the image was opened?  Its
 * refcount is 0.
 */
extern bool alloc_is_ours (struct allocator *a, uint64_t cluster);

/* Of a file that can grow: the end of all that was in it, was handed out,
 * or may have been written though nobody has it.
 */
extern uint64_t alloc_used_end (struct allocator *a);

/* What lies below cluster END may have been written, though nobody has it:
 * it is not fresh.
 */
extern void alloc_note_written (struct allocator *a, uint64_t end);

/* The storage has no room for clusters at its end. */
extern void alloc_note_full (struct allocator *a);

/* Make sure that there is a refcount block for CLUSTER, and for some
 * more after it.  Takes the turn.
 */
extern int refcount_grow (struct allocator *a, uint64_t cluster);

/* Make sure that the refcount table on disk names no blocks but those that it
 * is to name.  To be called with the turn, before the place of others may be
 * used for anything else, or cut off.
 */
extern int refcount_settle_entries (struct allocator *a);

/* Make refcount blocks from the one of CLUSTER on, behind which there are
 * none, for NR clusters in a row.  These are free, and begin at *FIRST.
 * Takes the turn.
 */
extern int refcount_grow_run (struct allocator *a, uint64_t cluster,
                              uint64_t nr, uint64_t *first);

/* Allocate exactly NR clusters in a row (alloc-run.c).  The gate is
 * closed: nobody else allocates.  Errors as those of alloc_clusters.
 */
extern int alloc_run (struct allocator *a, uint64_t nr, uint64_t *first);

#endif /* QCOW2_ALLOC_H */
