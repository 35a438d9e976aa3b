/* SPDX-License-Identifier: BSD-3-Clause */

/* The set of live metadata.
 *
 * Arrays are never freed before the set is, so a reader may look at any at
 * any time.  Their words are atomic, stored with release and loaded with
 * acquire: who saw a word of a change also sees the odd sequence count before
 * it, and looks again.  An array that becomes too small is replaced by one of
 * twice the size, with the same content, which is no change; so those that
 * were outgrown are together smaller than the one in use.
 *
 * A word of the hash table stands for a group of eight clusters:
 *
 *     | 60 ... group ... 16 | 15 ... two bits for each cluster ... 0 |
 *
 * Words of which no cluster is left are taken out (the ones behind move up),
 * so there are only empty words, 0, and those that hold something; at least
 * half are empty.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "hash-seed.h"
#include "metadata-set.h"

#define GROUP_BITS 3
#define GROUP_CLUSTERS (1u << GROUP_BITS)
#define KINDS_BITS (2 * GROUP_CLUSTERS)
#define KINDS_MASK ((UINT64_C (1) << KINDS_BITS) - 1)

/* Host offsets have 56 bits, and clusters at least 9: further ones are not
 * in the file.
 */
#define MAX_CLUSTERS (UINT64_C (1) << 47)

#define MIN_WORDS 16
#define MIN_RANGES 16

/* How often to look without the lock. */
#define MAX_TRIES 8

struct metadata_hash {
  struct metadata_hash *older;
  uint64_t seed;
  size_t mask;                  /* number of words - 1 */
  unsigned shift;
  _Atomic uint64_t words[];
};

struct shared_range {
  _Atomic uint64_t first;
  _Atomic uint64_t end;
  _Atomic unsigned kind;
};

struct metadata_ranges {
  struct metadata_ranges *older;
  size_t room;
  _Atomic size_t nr;
  struct shared_range items[];  /* sorted, disjoint */
};

static struct metadata_hash *
new_hash (size_t nr_words)
{
  struct metadata_hash *h = calloc (1, sizeof *h +
                                    nr_words * sizeof h->words[0]);

  if (h) {
    h->seed = hash_seed ();
    h->mask = nr_words - 1;
    h->shift = 64 - (unsigned) __builtin_ctzl (nr_words);
  }
  return h;
}

static struct metadata_ranges *
new_ranges (size_t room)
{
  struct metadata_ranges *r = calloc (1, sizeof *r +
                                      room * sizeof r->items[0]);

  if (r)
    r->room = room;
  return r;
}

int
metadata_set_init (struct metadata_set *set, size_t nr)
{
  size_t nr_words = MIN_WORDS;

  while (nr_words < 2 * nr)
    nr_words *= 2;
  memset (set, 0, sizeof *set);
  atomic_init (&set->hash, new_hash (nr_words));
  atomic_init (&set->ranges, new_ranges (MIN_RANGES));
  if (!set->hash || !set->ranges) {
    free (set->hash);
    free (set->ranges);
    return -ENOMEM;
  }
  pthread_mutex_init (&set->lock, NULL);
  return 0;
}

void
metadata_set_destroy (struct metadata_set *set)
{
  struct metadata_hash *hash = set->hash, *older_hash;
  struct metadata_ranges *ranges = set->ranges, *older_ranges;

  for (; hash; hash = older_hash) {
    older_hash = hash->older;
    free (hash);
  }
  for (; ranges; ranges = older_ranges) {
    older_ranges = ranges->older;
    free (ranges);
  }
  free (set->sources);
  pthread_mutex_destroy (&set->lock);
}

/*----- Looking up -----*/

static size_t
home (const struct metadata_hash *h, uint64_t group)
{
  return (size_t) (hash_seeded (h->seed, group) >> h->shift);
}

static uint64_t
load (const _Atomic uint64_t *p)
{
  return atomic_load_explicit (p, memory_order_acquire);
}

