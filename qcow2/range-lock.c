/* SPDX-License-Identifier: BSD-3-Clause */

/* Locks on ranges of bytes: a list of all that are held or waited for, in
 * the order in which they came.  It is as long as there are requests in
 * progress.
 */

#include <stddef.h>

#include "range-lock.h"

void
range_lock_init (struct range_lock *lock)
{
  pthread_mutex_init (&lock->lock, NULL);
  pthread_cond_init (&lock->released, NULL);
  lock->oldest = lock->newest = NULL;
  lock->nr_waiters = 0;
}

void
range_lock_destroy (struct range_lock *lock)
{
  pthread_mutex_destroy (&lock->lock);
  pthread_cond_destroy (&lock->released);
}

static bool
must_wait_locked (const struct range_hold *hold)
{
  const struct range_hold *h;

  for (h = hold->older; h; h = h->older)
    if (h->start < hold->end && h->end > hold->start &&
        (h->exclusive || hold->exclusive))
      return true;
  return false;
}

void
range_lock_take (struct range_lock *lock, struct range_hold *hold,
                 uint64_t start, uint64_t end, bool exclusive)
{
  hold->start = start;
  hold->end = end;
  hold->exclusive = exclusive;
  hold->newer = NULL;

  pthread_mutex_lock (&lock->lock);
  hold->older = lock->newest;
  if (lock->newest)
    lock->newest->newer = hold;
  else
    lock->oldest = hold;
  lock->newest = hold;

  while (must_wait_locked (hold)) {
    lock->nr_waiters++;
    pthread_cond_wait (&lock->released, &lock->lock);
    lock->nr_waiters--;
  }
  pthread_mutex_unlock (&lock->lock);
}

void
range_lock_release (struct range_lock *lock, struct range_hold *hold)
{
  pthread_mutex_lock (&lock->lock);
  if (hold->older)
    hold->older->newer = hold->newer;
  else
    lock->oldest = hold->newer;
  if (hold->newer)
    hold->newer->older = hold->older;
  else
    lock->newest = hold->older;
  if (lock->nr_waiters > 0)
    pthread_cond_broadcast (&lock->released);
  pthread_mutex_unlock (&lock->lock);
}
