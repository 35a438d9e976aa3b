/* SPDX-License-Identifier: BSD-3-Clause */

/* Retiring clusters: what became of those that were unlinked.
 *
 *     unlinked --> sealed --> durable --> (epoch) --> refcount lowered
 *        ^            |
 *        +-- commit failed
 *
 * The refcount of a cluster goes down only when the entry that no longer
 * names it is durable, and when every request that may still use it has
 * ended.
 */

#ifndef QCOW2_RETIRE_H
#define QCOW2_RETIRE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* What may be cached of it. */
enum retired_kind {
  RETIRED_DATA,                 /* nothing */
  RETIRED_TABLE,                /* slices of an L2 table */
  RETIRED_COMPRESSED,           /* decompressed clusters */
};

struct retired {
  uint64_t first;               /* host cluster */
  uint64_t nr;
  enum retired_kind kind;
};

struct retire_list {
  struct retired *items;
  size_t nr, room;
};

struct retire {
  pthread_mutex_t lock;
  struct retire_list unlinked;
  struct retire_list durable;
  bool sealed;                  /* a commit has some in its hands */
  bool busy;                    /* the worker has */
};

extern void retire_init (struct retire *retire);
extern void retire_destroy (struct retire *retire);

/* The entry that named these clusters was changed in memory, and its
 * slice is marked dirty.  Out of memory, the clusters leak.
 */
extern void retire_unlinked (struct retire *retire, uint64_t first,
                             uint64_t nr, enum retired_kind kind);

/* Nothing on disk names these clusters, or ever did since they were
 * allocated.
 */
extern void retire_now (struct retire *retire, uint64_t first, uint64_t nr);

/* A commit begins: take what was unlinked so far.  To be called before
 * the slices are sealed.
 */
extern void retire_seal (struct retire *retire, struct retire_list *sealed);

/* The commit succeeded (DURABLE), or not.  Empties SEALED. */
extern void retire_unseal (struct retire *retire, struct retire_list *sealed,
                           bool durable);

/* For the worker: take what is durable.  False if there is nothing.  It
 * calls retire_done afterwards, which puts back what it left in LIST.
 */
extern bool retire_take (struct retire *retire, struct retire_list *list);
extern void retire_done (struct retire *retire, struct retire_list *list);

/* Does anything wait for a commit, or for the end of one that runs? */
extern bool retire_has_unlinked (struct retire *retire);

/* Is anything left on the way? */
extern bool retire_is_empty (struct retire *retire);

#endif /* QCOW2_RETIRE_H */
