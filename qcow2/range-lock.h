/* SPDX-License-Identifier: BSD-3-Clause */

/* Locks on ranges of bytes, shared or exclusive.
 *
 * They are served in the order in which they were asked for: nobody waits
 * for a lock that was asked for later, so nobody waits forever.
 */

#ifndef QCOW2_RANGE_LOCK_H
#define QCOW2_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* On the stack of whoever holds the range. */
struct range_hold {
  uint64_t start, end;
  bool exclusive;
  struct range_hold *older, *newer;
};

struct range_lock {
  pthread_mutex_t lock;
  pthread_cond_t released;
  struct range_hold *oldest, *newest;
  unsigned nr_waiters;
};

extern void range_lock_init (struct range_lock *lock);
extern void range_lock_destroy (struct range_lock *lock);

/* Lock [START, END).  Waits for older locks that overlap, if these or this
 * one are exclusive.  The range may be held over I/O; whoever holds one
 * takes no second one of the same LOCK.
 */
extern void range_lock_take (struct range_lock *lock,
                             struct range_hold *hold, uint64_t start,
                             uint64_t end, bool exclusive);

extern void range_lock_release (struct range_lock *lock,
                                struct range_hold *hold);

#endif /* QCOW2_RANGE_LOCK_H */
