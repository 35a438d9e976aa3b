/* SPDX-License-Identifier: BSD-3-Clause */

/* Moving the active L1 table to where it has room for more entries. */

#ifndef QCOW2_L1_GROW_H
#define QCOW2_L1_GROW_H

#include <stdbool.h>
#include <stdint.h>

#include "alloc.h"
#include "l1-write.h"

/* Give the table NR_ENTRIES, which is more than it has and at most what
 * MAX_L1_BYTES hold; unless EXACT, some to spare, since more is coming.
 * The header gets SIZE_BYTES for the disk's size with the same write.  The
 * gate is closed, and everything is committed; no lock is held, nor the
 * turn.  After an error the old table is in use; if that came from writing
 * the header, nothing is written any more.
 */
extern int l1_grow (struct l1_writer *w, struct allocator *a,
                    uint32_t nr_entries, bool exact, uint64_t size_bytes);

#endif /* QCOW2_L1_GROW_H */
