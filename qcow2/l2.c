/* SPDX-License-Identifier: BSD-3-Clause */

/* L2 tables and entries for writers.
 *
 * An entry is changed by the holder of its claim alone; the stripe's
 * lock keeps apart those who change different entries of one slice.
 *
 * A table that is shared with a snapshot, or does not exist, is replaced
 * as a whole, under a claim on all that it maps: the new one is written
 * (so a commit never runs out of space half-way), then the L1 entry is
 * changed in memory.  A shared table is never changed, so what is on
 * disk of it is true.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "l2.h"

static unsigned
l1_bits (const struct writer *w)
{
  return header_l1_entry_bits (&w->top->header);
}

static unsigned
slice_entry_bits (const struct writer *w)
{
  return (unsigned) __builtin_ctz (w->top->slice_bytes) -
    w->top->l2_entry_bits;
}

uint64_t
l2_slice_end (const struct writer *w, uint64_t offset)
{
  unsigned bits = slice_entry_bits (w) + w->top->header.cluster_bits;

  return ((offset >> bits) + 1) << bits;
}

int
l2_corrupt (const struct writer *w, uint64_t offset, const char *problem)
{
  return guard_corrupt (w->top, "guest offset 0x%" PRIx64 ": %s", offset,
                        problem);
}

static bool
bitmap_is_valid (const struct writer *w, const struct l2_entry *e)
{
  bool has_host = l2_host_cluster (e) != 0 ||
    (w->top->external_data && e->entry & ENTRY_COPIED);
  uint32_t allocated = subclusters_allocated (e->bitmap);

  return has_host ? !(allocated & subclusters_zero (e->bitmap)) :
    allocated == 0;
}

int
l2_check (const struct writer *w, uint64_t offset, const struct l2_entry *e)
{
  const struct layer *l = w->top;
  unsigned bits = l->header.cluster_bits;

  if (e->entry & ENTRY_COMPRESSED) {
    if (l->external_data)
      return l2_corrupt (w, offset, "compressed cluster, but there is an "
                         "external data file");
    return guard_check (l, METADATA_NONE, compressed_offset (e->entry, bits),
                        compressed_bytes (e->entry, bits),
                        "compressed guest data");
  }
  if (l2_host_cluster (e) & (layer_cluster_bytes (l) - 1))
    return l2_corrupt (w, offset, "data cluster is not aligned");
  if (l->header.version < 3 && e->entry & ENTRY_ZERO)
    return l2_corrupt (w, offset, "zero flag in a version 2 image");
  if (!bitmap_is_valid (w, e))
    return l2_corrupt (w, offset, "invalid subcluster bitmap");
  if (l2_host_cluster (e) == 0 || l->external_data)
    return 0;
  return guard_check (l, METADATA_NONE, l2_host_cluster (e),
                      layer_cluster_bytes (l), "guest data");
}

/* Read all of a table, or a part of it. */
static int
read_table (const struct writer *w, uint64_t offset, void *buf, size_t bytes,
            uint64_t host_offset)
{
  int r = qcow2_storage_read_meta (w->top->file, buf, bytes, host_offset);

  if (r == -EIO && guard_is_past_end (w->top, host_offset, bytes))
    r = l2_corrupt (w, offset, "the L2 table is past the end of the file");
  return r;
}

/* Where does the table lie that the L1 entry names, and is it one? */
static int
check_table (const struct writer *w, uint64_t offset, uint64_t l2_offset)
{
  if (l2_offset & (layer_cluster_bytes (w->top) - 1))
    return l2_corrupt (w, offset, "L2 table is not aligned");
  return guard_check (w->top, METADATA_L2_TABLE, l2_offset, 1, "an L2 table");
}

/*----- Slices -----*/

struct place {
  struct writer *w;
  uint64_t offset;              /* guest */
  uint64_t slice_host_offset;
  size_t first_word;
};

static int
read_slice (void *opaque, uint64_t key, uint64_t *buf)
{
  const struct place *p = opaque;
  const struct layer *l = p->w->top;

  memset ((uint8_t *) buf + l->slice_bytes, 0,
          SLICE_MAX_BYTES - l->slice_bytes);
  return read_table (p->w, p->offset, buf, l->slice_bytes, key);
}

