/* SPDX-License-Identifier: BSD-3-Clause */

/* How often each type of cluster met each operation.
 *
 * The L2 entry is looked at just before the request begins.  Another
 * request may change it in between; that is seldom, and which one it
 * then meets is as good as any.
 */

#include <stdio.h>

#include "cluster-census.h"
#include "image.h"
#include "l2.h"

/* Of a long request the first clusters tell enough. */
#define MAX_CLUSTERS 8

static enum cluster_type
extended_type (const struct l2_entry *e, bool owned)
{
  uint32_t allocated = subclusters_allocated (e->bitmap);
  uint32_t zero = subclusters_zero (e->bitmap);

  if (l2_host_cluster (e) == 0) {
    if (zero == 0)
      return CLUSTER_UNALLOCATED;
    return zero == UINT32_MAX ? CLUSTER_ZERO : CLUSTER_SUB_UNALLOCATED;
  }
  if (allocated == UINT32_MAX)
    return owned ? CLUSTER_DATA : CLUSTER_DATA_SHARED;
  if (zero == UINT32_MAX)
    return CLUSTER_ZERO_ALLOCATED;
  return owned ? CLUSTER_SUB_MIXED : CLUSTER_SUB_SHARED;
}

static enum cluster_type
type_of (const struct layer *l, const struct l2_entry *e, bool table_owned)
{
  bool owned = table_owned && e->entry & ENTRY_COPIED;

  if (e->entry & ENTRY_COMPRESSED)
    return CLUSTER_COMPRESSED;
  if (l->external_data)
    return e->entry & ENTRY_COPIED ? CLUSTER_EXTERNAL : CLUSTER_UNALLOCATED;
  if (l->l2_entry_bits == 4)
    return extended_type (e, owned);
  if (e->entry & ENTRY_ZERO)
    return l2_host_cluster (e) ? CLUSTER_ZERO_ALLOCATED : CLUSTER_ZERO;
  if (l2_host_cluster (e) == 0)
    return CLUSTER_UNALLOCATED;
  return owned ? CLUSTER_DATA : CLUSTER_DATA_SHARED;
}

static enum cluster_operation
operation (enum census_kind kind, bool whole)
{
  switch (kind) {
  case CENSUS_WRITE:
    return whole ? OPERATION_WRITE_WHOLE : OPERATION_WRITE_PART;
  case CENSUS_ZERO_KEEP:
    return whole ? OPERATION_ZERO_KEEP : OPERATION_ZERO_PART;
  case CENSUS_ZERO_UNMAP:
    return whole ? OPERATION_ZERO_UNMAP : OPERATION_ZERO_PART;
  case CENSUS_TRIM: break;
  }
  return whole ? OPERATION_TRIM_WHOLE : OPERATION_TRIM_PART;
}

static void
count_cluster (struct census *census, struct qcow2 *image,
               uint64_t guest_cluster, enum cluster_operation op)
{
  struct layer *l = image->chain.layers[0];
  uint64_t l1_entry =
    l->l1.entries[guest_cluster >> header_l1_entry_bits (&l->header)];
  struct l2_entry e;

  if ((l1_entry & ENTRY_OFFSET_MASK) == 0) {
    atomic_fetch_add (&census->met[CLUSTER_NO_TABLE][op], 1);
    return;
  }
  if (!(l1_entry & ENTRY_COPIED))
    atomic_fetch_add (&census->met[CLUSTER_SHARED_TABLE][op], 1);
  if (l2_read (image->writer, guest_cluster, 1, &e) == 0)
    atomic_fetch_add (&census->met[type_of (l, &e, l1_entry & ENTRY_COPIED)]
                      [op], 1);
}

void
census_count (struct census *census, struct qcow2 *image,
              enum census_kind kind, uint64_t offset, uint64_t count)
{
  uint64_t bytes = qcow2_cluster_size (image), end = offset + count;
  uint64_t disk_end = image->chain.layers[0]->size_bytes;
  uint64_t cluster = offset & ~(bytes - 1);
  struct epoch_ticket ticket = epoch_enter (&image->epoch);
  unsigned i;

  for (i = 0; i < MAX_CLUSTERS && cluster < end; ++i, cluster += bytes) {
    bool whole = cluster >= offset &&
      (end == disk_end || end - cluster >= bytes);

    count_cluster (census, image, cluster, operation (kind, whole));
  }
  epoch_leave (ticket);
}

unsigned
census_print (struct census *census)
{
  static const char *const types[NR_CLUSTER_TYPES] = {
    "no L2 table", "shared L2 table", "unallocated", "zero", "zero allocated",
    "data", "data shared", "compressed", "external", "some zero, no data",
    "subclusters", "subclusters shared",
  };
  unsigned t, o, n, missing = 0;

  printf ("# %-20s %7s %7s %7s %7s %7s %7s %7s\n", "", "write", "write",
          "zero", "zero", "zero", "trim", "trim");
  printf ("# %-20s %7s %7s %7s %7s %7s %7s %7s\n", "", "part", "whole",
          "part", "keep", "unmap", "part", "whole");
  for (t = 0; t < NR_CLUSTER_TYPES; ++t) {
    printf ("# %-20s", types[t]);
    for (o = 0; o < NR_CLUSTER_OPERATIONS; ++o) {
      n = atomic_load (&census->met[t][o]);
      printf (" %7u", n);
      if (n == 0)
        missing++;
    }
    printf ("\n");
  }
  return missing;
}
