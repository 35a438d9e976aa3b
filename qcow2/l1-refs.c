/* SPDX-License-Identifier: BSD-3-Clause */

/* What an L1 table refers to, and giving or taking many references at once.
 *
 * References are counted first, cluster by cluster.  Then all refcounts are
 * looked at once more before one is changed, in the order of the file: each
 * refcount slice is pinned once for each pass, and locked once.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "l1-refs.h"
#include "l1-walk.h"
#include "l2.h"
#include "refcount-word.h"

int
l1_refs_init (struct l1_refs *refs, struct writer *w,
              struct qcow2_error *error)
{
  int64_t bytes = qcow2_storage_size (w->top->file);
  unsigned bits = w->top->header.cluster_bits;
  int r = bytes < 0 ? (int) bytes : 0;

  memset (refs, 0, sizeof *refs);
  refs->w = w;
  refs->error = error;
  if (r == 0)
    r = ref_map_init (&refs->more, (uint64_t) bytes, bits);
  if (r == 0)
    r = ref_map_init (&refs->less, (uint64_t) bytes, bits);
  if (r == 0)
    r = ref_map_init (&refs->stay, (uint64_t) bytes, bits);
  if (r < 0)
    qcow2_error_set (error, -r, r == -EFBIG ? "the file is too large: to "
                     "count references would take more than 1 GiB of memory" :
                     "%s", strerror (-r));
  return r;
}

void
l1_refs_clear (struct l1_refs *refs)
{
  ref_map_clear (&refs->more);
  ref_map_clear (&refs->less);
  ref_map_clear (&refs->stay);
}

/*----- Counting -----*/

struct counting {
  struct l1_refs *refs;
  struct ref_map *map;
  unsigned cluster_bits;
  unsigned words_per_entry;
};

static int
add (const struct counting *c, enum ref_kind kind, uint64_t offset,
     uint64_t bytes, uint64_t guest_offset)
{
  static const char *const problems[] = {
    [REF_SHARED] = "in use for something else, too",
    [REF_OUTSIDE] = "past the end of the file",
    [REF_TOO_MANY] = "referenced too often",
  };
  enum ref_verdict verdict = ref_map_add (c->map, kind, offset, bytes, 1);

  if (verdict == REF_GOOD)
    return 0;
  return qcow2_error_set (c->refs->error, EIO, "the image is corrupt: what "
                          "guest offset 0x%" PRIx64 " maps to, at 0x%" PRIx64
                          ", is %s; use \"qcow2-img check\"", guest_offset,
                          offset, problems[verdict]);
}

static int
count_entry (const struct counting *c, const struct l2_entry *e,
             uint64_t guest_offset)
{
  int r = l2_check (c->refs->w, guest_offset, e);

  if (r < 0)
    return r;
  if (e->entry & ENTRY_COPIED)
    c->refs->has_copied |= c->map == &c->refs->more;
  if (e->entry & ENTRY_COMPRESSED)
    return add (c, REF_DATA, compressed_offset (e->entry, c->cluster_bits),
                compressed_bytes (e->entry, c->cluster_bits), guest_offset);
  if (l2_host_cluster (e) == 0)
    return 0;
  return add (c, REF_DATA, l2_host_cluster (e),
              UINT64_C (1) << c->cluster_bits, guest_offset);
}

static int
count_table (void *opaque, const struct walked_table *t)
{
  const struct counting *c = opaque;
  uint64_t cluster_bytes = UINT64_C (1) << c->cluster_bits, i;
  uint64_t nr = cluster_bytes / 8 / c->words_per_entry;
  int r = add (c, REF_L2, t->host_offset, cluster_bytes, t->guest_offset);

  for (i = 0; t->words && i < nr && r == 0; ++i) {
    const uint64_t *words = t->words + i * c->words_per_entry;
    struct l2_entry e = {
      .entry = be64toh (words[0]),
      .bitmap = c->words_per_entry == 2 ? be64toh (words[1]) : 0,
    };

    if (e.entry != 0 || e.bitmap != 0)
      r = count_entry (c, &e, t->guest_offset + (i << c->cluster_bits));
  }
  return r;
}

