/* SPDX-License-Identifier: BSD-3-Clause */

/* Refcounts.
 *
 * A refcount is found through the table (in memory) and a slice of its
 * block.  Slices are pinned without a lock, then changed under rc->lock,
 * which is held for a few words only.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "guard.h"
#include "refcount.h"
#include "refcount-word.h"

int
refcounts_new (struct layer *l, size_t cache_bytes, struct refcounts **out,
               struct qcow2_error *error)
{
  const struct header *h = &l->header;
  uint64_t nr = ((uint64_t) h->refcount_table_clusters << h->cluster_bits) / 8;
  struct refcounts *rc = calloc (1, sizeof *rc);
  struct refcount_table *table = malloc (sizeof *table + nr * 8);
  uint64_t i;
  int r = -ENOMEM;

  if (!rc || !table)
    goto err;
  r = qcow2_storage_read_meta (l->file, (void *) table->entries, nr * 8,
                               h->refcount_table_offset);
  if (r < 0)
    goto err;
  for (i = 0; i < nr; ++i)
    table->entries[i] = be64toh (table->entries[i]);
  table->host_offset = h->refcount_table_offset;
  table->nr_entries = nr;
  table->older = NULL;

  rc->layer = l;
  rc->table = table;
  rc->cluster_bits = h->cluster_bits;
  rc->order = h->refcount_order;
  rc->block_bits = h->cluster_bits + 3 - h->refcount_order;
  rc->slice_bytes = l->slice_bytes;
  rc->slice_bits = (unsigned) __builtin_ctz (l->slice_bytes) + 3 -
    h->refcount_order;
  pthread_mutex_init (&rc->lock, NULL);
  rc->slices = slice_cache_new (cache_bytes, l->slice_bytes);
  if (!rc->slices) {
    refcounts_free (rc);
    return qcow2_error_set (error, ENOMEM, "out of memory");
  }
  *out = rc;
  return 0;

 err:
  free (rc);
  free (table);
  return qcow2_error_set (error, -r, "%s: can't read the refcount table: %s",
                          l->filename, strerror (-r));
}

int
refcounts_guard (struct refcounts *rc)
{
  const struct refcount_table *table = atomic_load (&rc->table);
  uint64_t i;
  int r;

  r = guard_add_table (rc->layer, METADATA_REFCOUNT_TABLE,
                       table->host_offset, table->nr_entries * 8);
  for (i = 0; i < table->nr_entries && r == 0; ++i)
    r = guard_add (rc->layer, METADATA_REFCOUNT_BLOCK,
                   table->entries[i] & TABLE_OFFSET_MASK);
  return r;
}

void
refcounts_free (struct refcounts *rc)
{
  struct refcount_table *table;

  if (!rc)
    return;
  while ((table = rc->table) != NULL) {
    rc->table = table->older;
    free (table);
  }
  slice_cache_free (rc->slices);
  pthread_mutex_destroy (&rc->lock);
  free (rc);
}

/*----- Slices -----*/

struct position {
  struct refcounts *rc;
  uint64_t slice_host_offset;
  uint64_t first;               /* in the slice */
};

static int
read_slice (void *opaque, uint64_t key, uint64_t *buf)
{
  const struct position *p = opaque;
  const struct layer *l = p->rc->layer;
  int r;

  memset ((uint8_t *) buf + p->rc->slice_bytes, 0,
          SLICE_MAX_BYTES - p->rc->slice_bytes);
  r = qcow2_storage_read_meta (l->file, buf, p->rc->slice_bytes, key);
  if (r == -EIO && guard_is_past_end (l, key, p->rc->slice_bytes))
    return guard_corrupt (l, "the refcount block at 0x%" PRIx64 " is past "
                          "the end of the file", key);
  if (r < 0)
    log_message (&l->log, QCOW2_LOG_ERROR,
                 "%s: can't read the refcount block at 0x%" PRIx64 ": %s",
                 l->filename, key, strerror (-r));
  return r;
}

/* -ENOENT if no block covers CLUSTER. */
static int
find (struct refcounts *rc, uint64_t cluster, struct position *p)
{
  const struct refcount_table *table = atomic_load (&rc->table);
  uint64_t index = cluster >> rc->block_bits, block = 0;
  uint64_t in_block = cluster & ((UINT64_C (1) << rc->block_bits) - 1);

  if (index < table->nr_entries)
    block = table->entries[index] & TABLE_OFFSET_MASK;
  if (block == 0)
    return -ENOENT;
  if (block & ((UINT64_C (1) << rc->cluster_bits) - 1))
    return guard_corrupt (rc->layer, "refcount table entry %" PRIu64
                          ": refcount block is not aligned", index);
  p->rc = rc;
  p->slice_host_offset = block +
    (in_block >> rc->slice_bits) * rc->slice_bytes;
  p->first = in_block & ((UINT64_C (1) << rc->slice_bits) - 1);
  return 0;
}

