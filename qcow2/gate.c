/* SPDX-License-Identifier: BSD-3-Clause */

/* The gate.
 *
 * A request counts itself in its epoch, then looks whether the gate is
 * closed; an operation closes the gate, then looks at the counts.  Each
 * has a full barrier in between (epoch_enter, epoch_wait_empty), so one
 * of them sees the other: a request that found the gate open is counted
 * where the operation looks.  Who finds it closed leaves at once, having
 * looked at nothing.  What the operation did is seen by those who then
 * find the gate open: it is opened with release.
 */

#include "gate.h"

void
gate_init (struct gate *gate, struct epoch *epoch)
{
  gate->epoch = epoch;
  atomic_init (&gate->closed, false);
  pthread_mutex_init (&gate->lock, NULL);
  pthread_cond_init (&gate->opened, NULL);
}

void
gate_destroy (struct gate *gate)
{
  pthread_mutex_destroy (&gate->lock);
  pthread_cond_destroy (&gate->opened);
}

void
gate_wait (struct gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  while (atomic_load_explicit (&gate->closed, memory_order_relaxed))
    pthread_cond_wait (&gate->opened, &gate->lock);
  pthread_mutex_unlock (&gate->lock);
}

void
gate_close (struct gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  while (atomic_load_explicit (&gate->closed, memory_order_relaxed))
    pthread_cond_wait (&gate->opened, &gate->lock);
  atomic_store (&gate->closed, true);
  pthread_mutex_unlock (&gate->lock);
  epoch_wait_empty (gate->epoch);
}

void
gate_open (struct gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  atomic_store_explicit (&gate->closed, false, memory_order_release);
  pthread_cond_broadcast (&gate->opened);
  pthread_mutex_unlock (&gate->lock);
}
