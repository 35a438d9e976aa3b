/* SPDX-License-Identifier: BSD-3-Clause */

/* L1 and L2 look-up.
 *
 * The L1 table is in memory.  An L2 slice is read through the cache
 * without a lock (slice-cache.h), so decoding works on words that may
 * turn out to have been overwritten: it has no effect but its result,
 * and is judged, and a corruption reported, only after the slice was
 * found to be still valid.
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "format.h"
#include "guard.h"
#include "map.h"

/* Where a look-up takes place: units (clusters, or subclusters in images
 * with extended L2 entries) of one slice.
 */
struct position {
  struct layer *layer;
  uint64_t offset;              /* guest */
  uint64_t max_bytes;
  uint64_t slice_host_offset;
  unsigned first_unit;          /* in the slice, of OFFSET */
  unsigned nr_units;            /* in the slice */
  bool *owned;                  /* not NULL: runs end where it changes */
};

/* What an L2 entry says about one unit. */
struct unit {
  enum run_kind kind;
  uint64_t host_offset;         /* of the unit's first byte */
  uint64_t entry;
  const char *problem;          /* not NULL: the entry is corrupt */
};

static bool
is_extended (const struct layer *l)
{
  return l->l2_entry_bits == 4;
}

static enum run_kind
standard_kind (bool has_host, uint64_t entry)
{
  if (entry & ENTRY_ZERO)
    return RUN_ZERO;
  return has_host ? RUN_DATA : RUN_UNALLOCATED;
}

/* "Extended L2 Entries": a subcluster may not be both, and allocated
 * only where there is a host cluster.
 */
static enum run_kind
extended_kind (bool has_host, uint64_t bitmap, unsigned subcluster,
               const char **problem)
{
  uint32_t allocated = subclusters_allocated (bitmap);
  uint32_t zero = subclusters_zero (bitmap);
  uint32_t bit = UINT32_C (1) << subcluster;

  if (has_host ? allocated & zero : allocated)
    *problem = "invalid subcluster bitmap";
  if (zero & bit)
    return RUN_ZERO;
  return allocated & bit ? RUN_DATA : RUN_UNALLOCATED;
}

static void
check_host_offset (const struct layer *l, uint64_t host_cluster,
                   uint64_t guest_cluster, struct unit *u)
{
  if (host_cluster & (layer_cluster_bytes (l) - 1))
    u->problem = "data cluster is not aligned";
  else if (l->external_data && host_cluster != guest_cluster)
    u->problem = "offset in the external data file differs from the guest's";
}

/* Decode unit NR of the slice.  For the external data file, host offset
 * 0 is a valid place, told from unallocated by the COPIED flag.
 */
static void
decode_unit (const struct position *p, const struct slice_ref *ref,
             unsigned nr, struct unit *u)
{
  const struct layer *l = p->layer;
  unsigned sub_bits = l->header.cluster_bits - l->unit_bits;
  unsigned subcluster = nr & ((1u << sub_bits) - 1);
  size_t word = (size_t) (nr >> sub_bits) << (l->l2_entry_bits - 3);
  uint64_t entry = slice_load (ref, word);
  uint64_t host_cluster = entry & ENTRY_OFFSET_MASK;
  uint64_t guest = ((p->offset >> l->unit_bits) + nr - p->first_unit)
    << l->unit_bits;
  bool has_host = host_cluster != 0 ||
    (l->external_data && entry & ENTRY_COPIED);

  u->problem = NULL;
  u->entry = entry;
  if (entry & ENTRY_COMPRESSED) {
    u->kind = RUN_COMPRESSED;
    if (l->external_data)
      u->problem = "compressed cluster, but there is an external data file";
    return;
  }

  u->kind = is_extended (l) ?
    extended_kind (has_host, slice_load (ref, word + 1), subcluster,
                   &u->problem) :
    standard_kind (has_host, entry);
  if (l->header.version < 3 && entry & ENTRY_ZERO)
    u->problem = "zero flag in a version 2 image";

  u->host_offset = host_cluster + ((uint64_t) subcluster << l->unit_bits);
  if (has_host)
    check_host_offset (l, host_cluster,
                       guest & ~(layer_cluster_bytes (l) - 1), u);
}

