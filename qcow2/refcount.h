/* SPDX-License-Identifier: BSD-3-Clause */

/* Refcounts of host clusters (specification: "Host cluster management").
 *
 * The refcount table is in memory; refcount blocks go through a slice
 * cache of their own.  Changes are in memory until a commit writes them.
 */

#ifndef QCOW2_REFCOUNT_H
#define QCOW2_REFCOUNT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "layer.h"
#include "slice-cache.h"

/* Bits 9 to 63 of a refcount table entry. */
#define TABLE_OFFSET_MASK (~UINT64_C (511))

struct refcounts {
  struct layer *layer;
  unsigned cluster_bits;
  unsigned order;               /* log2 of the bits of a refcount */
  unsigned block_bits;          /* log2 of the refcounts in a block */
  unsigned slice_bits;          /* log2 of the refcounts in a slice */
  uint32_t slice_bytes;
  struct slice_cache *slices;

  /* Changed by refcounts_set_table alone, read by all: entries are
   * atomic, and an old table lives as long as the refcounts.
   */
  _Atomic (struct refcount_table *) table;

  pthread_mutex_t lock;         /* orders changes of words */
};

struct refcount_table {
  uint64_t host_offset;
  uint64_t nr_entries;
  struct refcount_table *older;
  _Atomic uint64_t entries[];
};

/* Load the refcount table.  CACHE_BYTES is for refcount slices. */
extern int refcounts_new (struct layer *l, size_t cache_bytes,
                          struct refcounts **out, struct qcow2_error *error);

/* Put the refcount table and blocks under the layer's guard. */
extern int refcounts_guard (struct refcounts *rc);

/* RC may be NULL. */
extern void refcounts_free (struct refcounts *rc);

/* The refcount of a host cluster; 0 where no block covers it. */
extern int refcounts_get (struct refcounts *rc, uint64_t cluster,
                          uint64_t *value);

/* Set the refcounts of the clusters FIRST, FIRST + 1, ... from 0 to 1, at
 * most NR of them, up to the first that is in use or the end of a slice.
 * Returns how many (0: FIRST is in use), -ENOENT if no refcount block
 * covers FIRST, or another negative errno.
 */
extern int64_t refcounts_claim (struct refcounts *rc, uint64_t first,
                                uint64_t nr);

/* Called for each run of clusters whose last reference is given up:
 * before their refcounts become 0, and after.
 */
struct refcount_observer {
  /* An error keeps the references, and becomes refcounts_lower's. */
  int (*before_free) (void *opaque, uint64_t first, uint64_t nr);
  void (*after_free) (void *opaque, uint64_t first, uint64_t nr);
  void *opaque;
};

/* Lower the refcounts of NR clusters from FIRST on by one.  By one thread
 * at a time.  -EIO, with a message in the log, if one is 0 already.  *DONE:
 * how many were lowered, after an error too.
 */
extern int refcounts_lower (struct refcounts *rc, uint64_t first,
                            uint64_t nr,
                            const struct refcount_observer *observer,
                            uint64_t *done);

/* Called with a cluster and its refcount; returns what that becomes.  Under
 * rc->lock, so it waits for nothing.
 */
typedef uint64_t refcount_fn (void *opaque, uint64_t cluster,
                              uint64_t value);

/* Call FN for NR clusters from FIRST on, a slice at a time.  Where no block
 * covers a cluster its refcount is 0, and stays so.  The gate is closed, and
 * the worker has stopped.  *DONE: the first cluster that FN has not seen,
 * after an error too.
 */
extern int refcounts_each (struct refcounts *rc, uint64_t first, uint64_t nr,
                           refcount_fn *fn, void *opaque, uint64_t *done);

/* Find clusters whose refcount is 0: *NR of them from *CLUSTER on, in
 * [FROM, END); *NR == 0 and *CLUSTER == END if there are none.
 */
extern int refcounts_next_free (struct refcounts *rc, uint64_t from,
                                uint64_t end, uint64_t *cluster,
                                uint64_t *nr);

/* Set refcount INDEX in a block that is being made in memory. */
extern void refcounts_encode (const struct refcounts *rc, uint64_t *block,
                              uint64_t index, uint64_t value);

/* The first cluster behind all that blocks cover. */
extern uint64_t refcounts_end (struct refcounts *rc);

/* Is there a block for this cluster's refcount? */
extern bool refcounts_cover (struct refcounts *rc, uint64_t cluster);

#endif /* QCOW2_REFCOUNT_H */
