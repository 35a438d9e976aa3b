/* SPDX-License-Identifier: BSD-3-Clause */

/* How a range of the disk is mapped: which file of the chain holds it, and
 * where.
 *
 * This asks one layer after the other, for people and programs that look at
 * an image; requests go the shorter way of chain.c.
 */

#include "image.h"
#include "sparse-clusters.h"

#define SECTOR_BYTES 512

struct walk {
  const struct qcow2 *image;
  const struct l1_table *l1;    /* of the top layer */
  qcow2_map_fn *fn;
  void *opaque;

  /* What is not yet reported, since it may go on. */
  struct qcow2_map_extent last;
};

/* QEMU counts in sectors, so a raw disk ends with a whole one. */
static uint64_t
layer_end (const struct layer *l)
{
  uint64_t tail = l->is_raw ? l->size_bytes % SECTOR_BYTES : 0;

  return tail > 0 ? l->size_bytes - tail + SECTOR_BYTES : l->size_bytes;
}

/* May the clusters of RUN have places that map_lookup does not tell? */
static bool
has_untold_places (const struct layer *l, const struct run *run)
{
  bool extended = l->unit_bits < l->header.cluster_bits;

  return run->host_offset != UINT64_MAX && /* there is an L2 table */
    (run->kind == RUN_ZERO || (run->kind == RUN_UNALLOCATED && extended));
}

/* What layer L says.  Clusters that read as zeros, or hold unallocated
 * subclusters, may have a place in the file: they are looked up one by one,
 * since map_lookup tells the place of a run's first cluster alone.  So it is
 * asked for one cluster first, lest it walks over all that follow each time.
 */
static int
lookup (struct layer *l, const struct l1_table *l1, uint64_t offset,
        uint64_t max_bytes, struct run *run, bool *has_host)
{
  uint64_t cluster_bytes = layer_cluster_bytes (l);
  uint64_t rest_bytes = cluster_bytes - (offset & (cluster_bytes - 1));
  int r;

  if (rest_bytes > max_bytes)
    rest_bytes = max_bytes;
  run->host_offset = UINT64_MAX;
  r = map_lookup (l, l1, offset, rest_bytes, run);
  if (r == 0 && !has_untold_places (l, run) &&
      run->length_bytes >= rest_bytes) {
    run->host_offset = UINT64_MAX;
    r = map_lookup (l, l1, offset, max_bytes, run);
  }
  if (r < 0)
    return r;
  *has_host = run->kind == RUN_DATA;
  if (!has_untold_places (l, run))
    return 0;

  *has_host = (run->host_offset & ~(cluster_bytes - 1)) != 0;
  if (run->length_bytes > rest_bytes)
    run->length_bytes = rest_bytes;
  return 0;
}

/*----- Reporting -----*/

static bool
goes_on (const struct qcow2_map_extent *a, const struct qcow2_map_extent *b)
{
  return a->depth == b->depth && a->present == b->present &&
    a->data == b->data && a->zero == b->zero &&
    a->compressed == b->compressed && a->filename == b->filename &&
    (!a->filename || a->host_offset + a->count == b->host_offset);
}

static int
report (struct walk *w)
{
  return w->last.count > 0 ? w->fn (w->opaque, &w->last) : 0;
}

static int
add (struct walk *w, const struct qcow2_map_extent *next)
{
  int r = 0;

  if (w->last.count > 0 && goes_on (&w->last, next)) {
    w->last.count += next->count;
    return 0;
  }
  r = report (w);
  w->last = *next;
  return r;
}

/* Data in a file that may have holes.  Storage that can't tell is taken to
 * be data.
 */
static int
add_data (struct walk *w, const struct layer *l,
          const struct qcow2_map_extent *all)
{
  uint64_t done = 0;

  while (done < all->count) {
    struct qcow2_map_extent next = *all;
    uint64_t length;
    bool hole;
    int r;

    if (qcow2_storage_hole (l->data, all->host_offset + done, &hole,
                            &length) < 0) {
      hole = false;
      length = UINT64_MAX;
    }
    next.offset += done;
    next.host_offset += done;
    next.count = length < all->count - done ? length : all->count - done;
    next.zero = hole;
    next.data = !hole || !l->is_raw;
    r = add (w, &next);
    if (r != 0)
      return r;
    done += next.count;
  }
  return 0;
}

static int
add_run (struct walk *w, const struct run *run, bool has_host,
         uint64_t offset)
{
  const struct layer *l = run->layer;
  struct qcow2_map_extent next = {
    .offset = offset,
    .count = run->length_bytes,
    .depth = l->index,
    .present = run->kind != RUN_UNALLOCATED,
    .data = run->kind == RUN_DATA || run->kind == RUN_COMPRESSED,
    .zero = run->kind == RUN_ZERO || run->kind == RUN_UNALLOCATED,
    .compressed = run->kind == RUN_COMPRESSED,
  };

  if (has_host) {
    next.filename = l->data_filename ? l->data_filename : l->filename;
    next.host_offset = run->host_offset;
  }
  if (run->kind == RUN_DATA && (l->is_raw || sparse_clusters (run->layer)))
    return add_data (w, l, &next);
  return add (w, &next);
}

/*----- Walking -----*/

/* From OFFSET on, as far as one layer gives one answer. */
static int
step (struct walk *w, uint64_t offset, uint64_t max_bytes,
      uint64_t *length_bytes)
{
  const struct chain *chain = &w->image->chain;
  bool has_host = false;
  struct run run;
  unsigned k;
  int r;

  for (k = 0; ; ++k) {
    struct layer *l = chain->layers[k];

    r = lookup (l, k == 0 ? w->l1 : &l->l1, offset, max_bytes, &run,
                &has_host);
    if (r < 0)
      return r;
    max_bytes = run.length_bytes;
    if (run.kind != RUN_UNALLOCATED || k + 1 == chain->nr_layers)
      break;

    /* A layer that ends hides what lies below it from there on. */
    l = chain->layers[k + 1];
    if (offset >= layer_end (l))
      break;
    if (max_bytes > layer_end (l) - offset)
      max_bytes = layer_end (l) - offset;
  }
  *length_bytes = run.length_bytes;
  return add_run (w, &run, has_host, offset);
}

int
qcow2_map (struct qcow2_view *view, uint64_t count, uint64_t offset,
           qcow2_map_fn *fn, void *opaque)
{
  struct walk w = {
    .image = view->image, .l1 = view->l1, .fn = fn, .opaque = opaque,
  };
  uint64_t end = offset + count, length_bytes;
  int r = 0;

  while (r == 0 && offset < end) {
    struct epoch_ticket ticket = gate_enter (&view->image->gate);

    r = step (&w, offset, end - offset, &length_bytes);
    epoch_leave (ticket);
    offset += length_bytes;
  }
  /* What is known up to an error is an answer, too. */
  if (r == 0)
    r = report (&w);
  else if (r < 0)
    report (&w);
  return r;
}
