/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing guest data.
 *
 * Clusters that are allocated and the active layer's own are written in
 * place: a look-up and a pwrite, without a lock.  This is safe against
 * everything that happens meanwhile, since a cluster that is unlinked
 * under such a write is not used for anything else before the write has
 * ended (epoch.h).
 *
 * All else goes by pieces.  A piece lies within one L2 slice, and all of
 * its clusters are treated alike:
 *
 *     claim -> read the entries -> allocate -> write data and COW areas
 *           -> link -> give up the old clusters -> release
 *
 * No lock is held over any of these steps; the claim keeps others from
 * the entries.  Whatever fails before the link leaves the old mapping,
 * and gives back what this piece allocated.
 */

#include <errno.h>
#include <string.h>

#include "cow.h"
#include "guard.h"
#include "l2.h"
#include "write.h"

enum place {
  PLACE_IN_PLACE,               /* all that is written is there already */
  PLACE_REUSE,                  /* our own host cluster, but not all of it
                                   is in use yet */
  PLACE_NEW,
};

struct piece {
  struct writer *w;
  struct epoch_ticket ticket;
  const char *buf;
  uint64_t offset;              /* guest */
  uint64_t count;
  struct inflight_stripe *stripe;
  struct claim claim;

  uint64_t first_cluster;       /* guest offset */
  unsigned nr_clusters;
  struct l2_entry old[L2_SLICE_ENTRIES];
  enum place place;
  uint64_t host;                /* of first_cluster */
  bool fresh;
};

static uint64_t
cluster_bytes (const struct piece *p)
{
  return layer_cluster_bytes (p->w->top);
}

static uint64_t
end_of (const struct piece *p)
{
  return p->offset + p->count;
}

/*----- Which place -----*/

static bool
is_extended (const struct piece *p)
{
  return p->w->top->l2_entry_bits == 4;
}

/* The subclusters of cluster I that the guest's bytes touch. */
static uint32_t
touched_subclusters (const struct piece *p, unsigned i)
{
  uint64_t start = p->first_cluster + i * cluster_bytes (p);
  uint64_t end = start + cluster_bytes (p);
  unsigned bits = p->w->top->unit_bits, first, last;

  if (start < p->offset)
    first = (p->offset - start) >> bits;
  else
    first = 0;
  if (end > end_of (p))
    end = end_of (p);
  last = (end - 1 - start) >> bits;
  return (uint32_t) (((uint64_t) 2 << last) - ((uint64_t) 1 << first));
}

/* In an external data file each guest cluster has its place. */
static enum place
place_external (const struct piece *p, unsigned i)
{
  const struct l2_entry *e = &p->old[i];

  if (!l2_is_owned (e))
    return PLACE_NEW;
  if (is_extended (p))
    return touched_subclusters (p, i) & ~subclusters_allocated (e->bitmap) ?
      PLACE_REUSE : PLACE_IN_PLACE;
  return e->entry & ENTRY_ZERO ? PLACE_REUSE : PLACE_IN_PLACE;
}

static enum place
place_of (const struct piece *p, unsigned i)
{
  const struct l2_entry *e = &p->old[i];

  if (p->w->top->external_data)
    return place_external (p, i);
  if (!l2_is_owned (e) || l2_host_cluster (e) == 0)
    return PLACE_NEW;
  if (is_extended (p))
    return touched_subclusters (p, i) & ~subclusters_allocated (e->bitmap) ?
      PLACE_REUSE : PLACE_IN_PLACE;
  return e->entry & ENTRY_ZERO ? PLACE_REUSE : PLACE_IN_PLACE;
}

static uint64_t
own_host (const struct piece *p, unsigned i)
{
  if (p->w->top->external_data)
    return p->first_cluster + i * cluster_bytes (p);
  return l2_host_cluster (&p->old[i]);
}

/* End the piece before cluster NR. */
static void
cut (struct piece *p, unsigned nr)
{
  uint64_t end = p->first_cluster + nr * cluster_bytes (p);

  p->nr_clusters = nr;
  if (end < p->claim.end)
    inflight_shrink (p->stripe, &p->claim, end);
  if (end_of (p) > end)
    p->count = end - p->offset;
}

/* A damaged entry must not make us write to, or give up, clusters that
 * it does not own.
 */
static int
check_old (const struct piece *p)
{
  unsigned i;

  int r = 0;

  for (i = 0; i < p->nr_clusters && r == 0; ++i)
    r = l2_check (p->w, p->first_cluster + i * cluster_bytes (p),
                  &p->old[i]);
  return r;
}

/* Treat as many clusters together as are alike and adjacent. */
static void
choose_place (struct piece *p)
{
  unsigned i;

  p->place = place_of (p, 0);
  p->host = own_host (p, 0);
  for (i = 1; i < p->nr_clusters; ++i) {
    if (place_of (p, i) != p->place)
      break;
    if (p->place != PLACE_NEW &&
        own_host (p, i) != p->host + i * cluster_bytes (p))
      break;
  }
  cut (p, i);
}

