/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting all references to host clusters: what refcounts should be.
 *
 * The walk goes over everything that takes clusters: header, refcount
 * structures, snapshot table, bitmaps, the L1 tables of the active layer
 * and of the snapshots, and all L2 tables.  An L2 table is read once,
 * however many snapshots have it; what it names is referenced as often as
 * it is.
 *
 * Whatever can't be right is a problem, for which the visitor is called;
 * the reference is not counted then.  All of the image is taken to be
 * hostile: the walk reads each byte of the file at most once, and no byte
 * past its end.
 */

#ifndef QCOW2_COUNT_REFS_H
#define QCOW2_COUNT_REFS_H

#include "layer.h"
#include "ref-map.h"
#include "snapshot-table.h"

/* What is known of an image that nobody writes to meanwhile. */
struct ref_walk {
  const struct layer *layer;
  const struct snapshot_table *snapshots;
  struct ref_map *map;          /* result; made by the caller */

  /* Called with a text that tells what is wrong and where, without the
   * name of the file.  A negative result ends the walk.
   */
  int (*problem) (void *opaque, const char *text);
  void *opaque;
};

/* Takes at most 4 MiB of memory besides the map.  Returns 0, the
 * visitor's negative result, or another negative errno with ERROR set.
 */
extern int count_refs (const struct ref_walk *walk,
                       struct qcow2_error *error);

/*----- Between the files of the walk -----*/

#define REF_WALK_BUFFER_BYTES (4u << 20)

struct ref_counter {
  const struct ref_walk *walk;
  const struct layer *layer;
  uint64_t cluster_bytes;
  uint64_t *buf;                /* REF_WALK_BUFFER_BYTES */
  struct qcow2_error *error;
};

/* Where a reference stands, for messages. */
struct ref_place {
  const char *what;             /* a table */
  uint64_t offset;              /* of the table */
  uint64_t index;               /* in it */
};

/* Tell the visitor.  Returns its result. */
extern int ref_problem (const struct ref_counter *c,
                        const struct ref_place *at, const char *problem);

/* Count a reference; *GOOD: it was.  Returns 0 or the visitor's result. */
extern int ref_count (const struct ref_counter *c, enum ref_kind kind,
                      uint64_t offset, uint64_t bytes, uint32_t times,
                      const struct ref_place *at, bool *good);

/* Read COUNT bytes, which lie in the file. */
extern int ref_read (const struct ref_counter *c, void *buf, size_t count,
                     uint64_t offset, const char *what);

/* Call FN with each of NR words, in host order, of the table, which was
 * counted.  A result other than 0 ends it.
 */
typedef int ref_word_fn (const struct ref_counter *c, uint64_t word,
                         const struct ref_place *at);
extern int ref_each_word (const struct ref_counter *c, const char *what,
                          uint64_t offset, uint64_t nr, ref_word_fn *fn);

/* count-bitmaps.c */
extern int count_bitmaps (const struct ref_counter *c);

#endif /* QCOW2_COUNT_REFS_H */
