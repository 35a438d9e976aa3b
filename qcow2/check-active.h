/* SPDX-License-Identifier: BSD-3-Clause */

/* The part of a check that is about the active layer: how its clusters
 * lie, and its COPIED flags.
 */

#ifndef QCOW2_CHECK_ACTIVE_H
#define QCOW2_CHECK_ACTIVE_H

#include "check-refcounts.h"

/* Count the active layer's clusters, and compare its COPIED flags with
 * the refcounts on disk, of which check_refcounts has told c->once.  Reads
 * each L2 table once, even if it is named often, and takes what l2_walk does.
 * Flags of bad entries are left out: count_refs has told of them.  Returns
 * 0, or -ENOMEM with the error set; a table that can't be read is a check
 * error.
 */
extern int check_active (struct check *c);

#endif /* QCOW2_CHECK_ACTIVE_H */
