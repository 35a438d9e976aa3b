/* SPDX-License-Identifier: BSD-3-Clause */

/* The metadata cache.
 *
 * Slots and their memory are made once and never freed, so a reader may
 * look at any slot at any time; a slot only changes what it is a slice
 * of.  Its life:
 *
 *     free ----> loading ----> cached ----> (evicted) loading ...
 *       ^           |
 *       +-- error --+
 *
 * Whoever moves a slot on holds the cache's lock, and makes the
 * sequence count odd before the first word or the key changes and even
 * again after the last.  The words are written with release stores and
 * read with acquire loads: a reader that saw a word of the new slice
 * also sees the sequence count that came before it, and starts again.
 *
 * After a load that failed, or when a slice was dropped, the count is
 * even again, but the words are still those of the slice before, and a
 * reader that was on its way to the slot may yet come by: so the slot
 * loses its key while the count is odd.
 *
 * Hash chains are walked without the lock.  A walk may end up in
 * another chain when a slot on its way changes hands; it then finds
 * nothing (the key decides), and is bounded.  Not to find a slice is
 * always safe: slice_cache_pin looks again under the lock.
 *
 * I/O is done without the lock, into a buffer of the loading thread.
 * Eviction is by clock: a hit sets a bit, only if it is unset.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "hash-seed.h"
#include "slice-cache-impl.h"

#define NO_SLOT UINT32_MAX
#define NO_KEY UINT64_MAX
#define MIN_SLOTS 16
#define MAX_WALK 32

static uint32_t
hash_key (const struct slice_cache *cache, uint64_t key)
{
  return (uint32_t) (hash_seeded (cache->hash_seed, key) >> 32);
}

static _Atomic uint32_t *
head_of (struct slice_cache *cache, uint64_t key)
{
  return &cache->heads[hash_key (cache, key) & cache->hash_mask];
}

static void *
map_zeroed (size_t bytes)
{
  void *p = mmap (NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  return p == MAP_FAILED ? NULL : p;
}

static void
unmap (void *p, size_t bytes)
{
  if (p)
    munmap (p, bytes);
}

struct slice_cache *
slice_cache_new (size_t budget_bytes, size_t slice_bytes)
{
  struct slice_cache *cache;
  size_t nr_slots = budget_bytes / slice_bytes;
  size_t nr_heads = 1, i;

  if (nr_slots < MIN_SLOTS)
    nr_slots = MIN_SLOTS;
  if (nr_slots > UINT32_MAX / 2)
    nr_slots = UINT32_MAX / 2;
  while (nr_heads < nr_slots)
    nr_heads *= 2;

  cache = calloc (1, sizeof *cache);
  if (!cache)
    return NULL;
  cache->slice_bytes = slice_bytes;
  cache->nr_slots = (uint32_t) nr_slots;
  cache->hash_seed = hash_seed ();
  cache->hash_mask = (uint32_t) (nr_heads - 1);
  pthread_mutex_init (&cache->lock, NULL);
  for (i = 0; i < NR_CONDS; ++i)
    pthread_cond_init (&cache->loaded[i], NULL);
  pthread_cond_init (&cache->unpinned, NULL);

  cache->heads = map_zeroed (nr_heads * sizeof *cache->heads);
  cache->slots = map_zeroed (nr_slots * sizeof *cache->slots);
  cache->words = map_zeroed (nr_slots * slice_bytes);
  if (!cache->heads || !cache->slots || !cache->words) {
    slice_cache_free (cache);
    errno = ENOMEM;
    return NULL;
  }
  return cache;
}

void
slice_cache_free (struct slice_cache *cache)
{
  size_t i;

  if (!cache)
    return;
  unmap (cache->heads,
         ((size_t) cache->hash_mask + 1) * sizeof *cache->heads);
  unmap (cache->slots, cache->nr_slots * sizeof *cache->slots);
  unmap (cache->words, cache->nr_slots * cache->slice_bytes);
  pthread_mutex_destroy (&cache->lock);
  for (i = 0; i < NR_CONDS; ++i)
    pthread_cond_destroy (&cache->loaded[i]);
  pthread_cond_destroy (&cache->unpinned);
  free (cache);
}

/* Links hold the slot's number plus one, so that fresh memory, all
 * zeros, is an empty hash table.
 */
