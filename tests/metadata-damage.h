/* SPDX-License-Identifier: BSD-3-Clause */

/* Images as a program leaves them that dies while its refcounts are lazy,
 * or worse: everything that can be made again from the tables is wrong.
 */

#ifndef METADATA_DAMAGE_H
#define METADATA_DAMAGE_H

#include <stdbool.h>
#include <stdint.h>

struct metadata_damage {
  unsigned nr_lower, nr_higher; /* refcounts that are so now */
  unsigned nr_blocks;           /* that the table does not name any more */
  unsigned nr_flags;            /* COPIED flags, set or cleared */
};

/* Change refcounts, the refcount table and COPIED flags of the active
 * tables at random, and set the dirty bit.  The image is of version 3.
 */
extern void damage_metadata (const char *filename, uint64_t *state,
                             struct metadata_damage *damage);

/* Cut the refcount table to its first cluster, and set the dirty bit.
 * Returns how many clusters it had.
 */
extern unsigned damage_shrink_table (const char *filename);

/* Set the dirty bit. */
extern void damage_set_dirty (const char *filename);

extern bool damage_is_dirty (const char *filename);

#endif /* METADATA_DAMAGE_H */
