/* SPDX-License-Identifier: BSD-3-Clause */

/* What a disk may hold. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest-model.h"

#define WORDS (GUEST_SECTOR / 8)

static void *
more (void *items, size_t nr, size_t *room, size_t item_bytes)
{
  if (nr < *room)
    return items;
  *room = *room ? 2 * *room : 256;
  items = realloc (items, *room * item_bytes);
  if (!items) {
    printf ("Bail out! out of memory\n");
    exit (1);
  }
  return items;
}

void
guest_init (struct guest *g, uint8_t *initial, uint64_t nr_sectors)
{
  memset (g, 0, sizeof *g);
  pthread_mutex_init (&g->lock, NULL);
  g->initial = initial;
  g->nr_sectors = nr_sectors;
}

void
guest_clear (struct guest *g)
{
  free (g->initial);
  free (g->ops);
  free (g->flushes);
  free (g->starts);
  free (g->lists);
  pthread_mutex_destroy (&g->lock);
}

/*----- Content -----*/

/* Word I of what op NR writes to SECTOR: no two are the same. */
static uint64_t
pattern (size_t nr, uint64_t sector, unsigned i)
{
  return ((uint64_t) nr + 1) << 40 | sector << 8 | i;
}

static bool
is_pattern (const uint8_t *bytes, size_t nr, uint64_t sector)
{
  uint64_t words[WORDS];
  unsigned i;

  for (i = 0; i < WORDS; ++i)
    words[i] = pattern (nr, sector, i);
  return memcmp (bytes, words, sizeof words) == 0;
}

static bool
is_zero (const uint8_t *bytes)
{
  static const uint8_t zeros[GUEST_SECTOR];

  return memcmp (bytes, zeros, sizeof zeros) == 0;
}

/*----- Noting -----*/

size_t
guest_begin (struct guest *g, enum guest_kind kind, uint64_t first,
             uint64_t nr, uint64_t now, uint8_t *buf)
{
  size_t op;
  uint64_t s;
  unsigned i;

  pthread_mutex_lock (&g->lock);
  g->ops = more (g->ops, g->nr_ops, &g->ops_room, sizeof *g->ops);
  op = g->nr_ops++;
  g->ops[op] = (struct guest_op) {
    .kind = kind, .first = first, .nr = nr, .begin = now,
    .durable_at = UINT64_MAX,
  };
  pthread_mutex_unlock (&g->lock);

  if (kind == GUEST_WRITE)
    for (s = 0; s < nr; ++s)
      for (i = 0; i < WORDS; ++i) {
        uint64_t word = pattern (op, first + s, i);

        memcpy (buf + s * GUEST_SECTOR + i * 8, &word, 8);
      }
  return op;
}

void
guest_end (struct guest *g, size_t op, bool success, bool durable,
           uint64_t now)
{
  pthread_mutex_lock (&g->lock);
  g->ops[op].end = success ? now : 0;
  if (success && durable)
    g->ops[op].durable_at = now;
  pthread_mutex_unlock (&g->lock);
}

void
guest_flushed (struct guest *g, uint64_t begin, uint64_t now)
{
  pthread_mutex_lock (&g->lock);
  g->flushes = more (g->flushes, g->nr_flushes, &g->flushes_room,
                     sizeof *g->flushes);
  g->flushes[g->nr_flushes++] = (struct guest_flush) { begin, now };
  pthread_mutex_unlock (&g->lock);
}

void
guest_index (struct guest *g)
{
  size_t *fill, i, j, total = 0;
  uint64_t s;

  for (i = 0; i < g->nr_ops; ++i)
    for (j = 0; j < g->nr_flushes; ++j)
      if (g->ops[i].end != 0 && g->flushes[j].begin > g->ops[i].end &&
          g->flushes[j].end < g->ops[i].durable_at)
        g->ops[i].durable_at = g->flushes[j].end;

  free (g->starts);
  free (g->lists);
  g->starts = calloc (g->nr_sectors + 2, sizeof *g->starts);
  for (i = 0; i < g->nr_ops; ++i) {
    total += g->ops[i].nr;
    for (s = 0; s < g->ops[i].nr; ++s)
      g->starts[g->ops[i].first + s + 1]++;
  }
  for (s = 0; s < g->nr_sectors; ++s)
    g->starts[s + 1] += g->starts[s];
  g->lists = calloc (total + 1, sizeof *g->lists);
  fill = malloc ((g->nr_sectors + 1) * sizeof *fill);
  memcpy (fill, g->starts, (g->nr_sectors + 1) * sizeof *fill);
  for (i = 0; i < g->nr_ops; ++i)
    for (s = 0; s < g->ops[i].nr; ++s)
      g->lists[fill[g->ops[i].first + s]++] = i;
  free (fill);
}

/*----- Checking -----*/

static bool
is_result (const struct guest *g, size_t op, uint64_t sector,
           const uint8_t *bytes)
{
  return g->ops[op].kind == GUEST_WRITE ? is_pattern (bytes, op, sector) :
    is_zero (bytes);
}

/* From the newest to the newest that is sure to be there.  A trim may have
 * done nothing.
 */
static bool
may_be (const struct guest *g, uint64_t sector, uint64_t time, bool live,
        const uint8_t *bytes)
{
  size_t i = g->starts[sector + 1];

  while (i > g->starts[sector]) {
    size_t nr = g->lists[--i];
    const struct guest_op *op = &g->ops[nr];
    bool sure = live ? op->end != 0 : op->durable_at < time;

    if (op->begin >= time)
      continue;
    if (is_result (g, nr, sector, bytes))
      return true;
    if (sure && op->kind != GUEST_TRIM)
      return false;
  }
  return memcmp (bytes, g->initial + sector * GUEST_SECTOR,
                 GUEST_SECTOR) == 0;
}

static uint64_t
check (const struct guest *g, uint64_t time, bool live,
       const uint8_t *content, uint64_t *first)
{
  uint64_t s, nr_wrong = 0;

  for (s = 0; s < g->nr_sectors; ++s)
    if (!may_be (g, s, time, live, content + s * GUEST_SECTOR) &&
        nr_wrong++ == 0)
      *first = s;
  return nr_wrong;
}

uint64_t
guest_check (const struct guest *g, uint64_t time, const uint8_t *content,
             uint64_t *first)
{
  return check (g, time, false, content, first);
}

uint64_t
guest_check_live (const struct guest *g, const uint8_t *content,
                  uint64_t *first)
{
  return check (g, UINT64_MAX, true, content, first);
}
