/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting all references to host clusters: what refcounts should be.
 *
 * The walk goes over everything that takes clusters: header, snapshot
 * table, bitmaps, the L1 tables of the active layer and of the snapshots,
 * all L2 tables, and the refcount structures at last, since these can be
 * made anew where they are in somebody's way.  An L2 table is read once,
 * however many snapshots have it; what it names is referenced as often as
 * it is.  L2 tables are read by many threads.
 *
 * Whatever can't be right is a problem, for which the visitor is called.
 * All of the image is taken to be hostile: the walk reads each byte of
 * the file at most once as a table of a kind, whoever names it how often (the
 * active L1 table, if it is a snapshot's, twice), no hole where the storage
 * tells that it is one, and no byte past the file's end.
 */

#ifndef QCOW2_COUNT_REFS_H
#define QCOW2_COUNT_REFS_H

#include "layer.h"
#include "parallel.h"
#include "ref-map.h"
#include "snapshot-table.h"

enum ref_problem {
  PROBLEM_BAD,                  /* nobody knows what should be there */
  PROBLEM_FLAG,                 /* COPIED where it must not be */
  PROBLEM_MENDABLE,             /* an L2 entry that a repair makes right */
  PROBLEM_REFCOUNTS,            /* of refcount structures */
  PROBLEM_SHARED,               /* a cluster is used for different things:
                                   all of them are counted */
};

/* What is known of an image that nobody writes to meanwhile. */
struct ref_walk {
  struct layer *layer;
  const struct snapshot_table *snapshots;
  struct ref_map *map;          /* result; made by the caller */
  unsigned nr_threads;          /* as parallel_work.nr_threads */
  bool mend;                    /* L2 entries count as a repair writes them */

  /* Called with a text that tells what is wrong and where, without the
   * name of the file; by one thread at a time, in the order of the file
   * but for the tables' order.  A negative result ends the walk.
   */
  int (*problem) (void *opaque, enum ref_problem kind, const char *text);

  /* How far reading L2 tables has come, in clusters of the file since the
   * last call; by one thread at a time.  May be NULL.
   */
  void (*progress) (void *opaque, uint64_t nr_clusters);
  void *opaque;

  /* Results: the refcount table is in the way of something, or not in the
   * file (its blocks were not looked at then); it was counted.
   */
  bool table_is_bad;
  bool table_counted;
};

/* Takes what l2_walk takes, or 1 MiB, besides the map; with an external
 * data file 4 bytes for each cluster of the file, too.  Returns 0, the
 * visitor's negative result, or another negative errno with ERROR set.
 */
extern int count_refs (struct ref_walk *walk, struct qcow2_error *error);

/* Can ENTRY of the refcount table be used as it is?  It names a cluster
 * that is in the map, once, as a refcount block.
 */
extern bool is_refcount_block_good (const struct ref_map *map,
                                    uint64_t entry);

/* Was the block that ENTRY names counted? */
extern bool is_refcount_block_counted (const struct ref_map *map,
                                       uint64_t entry);

/*----- Between the files of the walk -----*/

/* Of tables but L2 tables so much is read at once. */
#define REF_WALK_BUFFER_BYTES (1u << 20)

struct ref_counter {
  struct ref_walk *walk;
  const struct layer *layer;
  uint64_t cluster_bytes;
  uint64_t *buf;                /* REF_WALK_BUFFER_BYTES */
  uint32_t *l1_index;           /* with an external data file: of each L2
                                   table, by cluster, + 1 */
  struct qcow2_error *error;
};

/* Where a reference stands, for messages. */
struct ref_place {
  const char *what;             /* a table */
  uint64_t offset;              /* of the table */
  uint64_t index;               /* in it */
  struct parallel_unit *unit;   /* or NULL */
};

/* Tell the visitor.  Returns its result. */
extern int ref_problem (const struct ref_counter *c, enum ref_problem kind,
                        const struct ref_place *at, const char *problem);

/* Count a reference; *GOOD: it was.  Returns 0 or the visitor's result. */
extern int ref_count (const struct ref_counter *c, enum ref_kind kind,
                      uint64_t offset, uint64_t bytes, uint32_t times,
                      const struct ref_place *at, bool *good);

/* Read COUNT bytes, which lie in the file. */
extern int ref_read (const struct ref_counter *c, void *buf, size_t count,
                     uint64_t offset, const char *what);

/* Words in a row that lie in the file, at a multiple of 8. */
struct ref_table {
  uint64_t offset;
  uint64_t nr;
};

/* Called with a word, in host order, of TIMES tables; not with 0 where a hole
 * is.
 */
typedef int ref_word_fn (const struct ref_counter *c, uint64_t word,
                         uint32_t times, const struct ref_place *at);

/* Call FN with each word of these tables, which were counted: once, with how
 * many of them it lies in.  A result other than 0 ends it.
 */
extern int ref_each_word (const struct ref_counter *c, const char *what,
                          const struct ref_table *tables, size_t nr,
                          ref_word_fn *fn);

/* count-bitmaps.c */
extern int count_bitmaps (const struct ref_counter *c);

/* count-l2.c */
extern int count_l2_tables (struct ref_counter *c);

#endif /* QCOW2_COUNT_REFS_H */
