/* SPDX-License-Identifier: BSD-3-Clause */

/* Epochs: knowing when every request that began before now has ended.
 *
 * A cluster that was unlinked may still be read or written by requests
 * that looked it up before.  Each request runs between epoch_enter and
 * epoch_leave; epoch_synchronize waits for those that began before it.
 * Requests count themselves in stripes of their own cache lines, so that
 * many threads don't write the same one.
 */

#ifndef QCOW2_EPOCH_H
#define QCOW2_EPOCH_H

#include <stdatomic.h>
#include <stdbool.h>

#define EPOCH_STRIPES 64

struct epoch_stripe {
  _Atomic unsigned active[2];   /* requests, by the phase they began in */
  _Atomic bool wrote;           /* since epoch_take_wrote */
} __attribute__ ((__aligned__ (64)));

struct epoch {
  _Atomic unsigned phase;
  struct epoch_stripe stripes[EPOCH_STRIPES];
};

/* What epoch_leave needs to know. */
struct epoch_ticket {
  struct epoch_stripe *stripe;
  unsigned phase;
};

extern void epoch_init (struct epoch *epoch);

extern struct epoch_ticket epoch_enter (struct epoch *epoch);
extern void epoch_leave (struct epoch_ticket ticket);

/* Note that this request has written to the storage. */
extern void epoch_note_write (struct epoch_ticket ticket);

/* For epoch_note_write outside of a request. */
static inline struct epoch_ticket
epoch_first_ticket (struct epoch *epoch)
{
  return (struct epoch_ticket) { .stripe = &epoch->stripes[0] };
}

/* Has any request written since the last call? */
extern bool epoch_take_wrote (struct epoch *epoch);

/* The same, without forgetting it. */
extern bool epoch_has_written (const struct epoch *epoch);

/* Wait until every request that entered before this call has left.  One
 * thread at a time, and not from within a request.
 */
extern void epoch_synchronize (struct epoch *epoch);

/* Wait until no request is in an epoch.  For the gate, which lets none
 * stay that enters after it was closed.
 */
extern void epoch_wait_empty (const struct epoch *epoch);

#endif /* QCOW2_EPOCH_H */