/* Returns 0 with nothing pinned and *FOUND false if there is no table. */
static int
pin (struct writer *w, uint64_t offset, struct place *p,
     struct slice_ref *ref, bool *found)
{
  const struct layer *l = w->top;
  uint64_t l2_offset = l->l1.entries[offset >> l1_bits (w)] &
    ENTRY_OFFSET_MASK;
  uint64_t index = (offset & ((UINT64_C (1) << l1_bits (w)) - 1)) >>
    l->header.cluster_bits;
  unsigned in_slice = index & ((1u << slice_entry_bits (w)) - 1);
  int r;

  *found = l2_offset != 0;
  if (!*found)
    return 0;
  r = check_table (w, offset, l2_offset);
  if (r < 0)
    return r;
  p->w = w;
  p->offset = offset;
  p->slice_host_offset = l2_offset +
    (index >> slice_entry_bits (w)) * l->slice_bytes;
  p->first_word = (size_t) in_slice << (l->l2_entry_bits - 3);
  return slice_cache_pin (l->slices, p->slice_host_offset, read_slice, p,
                          ref);
}

static unsigned
words_per_entry (const struct writer *w)
{
  return 1u << (w->top->l2_entry_bits - 3);
}

int
l2_read (struct writer *w, uint64_t offset, unsigned nr,
         struct l2_entry *entries)
{
  unsigned words = words_per_entry (w), i;
  struct slice_ref ref;
  struct place p;
  bool found;
  int r;

  memset (entries, 0, nr * sizeof *entries);
  r = pin (w, offset, &p, &ref, &found);
  if (r < 0 || !found)
    return r;
  for (i = 0; i < nr; ++i) {
    entries[i].entry = slice_load (&ref, p.first_word + i * words);
    if (words == 2)
      entries[i].bitmap = slice_load (&ref, p.first_word + i * words + 1);
  }
  slice_unpin (w->top->slices, &ref);
  return 0;
}

int
l2_link (struct writer *w, uint64_t offset, unsigned nr,
         const struct l2_entry *entries)
{
  struct inflight_stripe *stripe =
    inflight_stripe (&w->inflight, offset >> l1_bits (w));
  unsigned words = words_per_entry (w), i;
  struct slice_ref ref;
  struct place p;
  bool found;
  int r;

  r = pin (w, offset, &p, &ref, &found);
  if (r < 0)
    return r;
  pthread_mutex_lock (&stripe->lock);
  slice_begin_change (&ref);
  for (i = 0; i < nr; ++i) {
    slice_store (&ref, p.first_word + i * words, entries[i].entry);
    if (words == 2)
      slice_store (&ref, p.first_word + i * words + 1, entries[i].bitmap);
  }
  slice_end_change (w->top->slices, &ref, p.first_word, nr * words);
  pthread_mutex_unlock (&stripe->lock);
  slice_unpin (w->top->slices, &ref);

  if (slice_cache_nr_dirty (w->top->slices) >
      slice_cache_nr_slots (w->top->slices) / 3)
    worker_hurry (w);
  return 0;
}

void
l2_unlink (struct writer *w, const struct l2_entry *old)
{
  unsigned cluster_bits = w->top->header.cluster_bits;
  uint64_t first, last;

  if (old->entry & ENTRY_COMPRESSED) {
    first = compressed_offset (old->entry, cluster_bits);
    last = first + compressed_bytes (old->entry, cluster_bits) - 1;
    retire_unlinked (&w->retire, first >> cluster_bits,
                     (last >> cluster_bits) - (first >> cluster_bits) + 1,
                     RETIRED_COMPRESSED);
  }
  else if (l2_host_cluster (old) != 0 && !w->top->external_data)
    retire_unlinked (&w->retire, l2_host_cluster (old) >> cluster_bits, 1,
                     RETIRED_DATA);
}

/*----- Tables -----*/

/* What a shared table names is shared, whatever its flags say. */
static void
clear_copied (const struct writer *w, uint64_t *table)
{
  size_t i, nr = layer_cluster_bytes (w->top) / 8;

  for (i = 0; i < nr; i += words_per_entry (w))
    table[i] &= htobe64 (~ENTRY_COPIED);
}

/* Write a new table: zeros, or a copy of the one at OLD_OFFSET. */
static int
write_table (struct writer *w, uint64_t offset, uint64_t old_offset,
             uint64_t new_offset)
{
  size_t bytes = layer_cluster_bytes (w->top);
  uint64_t *table = calloc (1, bytes);
  int r = 0;

  if (!table)
    return -ENOMEM;
  if (old_offset != 0)
    r = read_table (w, offset, table, bytes, old_offset);
  if (old_offset != 0 && !w->top->external_data)
    clear_copied (w, table);
  if (r == 0)
    r = qcow2_storage_write (w->top->file, table, bytes, new_offset, false);
  free (table);
  return r;
}

