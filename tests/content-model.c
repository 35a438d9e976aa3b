/* SPDX-License-Identifier: BSD-3-Clause */

/* What a disk may hold after many requests at once. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content-model.h"

#define PENDING UINT64_MAX

static void *
must (void *p)
{
  if (!p) {
    printf ("Bail out! out of memory\n");
    exit (1);
  }
  return p;
}

void
model_init (struct model *m, uint8_t *content, uint64_t bytes)
{
  memset (m, 0, sizeof *m);
  m->first = content;
  m->bytes = bytes;
  m->clock = 1;
  pthread_mutex_init (&m->lock, NULL);
}

void
model_destroy (struct model *m)
{
  pthread_mutex_destroy (&m->lock);
  free (m->requests);
  free (m->first);
}

/*----- The bytes of a write -----*/

static uint64_t
word_at (uint64_t data, uint64_t index)
{
  uint64_t x = data ^ index * UINT64_C (0x9e3779b97f4a7c15);

  x = (x ^ x >> 31) * UINT64_C (0xbf58476d1ce4e5b9);
  return x ^ x >> 29;
}

static void
make_bytes (uint64_t data, uint64_t offset, uint64_t count, uint8_t *buf)
{
  uint64_t word;
  size_t n;

  for (; count > 0; offset += n, buf += n, count -= n) {
    word = word_at (data, offset / 8);
    n = 8 - offset % 8;
    if (n > count)
      n = count;
    memcpy (buf, (const uint8_t *) &word + offset % 8, n);
  }
}

/* What the request R, or NULL for what was there before all of them,
 * gave to the range.
 */
static void
bytes_of (const struct model *m, const struct model_request *r,
          uint64_t offset, uint64_t count, uint8_t *buf)
{
  if (!r)
    memcpy (buf, m->first + offset, count);
  else if (r->kind == MODEL_WRITE)
    make_bytes (r->data, offset, count, buf);
  else
    memset (buf, 0, count);
}

/*----- Noting requests -----*/

size_t
model_begin (struct model *m, enum model_kind kind, uint64_t offset,
             uint64_t count, void *buf)
{
  struct model_request *r;
  size_t number;
  uint64_t data;

  pthread_mutex_lock (&m->lock);
  if (m->nr == m->room) {
    m->room = m->room ? m->room * 2 : 1024;
    m->requests = must (realloc (m->requests,
                                 m->room * sizeof *m->requests));
  }
  number = m->nr++;
  data = word_at (m->bytes, number);
  r = &m->requests[number];
  r->kind = kind;
  r->offset = offset;
  r->count = count;
  r->began = m->clock++;
  r->ended = PENDING;
  r->data = data;
  pthread_mutex_unlock (&m->lock);
  if (kind == MODEL_WRITE)
    make_bytes (data, offset, count, buf);
  return number;
}

void
model_end (struct model *m, size_t number, bool done)
{
  pthread_mutex_lock (&m->lock);
  if (!done)
    m->requests[number].kind = MODEL_NOTHING;
  m->requests[number].ended = m->clock++;
  pthread_mutex_unlock (&m->lock);
}

uint64_t
model_clock (struct model *m)
{
  uint64_t now;

  pthread_mutex_lock (&m->lock);
  now = m->clock++;
  pthread_mutex_unlock (&m->lock);
  return now;
}

/*----- Checking -----*/

/* A range of which all bytes were touched by the same requests. */
struct piece {
  const struct model *m;
  const struct model_request **touching;
  size_t nr_touching;
  const struct model_request **possible; /* NULL: what was there first */
  size_t nr_possible;
  uint64_t offset, count;
};

static bool
overwrites (const struct model_request *r)
{
  return r->kind == MODEL_WRITE || r->kind == MODEL_ZERO;
}

/* Whose bytes may a read see that began at BEGAN? */
static void
find_possible (struct piece *p, uint64_t began)
{
  uint64_t settled = 0;         /* what ended before that is gone */
  size_t i;

  for (i = 0; i < p->nr_touching; ++i) {
    const struct model_request *r = p->touching[i];

    if (overwrites (r) && r->ended < began && r->began > settled)
      settled = r->began;
  }
  p->nr_possible = 0;
  if (settled == 0)
    p->possible[p->nr_possible++] = NULL;
  for (i = 0; i < p->nr_touching; ++i)
    if (p->touching[i]->ended > settled)
      p->possible[p->nr_possible++] = p->touching[i];
}

static void
describe (const char *what, const struct model_request *r)
{
  static const char *const kinds[] = { "write", "zero", "trim", "nothing" };

  if (!r)
    printf ("#   %s what was there first\n", what);
  else
    printf ("#   %s a %s of %" PRIu64 " at %" PRIu64 ", from %" PRIu64
            " to %" PRId64 "\n", what, kinds[r->kind], r->count, r->offset,
            r->began, (int64_t) r->ended);
}