static uint32_t
get_link (const _Atomic uint32_t *link)
{
  return atomic_load_explicit (link, memory_order_acquire) - 1;
}

static void
set_link (_Atomic uint32_t *link, uint32_t slot)
{
  atomic_store_explicit (link, slot + 1, memory_order_release);
}

static void
mark_used (struct slice_slot *s)
{
  if (!atomic_load_explicit (&s->used, memory_order_relaxed))
    atomic_store_explicit (&s->used, true, memory_order_relaxed);
}

static void
set_ref (struct slice_cache *cache, uint32_t slot, uint32_t seq,
         struct slice_ref *ref)
{
  ref->slot = &cache->slots[slot];
  ref->words = slot_words (cache, slot);
  ref->seq = seq;
}

bool
slice_cache_find (struct slice_cache *cache, uint64_t key,
                  struct slice_ref *ref)
{
  uint32_t i = get_link (head_of (cache, key));
  unsigned steps;

  for (steps = 0; i != NO_SLOT && steps < MAX_WALK; ++steps) {
    struct slice_slot *s = &cache->slots[i];
    uint32_t seq = atomic_load_explicit (&s->seq, memory_order_acquire);

    if (atomic_load_explicit (&s->key, memory_order_acquire) == key) {
      if (seq & 1)
        return false;
      mark_used (s);
      set_ref (cache, i, seq, ref);
      return true;
    }
    i = get_link (&s->next);
  }
  return false;
}

/*----- Under the lock -----*/

static uint32_t
find_locked (struct slice_cache *cache, uint64_t key)
{
  uint32_t i = get_link (head_of (cache, key));

  while (i != NO_SLOT && cache->slots[i].key != key)
    i = get_link (&cache->slots[i].next);
  return i;
}

static void
insert_locked (struct slice_cache *cache, uint32_t slot, uint64_t key)
{
  struct slice_slot *s = &cache->slots[slot];
  _Atomic uint32_t *head = head_of (cache, key);

  atomic_store_explicit (&s->key, key, memory_order_release);
  set_link (&s->next, get_link (head));
  set_link (head, slot);
  s->cached = true;
}

static void
remove_locked (struct slice_cache *cache, uint32_t slot)
{
  struct slice_slot *s = &cache->slots[slot];
  _Atomic uint32_t *link = head_of (cache, s->key);

  while (get_link (link) != slot)
    link = &cache->slots[get_link (link)].next;
  set_link (link, get_link (&s->next));
  s->cached = false;
}

/* A slot that nobody pins or loads: one never used, else by the clock.
 * One round of the hand clears every bit on the way.  Hits set them again
 * without the lock, perhaps all of them: so the third round takes what it
 * finds, for a caller that gets nothing waits until somebody unpins.
 */
static uint32_t
find_victim_locked (struct slice_cache *cache)
{
  uint64_t steps;

  if (cache->nr_touched < cache->nr_slots)
    return cache->nr_touched++;

  for (steps = 0; steps < 3 * (uint64_t) cache->nr_slots; ++steps) {
    uint32_t i = cache->hand;
    struct slice_slot *s = &cache->slots[i];

    cache->hand = i + 1 == cache->nr_slots ? 0 : i + 1;
    if (s->nr_pins > 0 || s->on_dirty_list)
      continue;
    if (steps >= 2 * (uint64_t) cache->nr_slots ||
        !atomic_load_explicit (&s->used, memory_order_relaxed))
      return i;
    atomic_store_explicit (&s->used, false, memory_order_relaxed);
  }
  return NO_SLOT;
}

/* Take SLOT, which nobody pins, for KEY; readers turn away from now on. */
static void
begin_load_locked (struct slice_cache *cache, uint32_t slot, uint64_t key)
{
  struct slice_slot *s = &cache->slots[slot];

  atomic_fetch_add_explicit (&s->seq, 1, memory_order_acq_rel);
  if (s->cached)
    remove_locked (cache, slot);
  insert_locked (cache, slot, key);
  s->loading = true;
  s->nr_pins = 1;
  cache->nr_loads++;
}

