/* SPDX-License-Identifier: BSD-3-Clause */

/* Which host clusters hold live metadata, and of what kind.
 *
 * Each write to a writable image asks this, so looking up takes no lock and
 * writes nothing: a sequence count tells whether the set changed meanwhile.
 * Changes are rare, and serialised by a lock.
 *
 * Tables that lie in one piece (header, L1, refcount table, ...) are kept as
 * ranges; L2 tables and refcount blocks, which lie anywhere, in a hash table.
 * Looking up a cluster takes a binary search among the ranges, of which there
 * are five, and one for each snapshot; and one probe of the hash table for
 * each eight clusters.
 *
 * Memory: 16 to 32 bytes for each L2 table and refcount block, and at most
 * the same again in arrays that were outgrown; 48 to 144 bytes for each
 * range.  64 KiB for a disk of 1 TiB with clusters of 64 KiB.
 */

#ifndef QCOW2_METADATA_SET_H
#define QCOW2_METADATA_SET_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum metadata_kind {
  METADATA_NONE = 0,
  METADATA_L2_TABLE = 1,        /* of the active layer */
  METADATA_REFCOUNT_BLOCK = 2,
  METADATA_SEVERAL = 3,         /* named more than once: corrupt */
  METADATA_HEADER,
  METADATA_L1_TABLE,            /* of the active layer */
  METADATA_REFCOUNT_TABLE,
  METADATA_SNAPSHOT_TABLE,
  METADATA_SNAPSHOT_L1,
  METADATA_BITMAP_DIRECTORY,
};

/* Clusters FIRST to END - 1. */
struct metadata_range {
  uint64_t first;
  uint64_t end;
  enum metadata_kind kind;
};

struct metadata_hash;
struct metadata_ranges;

struct metadata_set {
  /* What looking up reads. */
  _Atomic uint32_t seq;         /* odd while something changes */
  _Atomic (struct metadata_hash *) hash;
  _Atomic (struct metadata_ranges *) ranges;
  _Atomic bool has_overlaps;

  pthread_mutex_t lock;         /* for what follows, and to change */
  size_t nr_groups;             /* in HASH */
  struct metadata_range *sources; /* sorted; they may overlap */
  size_t nr_sources, room;
};

/* Where a look-up found something else than was meant. */
struct metadata_hit {
  uint64_t cluster;
  enum metadata_kind kind;
};

/* An empty set, with room for NR L2 tables and refcount blocks: there may
 * be more.  0 or -ENOMEM.
 */
extern int metadata_set_init (struct metadata_set *set, size_t nr);

/* Only for a set whose init succeeded. */
extern void metadata_set_destroy (struct metadata_set *set);

/* Does each of NR clusters (at least one) from FIRST on hold KIND, which may
 * be METADATA_NONE, and nothing else?  If not, *HIT is the first that
 * doesn't.  From any thread; what was changed before the call is seen.
 */
extern bool metadata_set_is (const struct metadata_set *set,
                             enum metadata_kind kind, uint64_t first,
                             uint64_t nr, struct metadata_hit *hit);

/* Was there ever an L2 table or refcount block that is something else, too?
 * If not, no L1 entry leads to anything but an L2 table.
 */
static inline bool
metadata_set_has_overlaps (const struct metadata_set *set)
{
  return atomic_load_explicit (&set->has_overlaps, memory_order_relaxed);
}

/* One more L2 table or refcount block.  A cluster that is one already is
 * METADATA_SEVERAL then, and stays that.  -ENOMEM, and nothing was changed.
 */
extern int metadata_set_add (struct metadata_set *set,
                             enum metadata_kind kind, uint64_t cluster);

/* It is none any more; before its refcount becomes 0. */
extern void metadata_set_remove (struct metadata_set *set,
                                 enum metadata_kind kind, uint64_t cluster);

/* NR more ranges, of the kinds from METADATA_HEADER on.  Where ranges of
 * different kinds overlap, all of them is METADATA_SEVERAL.  -ENOMEM, and
 * nothing was changed.
 */
extern int metadata_set_add_ranges (struct metadata_set *set,
                                    const struct metadata_range *ranges,
                                    size_t nr);

/* Forget a range that was added exactly so. */
extern void metadata_set_remove_range (struct metadata_set *set,
                                       const struct metadata_range *range);

#endif /* QCOW2_METADATA_SET_H */