static int
pin (struct refcounts *rc, uint64_t cluster, struct position *p,
     struct slice_ref *ref)
{
  int r = find (rc, cluster, p);

  if (r == 0)
    r = guard_check (rc->layer, METADATA_REFCOUNT_BLOCK,
                     p->slice_host_offset, 1, "a refcount block");
  if (r < 0)
    return r;
  return slice_cache_pin (rc->slices, p->slice_host_offset, read_slice, p,
                          ref);
}

static size_t
word_of (const struct refcounts *rc, uint64_t index)
{
  return index >> (6 - rc->order);
}

bool
refcounts_cover (struct refcounts *rc, uint64_t cluster)
{
  struct position p;

  return find (rc, cluster, &p) != -ENOENT;
}

uint64_t
refcounts_end (struct refcounts *rc)
{
  const struct refcount_table *table = atomic_load (&rc->table);
  uint64_t nr = table->nr_entries;

  while (nr > 0 && table->entries[nr - 1] == 0)
    nr--;
  return nr << rc->block_bits;
}

int
refcounts_get (struct refcounts *rc, uint64_t cluster, uint64_t *value)
{
  struct position p;
  struct slice_ref ref;
  int r;

  *value = 0;
  r = pin (rc, cluster, &p, &ref);
  if (r == -ENOENT)
    return 0;
  if (r < 0)
    return r;
  *value = refcount_word_get (rc->order,
                              slice_load (&ref, word_of (rc, p.first)),
                              p.first);
  slice_unpin (rc->slices, &ref);
  return 0;
}

/* Under rc->lock. */
static uint64_t
load_at (const struct refcounts *rc, const struct slice_ref *ref,
         uint64_t index)
{
  return refcount_word_get (rc->order,
                            slice_load (ref, word_of (rc, index)), index);
}

static void
store_at (const struct refcounts *rc, struct slice_ref *ref, uint64_t index,
          uint64_t value)
{
  size_t w = word_of (rc, index);

  slice_store (ref, w, refcount_word_set (rc->order, slice_load (ref, w),
                                          index, value));
}

/* How many of NR refcounts from p->first on are in this slice. */
static uint64_t
clip_to_slice (const struct refcounts *rc, const struct position *p,
               uint64_t nr)
{
  uint64_t rest = (UINT64_C (1) << rc->slice_bits) - p->first;

  return nr < rest ? nr : rest;
}

static void
end_change (struct refcounts *rc, struct slice_ref *ref,
            const struct position *p, uint64_t nr)
{
  size_t first = word_of (rc, p->first);

  slice_end_change (rc->slices, ref, first,
                    word_of (rc, p->first + nr - 1) - first + 1);
}

int64_t
refcounts_claim (struct refcounts *rc, uint64_t first, uint64_t nr)
{
  struct position p;
  struct slice_ref ref;
  uint64_t n = 0, i;
  int r;

  r = pin (rc, first, &p, &ref);
  if (r < 0)
    return r;
  nr = clip_to_slice (rc, &p, nr);

  pthread_mutex_lock (&rc->lock);
  while (n < nr && load_at (rc, &ref, p.first + n) == 0)
    n++;
  if (n > 0) {
    slice_begin_change (&ref);
    for (i = 0; i < n; ++i)
      store_at (rc, &ref, p.first + i, 1);
    end_change (rc, &ref, &p, n);
  }
  pthread_mutex_unlock (&rc->lock);
  slice_unpin (rc->slices, &ref);
  return (int64_t) n;
}

void
refcounts_encode (const struct refcounts *rc, uint64_t *block,
                  uint64_t index, uint64_t value)
{
  uint64_t *word = &block[word_of (rc, index)];

  *word = htobe64 (refcount_word_set (rc->order, be64toh (*word), index,
                                      value));
}

/* What follows from a slice: NR refcounts from the position on are 0, or
 * *SKIP are not.
 */
static uint64_t
free_run (struct refcounts *rc, const struct slice_ref *ref,
          const struct position *p, uint64_t max, uint64_t *skip)
{
  uint64_t nr = 0;

  *skip = 0;
  pthread_mutex_lock (&rc->lock);
  while (*skip < max && load_at (rc, ref, p->first + *skip) != 0)
    ++*skip;
  while (*skip + nr < max && load_at (rc, ref, p->first + *skip + nr) == 0)
    nr++;
  pthread_mutex_unlock (&rc->lock);
  return nr;
}

int
refcounts_next_free (struct refcounts *rc, uint64_t from, uint64_t end,
                     uint64_t *cluster, uint64_t *nr)
{
  *nr = 0;
  while (from < end && *nr == 0) {
    struct position p;
    struct slice_ref ref;
    uint64_t skip;
    int r = pin (rc, from, &p, &ref);

    if (r == -ENOENT) {
      *nr = 1;                  /* claiming it makes a block */
      break;
    }
    if (r < 0)
      return r;
    *nr = free_run (rc, &ref, &p, clip_to_slice (rc, &p, end - from), &skip);
    slice_unpin (rc->slices, &ref);
    from += skip;
  }
  *cluster = from;
  return 0;
}

