/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests in flight: those that will change L2 entries after their I/O.
 *
 * Such a request first claims the range of guest clusters whose entries
 * it will change.  Claims that overlap are served in the order in which
 * they came.  While a claim is held nobody else changes these entries,
 * so what its owner reads of them stays true until it links.
 *
 * Whoever holds a claim does not wait for another one.
 */

#ifndef QCOW2_INFLIGHT_H
#define QCOW2_INFLIGHT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define INFLIGHT_STRIPES 64

/* On the stack of the request. */
struct claim {
  uint64_t start, end;          /* guest bytes, aligned to clusters */
  struct claim *older, *newer;
};

/* Claims of the part of the disk that one L1 entry covers. */
struct inflight_stripe {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct claim *oldest, *newest;
  unsigned nr_waiters;
} __attribute__ ((__aligned__ (64)));

struct inflight {
  struct inflight_stripe stripes[INFLIGHT_STRIPES];
};

extern void inflight_init (struct inflight *inflight);
extern void inflight_destroy (struct inflight *inflight);

static inline struct inflight_stripe *
inflight_stripe (struct inflight *inflight, uint64_t l1_index)
{
  return &inflight->stripes[l1_index % INFLIGHT_STRIPES];
}

/* Claim [START, END), which lies within what one L1 entry covers.  Waits
 * for older claims on its first FIRST_BYTES; the claim then ends where
 * the next older one begins.
 */
extern void inflight_claim (struct inflight_stripe *stripe,
                            struct claim *claim, uint64_t start,
                            uint64_t end, uint64_t first_bytes);

/* Make a claim end earlier: the request does less. */
extern void inflight_shrink (struct inflight_stripe *stripe,
                             struct claim *claim, uint64_t end);

extern void inflight_release (struct inflight_stripe *stripe,
                              struct claim *claim);

#endif /* QCOW2_INFLIGHT_H */