static int
allocate (struct piece *p)
{
  unsigned cluster_bits = p->w->top->header.cluster_bits;
  uint64_t first, got;
  int r;

  p->fresh = false;
  if (p->place != PLACE_NEW || p->w->top->external_data)
    return 0;
  r = alloc_clusters (&p->w->alloc, p->nr_clusters, &first, &got, &p->fresh);
  if (r < 0)
    return r;
  p->host = first << cluster_bits;
  if (got < p->nr_clusters)
    cut (p, (unsigned) got);
  return 0;
}

static void
give_back (struct piece *p)
{
  if (p->place == PLACE_NEW && !p->w->top->external_data)
    retire_now (&p->w->retire, p->host >> p->w->top->header.cluster_bits,
                p->nr_clusters);
}

/*----- COW areas -----*/

/* The subclusters of cluster I that the piece will write, copies
 * included: a range without gaps.  In a new place all that the old one
 * held has to be in it.
 */
static uint32_t
written_subclusters (const struct piece *p, unsigned i)
{
  const struct l2_entry *e = &p->old[i];
  uint32_t all = touched_subclusters (p, i);

  if (p->place == PLACE_NEW) {
    if (e->entry & ENTRY_COMPRESSED)
      return UINT32_MAX;
    all |= subclusters_allocated (e->bitmap);
  }
  /* From the lowest to the highest. */
  return (uint32_t) (((uint64_t) 2 << (31 - __builtin_clz (all))) -
                     ((uint64_t) 1 << __builtin_ctz (all)));
}

/* Where in cluster I the copied area in front of the guest's bytes
 * begins, or behind them ends.  A subcluster that is allocated in place
 * needs no copy.
 */
static uint64_t
copy_start (const struct piece *p, unsigned i)
{
  uint64_t start = p->first_cluster + i * cluster_bytes (p);
  unsigned bits = p->w->top->unit_bits, low;

  if (!is_extended (p))
    return start;
  low = (unsigned) __builtin_ctz (written_subclusters (p, i));
  if (p->place != PLACE_NEW &&
      subclusters_allocated (p->old[i].bitmap) & UINT32_C (1) << low)
    return p->offset;
  return start + ((uint64_t) low << bits);
}

static uint64_t
copy_end (const struct piece *p, unsigned i)
{
  uint64_t start = p->first_cluster + i * cluster_bytes (p);
  unsigned bits = p->w->top->unit_bits, high;

  if (!is_extended (p))
    return start + cluster_bytes (p);
  high = 31 - (unsigned) __builtin_clz (written_subclusters (p, i));
  if (p->place != PLACE_NEW &&
      subclusters_allocated (p->old[i].bitmap) & UINT32_C (1) << high)
    return end_of (p);
  return start + ((uint64_t) (high + 1) << bits);
}

/* The last cluster goes beyond the end of the disk, but perhaps not of the
 * data file: where that can't grow, there is nothing to be copied to.
 */
static uint64_t
clip_to_data_file (const struct piece *p, uint64_t end)
{
  const struct layer *l = p->w->top;
  int64_t size_bytes;

  if (!l->external_data || end <= l->size_bytes ||
      qcow2_storage_can_grow (l->data))
    return end;
  size_bytes = qcow2_storage_size (l->data);
  if (size_bytes < 0 || (uint64_t) size_bytes >= end)
    return end;
  return (uint64_t) size_bytes > end_of (p) ? (uint64_t) size_bytes :
    end_of (p);
}

static int
write_piece_data (struct piece *p)
{
  uint64_t start, end;

  if (p->place == PLACE_IN_PLACE)
    start = p->offset, end = end_of (p);
  else {
    start = copy_start (p, 0);
    end = clip_to_data_file (p, copy_end (p, p->nr_clusters - 1));
    if (start > p->offset)
      start = p->offset;
  }
  return cow_write (p->w, p->ticket, p->buf, p->count, p->offset,
                    p->host + (p->offset - p->first_cluster),
                    p->offset - start, end - end_of (p), p->fresh);
}

/*----- Linking -----*/

static void
make_entry (const struct piece *p, unsigned i, struct l2_entry *e)
{
  uint64_t host = p->host + i * cluster_bytes (p);
  uint32_t written, allocated, zero;

  e->entry = host | ENTRY_COPIED;
  e->bitmap = 0;
  if (!is_extended (p))
    return;

  written = written_subclusters (p, i);
  allocated = subclusters_allocated (p->old[i].bitmap);
  zero = subclusters_zero (p->old[i].bitmap);
  if (p->old[i].entry & ENTRY_COMPRESSED)
    allocated = zero = 0;
  e->bitmap = (uint64_t) (zero & ~written) << 32 | allocated | written;
}

static int
link_piece (struct piece *p)
{
  struct l2_entry entries[L2_SLICE_ENTRIES];
  unsigned i;
  int r;

  for (i = 0; i < p->nr_clusters; ++i)
    make_entry (p, i, &entries[i]);
  r = l2_link (p->w, p->first_cluster, p->nr_clusters, entries);
  if (r < 0 || p->place != PLACE_NEW)
    return r;
  for (i = 0; i < p->nr_clusters; ++i)
    l2_unlink (p->w, &p->old[i]);
  return 0;
}

