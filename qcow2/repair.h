/* SPDX-License-Identifier: BSD-3-Clause */

/* Repairing an image that was not closed properly. */

#ifndef QCOW2_REPAIR_H
#define QCOW2_REPAIR_H

#include "layer.h"
#include "snapshot-table.h"

/* Repair the image L, which has the dirty bit, before anything of it is
 * used: its refcounts and COPIED flags become what its tables say, then
 * the dirty bit is cleared.  L follows.  Logs what was done.
 *
 * On error the image still has the dirty bit, or is repaired; it can be
 * read in either case, and repaired again.  -EINVAL: something else is
 * damaged, and nothing was changed.  The message does not name the file.
 */
extern int repair_image (struct layer *l,
                         const struct snapshot_table *snapshots,
                         struct qcow2_error *error);

#endif /* QCOW2_REPAIR_H */
