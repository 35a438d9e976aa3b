/* SPDX-License-Identifier: BSD-3-Clause */

/* How often each type of cluster met each operation. */

#ifndef CLUSTER_CENSUS_H
#define CLUSTER_CENSUS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

enum cluster_type {
  CLUSTER_NO_TABLE,             /* no L2 table */
  CLUSTER_SHARED_TABLE,         /* the L2 table is a snapshot's, too */
  CLUSTER_UNALLOCATED,
  CLUSTER_ZERO,                 /* plain */
  CLUSTER_ZERO_ALLOCATED,
  CLUSTER_DATA,                 /* of the active layer alone */
  CLUSTER_DATA_SHARED,
  CLUSTER_COMPRESSED,
  CLUSTER_EXTERNAL,             /* in a data file */
  CLUSTER_SUB_UNALLOCATED,      /* extended L2: some subclusters zeros,
                                   no host cluster */
  CLUSTER_SUB_MIXED,            /* a host cluster, subclusters differ */
  CLUSTER_SUB_SHARED,           /* the same, with a snapshot's cluster */
  NR_CLUSTER_TYPES,
};

enum cluster_operation {
  OPERATION_WRITE_PART,
  OPERATION_WRITE_WHOLE,
  OPERATION_ZERO_PART,
  OPERATION_ZERO_KEEP,          /* whole, without may_trim */
  OPERATION_ZERO_UNMAP,         /* whole, with may_trim */
  OPERATION_TRIM_PART,
  OPERATION_TRIM_WHOLE,
  NR_CLUSTER_OPERATIONS,
};

struct census {
  atomic_uint met[NR_CLUSTER_TYPES][NR_CLUSTER_OPERATIONS];
};

enum census_kind { CENSUS_WRITE, CENSUS_ZERO_KEEP, CENSUS_ZERO_UNMAP,
                   CENSUS_TRIM };

/* A request on the active layer of IMAGE is about to begin. */
extern void census_count (struct census *census, struct qcow2 *image,
                          enum census_kind kind, uint64_t offset,
                          uint64_t count);

/* Print it, as TAP comments.  Returns how many numbers are 0. */
extern unsigned census_print (struct census *census);

#endif /* CLUSTER_CENSUS_H */
