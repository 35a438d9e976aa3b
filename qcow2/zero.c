/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeroing and trimming.
 *
 * The range is cut at units: clusters, or subclusters where there are
 * any.  Whole units get new entries under a claim, like a write that
 * links nothing; the host clusters that were unlinked are retired.
 * What is left at the edges is written as zeros, unless it reads as
 * zeros already.  At no moment does anything outside of the range
 * change.
 */

#include <errno.h>
#include <string.h>

#include "l2.h"
#include "write.h"
#include "zero.h"

#define ALL_ZERO ((uint64_t) UINT32_MAX << 32)

static const uint8_t zeros[65536];

struct zeroing {
  struct writer *w;
  struct epoch_ticket ticket;
  enum zero_mode mode;
};

static bool
is_extended (const struct writer *w)
{
  return w->top->l2_entry_bits == 4;
}

static bool
has_backing (const struct writer *w)
{
  return w->image->chain.nr_layers > 1;
}

/* Version 2 has no zero flag: there, unallocated has to do. */
static bool
can_mark (const struct writer *w, enum zero_mode mode)
{
  if (w->top->header.version >= 3)
    return true;
  return !has_backing (w) && mode != ZERO_KEEP;
}

bool
zero_can_mark (const struct writer *w, enum zero_mode mode)
{
  return can_mark (w, mode);
}

static uint64_t
unit_bytes (const struct writer *w)
{
  return UINT64_C (1) << w->top->unit_bits;
}

bool
zero_is_fast (const struct writer *w, enum zero_mode mode, uint64_t count,
              uint64_t offset)
{
  uint64_t unit = unit_bytes (w);
  uint64_t first = (offset + unit - 1) & ~(unit - 1);
  uint64_t end = offset + count;

  if (!can_mark (w, mode) || w->data_file_raw)
    return false;
  if (end == w->top->size_bytes)
    return first < end;
  return first < (end & ~(unit - 1));
}

/*----- Edges -----*/

static int
write_zeros (const struct zeroing *z, uint64_t count, uint64_t offset,
             bool *in_place)
{
  while (count > 0) {
    uint64_t n = count < sizeof zeros ? count : sizeof zeros;
    int r = write_guest (z->w, z->ticket, zeros, n, offset, false, in_place);

    if (r < 0)
      return r;
    offset += n;
    count -= n;
  }
  return 0;
}

/* Does the part of one cluster read as zeros?  Whoever is about to link
 * it may uncover what was written there before it became zeros, so this
 * can be said under a claim only.
 */
static int
part_reads_as_zeros (const struct zeroing *z, uint64_t count,
                     uint64_t offset, bool *is_zero)
{
  struct writer *w = z->w;
  uint64_t cluster = layer_cluster_bytes (w->top);
  uint64_t start = offset & ~(cluster - 1);
  struct inflight_stripe *stripe =
    inflight_stripe (&w->inflight,
                     offset >> header_l1_entry_bits (&w->top->header));
  struct claim claim;
  int r;

  inflight_claim (stripe, &claim, start, start + cluster, cluster);
  r = chain_reads_as_zeros (&w->image->chain, &w->top->l1, offset, count,
                            is_zero);
  inflight_release (stripe, &claim);
  return r;
}

/* Less than a unit, or what is left of two of them. */
static int
zero_edge (const struct zeroing *z, uint64_t count, uint64_t offset,
           bool *in_place)
{
  uint64_t cluster = layer_cluster_bytes (z->w->top);
  uint64_t end = offset + count, n;
  bool is_zero;
  int r = 0;

  if (z->mode == ZERO_TRIM)
    return 0;
  for (; offset < end && r == 0; offset += n) {
    n = cluster - (offset & (cluster - 1));
    if (n > end - offset)
      n = end - offset;
    r = part_reads_as_zeros (z, n, offset, &is_zero);
    if (r == 0 && !is_zero)
      r = write_zeros (z, n, offset, in_place);
  }
  return r;
}

/*----- Whole units -----*/

/* The subclusters of the cluster at START that [OFFSET, END) covers.  What
 * is beyond the end of the disk goes with the last one.
 */
static uint32_t
covered (const struct writer *w, uint64_t start, uint64_t offset,
         uint64_t end)
{
  unsigned bits = w->top->unit_bits;
  uint64_t cluster = layer_cluster_bytes (w->top);
  uint64_t first = offset > start ? (offset - start) >> bits : 0;
  uint64_t last = end < start + cluster && end != w->top->size_bytes ?
    (end - start + unit_bytes (w) - 1) >> bits : SUBCLUSTERS_PER_CLUSTER;

  return (uint32_t) ((UINT64_C (1) << last) - (UINT64_C (1) << first));
}

