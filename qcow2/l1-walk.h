/* SPDX-License-Identifier: BSD-3-Clause */

/* Going over all L2 tables of an L1 table, many at a time.
 *
 * For operations that have closed the gate, with the image at rest: what is
 * on disk is all there is, no slice is dirty or pinned.  Tables are read in
 * the order in which they lie in the file, adjacent ones in one go, past the
 * slice cache; what is changed of them is written back, and their slices are
 * dropped.
 */

#ifndef QCOW2_L1_WALK_H
#define QCOW2_L1_WALK_H

#include <stdint.h>

#include "writer.h"

struct walked_table {
  uint64_t host_offset;
  uint64_t guest_offset;        /* of the first cluster that it maps */
  uint64_t *words;              /* big-endian, a cluster of them; NULL: all of
                                   them are 0 */
  uint8_t *changed;             /* for each 512-byte sector: to be written */
};

/* 0, or a negative errno, which ends the walk. */
typedef int walk_fn (void *opaque, const struct walked_table *table);

struct l1_walk {
  struct writer *w;
  const struct l1_table *l1;    /* the active one, or a snapshot's */
  uint32_t nr_entries;          /* so many of its entries, from the first */
  bool is_active;
  walk_fn *fn;
  void *opaque;
};

/* Takes 16 bytes for each table, and 4 MiB.  What was written is noted in the
 * epoch, for a commit to flush it.  Where the L1 table names what can't be an
 * L2 table, or names one twice, the image is marked corrupt, and nothing was
 * called yet: -EIO.
 */
extern int l1_walk (const struct l1_walk *walk);

#endif /* QCOW2_L1_WALK_H */