static void
end_load_locked (struct slice_cache *cache, uint32_t slot, int error)
{
  struct slice_slot *s = &cache->slots[slot];
  uint64_t key = s->key;

  s->loading = false;
  if (error) {
    remove_locked (cache, slot);
    atomic_store_explicit (&s->key, NO_KEY, memory_order_release);
    atomic_store_explicit (&s->used, false, memory_order_relaxed);
    s->nr_pins = 0;
    if (cache->nr_slot_waiters > 0)
      pthread_cond_broadcast (&cache->unpinned);
  }
  else
    mark_used (s);
  atomic_fetch_add_explicit (&s->seq, 1, memory_order_release);
  pthread_cond_broadcast (&cache->loaded[hash_key (cache, key) % NR_CONDS]);
}

/*----- Pinning -----*/

/* No slot can be had: have dirty ones written, or wait for a pin to go. */
static int
make_room_locked (struct slice_cache *cache)
{
  int (*fn) (void *opaque) = cache->pressure_fn;
  void *opaque = cache->pressure_opaque;
  int r;

  if (cache->nr_dirty > 0 && fn) {
    pthread_mutex_unlock (&cache->lock);
    r = fn (opaque);
    pthread_mutex_lock (&cache->lock);
    return r;
  }
  cache->nr_slot_waiters++;
  pthread_cond_wait (&cache->unpinned, &cache->lock);
  cache->nr_slot_waiters--;
  return 0;
}

/* Wait until the slice is cached (*CACHED, its slot is pinned), or this
 * thread has to load it (its slot is prepared for that).
 */
static int
claim (struct slice_cache *cache, uint64_t key, uint32_t *slot, bool *cached)
{
  int r = 0;

  *cached = false;
  pthread_mutex_lock (&cache->lock);
  while (r == 0) {
    *slot = find_locked (cache, key);
    if (*slot != NO_SLOT) {
      if (!cache->slots[*slot].loading) {
        cache->slots[*slot].nr_pins++;
        mark_used (&cache->slots[*slot]);
        *cached = true;
        break;
      }
      pthread_cond_wait (&cache->loaded[hash_key (cache, key) % NR_CONDS],
                         &cache->lock);
      continue;
    }
    *slot = find_victim_locked (cache);
    if (*slot != NO_SLOT) {
      begin_load_locked (cache, *slot, key);
      break;
    }
    r = make_room_locked (cache);
  }
  pthread_mutex_unlock (&cache->lock);
  return r;
}

/* Called without the lock: the slot belongs to this thread. */
static int
load (struct slice_cache *cache, uint32_t slot, uint64_t key,
      slice_fill_fn *fill, void *opaque)
{
  uint64_t buf[SLICE_MAX_BYTES / sizeof (uint64_t)];
  _Atomic uint64_t *words = slot_words (cache, slot);
  size_t i;
  int r;

  r = fill (opaque, key, buf);
  if (r == 0)
    for (i = 0; i < cache->slice_bytes / sizeof (uint64_t); ++i)
      atomic_store_explicit (&words[i], buf[i], memory_order_release);

  pthread_mutex_lock (&cache->lock);
  end_load_locked (cache, slot, r);
  pthread_mutex_unlock (&cache->lock);
  return r;
}

static int
pin_claimed (struct slice_cache *cache, uint32_t slot, uint64_t key,
             bool cached, slice_fill_fn *fill, void *opaque,
             struct slice_ref *ref)
{
  int r = cached ? 0 : load (cache, slot, key, fill, opaque);

  if (r < 0)
    return r;
  set_ref (cache, slot, 0, ref);
  slice_restart (ref);
  return 0;
}

int
slice_cache_pin (struct slice_cache *cache, uint64_t key,
                 slice_fill_fn *fill, void *opaque, struct slice_ref *ref)
{
  uint32_t slot;
  bool cached;
  int r = claim (cache, key, &slot, &cached);

  return r < 0 ? r : pin_claimed (cache, slot, key, cached, fill, opaque, ref);
}

void
slice_unpin (struct slice_cache *cache, struct slice_ref *ref)
{
  pthread_mutex_lock (&cache->lock);
  if (--ref->slot->nr_pins == 0 && cache->nr_slot_waiters > 0)
    pthread_cond_broadcast (&cache->unpinned);
  pthread_mutex_unlock (&cache->lock);
}

