/* SPDX-License-Identifier: BSD-3-Clause */

/* Going over an image with many threads.
 *
 * Work is cut into units, which one function deals out, in order, under
 * a lock; so it may keep a position.  Whoever has something to tell about
 * a unit waits for its turn, so that all is told in the order of the
 * units, by one thread at a time.
 */

#ifndef QCOW2_PARALLEL_H
#define QCOW2_PARALLEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PARALLEL_MAX_THREADS 16

/* Over files with fewer clusters one thread goes alone. */
#define MIN_PARALLEL_CLUSTERS 4096

struct parallel;

struct parallel_unit {
  struct parallel *parallel;
  uint64_t number;              /* of units before it */
  uint64_t first, nr;           /* as the dealer says */
  void *buffer;                 /* the thread's */
};

struct parallel_work {
  unsigned nr_threads;          /* 0: one for each CPU; never more than
                                   PARALLEL_MAX_THREADS */
  size_t buffer_bytes;          /* of each thread */

  /* Set *FIRST and *NR of the next unit; false if there is none. */
  bool (*deal) (void *opaque, uint64_t *first, uint64_t *nr);

  /* Do a unit.  A negative result ends all. */
  int (*run) (void *opaque, struct parallel_unit *unit);
  void *opaque;
};

/* Do all of it; the caller's thread takes part.  Where threads can't be
 * started there are fewer.  Returns 0; the result of the first unit, in
 * order, that has failed; or -ENOMEM.
 */
extern int parallel_run (const struct parallel_work *work);

/* Wait until all units before this one have ended.  What is told after
 * that and before the unit ends is told in order.
 */
extern void parallel_wait_turn (struct parallel_unit *unit);

#endif /* QCOW2_PARALLEL_H */
