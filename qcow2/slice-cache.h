/* SPDX-License-Identifier: BSD-3-Clause */

/* The metadata cache: 4 KiB slices (or smaller) of tables, shared by
 * all layers of a chain and by all threads.
 *
 * A slice is an array of 64-bit words, big-endian as on disk.  It is
 * found by a 64-bit key (any but UINT64_MAX), which says what it is a
 * slice of.  A hit takes no lock and writes nothing that another thread
 * reads: the words are loaded first, and then the slot's sequence count
 * tells whether it held that slice all the time.
 *
 *     if (slice_cache_find (cache, key, &ref)) {
 *       word = slice_load (&ref, i);
 *       if (slice_still_valid (&ref))
 *         the word is good
 *     }
 *
 * On a miss, or when a slot was taken away under a reader, the caller
 * pins the slice: that waits for I/O if need be, and always succeeds or
 * says why not.
 */

#ifndef QCOW2_SLICE_CACHE_H
#define QCOW2_SLICE_CACHE_H

#include <endian.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct slice_cache;

/* The sequence count is odd while a slot changes hands. */
struct slice_slot {
  _Atomic uint64_t key;
  _Atomic uint32_t seq;
  _Atomic uint32_t next;        /* in its hash chain */
  _Atomic bool used;            /* since the clock's hand came by */
  bool loading;                 /* this and below under the cache's lock */
  bool cached;                  /* in its hash chain */
  uint32_t nr_pins;
};

struct slice_ref {
  struct slice_slot *slot;
  const _Atomic uint64_t *words;
  uint32_t seq;
};

/* Fill BUF with the slice of KEY.  Called without locks, by one thread
 * for a key at a time; it must not pin a slice.  Returns 0 or a negative
 * errno; nothing is kept then, and others who wait for the slice try
 * themselves.
 */
typedef int slice_fill_fn (void *opaque, uint64_t key, uint64_t *buf);

/* A cache of BUDGET_BYTES (but at least 16 slices), in slices of
 * SLICE_BYTES (512 to SLICE_MAX_BYTES).  Memory is touched only when it
 * is used.  NULL with errno on error.
 */
extern struct slice_cache *slice_cache_new (size_t budget_bytes,
                                            size_t slice_bytes);
extern void slice_cache_free (struct slice_cache *cache);

#define SLICE_MAX_BYTES 4096

/* Find a slice without waiting.  False on a miss. */
extern bool slice_cache_find (struct slice_cache *cache, uint64_t key,
                              struct slice_ref *ref);

/* Find or load a slice, and keep it in its slot until slice_unpin.  May
 * wait for I/O and for a slot: a thread that has a slice pinned must
 * not pin another.
 */
extern int slice_cache_pin (struct slice_cache *cache, uint64_t key,
                            slice_fill_fn *fill, void *opaque,
                            struct slice_ref *ref);
extern void slice_unpin (struct slice_cache *cache, struct slice_ref *ref);

/* Word INDEX of the slice, in host order.  The acquire load keeps the
 * check of slice_still_valid behind it.
 */
static inline uint64_t
slice_load (const struct slice_ref *ref, size_t index)
{
  return be64toh (atomic_load_explicit (&ref->words[index],
                                        memory_order_acquire));
}

/* Was everything that slice_load gave since slice_cache_find part of
 * the slice?  Always true while it is pinned.
 */
static inline bool
slice_still_valid (const struct slice_ref *ref)
{
  return atomic_load_explicit (&ref->slot->seq,
                               memory_order_relaxed) == ref->seq;
}

struct slice_cache_stats {
  uint64_t nr_loads;            /* begun so far, failed ones too */
  size_t nr_slots;
  size_t nr_slots_touched;      /* slots that have taken memory */
};

extern void slice_cache_get_stats (struct slice_cache *cache,
                                   struct slice_cache_stats *stats);

#endif /* QCOW2_SLICE_CACHE_H */