static int
underflow (const struct refcounts *rc, uint64_t cluster)
{
  return guard_corrupt (rc->layer, "the refcount of the cluster at "
                        "0x%" PRIx64 " is 0 while the cluster is in use",
                        cluster << rc->cluster_bits);
}

/* Those of NR refcounts that are alike: all 1, or all above 1.  Only one
 * thread lowers refcounts, and a refcount above 0 is not claimed: so what
 * is seen here stays so until lower_run.
 */
static uint64_t
equal_run (struct refcounts *rc, const struct slice_ref *ref,
           const struct position *p, uint64_t nr, uint64_t *value)
{
  uint64_t n = 1;

  pthread_mutex_lock (&rc->lock);
  *value = load_at (rc, ref, p->first);
  while (n < nr && load_at (rc, ref, p->first + n) == *value)
    n++;
  pthread_mutex_unlock (&rc->lock);
  return n;
}

static void
lower_run (struct refcounts *rc, struct slice_ref *ref,
           const struct position *p, uint64_t nr, uint64_t value)
{
  uint64_t i;

  pthread_mutex_lock (&rc->lock);
  slice_begin_change (ref);
  for (i = 0; i < nr; ++i)
    store_at (rc, ref, p->first + i, value - 1);
  end_change (rc, ref, p, nr);
  pthread_mutex_unlock (&rc->lock);
}

int
refcounts_lower (struct refcounts *rc, uint64_t first, uint64_t nr,
                 const struct refcount_observer *observer, uint64_t *done)
{
  for (*done = 0; *done < nr; ) {
    uint64_t cluster = first + *done, n, value;
    struct position p;
    struct slice_ref ref;
    int r = pin (rc, cluster, &p, &ref);

    if (r < 0)
      return r == -ENOENT ? underflow (rc, cluster) : r;
    n = equal_run (rc, &ref, &p, clip_to_slice (rc, &p, nr - *done), &value);
    if (value == 1)
      r = observer->before_free (observer->opaque, cluster, n);
    if (value > 0 && r == 0)
      lower_run (rc, &ref, &p, n, value);
    slice_unpin (rc->slices, &ref);
    if (r < 0)
      return r;
    if (value == 0)
      return underflow (rc, cluster);
    if (value == 1)
      observer->after_free (observer->opaque, cluster, n);
    *done += n;
  }
  return 0;
}

/*----- Many refcounts at once -----*/

/* No block covers CLUSTER.  Returns how many of NR the block would cover. */
static uint64_t
visit_uncovered (const struct refcounts *rc, uint64_t cluster, uint64_t nr,
                 refcount_fn *fn, void *opaque)
{
  uint64_t in_block = cluster & ((UINT64_C (1) << rc->block_bits) - 1);
  uint64_t rest = (UINT64_C (1) << rc->block_bits) - in_block, i;

  if (nr > rest)
    nr = rest;
  for (i = 0; i < nr; ++i)
    fn (opaque, cluster + i, 0);
  return nr;
}

/* Returns how many of NR are in the slice. */
static uint64_t
visit_slice (struct refcounts *rc, struct slice_ref *ref,
             const struct position *p, uint64_t cluster, uint64_t nr,
             refcount_fn *fn, void *opaque)
{
  uint64_t first = UINT64_MAX, last = 0, was, is, i;

  nr = clip_to_slice (rc, p, nr);
  pthread_mutex_lock (&rc->lock);
  for (i = 0; i < nr; ++i) {
    was = load_at (rc, ref, p->first + i);
    is = fn (opaque, cluster + i, was);
    if (is == was)
      continue;
    if (first == UINT64_MAX) {
      first = i;
      slice_begin_change (ref);
    }
    store_at (rc, ref, p->first + i, is);
    last = i;
  }
  if (first != UINT64_MAX) {
    struct position changed = *p;

    changed.first += first;
    end_change (rc, ref, &changed, last - first + 1);
  }
  pthread_mutex_unlock (&rc->lock);
  return nr;
}

int
refcounts_each (struct refcounts *rc, uint64_t first, uint64_t nr,
                refcount_fn *fn, void *opaque, uint64_t *done)
{
  uint64_t end = first + nr;

  for (*done = first; *done < end; ) {
    struct position p;
    struct slice_ref ref;
    int r = pin (rc, *done, &p, &ref);

    if (r == -ENOENT) {
      *done += visit_uncovered (rc, *done, end - *done, fn, opaque);
      continue;
    }
    if (r < 0)
      return r;
    *done += visit_slice (rc, &ref, &p, *done, end - *done, fn, opaque);
    slice_unpin (rc->slices, &ref);
  }
  return 0;
}
