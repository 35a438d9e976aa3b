/* SPDX-License-Identifier: BSD-3-Clause */

/* Epochs.
 *
 * There are two phases, so that those who wait are not held up by
 * requests which begin later: a waiter moves newcomers to the other
 * phase and waits until the old one is empty, twice.  So it sees the
 * counters of both phases empty once after the change of the mapping;
 * whichever of them a request counts itself in, it was seen to leave, or
 * came after and sees the change.
 *
 * A full barrier stands between the increment in epoch_enter and the
 * look-ups of the request, and one between the change of the mapping and
 * the loads of the waiter: so a request that the waiter does not see,
 * sees the change.
 */

#include <sched.h>
#include <string.h>
#include <time.h>

#include "epoch.h"

void
epoch_init (struct epoch *epoch)
{
  memset (epoch, 0, sizeof *epoch);
}

/* Where a read-modify-write is not a full barrier in itself.  The thread
 * sanitizer knows no fences, and does not run on such machines' terms.
 */
static void
full_barrier (void)
{
#ifndef __SANITIZE_THREAD__
  atomic_thread_fence (memory_order_seq_cst);
#endif
}

/* Threads are spread over the stripes once, when they come first. */
static unsigned
my_stripe (void)
{
  static _Atomic unsigned next;
  static __thread unsigned mine;

  if (mine == 0)
    mine = atomic_fetch_add_explicit (&next, 1, memory_order_relaxed) %
      EPOCH_STRIPES + 1;
  return mine - 1;
}

struct epoch_ticket
epoch_enter (struct epoch *epoch)
{
  struct epoch_ticket ticket;

  ticket.stripe = &epoch->stripes[my_stripe ()];
  ticket.phase = atomic_load_explicit (&epoch->phase,
                                       memory_order_relaxed) & 1;
  atomic_fetch_add (&ticket.stripe->active[ticket.phase], 1);
  full_barrier ();
  return ticket;
}

void
epoch_leave (struct epoch_ticket ticket)
{
  atomic_fetch_sub_explicit (&ticket.stripe->active[ticket.phase], 1,
                             memory_order_release);
}

/* If the note is there already, whoever takes it has yet to flush: so it
 * must not be looked at before the write is done.
 */
void
epoch_note_write (struct epoch_ticket ticket)
{
  full_barrier ();
  if (!atomic_load_explicit (&ticket.stripe->wrote, memory_order_relaxed))
    atomic_store (&ticket.stripe->wrote, true);
}

bool
epoch_take_wrote (struct epoch *epoch)
{
  bool wrote = false;
  unsigned i;

  for (i = 0; i < EPOCH_STRIPES; ++i)
    if (atomic_exchange (&epoch->stripes[i].wrote, false))
      wrote = true;
  return wrote;
}

bool
epoch_has_written (const struct epoch *epoch)
{
  unsigned i;

  for (i = 0; i < EPOCH_STRIPES; ++i)
    if (atomic_load (&epoch->stripes[i].wrote))
      return true;
  return false;
}

static bool
is_empty (const struct epoch *epoch, unsigned phase)
{
  unsigned i;

  for (i = 0; i < EPOCH_STRIPES; ++i)
    if (atomic_load (&epoch->stripes[i].active[phase]) != 0)
      return false;
  return true;
}

/* Requests take as long as their I/O: no use to spin for long. */
static void
wait_until_empty (const struct epoch *epoch, unsigned phase)
{
  const struct timespec pause = { .tv_nsec = 200000 };
  unsigned spins;

  for (spins = 0; !is_empty (epoch, phase); ++spins) {
    if (spins < 10)
      sched_yield ();
    else
      nanosleep (&pause, NULL);
  }
}

void
epoch_synchronize (struct epoch *epoch)
{
  unsigned round;

  full_barrier ();
  for (round = 0; round < 2; ++round)
    wait_until_empty (epoch, atomic_fetch_add (&epoch->phase, 1) & 1);
}

/* A stripe that was empty once stays so but for requests that leave at
 * once.
 */
void
epoch_wait_empty (const struct epoch *epoch)
{
  full_barrier ();
  wait_until_empty (epoch, 0);
  wait_until_empty (epoch, 1);
}