/* The kinds of a group's clusters, two bits each. */
static unsigned
group_kinds (const struct metadata_hash *h, uint64_t group)
{
  size_t i = home (h, group);
  uint64_t word;

  while ((word = load (&h->words[i & h->mask])) != 0) {
    if (word >> KINDS_BITS == group)
      return word & KINDS_MASK;
    i++;
  }
  return 0;
}

/* The first range that ends after CLUSTER, or NULL. */
static const struct shared_range *
range_at_or_after (const struct metadata_ranges *r, uint64_t cluster)
{
  size_t low = 0, nr = atomic_load_explicit (&r->nr, memory_order_acquire);
  size_t high = nr;

  while (low < high) {
    size_t middle = low + (high - low) / 2;

    if (load (&r->items[middle].end) <= cluster)
      low = middle + 1;
    else
      high = middle;
  }
  return low < nr ? &r->items[low] : NULL;
}

static enum metadata_kind
range_kind (const struct shared_range *range)
{
  return atomic_load_explicit (&range->kind, memory_order_acquire);
}

static enum metadata_kind
kind_of (const struct metadata_hash *h, const struct metadata_ranges *r,
         uint64_t cluster)
{
  const struct shared_range *range = range_at_or_after (r, cluster);
  unsigned kinds = group_kinds (h, cluster >> GROUP_BITS);
  unsigned kind = kinds >> 2 * (cluster & (GROUP_CLUSTERS - 1)) & 3;

  if (!range || load (&range->first) > cluster)
    return kind;
  return kind ? METADATA_SEVERAL : range_kind (range);
}

/* No metadata at all: a group of clusters at a time. */
static bool
is_free (const struct metadata_hash *h, const struct metadata_ranges *r,
         uint64_t first, uint64_t nr, struct metadata_hit *hit)
{
  const struct shared_range *range = range_at_or_after (r, first);
  uint64_t end = first + nr, group, range_first;

  for (group = first >> GROUP_BITS; group << GROUP_BITS < end; ++group) {
    uint64_t start = group << GROUP_BITS;
    unsigned kinds = group_kinds (h, group);

    if (kinds == 0)
      continue;
    if (start < first)
      kinds &= (unsigned) KINDS_MASK << 2 * (first - start);
    if (end - start < GROUP_CLUSTERS)
      kinds &= (1u << 2 * (end - start)) - 1;
    if (kinds == 0)
      continue;
    hit->cluster = start + (unsigned) __builtin_ctz (kinds) / 2;
    hit->kind = kind_of (h, r, hit->cluster);
    return false;
  }
  if (!range || (range_first = load (&range->first)) >= end)
    return true;
  hit->cluster = range_first > first ? range_first : first;
  hit->kind = range_kind (range);
  return false;
}

static bool
look (const struct metadata_set *set, enum metadata_kind kind,
      uint64_t first, uint64_t nr, struct metadata_hit *hit)
{
  const struct metadata_hash *h =
    atomic_load_explicit (&set->hash, memory_order_acquire);
  const struct metadata_ranges *r =
    atomic_load_explicit (&set->ranges, memory_order_acquire);
  uint64_t i;

  if (kind == METADATA_NONE)
    return is_free (h, r, first, nr, hit);
  for (i = 0; i < nr; ++i) {
    hit->cluster = first + i;
    hit->kind = kind_of (h, r, first + i);
    if (hit->kind != kind)
      return false;
  }
  return true;
}

bool
metadata_set_is (const struct metadata_set *set, enum metadata_kind kind,
                 uint64_t first, uint64_t nr, struct metadata_hit *hit)
{
  pthread_mutex_t *lock = (pthread_mutex_t *) &set->lock;
  unsigned tries;
  bool is;

  for (tries = 0; tries < MAX_TRIES; ++tries) {
    uint32_t seq = atomic_load_explicit (&set->seq, memory_order_acquire);

    if (seq & 1)
      continue;
    is = look (set, kind, first, nr, hit);
    if (atomic_load_explicit (&set->seq, memory_order_relaxed) == seq)
      return is;
  }
  pthread_mutex_lock (lock);
  is = look (set, kind, first, nr, hit);
  pthread_mutex_unlock (lock);
  return is;
}

