/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the refcounts on disk what a ref_map says, in steps between
 * which the caller flushes.  A refcount block that is in the way of
 * something, or no block at all, is replaced by a new one, and so is a
 * table.
 */

#ifndef QCOW2_REPAIR_REFCOUNTS_H
#define QCOW2_REPAIR_REFCOUNTS_H

#include <stdint.h>

#include "header-write.h"
#include "layer.h"
#include "ref-map.h"

struct refcount_repair {
  struct layer *layer;
  struct ref_map *map;
  struct qcow2_error *error;

  /* As struct ref_walk tells: the whole table is to be replaced. */
  bool table_is_bad;
  bool table_counted;

  /* References may have been lost: no refcount is lowered (the map follows
   * those that are too high), where a block is replaced all clusters that
   * were there count as in use, and new ones lie behind the end of the file.
   */
  bool keep;

  /* Told of each cluster whose refcount changes; may be NULL. */
  void (*found) (void *opaque, const char *text);
  void *opaque;

  /* The refcount table as it is to be, in host order; and which of its
   * blocks are new.
   */
  uint64_t *table;
  bool *is_new;                 /* or an entry that became 0 */
  uint64_t nr_entries;          /* from the first to the last block */
  uint64_t room;
  uint64_t table_entries;       /* on disk */
  uint64_t new_table;           /* cluster of a larger one, or 0 */
  uint64_t new_table_clusters;
  uint64_t old_clusters;        /* of the file before */
  uint64_t *old_blocks;         /* clusters of those that are replaced */
  uint64_t nr_old_blocks, old_room;

  uint64_t nr_raised;           /* results */
  uint64_t nr_lowered;
};

/* The caller has set the members above TABLE, the rest is 0.  The functions
 * return 0 or a negative errno, with the error set.
 */

/* Read the table, and find room for blocks that are missing or to be
 * replaced, and for another table if need be; changes nothing on disk.  What is
 * replaced is free in the map.  -EINVAL if there are
 * more references to a cluster than its refcount can count.
 */
extern int refcount_repair_plan (struct refcount_repair *rep);

/* Write the new blocks and the new table, where nothing is now. */
extern int refcount_repair_write_new (struct refcount_repair *rep);

/* In the blocks that stay, raise what is too low. */
extern int refcount_repair_raise (struct refcount_repair *rep);

/* What was written is durable: make it valid.  The layer's header is right
 * then.
 */
extern int refcount_repair_switch (struct refcount_repair *rep,
                                   struct header_writer *header);

/* In all blocks, set what is too high, too. */
extern int refcount_repair_lower (struct refcount_repair *rep);

/* Without a plan: lower what is too high, and nothing else.  All blocks
 * are good.
 */
extern int refcount_repair_lower_only (struct refcount_repair *rep);

extern void refcount_repair_clear (struct refcount_repair *rep);

#endif /* QCOW2_REPAIR_REFCOUNTS_H */
