/* SPDX-License-Identifier: BSD-3-Clause */

/* Changing cached slices, and sealing what has changed.
 *
 * A change is made between an odd and an even sequence count, so that
 * readers see all of it or nothing, and its sectors are dirty before it
 * can be seen.  Slots with dirty sectors are on a list.  A seal takes
 * that list, then copies the sectors batch by batch, each slice as it
 * stands between two changes; the slots stay pinned until their copy was
 * written.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "slice-cache-impl.h"

/*----- Changing -----*/

void
slice_restart (struct slice_ref *ref)
{
  do
    ref->seq = atomic_load_explicit (&ref->slot->seq, memory_order_acquire);
  while (ref->seq & 1);
}

void
slice_begin_change (struct slice_ref *ref)
{
  ref->seq = atomic_fetch_add_explicit (&ref->slot->seq, 1,
                                        memory_order_acq_rel) + 1;
}

/* The sectors that hold words FIRST to FIRST + NR - 1. */
static uint8_t
sector_mask (size_t first, size_t nr)
{
  unsigned low = first / 64, high = (first + nr - 1) / 64;

  return (uint8_t) ((2u << high) - (1u << low));
}

static void
put_on_dirty_list_locked (struct slice_cache *cache, struct slice_slot *s)
{
  if (s->on_dirty_list)
    return;
  s->on_dirty_list = true;
  s->next_dirty = cache->dirty_list;
  cache->dirty_list = (uint32_t) (s - cache->slots) + 1;
  cache->nr_dirty++;
}

void
slice_end_change (struct slice_cache *cache, struct slice_ref *ref,
                  size_t first, size_t nr)
{
  struct slice_slot *s = ref->slot;
  uint8_t mask = sector_mask (first, nr);

  /* Before readers see the change: what they see and what is not dirty
   * is on disk.  A slot with dirty sectors is on the list, so the lock is
   * needed only for the first one.
   */
  if (atomic_fetch_or (&s->dirty, mask) == 0) {
    pthread_mutex_lock (&cache->lock);
    put_on_dirty_list_locked (cache, s);
    pthread_mutex_unlock (&cache->lock);
  }
  ref->seq = atomic_fetch_add_explicit (&s->seq, 1,
                                        memory_order_acq_rel) + 1;
}

/*----- Sealing -----*/

int
sealed_slices_init (struct sealed_slices *sealed, struct slice_cache *cache,
                    size_t batch_bytes)
{
  memset (sealed, 0, sizeof *sealed);
  if (batch_bytes < cache->slice_bytes)
    batch_bytes = cache->slice_bytes;
  sealed->max_sectors = batch_bytes / 512;
  sealed->sectors = malloc (sealed->max_sectors * sizeof *sealed->sectors);
  sealed->slots = malloc (cache->nr_slots * sizeof *sealed->slots);
  sealed->dirty = malloc (cache->nr_slots);
  if (!sealed->sectors || !sealed->slots || !sealed->dirty)
    return -ENOMEM;
  return 0;
}

void
sealed_slices_free (struct sealed_slices *sealed)
{
  free (sealed->sectors);
  free (sealed->slots);
  free (sealed->dirty);
  memset (sealed, 0, sizeof *sealed);
}

/* Copy the sectors of MASK as they stand between two changes. */
static void
copy_sectors (struct slice_cache *cache, uint32_t slot, uint8_t mask,
              struct sealed_slices *sealed)
{
  const struct slice_slot *s = &cache->slots[slot];
  const _Atomic uint64_t *words = slot_words (cache, slot);
  size_t first = sealed->nr_sectors;
  uint32_t seq;

  do {
    unsigned sector, i;

    sealed->nr_sectors = first;
    seq = atomic_load_explicit (&s->seq, memory_order_acquire);
    for (sector = 0; sector < 8; ++sector) {
      struct sealed_sector *out = &sealed->sectors[sealed->nr_sectors];
      uint64_t copy[64];

      if (!(mask & 1u << sector))
        continue;
      for (i = 0; i < 64; ++i)
        copy[i] = atomic_load_explicit (&words[sector * 64 + i],
                                        memory_order_acquire);
      out->key = s->key;
      out->byte_in_slice = sector * 512;
      memcpy (out->data, copy, sizeof copy);
      sealed->nr_sectors++;
    }
  } while ((seq & 1) ||
           atomic_load_explicit (&s->seq, memory_order_relaxed) != seq);
}

void
slice_cache_seal (struct slice_cache *cache, struct sealed_slices *sealed)
{
  sealed->nr_slots = sealed->nr_copied = sealed->nr_released = 0;
  sealed->nr_sectors = 0;
  pthread_mutex_lock (&cache->lock);
  while (cache->dirty_list != 0) {
    uint32_t slot = cache->dirty_list - 1;
    struct slice_slot *s = &cache->slots[slot];

    cache->dirty_list = s->next_dirty;
    s->on_dirty_list = false;
    cache->nr_dirty--;
    s->nr_pins++;
    sealed->slots[sealed->nr_slots++] = slot;
  }
  pthread_mutex_unlock (&cache->lock);
}

bool
slice_cache_copy (struct slice_cache *cache, struct sealed_slices *sealed)
{
  size_t i = sealed->nr_copied;

  sealed->nr_sectors = 0;
  while (i < sealed->nr_slots && sealed->nr_sectors +
         cache->slice_bytes / 512 <= sealed->max_sectors) {
    uint32_t slot = sealed->slots[i];

    sealed->dirty[i] = atomic_exchange (&cache->slots[slot].dirty, 0);
    copy_sectors (cache, slot, sealed->dirty[i], sealed);
    i++;
  }
  if (i == sealed->nr_copied)
    return false;
  sealed->nr_copied = i;
  return true;
}

static void
unpin_locked (struct slice_cache *cache, struct sealed_slices *sealed,
              size_t end)
{
  for (; sealed->nr_released < end; sealed->nr_released++)
    cache->slots[sealed->slots[sealed->nr_released]].nr_pins--;
  if (cache->nr_slot_waiters > 0)
    pthread_cond_broadcast (&cache->unpinned);
}

void
slice_cache_release (struct slice_cache *cache, struct sealed_slices *sealed,
                     size_t nr)
{
  if (nr == sealed->nr_released)
    return;
  pthread_mutex_lock (&cache->lock);
  unpin_locked (cache, sealed, nr);
  pthread_mutex_unlock (&cache->lock);
}

void
slice_cache_unseal (struct slice_cache *cache, struct sealed_slices *sealed)
{
  size_t i;

  if (sealed->nr_released == sealed->nr_slots)
    return;
  pthread_mutex_lock (&cache->lock);
  for (i = sealed->nr_released; i < sealed->nr_slots; ++i) {
    struct slice_slot *s = &cache->slots[sealed->slots[i]];

    if (i < sealed->nr_copied)
      atomic_fetch_or (&s->dirty, sealed->dirty[i]);
    if (s->dirty != 0)
      put_on_dirty_list_locked (cache, s);
  }
  unpin_locked (cache, sealed, sealed->nr_slots);
  pthread_mutex_unlock (&cache->lock);
}

size_t
slice_cache_nr_dirty (struct slice_cache *cache)
{
  size_t r;

  pthread_mutex_lock (&cache->lock);
  r = cache->nr_dirty;
  pthread_mutex_unlock (&cache->lock);
  return r;
}
