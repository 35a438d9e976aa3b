/* SPDX-License-Identifier: BSD-3-Clause */

/* Lists of clusters on their way to being free. */

#include <stdlib.h>
#include <string.h>

#include "retire.h"

void
retire_init (struct retire *retire)
{
  memset (retire, 0, sizeof *retire);
  pthread_mutex_init (&retire->lock, NULL);
}

void
retire_destroy (struct retire *retire)
{
  free (retire->unlinked.items);
  free (retire->durable.items);
  pthread_mutex_destroy (&retire->lock);
}

static void
add (struct retire_list *list, const struct retired *item)
{
  struct retired *last = list->nr > 0 ? &list->items[list->nr - 1] : NULL;

  if (last && last->kind == item->kind &&
      last->first + last->nr == item->first) {
    last->nr += item->nr;
    return;
  }
  if (list->nr == list->room) {
    size_t room = list->room ? list->room * 2 : 64;
    struct retired *items = realloc (list->items, room * sizeof *items);

    if (!items)
      return;
    list->items = items;
    list->room = room;
  }
  list->items[list->nr++] = *item;
}

/* Move all of FROM to the end of TO. */
static void
move_list (struct retire_list *to, struct retire_list *from)
{
  size_t i;

  if (to->nr == 0) {
    struct retire_list empty = *to;

    *to = *from;
    *from = empty;
    return;
  }
  for (i = 0; i < from->nr; ++i)
    add (to, &from->items[i]);
  from->nr = 0;
}

void
retire_unlinked (struct retire *retire, uint64_t first, uint64_t nr,
                 enum retired_kind kind)
{
  struct retired item = { first, nr, kind };

  pthread_mutex_lock (&retire->lock);
  add (&retire->unlinked, &item);
  pthread_mutex_unlock (&retire->lock);
}

void
retire_now (struct retire *retire, uint64_t first, uint64_t nr)
{
  struct retired item = { first, nr, RETIRED_DATA };

  pthread_mutex_lock (&retire->lock);
  add (&retire->durable, &item);
  pthread_mutex_unlock (&retire->lock);
}

void
retire_seal (struct retire *retire, struct retire_list *sealed)
{
  memset (sealed, 0, sizeof *sealed);
  pthread_mutex_lock (&retire->lock);
  move_list (sealed, &retire->unlinked);
  retire->sealed = sealed->nr > 0;
  pthread_mutex_unlock (&retire->lock);
}

void
retire_unseal (struct retire *retire, struct retire_list *sealed,
               bool durable)
{
  pthread_mutex_lock (&retire->lock);
  move_list (durable ? &retire->durable : &retire->unlinked, sealed);
  retire->sealed = false;
  pthread_mutex_unlock (&retire->lock);
  free (sealed->items);
}

bool
retire_take (struct retire *retire, struct retire_list *list)
{
  memset (list, 0, sizeof *list);
  pthread_mutex_lock (&retire->lock);
  move_list (list, &retire->durable);
  retire->busy = list->nr > 0;
  pthread_mutex_unlock (&retire->lock);
  if (list->nr > 0)
    return true;
  free (list->items);
  return false;
}

void
retire_done (struct retire *retire, struct retire_list *list)
{
  pthread_mutex_lock (&retire->lock);
  move_list (&retire->durable, list);
  retire->busy = false;
  pthread_mutex_unlock (&retire->lock);
  free (list->items);
}

bool
retire_has_unlinked (struct retire *retire)
{
  bool r;

  pthread_mutex_lock (&retire->lock);
  r = retire->unlinked.nr > 0 || retire->sealed;
  pthread_mutex_unlock (&retire->lock);
  return r;
}

bool
retire_is_empty (struct retire *retire)
{
  bool r;

  pthread_mutex_lock (&retire->lock);
  r = retire->unlinked.nr == 0 && retire->durable.nr == 0 &&
    !retire->sealed && !retire->busy;
  pthread_mutex_unlock (&retire->lock);
  return r;
}
