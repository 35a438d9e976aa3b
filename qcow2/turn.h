/* SPDX-License-Identifier: BSD-3-Clause */

/* The turn: whose it is alone writes the L1 table, the refcount table
 * and the header.  It is kept over I/O, so it is no lock: a thread that
 * holds a lock, or has clusters in flight that others wait for, may take
 * it all the same, since whoever has the turn waits for neither.
 */

#ifndef QCOW2_TURN_H
#define QCOW2_TURN_H

#include <pthread.h>
#include <stdbool.h>

struct turn {
  pthread_mutex_t lock;
  pthread_cond_t free;
  bool taken;
};

static inline void
turn_init (struct turn *turn)
{
  pthread_mutex_init (&turn->lock, NULL);
  pthread_cond_init (&turn->free, NULL);
  turn->taken = false;
}

static inline void
turn_destroy (struct turn *turn)
{
  pthread_mutex_destroy (&turn->lock);
  pthread_cond_destroy (&turn->free);
}

static inline void
turn_take (struct turn *turn)
{
  pthread_mutex_lock (&turn->lock);
  while (turn->taken)
    pthread_cond_wait (&turn->free, &turn->lock);
  turn->taken = true;
  pthread_mutex_unlock (&turn->lock);
}

static inline void
turn_give (struct turn *turn)
{
  pthread_mutex_lock (&turn->lock);
  turn->taken = false;
  pthread_cond_signal (&turn->free);
  pthread_mutex_unlock (&turn->lock);
}

#endif /* QCOW2_TURN_H */
