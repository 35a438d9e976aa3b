/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing the L1 table.
 *
 * A sector of the table is written from the durable copy with the sealed
 * changes put in, never from live memory: an entry next to them may
 * already name a table that is not durable.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "l1-write.h"

#define ENTRIES_PER_SECTOR 64

int
l1_writer_init (struct l1_writer *w, struct layer *l)
{
  uint32_t nr = l->l1.nr_entries, i;

  memset (w, 0, sizeof *w);
  w->layer = l;
  w->durable = malloc (nr * sizeof *w->durable + 1);
  if (!w->durable)
    return -ENOMEM;
  for (i = 0; i < nr; ++i)
    w->durable[i] = htobe64 (l->l1.entries[i]);
  pthread_mutex_init (&w->lock, NULL);
  return 0;
}

void
l1_writer_destroy (struct l1_writer *w)
{
  if (!w->durable)
    return;
  free (w->durable);
  free (w->changed.items);
  pthread_mutex_destroy (&w->lock);
}

int
l1_larger_init (const struct l1_writer *w, uint32_t nr,
                struct l1_larger *larger)
{
  const struct l1_table *old = &w->layer->l1;
  uint32_t i;

  larger->nr_entries = nr;
  larger->entries = calloc (nr, sizeof *larger->entries);
  larger->durable = calloc (nr, sizeof *larger->durable);
  if (!larger->entries || !larger->durable) {
    l1_larger_clear (larger);
    return -ENOMEM;
  }
  for (i = 0; i < old->nr_entries; ++i) {
    larger->entries[i] = old->entries[i];
    larger->durable[i] = w->durable[i];
  }
  return 0;
}

void
l1_larger_clear (struct l1_larger *larger)
{
  free ((void *) larger->entries);
  free (larger->durable);
  memset (larger, 0, sizeof *larger);
}

void
l1_replace (struct l1_writer *w, struct l1_larger *larger,
            uint64_t host_offset)
{
  struct layer *l = w->layer;
  struct l1_larger old = { l->l1.entries, w->durable, l->l1.nr_entries };

  pthread_mutex_lock (&w->lock);
  l->l1.entries = larger->entries;
  l->l1.nr_entries = l->header.l1_entries = larger->nr_entries;
  l->header.l1_offset = host_offset;
  w->durable = larger->durable;
  pthread_mutex_unlock (&w->lock);
  *larger = old;
  l1_larger_clear (larger);
}

/* Have room for NR more. */
static int
reserve (struct l1_changes *list, size_t nr)
{
  size_t room = list->room ? list->room : 16;
  struct l1_change *items;

  if (list->room - list->nr >= nr)
    return 0;
  while (room - list->nr < nr)
    room *= 2;
  items = realloc (list->items, room * sizeof *items);
  if (!items)
    return -ENOMEM;
  list->items = items;
  list->room = room;
  return 0;
}

int
l1_set (struct l1_writer *w, uint32_t index, uint64_t value)
{
  int r;

  pthread_mutex_lock (&w->lock);
  r = reserve (&w->changed, w->nr_sealed + 1);
  if (r == 0) {
    w->changed.items[w->changed.nr++].index = index;
    w->layer->l1.entries[index] = value;
  }
  pthread_mutex_unlock (&w->lock);
  return r;
}

bool
l1_is_clean (struct l1_writer *w)
{
  bool clean;

  pthread_mutex_lock (&w->lock);
  clean = w->changed.nr == 0;
  pthread_mutex_unlock (&w->lock);
  return clean;
}

static int
compare (const void *a, const void *b)
{
  const struct l1_change *x = a, *y = b;

  return x->index < y->index ? -1 : x->index > y->index;
}

void
l1_seal (struct l1_writer *w, struct l1_changes *sealed)
{
  size_t i;

  pthread_mutex_lock (&w->lock);
  *sealed = w->changed;
  memset (&w->changed, 0, sizeof w->changed);
  w->nr_sealed = sealed->nr;
  for (i = 0; i < sealed->nr; ++i)
    sealed->items[i].value = w->layer->l1.entries[sealed->items[i].index];
  pthread_mutex_unlock (&w->lock);
  if (sealed->nr > 1)
    qsort (sealed->items, sealed->nr, sizeof *sealed->items, compare);
}

/* Write the sector of the first of NR changes; returns in *DONE how many
 * of them are in it.
 */
static int
write_sector (struct l1_writer *w, const struct l1_change *changes,
              size_t nr, size_t *done)
{
  uint64_t words[ENTRIES_PER_SECTOR];
  uint32_t first = changes[0].index & ~(uint32_t) (ENTRIES_PER_SECTOR - 1);
  uint32_t count = w->layer->l1.nr_entries - first;
  uint64_t offset = w->layer->header.l1_offset + first * sizeof *words;
  size_t i;
  int r;

  if (count > ENTRIES_PER_SECTOR)
    count = ENTRIES_PER_SECTOR;
  memcpy (words, w->durable + first, count * sizeof *words);
  for (i = 0; i < nr && changes[i].index - first < count; ++i)
    words[changes[i].index - first] = htobe64 (changes[i].value);
  *done = i;
  r = guard_check (w->layer, METADATA_L1_TABLE, offset,
                   count * sizeof *words, "the L1 table");
  if (r < 0)
    return r;
  return qcow2_storage_write (w->layer->file, words, count * sizeof *words,
                              offset, false);
}

int
l1_write (struct l1_writer *w, struct l1_changes *sealed)
{
  size_t i = 0, done;
  int r;

  while (i < sealed->nr) {
    r = write_sector (w, sealed->items + i, sealed->nr - i, &done);
    if (r < 0)
      return r;
    i += done;
  }
  return 0;
}

/* What comes back has room: l1_set saw to that if it made a list of its
 * own meanwhile.
 */
static void
take_back_locked (struct l1_writer *w, struct l1_changes *sealed)
{
  struct l1_changes newer = w->changed;

  if (newer.nr == 0) {
    w->changed = *sealed;
    *sealed = newer;
    return;
  }
  memcpy (newer.items + newer.nr, sealed->items,
          sealed->nr * sizeof *sealed->items);
  w->changed.nr += sealed->nr;
}

void
l1_unseal (struct l1_writer *w, struct l1_changes *sealed, bool written)
{
  size_t i;

  for (i = 0; written && i < sealed->nr; ++i)
    w->durable[sealed->items[i].index] = htobe64 (sealed->items[i].value);

  pthread_mutex_lock (&w->lock);
  if (!written && sealed->nr > 0)
    take_back_locked (w, sealed);
  w->nr_sealed = 0;
  pthread_mutex_unlock (&w->lock);
  free (sealed->items);
  memset (sealed, 0, sizeof *sealed);
}