/* What becomes of a whole cluster. */
static void
new_entry (const struct zeroing *z, const struct l2_entry *old,
           struct l2_entry *new)
{
  const struct writer *w = z->w;
  bool allocated = old->entry & ENTRY_COMPRESSED ||
    l2_host_cluster (old) != 0 || l2_is_owned (old);
  bool keep = z->mode == ZERO_KEEP && l2_is_owned (old);

  *new = *old;
  if (!allocated && !has_backing (w) && old->bitmap == 0 &&
      !(old->entry & ENTRY_ZERO))
    return;                     /* unallocated: zeros already */
  new->entry = keep ? old->entry : 0;
  if (w->top->header.version < 3)
    return;
  if (is_extended (w))
    new->bitmap = ALL_ZERO;
  else
    new->entry |= ENTRY_ZERO;
}

/* Some of a cluster's subclusters; its host cluster stays. */
static void
new_subclusters (const struct l2_entry *old, uint32_t which,
                 struct l2_entry *new)
{
  *new = *old;
  new->bitmap &= ~(uint64_t) which;
  new->bitmap |= (uint64_t) which << 32;
}

static bool
differs (const struct l2_entry *a, const struct l2_entry *b)
{
  return a->entry != b->entry || a->bitmap != b->bitmap;
}

/* Does NEW still name the host cluster of OLD? */
static bool
unlinks (const struct l2_entry *old, const struct l2_entry *new)
{
  if (old->entry & ENTRY_COMPRESSED)
    return !(new->entry & ENTRY_COMPRESSED);
  return l2_host_cluster (old) != l2_host_cluster (new);
}

/* Can data be written to where OLD has it, and be seen through an entry that
 * comes after NEW, while all this is one epoch?
 */
static bool
keeps_place (const struct writer *w, const struct l2_entry *old,
             const struct l2_entry *new)
{
  if (w->top->external_data)
    return l2_is_owned (old);
  return l2_host_cluster (old) != 0 && !unlinks (old, new);
}

/* The data file is changed first, the entry after it.  Until that is
 * durable, the old entry may come back: so the data file has to read as
 * zeros, and not as anything that discarding might leave.
 */
static int
zero_data_file (const struct zeroing *z, uint64_t start, uint64_t end)
{
  struct writer *w = z->w;
  int r = 0;

  if (!w->top->external_data)
    return 0;
  if (w->data_file_raw)
    r = qcow2_storage_zero (w->top->data, start, end - start,
                            z->mode != ZERO_KEEP);
  else if (z->mode != ZERO_KEEP && w->discard)
    r = qcow2_storage_punch (w->top->data, start, end - start);
  if (r == -EOPNOTSUPP)
    r = 0;
  epoch_note_write (z->ticket);
  return r;
}

struct units {
  uint64_t start, end;          /* guest bytes */
  uint64_t first_cluster;
  unsigned nr_clusters;
};

static int
change_entries (const struct zeroing *z, const struct units *u,
                struct l2_entry *old, bool *in_place)
{
  struct l2_entry new[L2_SLICE_ENTRIES];
  uint64_t cluster = layer_cluster_bytes (z->w->top);
  bool changed = false, kept = false;
  unsigned i;
  int r;

  for (i = 0; i < u->nr_clusters; ++i) {
    uint64_t start = u->first_cluster + i * cluster;
    uint32_t which = is_extended (z->w) ?
      covered (z->w, start, u->start, u->end) : UINT32_MAX;

    r = l2_check (z->w, start, &old[i]);
    if (r < 0)
      return r;
    if (which == UINT32_MAX)
      new_entry (z, &old[i], &new[i]);
    else
      new_subclusters (&old[i], which, &new[i]);
    if (differs (&old[i], &new[i])) {
      changed = true;
      kept |= keeps_place (z->w, &old[i], &new[i]);
    }
  }
  if (!changed)
    return 0;
  if (kept && !atomic_load_explicit (&z->w->kept_places,
                                     memory_order_relaxed))
    atomic_store (&z->w->kept_places, true);
  *in_place = false;
  r = l2_link (z->w, u->first_cluster, u->nr_clusters, new);
  if (r < 0)
    return r;
  for (i = 0; i < u->nr_clusters; ++i)
    if (unlinks (&old[i], &new[i]))
      l2_unlink (z->w, &old[i]);
  return 0;
}

/* Part of a compressed cluster, or of one that is shared, can't be
 * marked: it has to be written.
 */