/*----- Changing, under the lock -----*/

static void
begin_change (struct metadata_set *set)
{
  atomic_fetch_add_explicit (&set->seq, 1, memory_order_acq_rel);
}

static void
end_change (struct metadata_set *set)
{
  atomic_fetch_add_explicit (&set->seq, 1, memory_order_release);
}

static void
store (_Atomic uint64_t *p, uint64_t value)
{
  atomic_store_explicit (p, value, memory_order_release);
}

/* The place of GROUP, or the empty word where it would be. */
static size_t
find_place (const struct metadata_hash *h, uint64_t group)
{
  size_t i = home (h, group);
  uint64_t word;

  while ((word = load (&h->words[i])) != 0 && word >> KINDS_BITS != group)
    i = (i + 1) & h->mask;
  return i;
}

static bool
is_in_range (const struct metadata_set *set, uint64_t cluster)
{
  const struct shared_range *range = range_at_or_after (set->ranges, cluster);

  return range && load (&range->first) <= cluster;
}

static int
grow_hash_locked (struct metadata_set *set)
{
  struct metadata_hash *old = set->hash, *h;
  size_t i;

  if (2 * (set->nr_groups + 1) <= old->mask + 1)
    return 0;
  h = new_hash (2 * (old->mask + 1));
  if (!h)
    return -ENOMEM;
  h->older = old;
  for (i = 0; i <= old->mask; ++i) {
    uint64_t word = load (&old->words[i]);

    if (word != 0)
      store (&h->words[find_place (h, word >> KINDS_BITS)], word);
  }
  atomic_store_explicit (&set->hash, h, memory_order_release);
  return 0;
}

int
metadata_set_add (struct metadata_set *set, enum metadata_kind kind,
                  uint64_t cluster)
{
  uint64_t group = cluster >> GROUP_BITS, word;
  unsigned shift = 2 * (cluster & (GROUP_CLUSTERS - 1));
  struct metadata_hash *h;
  size_t place;
  int r;

  if (cluster >= MAX_CLUSTERS)
    return 0;
  pthread_mutex_lock (&set->lock);
  r = grow_hash_locked (set);
  if (r == 0) {
    h = set->hash;
    place = find_place (h, group);
    word = load (&h->words[place]);
    if (word == 0) {
      set->nr_groups++;
      word = group << KINDS_BITS;
    }
    if (word >> shift & 3)
      kind = METADATA_SEVERAL;
    begin_change (set);
    if (kind == METADATA_SEVERAL || is_in_range (set, cluster))
      set->has_overlaps = true;
    store (&h->words[place], word | (uint64_t) kind << shift);
    end_change (set);
  }
  pthread_mutex_unlock (&set->lock);
  return r;
}

/* Empty a word, and move up those that are behind it for want of a better
 * place.
 */
static void
take_out_locked (struct metadata_set *set, size_t hole)
{
  struct metadata_hash *h = set->hash;
  size_t i = hole;
  uint64_t word;

  while ((word = load (&h->words[i = (i + 1) & h->mask])) != 0) {
    size_t at_home = home (h, word >> KINDS_BITS);

    /* Is the hole between its home and its place? */
    if (((i - at_home) & h->mask) >= ((i - hole) & h->mask)) {
      store (&h->words[hole], word);
      hole = i;
    }
  }
  store (&h->words[hole], 0);
  set->nr_groups--;
}

void
metadata_set_remove (struct metadata_set *set, enum metadata_kind kind,
                     uint64_t cluster)
{
  unsigned shift = 2 * (cluster & (GROUP_CLUSTERS - 1));
  struct metadata_hash *h;
  uint64_t word;
  size_t place;

  if (cluster >= MAX_CLUSTERS)
    return;
  pthread_mutex_lock (&set->lock);
  h = set->hash;
  place = find_place (h, cluster >> GROUP_BITS);
  word = load (&h->words[place]);
  if (word != 0 && (word >> shift & 3) == kind) {
    word &= ~(UINT64_C (3) << shift);
    begin_change (set);
    if (word & KINDS_MASK)
      store (&h->words[place], word);
    else
      take_out_locked (set, place);
    end_change (set);
  }
  pthread_mutex_unlock (&set->lock);
}

