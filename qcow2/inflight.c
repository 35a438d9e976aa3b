/* SPDX-License-Identifier: BSD-3-Clause */

/* Claims on ranges of guest clusters. */

#include "inflight.h"

void
inflight_init (struct inflight *inflight)
{
  unsigned i;

  for (i = 0; i < INFLIGHT_STRIPES; ++i) {
    struct inflight_stripe *stripe = &inflight->stripes[i];

    pthread_mutex_init (&stripe->lock, NULL);
    pthread_cond_init (&stripe->changed, NULL);
    stripe->oldest = stripe->newest = NULL;
    stripe->nr_waiters = 0;
  }
}

void
inflight_destroy (struct inflight *inflight)
{
  unsigned i;

  for (i = 0; i < INFLIGHT_STRIPES; ++i) {
    pthread_mutex_destroy (&inflight->stripes[i].lock);
    pthread_cond_destroy (&inflight->stripes[i].changed);
  }
}

/* Where the first older claim on [START, END) begins; END if there is
 * none.
 */
static uint64_t
first_conflict (const struct claim *claim, uint64_t start, uint64_t end)
{
  const struct claim *c;
  uint64_t conflict = end;

  for (c = claim->older; c; c = c->older)
    if (c->start < conflict && c->end > start)
      conflict = c->start > start ? c->start : start;
  return conflict;
}

void
inflight_claim (struct inflight_stripe *stripe, struct claim *claim,
                uint64_t start, uint64_t end, uint64_t first_bytes)
{
  claim->start = start;
  claim->end = end;

  pthread_mutex_lock (&stripe->lock);
  claim->older = stripe->newest;
  claim->newer = NULL;
  if (stripe->newest)
    stripe->newest->newer = claim;
  else
    stripe->oldest = claim;
  stripe->newest = claim;

  while (first_conflict (claim, start, end) < start + first_bytes) {
    stripe->nr_waiters++;
    pthread_cond_wait (&stripe->changed, &stripe->lock);
    stripe->nr_waiters--;
  }
  claim->end = first_conflict (claim, start, end);
  if (claim->end < end && stripe->nr_waiters > 0)
    pthread_cond_broadcast (&stripe->changed);
  pthread_mutex_unlock (&stripe->lock);
}

void
inflight_shrink (struct inflight_stripe *stripe, struct claim *claim,
                 uint64_t end)
{
  pthread_mutex_lock (&stripe->lock);
  claim->end = end;
  if (stripe->nr_waiters > 0)
    pthread_cond_broadcast (&stripe->changed);
  pthread_mutex_unlock (&stripe->lock);
}

void
inflight_release (struct inflight_stripe *stripe, struct claim *claim)
{
  pthread_mutex_lock (&stripe->lock);
  if (claim->older)
    claim->older->newer = claim->newer;
  else
    stripe->oldest = claim->newer;
  if (claim->newer)
    claim->newer->older = claim->older;
  else
    stripe->newest = claim->older;
  if (stripe->nr_waiters > 0)
    pthread_cond_broadcast (&stripe->changed);
  pthread_mutex_unlock (&stripe->lock);
}
