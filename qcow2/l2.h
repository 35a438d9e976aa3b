/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading and changing L2 entries for writers. */

#ifndef QCOW2_L2_H
#define QCOW2_L2_H

#include <stdint.h>

#include "format.h"
#include "writer.h"

struct l2_entry {
  uint64_t entry;
  uint64_t bitmap;              /* extended L2 entries only */
};

/* The most entries that a slice can have. */
#define L2_SLICE_ENTRIES (SLICE_MAX_BYTES / 8)

/* How far the slice that maps guest OFFSET reaches (guest bytes). */
extern uint64_t l2_slice_end (const struct writer *w, uint64_t offset);

/* Make sure that the L2 table for guest OFFSET exists and is the active
 * layer's own.  The caller holds no claim.
 */
extern int l2_own_table (struct writer *w, uint64_t offset,
                         struct epoch_ticket ticket);

/* Read NR entries from the one of guest OFFSET on, all in one slice.  The
 * caller's claim keeps them as they are.  Entries of a table that does
 * not exist are 0.
 */
extern int l2_read (struct writer *w, uint64_t offset, unsigned nr,
                    struct l2_entry *entries);

/* Change them.  The table is the active layer's own, the caller holds a
 * claim on them, and what they name was written.
 */
extern int l2_link (struct writer *w, uint64_t offset, unsigned nr,
                    const struct l2_entry *entries);

/* Take the table out of entry L1_INDEX of the L1 table, and give up all that
 * it names: what it maps is unallocated then.  GONE: the L1 table on disk ends
 * before that entry already, so there is nothing to be written.  The caller
 * holds no claim.  After an error nothing has changed.
 */
extern int l2_drop_table (struct writer *w, uint32_t l1_index, bool gone);

/* The entry OLD was replaced by one that doesn't name its host clusters
 * any more: give up that reference.
 */
extern void l2_unlink (struct writer *w, const struct l2_entry *old);

/* Report that the metadata for guest OFFSET is corrupt.  Returns -EIO. */
extern int l2_corrupt (const struct writer *w, uint64_t offset,
                       const char *problem);

/* Can the entry of guest OFFSET be trusted so far that clusters may be
 * written, or given up, by its word?  Returns 0 or -EIO.
 */
extern int l2_check (const struct writer *w, uint64_t offset,
                     const struct l2_entry *e);

/* Does the entry name a host cluster that the active layer alone uses,
 * not compressed?
 */
static inline bool
l2_is_owned (const struct l2_entry *e)
{
  return (e->entry & ENTRY_COPIED) && !(e->entry & ENTRY_COMPRESSED);
}

static inline uint64_t
l2_host_cluster (const struct l2_entry *e)
{
  return e->entry & ENTRY_OFFSET_MASK;
}

#endif /* QCOW2_L2_H */