int
l1_refs_count (struct l1_refs *refs, const struct l1_table *l1, uint32_t nr,
               bool is_active, struct ref_map *map)
{
  const struct layer *top = refs->w->top;
  struct counting c = {
    .refs = refs, .map = map,
    .cluster_bits = top->header.cluster_bits,
    .words_per_entry = 1u << (top->l2_entry_bits - 3),
  };
  const struct l1_walk walk = {
    .w = refs->w, .l1 = l1, .nr_entries = nr, .is_active = is_active,
    .fn = count_table, .opaque = &c,
  };
  uint32_t i;
  int r;

  if (refs->error)
    refs->error->message[0] = '\0';
  for (i = 0; i < nr && map == &refs->more; ++i)
    refs->has_copied |= l1->entries[i] >> 63;
  r = l1_walk (&walk);
  if (r < 0 && refs->error && refs->error->message[0] == '\0')
    qcow2_error_set (refs->error, -r, "can't read all L2 tables: %s",
                     strerror (-r));
  return r;
}

/*----- Judging -----*/

static int64_t
change_of (const struct l1_refs *refs, uint64_t cluster)
{
  return (int64_t) ref_map_count (&refs->more, cluster) -
    ref_map_count (&refs->less, cluster);
}

struct judging {
  const struct l1_refs *refs;
  uint64_t max;
  uint64_t overflow, too_low, mixed; /* a cluster, or UINT64_MAX */
};

static bool
differ (const struct ref_map *a, const struct ref_map *b, uint64_t cluster)
{
  return ref_map_count (a, cluster) > 0 && ref_map_count (b, cluster) > 0 &&
    ref_map_kind (a, cluster) != ref_map_kind (b, cluster);
}

static uint64_t
judge_one (void *opaque, uint64_t cluster, uint64_t value)
{
  struct judging *j = opaque;
  uint64_t more = ref_map_count (&j->refs->more, cluster);
  uint64_t less = ref_map_count (&j->refs->less, cluster);
  uint64_t stay = ref_map_count (&j->refs->stay, cluster);

  if (more == 0 && less == 0)
    return value;
  if (differ (&j->refs->more, &j->refs->less, cluster) ||
      differ (&j->refs->stay, &j->refs->less, cluster))
    j->mixed = cluster;
  if (value < more + less + stay)
    j->too_low = cluster;
  if (more > less && (value > j->max || j->max - value < more - less))
    j->overflow = cluster;
  return value;
}

static int
verdict (const struct judging *j)
{
  unsigned bits = j->refs->w->rc->cluster_bits;

  if (j->mixed != UINT64_MAX)
    return qcow2_error_set (j->refs->error, EIO, "the image is corrupt: the "
                            "cluster at 0x%" PRIx64 " is an L2 table and "
                            "data; use \"qcow2-img check\"", j->mixed << bits);
  if (j->too_low != UINT64_MAX)
    return qcow2_error_set (j->refs->error, EIO, "the image is corrupt: the "
                            "refcount of the cluster at 0x%" PRIx64 " is too "
                            "low; use \"qcow2-img check -r all\"",
                            j->too_low << bits);
  if (j->overflow != UINT64_MAX)
    return qcow2_error_set (j->refs->error, ERANGE, "the refcount of the "
                            "cluster at 0x%" PRIx64 " would be more than %"
                            PRIu64 ", which is the most that the image's "
                            "refcount_bits=%u can hold", j->overflow << bits,
                            j->max, 1u << j->refs->w->rc->order);
  return 0;
}

static int
each (struct l1_refs *refs, refcount_fn *fn, void *opaque, uint64_t *done)
{
  return refcounts_each (refs->w->rc, 0, refs->more.nr_clusters, fn, opaque,
                         done);
}

int
l1_refs_judge (struct l1_refs *refs)
{
  struct judging j = {
    .refs = refs, .max = refcount_max (refs->w->rc->order),
    .overflow = UINT64_MAX, .too_low = UINT64_MAX, .mixed = UINT64_MAX,
  };
  uint64_t done;
  int r = each (refs, judge_one, &j, &done);

  if (r < 0)
    return qcow2_error_set (refs->error, -r, "can't read all refcounts: %s",
                            strerror (-r));
  return verdict (&j);
}

/*----- Changing -----*/