size_t
slice_cache_nr_slots (struct slice_cache *cache)
{
  return cache->nr_slots;
}

void
slice_cache_on_pressure (struct slice_cache *cache,
                         int (*fn) (void *opaque), void *opaque)
{
  pthread_mutex_lock (&cache->lock);
  cache->pressure_fn = fn;
  cache->pressure_opaque = opaque;
  pthread_mutex_unlock (&cache->lock);
}

void
slice_cache_drop (struct slice_cache *cache, uint64_t first, uint64_t end)
{
  uint64_t key;

  pthread_mutex_lock (&cache->lock);
  for (key = first; key < end; key += cache->slice_bytes) {
    uint32_t slot = find_locked (cache, key);
    struct slice_slot *s;

    if (slot == NO_SLOT)
      continue;
    s = &cache->slots[slot];
    if (s->nr_pins > 0) {
      cache->nr_slot_waiters++;
      pthread_cond_wait (&cache->unpinned, &cache->lock);
      cache->nr_slot_waiters--;
      key -= cache->slice_bytes; /* look again */
      continue;
    }
    atomic_fetch_add_explicit (&s->seq, 1, memory_order_acq_rel);
    atomic_store (&s->dirty, 0);
    remove_locked (cache, slot);
    atomic_store_explicit (&s->key, NO_KEY, memory_order_release);
    atomic_fetch_add_explicit (&s->seq, 1, memory_order_release);
  }
  pthread_mutex_unlock (&cache->lock);
}

void
slice_cache_get_stats (struct slice_cache *cache,
                       struct slice_cache_stats *stats)
{
  pthread_mutex_lock (&cache->lock);
  stats->nr_loads = cache->nr_loads;
  stats->nr_slots = cache->nr_slots;
  stats->nr_slots_touched = cache->nr_touched;
  pthread_mutex_unlock (&cache->lock);
}

/*----- Without a slot -----*/

/* A slice that is not cached is neither dirty nor sealed, so the storage has
 * it as it is; and it stays so as long as nobody loads it.
 */
static bool
begin_copy (struct slice_cache *cache, uint64_t key, uint64_t *nr_loads)
{
  bool cached;

  pthread_mutex_lock (&cache->lock);
  cached = find_locked (cache, key) != NO_SLOT;
  *nr_loads = cache->nr_loads;
  pthread_mutex_unlock (&cache->lock);
  return !cached;
}

static bool
end_copy (struct slice_cache *cache, uint64_t nr_loads)
{
  bool valid;

  pthread_mutex_lock (&cache->lock);
  valid = cache->nr_loads == nr_loads;
  pthread_mutex_unlock (&cache->lock);
  return valid;
}

static void
copy_words (struct slice_cache *cache, const uint64_t *buf,
            struct slice_copy *copy, struct slice_ref *ref)
{
  size_t i;

  memset (&copy->slot, 0, sizeof copy->slot);
  for (i = 0; i < cache->slice_bytes / sizeof (uint64_t); ++i)
    atomic_init (&copy->words[i], buf[i]);
  ref->slot = &copy->slot;
  ref->words = copy->words;
  ref->seq = 0;
}

int
slice_cache_pin_or_copy (struct slice_cache *cache, uint64_t key,
                         slice_fill_fn *fill, void *opaque,
                         struct slice_copy *copy, struct slice_ref *ref)
{
  uint64_t buf[SLICE_MAX_BYTES / sizeof (uint64_t)];
  uint64_t nr_loads;
  uint32_t slot;
  bool cached;

  for (;;) {
    int r = claim (cache, key, &slot, &cached);

    if (r == 0)
      return pin_claimed (cache, slot, key, cached, fill, opaque, ref);
    if (!begin_copy (cache, key, &nr_loads))
      continue;
    r = fill (opaque, key, buf);
    if (!end_copy (cache, nr_loads))
      continue;
    if (r == 0)
      copy_words (cache, buf, copy, ref);
    return r;
  }
}

void
slice_unpin_or_forget (struct slice_cache *cache, struct slice_copy *copy,
                       struct slice_ref *ref)
{
  if (ref->slot != &copy->slot)
    slice_unpin (cache, ref);
}