static void
compressed_run (const struct position *p, uint64_t entry, struct run *run)
{
  unsigned cluster_bits = p->layer->header.cluster_bits;
  size_t from = p->offset & (layer_cluster_bytes (p->layer) - 1);

  run->host_offset = compressed_offset (entry, cluster_bits);
  run->compressed_bytes = compressed_bytes (entry, cluster_bits);
  run->cluster_from = from;
  run->length_bytes = layer_cluster_bytes (p->layer) - from;
}

/* As many units from p->first_unit on as belong together. */
static const char *
decode_run (const struct position *p, const struct slice_ref *ref,
            struct run *run)
{
  const struct layer *l = p->layer;
  uint64_t unit_bytes = UINT64_C (1) << l->unit_bits;
  uint64_t in_unit = p->offset & (unit_bytes - 1);
  struct unit first, next;
  unsigned nr;

  decode_unit (p, ref, p->first_unit, &first);
  if (p->owned)
    *p->owned = first.kind == RUN_DATA && first.entry & ENTRY_COPIED;
  run->kind = first.kind;
  run->layer = p->layer;
  if (first.problem)
    return first.problem;
  if (first.kind == RUN_COMPRESSED) {
    compressed_run (p, first.entry, run);
    return NULL;
  }

  run->host_offset = first.host_offset + in_unit;
  run->length_bytes = unit_bytes - in_unit;
  for (nr = p->first_unit + 1;
       nr < p->nr_units && run->length_bytes < p->max_bytes; ++nr) {
    decode_unit (p, ref, nr, &next);
    if (next.problem || next.kind != first.kind)
      break;
    if (p->owned && ((next.entry ^ first.entry) & ENTRY_COPIED))
      break;
    if (first.kind == RUN_DATA &&
        next.host_offset != run->host_offset + run->length_bytes)
      break;
    run->length_bytes += unit_bytes;
  }
  return NULL;
}

/* slice_fill_fn: OPAQUE is the position. */
static int
read_slice (void *opaque, uint64_t key, uint64_t *buf)
{
  const struct position *p = opaque;
  const struct layer *l = p->layer;
  int r;

  /* Slots are as large as the largest slice in the chain. */
  memset ((uint8_t *) buf + l->slice_bytes, 0,
          SLICE_MAX_BYTES - l->slice_bytes);
  r = qcow2_storage_read_meta (l->file, buf, l->slice_bytes,
                               p->slice_host_offset);
  if (r == -EIO && guard_is_past_end (l, p->slice_host_offset,
                                      l->slice_bytes))
    return guard_corrupt (l, "guest offset 0x%" PRIx64 ": the L2 table at "
                          "0x%" PRIx64 " is past the end of the file",
                          p->offset, p->slice_host_offset);
  if (r < 0)
    log_message (&l->log, QCOW2_LOG_ERROR,
                 "%s: can't read the L2 table at 0x%" PRIx64 " (guest offset "
                 "0x%" PRIx64 "): %s", l->filename, p->slice_host_offset,
                 p->offset, r == -EIO ?
                 "Input/output error, or past the end of the file" :
                 log_errno_text (-r));
  return r;
}

static int
corrupt (const struct layer *l, uint64_t offset, const char *problem)
{
  return guard_corrupt (l, "guest offset 0x%" PRIx64 ": %s", offset, problem);
}

/* Not inlined: few look-ups need a slice on the stack. */
static int __attribute__ ((__noinline__))
lookup_pinned (const struct position *p, uint64_t key, struct run *run)
{
  struct layer *l = p->layer;
  struct slice_copy copy;
  struct slice_ref ref;
  const char *problem;
  int r;

  r = slice_cache_pin_or_copy (l->slices, key, read_slice, (void *) p, &copy,
                               &ref);
  if (r < 0)
    return r;
  do {
    slice_restart (&ref);
    problem = decode_run (p, &ref, run);
  } while (!slice_still_valid (&ref));
  slice_unpin_or_forget (l->slices, &copy, &ref);
  return problem ? corrupt (l, p->offset, problem) : 0;
}