static int
replace_table (struct writer *w, uint64_t offset, uint64_t old,
               struct epoch_ticket ticket)
{
  unsigned cluster_bits = w->top->header.cluster_bits;
  uint32_t l1_index = (uint32_t) (offset >> l1_bits (w));
  uint64_t cluster, got, new;
  bool fresh;
  int r;

  r = alloc_clusters (&w->alloc, 1, &cluster, &got, &fresh);
  if (r < 0)
    return r;
  new = cluster << cluster_bits;
  r = guard_add (w->top, METADATA_L2_TABLE, new);
  if (r == 0)
    r = write_table (w, offset, old, new);
  epoch_note_write (ticket);
  if (r == 0)
    r = l1_set (&w->l1, l1_index, new | ENTRY_COPIED);
  if (r < 0) {
    guard_remove (w->top, METADATA_L2_TABLE, new);
    retire_now (&w->retire, cluster, 1);
    return r;
  }
  if (old != 0)
    retire_unlinked (&w->retire, old >> cluster_bits, 1,
                     RETIRED_TABLE);
  return 0;
}

static bool
is_own_table (uint64_t l1_entry)
{
  return l1_entry & ENTRY_COPIED && l1_entry & ENTRY_OFFSET_MASK;
}

int
l2_own_table (struct writer *w, uint64_t offset, struct epoch_ticket ticket)
{
  uint64_t index = offset >> l1_bits (w);
  struct inflight_stripe *stripe = inflight_stripe (&w->inflight, index);
  struct claim claim;
  uint64_t entry;
  int r = 0;

  if (is_own_table (w->top->l1.entries[index]))
    return 0;
  inflight_claim (stripe, &claim, index << l1_bits (w),
                  (index + 1) << l1_bits (w), UINT64_C (1) << l1_bits (w));
  entry = w->top->l1.entries[index];
  if (!is_own_table (entry)) {
    entry &= ENTRY_OFFSET_MASK;
    if (entry != 0)
      r = check_table (w, offset, entry);
    if (r == 0)
      r = replace_table (w, offset, entry, ticket);
  }
  inflight_release (stripe, &claim);
  return r;
}

/* All entries of the table for guest OFFSET, each of which can be trusted. */
static int
read_all (struct writer *w, uint64_t offset, struct l2_entry *entries,
          size_t nr)
{
  unsigned cluster_bits = w->top->header.cluster_bits;
  unsigned in_slice = 1u << slice_entry_bits (w);
  size_t i;
  int r = 0;

  for (i = 0; i < nr && r == 0; i += in_slice)
    r = l2_read (w, offset + (i << cluster_bits), in_slice, entries + i);
  for (i = 0; i < nr && r == 0; ++i)
    r = l2_check (w, offset + (i << cluster_bits), &entries[i]);
  return r;
}

static int
drop_claimed (struct writer *w, uint32_t l1_index, bool gone)
{
  uint64_t table = w->top->l1.entries[l1_index] & ENTRY_OFFSET_MASK;
  size_t nr = layer_cluster_bytes (w->top) >> w->top->l2_entry_bits, i;
  struct l2_entry *entries;
  int r;

  if (table == 0)
    return 0;
  entries = malloc (nr * sizeof *entries);
  if (!entries)
    return -ENOMEM;
  r = read_all (w, (uint64_t) l1_index << l1_bits (w), entries, nr);
  if (r == 0 && gone)
    w->top->l1.entries[l1_index] = 0;
  else if (r == 0)
    r = l1_set (&w->l1, l1_index, 0);
  for (i = 0; i < nr && r == 0; ++i)
    l2_unlink (w, &entries[i]);
  if (r == 0)
    retire_unlinked (&w->retire, table >> w->top->header.cluster_bits, 1,
                     RETIRED_TABLE);
  free (entries);
  return r;
}

int
l2_drop_table (struct writer *w, uint32_t l1_index, bool gone)
{
  struct inflight_stripe *stripe = inflight_stripe (&w->inflight, l1_index);
  uint64_t bytes = UINT64_C (1) << l1_bits (w);
  struct claim claim;
  int r;

  inflight_claim (stripe, &claim, l1_index * bytes, (l1_index + 1) * bytes,
                  bytes);
  r = drop_claimed (w, l1_index, gone);
  inflight_release (stripe, &claim);
  return r;
}
