/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the COPIED flags of the active layer's tables what a ref_map
 * says: set exactly where there is one reference.
 */

#ifndef QCOW2_REPAIR_FLAGS_H
#define QCOW2_REPAIR_FLAGS_H

#include <stdbool.h>

#include "layer.h"
#include "ref-map.h"

/* Clear the flags that must not be set, or (SET) set those that should
 * be, too.  *MISSING: how many should be set and are not.  Takes 2 MiB
 * of memory.  l->l1 follows.  Returns 0, or a negative errno with ERROR
 * set.
 */
extern int repair_flags (struct layer *l, const struct ref_map *map,
                         bool set, uint64_t *missing,
                         struct qcow2_error *error);

#endif /* QCOW2_REPAIR_FLAGS_H */