static int
lookup_in_slice (const struct position *p, struct run *run)
{
  struct layer *l = p->layer;
  uint64_t key = (uint64_t) l->index << 56 | p->slice_host_offset;
  struct slice_ref ref;
  const char *problem;

  if (slice_cache_find (l->slices, key, &ref)) {
    problem = decode_run (p, &ref, run);
    if (slice_still_valid (&ref))
      return problem ? corrupt (l, p->offset, problem) : 0;
  }
  return lookup_pinned (p, key, run);
}

/* What is left of the part of the disk that one L1 entry covers. */
static uint64_t
l1_entry_rest_bytes (const struct layer *l, uint64_t offset)
{
  uint64_t bytes = UINT64_C (1) << header_l1_entry_bits (&l->header);

  return bytes - (offset & (bytes - 1));
}

static int
lookup_qcow2 (struct layer *l, const struct l1_table *l1,
              uint64_t offset, uint64_t max_bytes, struct run *run,
              bool *owned)
{
  uint64_t l1_index = offset >> header_l1_entry_bits (&l->header);
  uint64_t l2_offset = 0, unit;
  unsigned slice_units_bits, sub_bits;
  struct position p;
  int r;

  if (l1_index < l1->nr_entries)
    l2_offset = l1->entries[l1_index] & ENTRY_OFFSET_MASK;
  if (l2_offset == 0) {
    run->kind = RUN_UNALLOCATED;
    run->layer = l;
    run->length_bytes = l1_entry_rest_bytes (l, offset);
    return 0;
  }
  if (l2_offset & (layer_cluster_bytes (l) - 1))
    return corrupt (l, offset, "L2 table is not aligned");
  /* If it is anything else, too, it says nothing about where to write. */
  if (owned && metadata_set_has_overlaps (&l->guard->set)) {
    r = guard_check (l, METADATA_L2_TABLE, l2_offset, 1, "an L2 table");
    if (r < 0)
      return r;
  }

  sub_bits = l->header.cluster_bits - l->unit_bits;
  slice_units_bits = (unsigned) __builtin_ctz (l->slice_bytes) -
    l->l2_entry_bits + sub_bits;
  unit = (offset & ((UINT64_C (1) << header_l1_entry_bits (&l->header)) - 1))
    >> l->unit_bits;

  p.layer = l;
  p.offset = offset;
  p.max_bytes = max_bytes;
  p.slice_host_offset = l2_offset +
    (unit >> slice_units_bits) * l->slice_bytes;
  p.nr_units = 1u << slice_units_bits;
  p.first_unit = unit & (p.nr_units - 1);
  p.owned = owned;
  return lookup_in_slice (&p, run);
}

int
map_lookup (struct layer *l, const struct l1_table *l1,
            uint64_t offset, uint64_t max_bytes, struct run *run)
{
  int r;

  if (l->is_raw) {
    run->kind = RUN_DATA;
    run->layer = l;
    run->host_offset = offset;
    run->length_bytes = max_bytes;
    return 0;
  }

  r = lookup_qcow2 (l, l1, offset, max_bytes, run, NULL);
  if (r == 0 && run->length_bytes > max_bytes)
    run->length_bytes = max_bytes;
  return r;
}

int
map_lookup_owned (struct layer *l, uint64_t offset, uint64_t max_bytes,
                  struct run *run, bool *owned)
{
  uint64_t l1_entry = l->l1.entries[offset >>
                                    header_l1_entry_bits (&l->header)];
  int r;

  *owned = false;
  run->length_bytes = max_bytes;
  if (!(l1_entry & ENTRY_COPIED))
    return 0;
  r = lookup_qcow2 (l, &l->l1, offset, max_bytes, run, owned);
  if (r == 0 && run->length_bytes > max_bytes)
    run->length_bytes = max_bytes;
  return r;
}

bool
run_join (struct run *run, const struct run *next)
{
  if (run->kind != next->kind || run->kind == RUN_COMPRESSED)
    return false;
  if (run->kind == RUN_DATA &&
      (run->layer != next->layer ||
       run->host_offset + run->length_bytes != next->host_offset))
    return false;
  run->length_bytes += next->length_bytes;
  return true;
}