/*----- Pieces -----*/

static int
write_claimed (struct piece *p)
{
  int r;

  r = l2_read (p->w, p->first_cluster, p->nr_clusters, p->old);
  if (r == 0)
    r = check_old (p);
  if (r < 0)
    return r;
  choose_place (p);
  r = allocate (p);
  if (r < 0)
    return r;
  r = write_piece_data (p);
  if (r == 0 && p->place != PLACE_IN_PLACE)
    r = link_piece (p);
  if (r < 0)
    give_back (p);
  return r;
}

/* Write what one piece can of COUNT bytes; *DONE says how many. */
static int
write_piece (struct writer *w, struct epoch_ticket ticket, const void *buf,
             uint64_t count, uint64_t offset, uint64_t *done)
{
  struct piece p = { .w = w, .ticket = ticket, .buf = buf, .offset = offset };
  uint64_t bytes = layer_cluster_bytes (w->top), end = offset + count;
  int r;

  r = l2_own_table (w, offset, ticket);
  if (r < 0)
    return r;

  if (end > l2_slice_end (w, offset))
    end = l2_slice_end (w, offset);
  p.first_cluster = offset & ~(bytes - 1);
  p.stripe = inflight_stripe (&w->inflight, offset >>
                              header_l1_entry_bits (&w->top->header));
  inflight_claim (p.stripe, &p.claim, p.first_cluster,
                  (end + bytes - 1) & ~(bytes - 1), bytes);
  if (end > p.claim.end)
    end = p.claim.end;
  p.count = end - offset;
  p.nr_clusters = (unsigned) ((p.claim.end - p.first_cluster) / bytes);
  r = write_claimed (&p);
  inflight_release (p.stripe, &p.claim);
  *done = p.count;
  return r;
}

/* As much from OFFSET on as may be written in place, by one write. */
static inline int
look_up_in_place (const struct writer *w, uint64_t count, uint64_t offset,
                  struct run *run, bool *owned)
{
  struct run next;
  bool more;
  int r = map_lookup_owned (w->top, offset, count, run, owned);

  if (r < 0 || !*owned)
    return r;
  while (run->length_bytes < count) {
    r = map_lookup_owned (w->top, offset + run->length_bytes,
                          count - run->length_bytes, &next, &more);
    if (r < 0 || !more || !run_join (run, &next))
      break;
  }
  return 0;
}

/* How much of the run that was written in place do the entries name now?  If
 * what is behind that became zeros meanwhile, it is not seen; but a later write
 * may be about to link the same place, and bring it to light when this one has
 * long ended.  So it is to be written again, as what comes last.
 *
 * Seldom needed: write_in_place is to be what it is without this.
 */
static int __attribute__ ((__cold__))
look_again (const struct writer *w, uint64_t offset, const struct run *run,
            uint64_t *done)
{
  struct run now;
  bool owned;
  int r = look_up_in_place (w, run->length_bytes, offset, &now, &owned);

  *done = r == 0 && owned && now.host_offset == run->host_offset ?
    now.length_bytes : 0;
  return r;
}

/* As much as can be written in place; 0 if nothing can. */
static int
write_in_place (struct writer *w, struct epoch_ticket ticket,
                const void *buf, uint64_t count, uint64_t offset,
                bool durable, uint64_t *done)
{
  struct iovec iov;
  struct run run;
  bool owned;
  int r;

  *done = 0;
  r = look_up_in_place (w, count, offset, &run, &owned);
  if (r < 0 || !owned)
    return r;
  if (!w->top->external_data) {
    r = guard_check (w->top, METADATA_NONE, run.host_offset,
                     run.length_bytes, "guest data");
    if (r < 0)
      return r;
  }
  iov.iov_base = (void *) buf;
  iov.iov_len = run.length_bytes;
  r = durable ?
    committer_write (&w->committer, w->top->data, &iov, 1, run.host_offset) :
    qcow2_storage_writev (w->top->data, &iov, 1, run.host_offset, false);
  epoch_note_write (ticket);
  if (r == 0 && atomic_load_explicit (&w->kept_places, memory_order_relaxed))
    return look_again (w, offset, &run, done);
  *done = run.length_bytes;
  return r;
}

int
write_guest (struct writer *w, struct epoch_ticket ticket, const void *buf,
             uint64_t count, uint64_t offset, bool durable, bool *in_place)
{
  const char *p = buf;
  uint64_t done;
  int r;

  while (count > 0) {
    r = write_in_place (w, ticket, p, count, offset, durable, &done);
    if (r == 0 && done == 0) {
      *in_place = false;
      r = write_piece (w, ticket, p, count, offset, &done);
    }
    if (r < 0)
      return r;
    p += done;
    offset += done;
    count -= done;
  }
  return 0;
}
