/* SPDX-License-Identifier: BSD-3-Clause */

/* Changing cached slices, and sealing what has changed.
 *
 * A change is made between an odd and an even sequence count, so that
 * readers see all of it or nothing, and its sectors are dirty before it
 * can be seen.  Slots with dirty sectors are on a list.  A seal takes
 * that list and copies the sectors, each slice as it stands between two
 * changes; the slots stay pinned until the copy was written.
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

static int
grow_room (struct sealed_slices *sealed, size_t nr_slots,
           unsigned sectors_per_slice)
{
  struct sealed_sector *sectors;
  uint32_t *slots;
  uint8_t *dirty;

  sectors = realloc (sealed->sectors,
                     (nr_slots * sectors_per_slice + 1) * sizeof *sectors);
  if (sectors)
    sealed->sectors = sectors;
  slots = realloc (sealed->slots, (nr_slots + 1) * sizeof *slots);
  if (slots)
    sealed->slots = slots;
  dirty = realloc (sealed->dirty, nr_slots + 1);
  if (dirty)
    sealed->dirty = dirty;
  if (!sectors || !slots || !dirty)
    return -ENOMEM;
  sealed->room = nr_slots * sectors_per_slice;
  sealed->slots_room = nr_slots;
  return 0;
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

/* Take all slots from the list, pinned: whoever seals relies on all that
 * became dirty before.  If there is not room for all, take none, and
 * return how many there are.
 */
static size_t
take_dirty (struct slice_cache *cache, struct sealed_slices *sealed)
{
  size_t nr_dirty;

  pthread_mutex_lock (&cache->lock);
  nr_dirty = cache->nr_dirty;
  while (nr_dirty <= sealed->slots_room && cache->dirty_list != 0) {
    uint32_t slot = cache->dirty_list - 1;
    struct slice_slot *s = &cache->slots[slot];

    cache->dirty_list = s->next_dirty;
    s->on_dirty_list = false;
    cache->nr_dirty--;
    s->nr_pins++;
    sealed->slots[sealed->nr_slots++] = slot;
  }
  pthread_mutex_unlock (&cache->lock);
  return nr_dirty <= sealed->slots_room ? 0 : nr_dirty;
}

int
slice_cache_seal (struct slice_cache *cache, struct sealed_slices *sealed)
{
  size_t nr_dirty, i;
  int r;

  memset (sealed, 0, sizeof *sealed);
  while ((nr_dirty = take_dirty (cache, sealed)) > 0) {
    /* Some more, for those that become dirty meanwhile. */
    r = grow_room (sealed, nr_dirty + nr_dirty / 4 + 16,
                   cache->slice_bytes / 512);
    if (r < 0) {
      free (sealed->sectors);
      free (sealed->slots);
      free (sealed->dirty);
      memset (sealed, 0, sizeof *sealed);
      return r;
    }
  }

  for (i = 0; i < sealed->nr_slots; ++i) {
    uint32_t slot = sealed->slots[i];

    sealed->dirty[i] = atomic_exchange (&cache->slots[slot].dirty, 0);
    copy_sectors (cache, slot, sealed->dirty[i], sealed);
  }
  return 0;
}

void
slice_cache_unseal (struct slice_cache *cache, struct sealed_slices *sealed,
                    bool written)
{
  size_t i;

  pthread_mutex_lock (&cache->lock);
  for (i = 0; i < sealed->nr_slots; ++i) {
    struct slice_slot *s = &cache->slots[sealed->slots[i]];

    if (!written && sealed->dirty[i]) {
      atomic_fetch_or (&s->dirty, sealed->dirty[i]);
      put_on_dirty_list_locked (cache, s);
    }
    s->nr_pins--;
  }
  if (cache->nr_slot_waiters > 0)
    pthread_cond_broadcast (&cache->unpinned);
  pthread_mutex_unlock (&cache->lock);

  free (sealed->sectors);
  free (sealed->slots);
  free (sealed->dirty);
  memset (sealed, 0, sizeof *sealed);
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
