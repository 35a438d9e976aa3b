/* SPDX-License-Identifier: BSD-3-Clause */

/* A snapshot table that may be damaged: what can be used of it, and what
 * it should be.
 */

#ifndef QCOW2_SNAPSHOT_MEND_H
#define QCOW2_SNAPSHOT_MEND_H

#include "layer.h"
#include "snapshot-table.h"

struct snapshot_mend {
  /* The snapshots that are there.  Of each only the place of its L1 table is
   * known; table_bytes is what the table takes on disk.
   */
  struct snapshot_table table;

  uint64_t nr_wrong;            /* entries that are not as they should be */
  bool lost;                    /* some were left out that may be snapshots */
  uint8_t *bytes;               /* with REPAIR: the table as it should be */
  uint64_t nr_bytes;

  void (*found) (void *opaque, const char *text);
  void *opaque;
};

/* Read the table of L, whose header may claim anything about it.  m->found
 * and m->opaque are set, the rest is 0; FOUND is told of each entry that is
 * wrong.  With REPAIR what nobody can keep is left out: extra data beyond
 * the limit, and snapshots behind the first entry that can't be one, or
 * beyond the limits of the table.  Without, that is an error (-EFBIG or
 * -EINVAL), since then nobody knows what all the clusters are for.  Takes up
 * to 128 MiB for a table of the largest size.  The caller calls
 * snapshot_mend_clear in any case.
 */
extern int snapshot_mend_read (struct layer *l, bool repair,
                               struct snapshot_mend *m,
                               struct qcow2_error *error);

extern void snapshot_mend_clear (struct snapshot_mend *m);

#endif /* QCOW2_SNAPSHOT_MEND_H */