static void
complain (const struct piece *p, const uint8_t *got, uint64_t offset)
{
  uint64_t count = p->offset + p->count - offset;
  uint8_t bytes[16];
  size_t i;

  if (count > sizeof bytes)
    count = sizeof bytes;
  printf ("# byte %" PRIu64 " of %" PRIu64 " to %" PRIu64 " is 0x%02x:\n",
          offset, p->offset, p->offset + p->count, *got);
  for (i = 0; i < p->nr_possible; ++i)
    describe ("may be of", p->possible[i]);
  bytes_of (p->m, NULL, offset, count, bytes);
  if (memcmp (got, bytes, count) == 0)
    describe ("looks like", NULL);
  memset (bytes, 0, count);
  if (memcmp (got, bytes, count) == 0)
    printf ("#   looks like zeros\n");
  for (i = 0; i < p->nr_touching; ++i) {
    bytes_of (p->m, p->touching[i], offset, count, bytes);
    if (memcmp (got, bytes, count) == 0)
      describe ("looks like", p->touching[i]);
  }
}

#define STEP 1024

/* Byte by byte, since no request is atomic. */
static bool
check_step (const struct piece *p, const uint8_t *got, uint64_t offset,
            size_t count)
{
  bool explained[STEP] = { false };
  uint8_t want[STEP];
  size_t i, k;

  for (i = 0; i < p->nr_possible; ++i) {
    bytes_of (p->m, p->possible[i], offset, count, want);
    if (memcmp (got, want, count) == 0)
      return true;
    for (k = 0; k < count; ++k)
      if (got[k] == want[k])
        explained[k] = true;
  }
  for (k = 0; k < count; ++k)
    if (!explained[k]) {
      complain (p, got + k, offset + k);
      return false;
    }
  return true;
}

static bool
check_piece (const struct piece *p, const uint8_t *got)
{
  uint64_t done, n;

  for (done = 0; done < p->count; done += n) {
    n = p->count - done < STEP ? p->count - done : STEP;
    if (!check_step (p, got + done, p->offset + done, n))
      return false;
  }
  return true;
}

static int
compare_offsets (const void *a, const void *b)
{
  const struct model_request *x = a, *y = b;

  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Copies of all requests that touch the range, by their offsets. */
static struct model_request *
touching (struct model *m, uint64_t offset, uint64_t count, size_t *nr)
{
  struct model_request *found;
  size_t i;

  pthread_mutex_lock (&m->lock);
  found = must (malloc ((m->nr + 1) * sizeof *found));
  *nr = 0;
  for (i = 0; i < m->nr; ++i) {
    const struct model_request *r = &m->requests[i];

    if (r->kind != MODEL_NOTHING && r->offset < offset + count &&
        r->offset + r->count > offset)
      found[(*nr)++] = *r;
  }
  pthread_mutex_unlock (&m->lock);
  qsort (found, *nr, sizeof *found, compare_offsets);
  return found;
}

/* Move P on to the next piece: requests that end here go, those that begin
 * here come from ALL.  It ends where the next change will be.
 */
static void
next_piece (struct piece *p, const struct model_request *all, size_t nr,
            size_t *pos, uint64_t end)
{
  size_t i, kept = 0;

  p->offset += p->count;
  while (*pos < nr && all[*pos].offset <= p->offset)
    p->touching[p->nr_touching++] = &all[(*pos)++];
  if (*pos < nr && all[*pos].offset < end)
    end = all[*pos].offset;
  for (i = 0; i < p->nr_touching; ++i) {
    uint64_t request_end = p->touching[i]->offset + p->touching[i]->count;

    if (request_end <= p->offset)
      continue;
    if (request_end < end)
      end = request_end;
    p->touching[kept++] = p->touching[i];
  }
  p->nr_touching = kept;
  p->count = end - p->offset;
}

bool
model_check (struct model *m, const void *buf, uint64_t offset,
             uint64_t count, uint64_t began)
{
  size_t nr, pos = 0;
  struct model_request *all = touching (m, offset, count, &nr);
  struct piece p = { .m = m, .offset = offset };
  uint64_t end = offset + count;
  bool good = true;

  p.touching = must (malloc ((nr + 1) * sizeof *p.touching));
  p.possible = must (malloc ((nr + 1) * sizeof *p.possible));
  while (good && p.offset + p.count < end) {
    next_piece (&p, all, nr, &pos, end);
    find_possible (&p, began);
    good = check_piece (&p, (const uint8_t *) buf + (p.offset - offset));
  }
  free (p.touching);
  free (p.possible);
  free (all);
  return good;
}
