/* SPDX-License-Identifier: BSD-3-Clause */

/* The gate: operations on a live image, between requests.
 *
 * Such an operation (growing the disk, reading the image again, coming to
 * rest when the last client leaves) closes the gate: it waits for the
 * requests in progress, and new ones wait for it.  Commits, retiring and
 * the background worker don't pass the gate.
 *
 * A request enters its epoch through the gate.  While it is open that
 * costs one load of a word that is rarely written.
 */

#ifndef QCOW2_GATE_H
#define QCOW2_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "epoch.h"

struct gate {
  struct epoch *epoch;
  _Atomic bool closed;
  pthread_mutex_t lock;
  pthread_cond_t opened;
};

extern void gate_init (struct gate *gate, struct epoch *epoch);
extern void gate_destroy (struct gate *gate);

/* Wait until the gate is open.  For gate_enter. */
extern void gate_wait (struct gate *gate);

/* Begin a request: epoch_enter, once the gate is open.  The caller holds
 * nothing, and is in no epoch.  epoch_leave ends it.
 */
static inline struct epoch_ticket
gate_enter (struct gate *gate)
{
  for (;;) {
    struct epoch_ticket ticket = epoch_enter (gate->epoch);

    if (!atomic_load_explicit (&gate->closed, memory_order_acquire))
      return ticket;
    epoch_leave (ticket);
    gate_wait (gate);
  }
}

/* Close the gate, after another operation has opened it again; on return
 * no request is in progress.  The caller holds no lock, and is in no
 * epoch.  What it does before gate_open may use epoch_enter.
 */
extern void gate_close (struct gate *gate);
extern void gate_open (struct gate *gate);

#endif /* QCOW2_GATE_H */
