/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading many L2 tables of an image that nobody writes to meanwhile, in
 * the order in which they lie in the file, with many threads.
 */

#ifndef QCOW2_L2_WALK_H
#define QCOW2_L2_WALK_H

#include "layer.h"
#include "parallel.h"
#include "ref-map.h"

/* Tables that lie side by side are read at once, up to so many bytes. */
#define L2_WALK_BYTES (1u << 20)

struct l2_walk {
  const struct layer *layer;
  const struct ref_map *map;    /* knows the tables */
  const uint8_t *only;          /* a bit for each cluster: which of them; or
                                   NULL for all */
  unsigned nr_threads;          /* as parallel_work.nr_threads */

  /* Called for each table, with its WORDS as on disk; from many threads.
   * Tables that are holes are left out.  A negative result ends the walk.
   */
  int (*table) (void *opaque, uint64_t cluster, uint64_t *words,
                struct parallel_unit *unit);

  /* Table CLUSTER can't be read: why, a negative errno.  The unit has its
   * turn.
   */
  int (*failed) (void *opaque, uint64_t cluster, int why);

  /* So many clusters of the file are passed; by one thread at a time.
   * May be NULL.
   */
  void (*progress) (void *opaque, uint64_t nr_clusters);
  void *opaque;

  uint64_t cursor;              /* of the walk: 0 at first */
};

/* Takes L2_WALK_BYTES or a cluster, what is more, for each thread.  Returns
 * 0, a negative result of the functions, or -ENOMEM.
 */
extern int l2_walk (struct l2_walk *walk);

/* How many of the L2 tables in clusters FIRST to END, which lie side by side,
 * are holes in the file of L, or data in part (*HOLE false).  At least one.
 */
extern uint64_t l2_walk_alike (const struct layer *l, uint64_t first,
                               uint64_t end, bool *hole);

#endif /* QCOW2_L2_WALK_H */