static bool
must_write (const struct zeroing *z, const struct units *u,
            const struct l2_entry *old)
{
  uint64_t cluster = layer_cluster_bytes (z->w->top);

  if (u->start == u->first_cluster && u->end - u->start >= cluster)
    return false;
  if (u->end == z->w->top->size_bytes && u->start == u->first_cluster)
    return false;
  return old->entry & ENTRY_COMPRESSED ||
    (l2_host_cluster (old) != 0 && !l2_is_owned (old));
}

static int
zero_claimed (const struct zeroing *z, struct units *u, bool *written,
              bool *in_place)
{
  struct l2_entry old[L2_SLICE_ENTRIES];
  int r;

  *written = true;
  r = l2_read (z->w, u->first_cluster, u->nr_clusters, old);
  if (r < 0)
    return r;
  if (u->nr_clusters == 1 && must_write (z, u, &old[0])) {
    *written = false;
    return 0;
  }
  r = zero_data_file (z, u->start, u->end);
  if (r < 0 || z->w->data_file_raw)
    return r;
  return change_entries (z, u, old, in_place);
}

/* Units [START, END) as far as one claim goes; *DONE says how far. */
static int
zero_piece (const struct zeroing *z, uint64_t start, uint64_t end,
            uint64_t *done, bool *in_place)
{
  struct writer *w = z->w;
  uint64_t cluster = layer_cluster_bytes (w->top);
  struct inflight_stripe *stripe =
    inflight_stripe (&w->inflight,
                     start >> header_l1_entry_bits (&w->top->header));
  struct units u = { .start = start, .end = end };
  struct claim claim;
  bool written;
  int r;

  r = l2_own_table (w, start, z->ticket);
  if (r < 0)
    return r;
  if (u.end > l2_slice_end (w, start))
    u.end = l2_slice_end (w, start);
  u.first_cluster = start & ~(cluster - 1);
  /* A cluster of which only some subclusters are meant goes alone. */
  if (u.start > u.first_cluster && u.end > u.first_cluster + cluster)
    u.end = u.first_cluster + cluster;
  else if (u.end > u.first_cluster + cluster && u.end < w->top->size_bytes)
    u.end &= ~(cluster - 1);

  inflight_claim (stripe, &claim, u.first_cluster,
                  (u.end + cluster - 1) & ~(cluster - 1), cluster);
  if (u.end > claim.end)
    u.end = claim.end;
  u.nr_clusters = (unsigned) ((claim.end - u.first_cluster) / cluster);
  r = zero_claimed (z, &u, &written, in_place);
  inflight_release (stripe, &claim);

  if (r == 0 && !written && z->mode != ZERO_TRIM)
    r = write_zeros (z, u.end - u.start, u.start, in_place);
  *done = u.end - u.start;
  return r;
}

/* Nothing is there, and nothing is behind it. */
static bool
has_no_table (const struct writer *w, uint64_t offset)
{
  uint64_t index = offset >> header_l1_entry_bits (&w->top->header);

  return w->top->l1.entries[index] == 0 && !has_backing (w) &&
    !w->data_file_raw;
}

static int
zero_units (const struct zeroing *z, uint64_t start, uint64_t end,
            bool *in_place)
{
  uint64_t l1_bytes =
    UINT64_C (1) << header_l1_entry_bits (&z->w->top->header);
  uint64_t done;
  int r;

  while (start < end) {
    if (has_no_table (z->w, start)) {
      done = l1_bytes - (start & (l1_bytes - 1));
      if (done > end - start)
        done = end - start;
    }
    else {
      r = zero_piece (z, start, end, &done, in_place);
      if (r < 0)
        return r;
    }
    start += done;
  }
  return 0;
}

int
zero_guest (struct writer *w, struct epoch_ticket ticket,
            enum zero_mode mode, uint64_t count, uint64_t offset,
            bool *in_place)
{
  struct zeroing z = { .w = w, .ticket = ticket, .mode = mode };
  uint64_t unit = unit_bytes (w), end = offset + count;
  uint64_t first = (offset + unit - 1) & ~(unit - 1), last = end;
  int r;

  if (!can_mark (w, mode))
    return mode == ZERO_TRIM ? 0 : write_zeros (&z, count, offset, in_place);

  /* The last unit may go beyond the end of the disk. */
  if (end < w->top->size_bytes)
    last = end & ~(unit - 1);
  if (first >= last)
    return zero_edge (&z, count, offset, in_place);
  r = zero_edge (&z, first - offset, offset, in_place);
  if (r == 0)
    r = zero_units (&z, first, last, in_place);
  if (r == 0)
    r = zero_edge (&z, end - last, last, in_place);
  return r;
}
