/* SPDX-License-Identifier: BSD-3-Clause */

/* What slice-cache.c and slice-seal.c share, and nobody else looks at. */

#ifndef QCOW2_SLICE_CACHE_IMPL_H
#define QCOW2_SLICE_CACHE_IMPL_H

#include <pthread.h>

#include "slice-cache.h"

#define NR_CONDS 16

struct slice_cache {
  size_t slice_bytes;
  uint64_t hash_seed;
  uint32_t nr_slots;
  uint32_t hash_mask;
  _Atomic uint32_t *heads;      /* hash -> first slot of the chain */
  struct slice_slot *slots;
  _Atomic uint64_t *words;      /* slice_bytes for each slot */

  pthread_mutex_t lock;
  /* Both under the lock. */
  uint32_t nr_touched;          /* slots from here on were never used */
  uint32_t hand;                /* of the clock */
  uint64_t nr_loads;

  uint32_t dirty_list;          /* first slot plus one, or 0 */
  size_t nr_dirty;
  int (*pressure_fn) (void *opaque);
  void *pressure_opaque;

  pthread_cond_t loaded[NR_CONDS]; /* by hash of the key */
  pthread_cond_t unpinned;
  unsigned nr_slot_waiters;
};

static inline _Atomic uint64_t *
slot_words (struct slice_cache *cache, uint32_t slot)
{
  return cache->words + slot * (cache->slice_bytes / sizeof (uint64_t));
}

#endif /* QCOW2_SLICE_CACHE_IMPL_H */