/*----- Ranges -----*/

static int
compare_ranges (const void *a, const void *b)
{
  const struct metadata_range *x = a, *y = b;

  return x->first < y->first ? -1 : x->first > y->first;
}

static int
make_room_locked (struct metadata_set *set, size_t nr)
{
  struct metadata_ranges *old = set->ranges, *r;
  size_t room = old->room;

  while (room < nr)
    room *= 2;
  if (room > set->room) {
    struct metadata_range *sources =
      realloc (set->sources, room * sizeof *sources);

    if (!sources)
      return -ENOMEM;
    set->sources = sources;
    set->room = room;
  }
  if (room == old->room)
    return 0;
  r = new_ranges (room);
  if (!r)
    return -ENOMEM;
  r->older = old;
  /* Its content follows, within the same change. */
  atomic_store_explicit (&set->ranges, r, memory_order_release);
  return 0;
}

/* What readers see: the sources with those that overlap made one. */
static void
publish_ranges_locked (struct metadata_set *set)
{
  struct metadata_ranges *r = set->ranges;
  size_t nr = 0, i;

  for (i = 0; i < set->nr_sources; ++i) {
    const struct metadata_range *s = &set->sources[i];
    struct shared_range *last = nr > 0 ? &r->items[nr - 1] : NULL;

    if (last && s->first < load (&last->end)) {
      if (s->end > load (&last->end))
        store (&last->end, s->end);
      if (s->kind != range_kind (last))
        atomic_store_explicit (&last->kind, METADATA_SEVERAL,
                               memory_order_release);
      continue;
    }
    store (&r->items[nr].first, s->first);
    store (&r->items[nr].end, s->end);
    atomic_store_explicit (&r->items[nr++].kind, s->kind,
                           memory_order_release);
  }
  atomic_store_explicit (&r->nr, nr, memory_order_release);
}

static void
note_overlaps_locked (struct metadata_set *set,
                      const struct metadata_range *ranges, size_t nr)
{
  struct metadata_hit hit;
  size_t i;

  for (i = 0; i < nr && set->nr_groups > 0 && !set->has_overlaps; ++i)
    if (!is_free (set->hash, set->ranges, ranges[i].first,
                  ranges[i].end - ranges[i].first, &hit))
      set->has_overlaps = true;
}

int
metadata_set_add_ranges (struct metadata_set *set,
                         const struct metadata_range *ranges, size_t nr)
{
  int r;

  pthread_mutex_lock (&set->lock);
  begin_change (set);
  note_overlaps_locked (set, ranges, nr);
  r = make_room_locked (set, set->nr_sources + nr);
  if (r == 0 && nr > 0) {
    memcpy (set->sources + set->nr_sources, ranges, nr * sizeof *ranges);
    set->nr_sources += nr;
    qsort (set->sources, set->nr_sources, sizeof *set->sources,
           compare_ranges);
  }
  publish_ranges_locked (set);
  end_change (set);
  pthread_mutex_unlock (&set->lock);
  return r;
}

void
metadata_set_remove_range (struct metadata_set *set,
                           const struct metadata_range *range)
{
  size_t i;

  pthread_mutex_lock (&set->lock);
  for (i = 0; i < set->nr_sources; ++i) {
    struct metadata_range *s = &set->sources[i];

    if (s->first == range->first && s->end == range->end &&
        s->kind == range->kind) {
      memmove (s, s + 1, (--set->nr_sources - i) * sizeof *s);
      break;
    }
  }
  begin_change (set);
  publish_ranges_locked (set);
  end_change (set);
  pthread_mutex_unlock (&set->lock);
}
