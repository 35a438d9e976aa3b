/* SPDX-License-Identifier: BSD-3-Clause */

/* Space for a part of the disk before anything is written to it.
 *
 * Clusters are allocated, and made to read as zeros if they don't yet; then
 * their space is taken; then the file is made as long as they need, since not
 * all of them are written; then they are linked.  As for a write, a commit
 * makes all that durable before the entries, the length of the file too: a
 * commit may come at any time.
 */

#include <errno.h>
#include <string.h>

#include "create.h"
#include "l2.h"
#include "resize.h"

struct filling {
  struct writer *w;
  struct epoch_ticket ticket;
  enum qcow2_preallocation preallocation;
  uint64_t host_end;            /* of the clusters that were allocated */
};

static unsigned
cluster_bits (const struct filling *f)
{
  return f->w->top->header.cluster_bits;
}

static bool
has_space (const struct filling *f, const struct l2_entry *e)
{
  return e->entry & ENTRY_COMPRESSED || l2_host_cluster (e) != 0 ||
    (f->w->top->external_data && e->entry & ENTRY_COPIED);
}

/* Host clusters for NR at guest OFFSET; *GOT of them, at least one. */
static int
find_space (struct filling *f, uint64_t offset, unsigned nr,
            uint64_t *host_offset, uint64_t *got, bool *fresh)
{
  uint64_t first;
  int r;

  if (f->w->top->external_data) {
    *host_offset = offset;
    *got = nr;
    *fresh = f->w->data_file_raw; /* see grow_data_file */
    return 0;
  }
  r = alloc_clusters (&f->w->alloc, nr, &first, got, fresh);
  if (r < 0)
    return r;
  *host_offset = first << cluster_bits (f);
  if (f->host_end < *host_offset + (*got << cluster_bits (f)))
    f->host_end = *host_offset + (*got << cluster_bits (f));
  return 0;
}

/* In an external data file, only up to the end of the disk. */
static int
take_space (const struct filling *f, uint64_t host_offset, uint64_t nr,
            bool fresh)
{
  const struct layer *l = f->w->top;
  uint64_t bytes = nr << cluster_bits (f);
  int r = 0;

  if (l->external_data && bytes > l->size_bytes - host_offset)
    bytes = l->size_bytes - host_offset;
  if (!fresh)
    r = qcow2_storage_zero (l->data, host_offset, bytes, true);
  if (r == 0)
    r = preallocate_range (l->data, host_offset, bytes, f->preallocation);
  epoch_note_write (f->ticket);
  return r;
}

/* What is to be seen of a cluster with subclusters does not change, unless
 * all of it is to be data.
 */
static void
fill_entry (const struct filling *f, uint64_t host_offset,
            struct l2_entry *e)
{
  e->entry = host_offset | ENTRY_COPIED;
  if (f->w->top->l2_entry_bits == 4 &&
      f->preallocation >= QCOW2_PREALLOCATION_FALLOC)
    e->bitmap = UINT32_MAX;
}

/* The first of E have no space: of NR at most.  *DONE have it then. */
static int
fill_run (struct filling *f, uint64_t offset, unsigned nr,
          struct l2_entry *e, unsigned *done)
{
  uint64_t host_offset, got, i;
  unsigned n = 1;
  bool fresh;
  int r;

  *done = 0;
  while (n < nr && !has_space (f, &e[n]))
    n++;
  r = find_space (f, offset, n, &host_offset, &got, &fresh);
  if (r < 0)
    return r;
  r = take_space (f, host_offset, got, fresh);
  if (r < 0) {
    if (!f->w->top->external_data)
      retire_now (&f->w->retire, host_offset >> cluster_bits (f), got);
    return r;
  }
  for (i = 0; i < got; ++i)
    fill_entry (f, host_offset + (i << cluster_bits (f)), &e[i]);
  *done = (unsigned) got;
  return 0;
}

/* The entries of a slice, from guest OFFSET on. */
struct filled_slice {
  uint64_t offset;
  unsigned nr;
  struct l2_entry entries[L2_SLICE_ENTRIES];
  bool filled[L2_SLICE_ENTRIES]; /* it has space since now */
};

static int
fill_entries (struct filling *f, struct filled_slice *s, bool *changed)
{
  unsigned i = 0, done;
  int r = 0;

  while (r == 0 && i < s->nr) {
    done = 1;
    if (!has_space (f, &s->entries[i])) {
      r = fill_run (f, s->offset + ((uint64_t) i << cluster_bits (f)),
                    s->nr - i, &s->entries[i], &done);
      memset (&s->filled[i], true, done);
      *changed |= done > 0;
    }
    i += done;
  }
  return r;
}

/* What was not written may be behind the end of the file. */
static int
extend_file (const struct filling *f)
{
  struct qcow2_storage *s = f->w->top->file;
  int64_t size_bytes = qcow2_storage_size (s);
  int r;

  if (size_bytes < 0 || f->host_end <= (uint64_t) size_bytes ||
      !qcow2_storage_can_grow (s))
    return size_bytes < 0 ? (int) size_bytes : 0;
  r = qcow2_storage_truncate (s, f->host_end);
  epoch_note_write (f->ticket);
  return r;
}

/* If that fails nothing names what was allocated. */
static int
link_filled (const struct filling *f, const struct filled_slice *s)
{
  unsigned i;
  int r = extend_file (f);

  if (r == 0)
    r = l2_link (f->w, s->offset, s->nr, s->entries);
  for (i = 0; r < 0 && i < s->nr; ++i)
    if (s->filled[i] && !f->w->top->external_data)
      retire_now (&f->w->retire,
                  l2_host_cluster (&s->entries[i]) >> cluster_bits (f), 1);
  return r;
}

/* As far as one slice of an L2 table goes; *NEXT is behind it. */
static int
fill_slice (struct filling *f, uint64_t offset, uint64_t end, uint64_t *next)
{
  struct filled_slice s = { .offset = offset };
  bool changed = false;
  int r, r2;

  *next = l2_slice_end (f->w, offset);
  if (*next > end)
    *next = end;
  s.nr = (unsigned) ((*next - offset + (UINT64_C (1) << cluster_bits (f)) - 1)
                     >> cluster_bits (f));
  r = l2_own_table (f->w, offset, f->ticket);
  if (r == 0)
    r = l2_read (f->w, offset, s.nr, s.entries);
  if (r == 0)
    r = fill_entries (f, &s, &changed);
  /* What was allocated before an error, too: it is not lost then. */
  r2 = changed ? link_filled (f, &s) : 0;
  return r < 0 ? r : r2;
}

int
preallocate_guest (struct writer *w, uint64_t from, uint64_t end,
                   enum qcow2_preallocation preallocation)
{
  struct filling f = { .w = w, .preallocation = preallocation };
  int r = 0;

  if (preallocation == QCOW2_PREALLOCATION_OFF)
    return 0;
  while (r == 0 && from < end) {
    f.ticket = epoch_enter (&w->image->epoch);
    r = fill_slice (&f, from, end, &from);
    epoch_leave (f.ticket);
  }
  return r;
}
