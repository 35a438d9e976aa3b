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

#define SLICE_MAX_BYTES 4096

/* The sequence count is odd while a slot changes hands. */
struct slice_slot {
  _Atomic uint64_t key;
  _Atomic uint32_t seq;
  _Atomic uint32_t next;        /* in its hash chain */
  _Atomic bool used;            /* since the clock's hand came by */
  _Atomic uint8_t dirty;        /* a bit for each 512-byte sector */
  bool on_dirty_list;           /* this and below under the cache's lock */
  bool loading;
  bool cached;                  /* in its hash chain */
  uint32_t nr_pins;
  uint32_t next_dirty;          /* slot number plus one, or 0 */
};

struct slice_ref {
  struct slice_slot *slot;
  const _Atomic uint64_t *words;
  uint32_t seq;
};

/* Fill BUF with the slice of KEY.  Called without locks, by one thread
 * for a key at a time, if not for a copy; it must not pin a slice.  Returns
 * 0 or a negative errno; nothing is kept then, and others who wait for the
 * slice try themselves.
 */
typedef int slice_fill_fn (void *opaque, uint64_t key, uint64_t *buf);

/* A cache of BUDGET_BYTES (but at least 16 slices), in slices of
 * SLICE_BYTES (512 to SLICE_MAX_BYTES).  Memory is touched only when it
 * is used.  NULL with errno on error.
 */
extern struct slice_cache *slice_cache_new (size_t budget_bytes,
                                            size_t slice_bytes);
extern void slice_cache_free (struct slice_cache *cache);

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

/* A slice that has no slot. */
struct slice_copy {
  struct slice_slot slot;
  _Atomic uint64_t words[SLICE_MAX_BYTES / sizeof (uint64_t)];
};

/* The same for those who only read.  Where all slots are dirty and can't be
 * written, the slice is read into COPY, which REF is good for then: what was
 * written can still be read after writing has ended.
 */
extern int slice_cache_pin_or_copy (struct slice_cache *cache, uint64_t key,
                                    slice_fill_fn *fill, void *opaque,
                                    struct slice_copy *copy,
                                    struct slice_ref *ref);
extern void slice_unpin_or_forget (struct slice_cache *cache,
                                   struct slice_copy *copy,
                                   struct slice_ref *ref);

/* Word INDEX of the slice, in host order.  The acquire load keeps the
 * check of slice_still_valid behind it.
 */
static inline uint64_t
slice_load (const struct slice_ref *ref, size_t index)
{
  return be64toh (atomic_load_explicit (&ref->words[index],
                                        memory_order_acquire));
}

/* Was everything that slice_load gave since slice_cache_find (or
 * slice_restart) part of the slice, between two changes?
 */
static inline bool
slice_still_valid (const struct slice_ref *ref)
{
  return atomic_load_explicit (&ref->slot->seq,
                               memory_order_relaxed) == ref->seq;
}

/*----- Changing slices -----*/

/* The words of a pinned slice are changed between these two, by one
 * thread at a time (its caller's lock sees to that).  Readers see all of
 * the change or nothing.  slice_end_change marks words FIRST to FIRST +
 * NR - 1 as dirty: a dirty slice stays in the cache.
 */
extern void slice_begin_change (struct slice_ref *ref);
extern void slice_end_change (struct slice_cache *cache,
                              struct slice_ref *ref, size_t first, size_t nr);

static inline void
slice_store (struct slice_ref *ref, size_t index, uint64_t value)
{
  atomic_store_explicit ((_Atomic uint64_t *) &ref->words[index],
                         htobe64 (value), memory_order_release);
}

/*----- Sealing: slice-seal.c -----*/

/* A sector to be written. */
struct sealed_sector {
  uint64_t key;                 /* of the slice */
  uint32_t byte_in_slice;
  uint8_t data[512];
};

/* What one committer seals, in batches of bounded size.  The memory is for
 * one batch, and used again for all of them.
 */
struct sealed_slices {
  uint32_t *slots;              /* all that were dirty: they stay pinned */
  uint8_t *dirty;               /* which sectors, of those copied */
  size_t nr_slots;
  size_t nr_copied;             /* of them, from the first one on */
  size_t nr_released;

  struct sealed_sector *sectors; /* the batch copied last */
  size_t nr_sectors, max_sectors;
};

/* BATCH_BYTES bounds a batch, but a slice has room.  -ENOMEM on error;
 * sealed_slices_free may be called then, too.
 */
extern int sealed_slices_init (struct sealed_slices *sealed,
                               struct slice_cache *cache,
                               size_t batch_bytes);
extern void sealed_slices_free (struct sealed_slices *sealed);

/* Take all slices that are dirty now. */
extern void slice_cache_seal (struct slice_cache *cache,
                              struct sealed_slices *sealed);

/* Copy the dirty sectors of some more of them, as they are now, and count
 * them as clean.  Changes that go on meanwhile are in the copy, or make
 * the sector dirty again, or both.  False if there are no slices left;
 * the batch is empty then.
 */
extern bool slice_cache_copy (struct slice_cache *cache,
                              struct sealed_slices *sealed);

/* What was copied of the first NR slices was written, for good. */
extern void slice_cache_release (struct slice_cache *cache,
                                 struct sealed_slices *sealed, size_t nr);

/* The end: all that was not released is dirty as before. */
extern void slice_cache_unseal (struct slice_cache *cache,
                                struct sealed_slices *sealed);

/* How many slices are dirty, and of how many. */
extern size_t slice_cache_nr_dirty (struct slice_cache *cache);
extern size_t slice_cache_nr_slots (struct slice_cache *cache);

/* FN is called, without a lock, by slice_cache_pin when dirty slices are
 * in the way: it writes them, or returns a negative errno, which becomes
 * the result of slice_cache_pin.  That doesn't depend on another thread,
 * which may be waiting for this one.
 */
extern void slice_cache_on_pressure (struct slice_cache *cache,
                                     int (*fn) (void *opaque), void *opaque);

/* Drop the slices whose keys lie in [FIRST, END), in steps of the slice
 * size, which nobody looks up any more; what is dirty in them is lost.
 * Waits for a running commit that has them sealed.
 */
extern void slice_cache_drop (struct slice_cache *cache,
                              uint64_t first, uint64_t end);

/* Begin to read a pinned slice again, after a change has ended. */
extern void slice_restart (struct slice_ref *ref);

struct slice_cache_stats {
  uint64_t nr_loads;            /* begun so far, failed ones too */
  size_t nr_slots;
  size_t nr_slots_touched;      /* slots that have taken memory */
};

extern void slice_cache_get_stats (struct slice_cache *cache,
                                   struct slice_cache_stats *stats);

#endif /* QCOW2_SLICE_CACHE_H */