static uint64_t
raise_one (void *opaque, uint64_t cluster, uint64_t value)
{
  int64_t change = change_of (opaque, cluster);

  return change > 0 ? value + (uint64_t) change : value;
}

/* A commit that writes refcounts alone does not flush, unless it is told
 * that there is something to be flushed.  Commits while refcounts change, of
 * others or because the cache is full, use this up; so it comes after that.
 */
static void
want_flush (const struct l1_refs *refs)
{
  epoch_note_write (epoch_first_ticket (&refs->w->image->epoch));
}

int
l1_refs_raise (struct l1_refs *refs)
{
  int r = each (refs, raise_one, refs, &refs->raised_end);

  want_flush (refs);
  return r;
}

static uint64_t
unraise_one (void *opaque, uint64_t cluster, uint64_t value)
{
  int64_t change = change_of (opaque, cluster);

  return change > 0 ? value - (uint64_t) change : value;
}

int
l1_refs_undo_raise (struct l1_refs *refs)
{
  uint64_t done;
  int r;

  r = refcounts_each (refs->w->rc, 0, refs->raised_end, unraise_one, refs,
                      &done);
  want_flush (refs);
  if (r == 0)
    refs->raised_end = 0;
  return r;
}

/* Which are free then?  Their bits are set. */
struct lowering {
  struct l1_refs *refs;
  uint8_t *freed;
};

static bool
is_freed (const struct lowering *l, uint64_t cluster)
{
  return l->freed[cluster / 8] >> (cluster & 7) & 1;
}

static uint64_t
find_freed (void *opaque, uint64_t cluster, uint64_t value)
{
  const struct lowering *l = opaque;
  int64_t change = change_of (l->refs, cluster);

  if (change < 0 && value == (uint64_t) -change)
    l->freed[cluster / 8] |= (uint8_t) (1u << (cluster & 7));
  return value;
}

static uint64_t
lower_one (void *opaque, uint64_t cluster, uint64_t value)
{
  const struct lowering *l = opaque;
  int64_t change = change_of (l->refs, cluster);

  return change < 0 ? value - (uint64_t) -change : value;
}

/* The next run of freed clusters of one kind, from *FIRST on. */
static uint64_t
next_freed (const struct lowering *l, uint64_t *first, enum ref_kind *kind)
{
  const struct ref_map *map = &l->refs->less;
  uint64_t nr = 0;

  while (*first < map->nr_clusters && !is_freed (l, *first))
    ++*first;
  *kind = ref_map_kind (map, *first);
  while (*first + nr < map->nr_clusters && is_freed (l, *first + nr) &&
         ref_map_kind (map, *first + nr) == *kind)
    nr++;
  return nr;
}

static int
before_free (const struct lowering *l)
{
  struct writer *w = l->refs->w;
  uint64_t first, nr;
  enum ref_kind kind;
  int r = 0;

  for (first = 0; r == 0 && (nr = next_freed (l, &first, &kind)) > 0;
       first += nr)
    r = worker_before_free (w, kind == REF_L2 ? RETIRED_TABLE : RETIRED_DATA,
                            first, nr);
  /* Some of the data may be compressed. */
  cluster_cache_drop (w->image->clusters, w->top->index, 0, UINT64_MAX);
  return r;
}

/* Of what was lowered, if that has come to its end or not. */
static void
after_free (const struct lowering *l, uint64_t end)
{
  uint64_t first, nr;
  enum ref_kind kind;

  for (first = 0; (nr = next_freed (l, &first, &kind)) > 0; first += nr)
    if (first + nr <= end)
      alloc_note_free (&l->refs->w->alloc, first, nr);
}

int
l1_refs_lower (struct l1_refs *refs)
{
  struct lowering l = {
    .refs = refs, .freed = calloc (refs->less.nr_clusters / 8 + 1, 1),
  };
  uint64_t done = 0;
  int r;

  if (!l.freed)
    return -ENOMEM;
  r = each (refs, find_freed, &l, &done);
  if (r == 0)
    r = before_free (&l);
  if (r == 0) {
    r = each (refs, lower_one, &l, &done);
    want_flush (refs);
    after_free (&l, done);
  }
  free (l.freed);
  return r;
}
