/* SPDX-License-Identifier: BSD-3-Clause */

/* What each host cluster of an image is used for, and how often: what
 * its refcount should be.
 *
 * Takes 4 bytes for each cluster of the file, untouched (and so not
 * taken from the system) where nothing is referenced, and 4 more where a
 * cluster is used for different things.
 */

#ifndef QCOW2_REF_MAP_H
#define QCOW2_REF_MAP_H

#include <stdbool.h>
#include <stdint.h>

enum ref_kind {
  REF_NONE,                     /* free */
  REF_HEADER,
  REF_L1,
  REF_L2,
  REF_DATA,                     /* compressed, too */
  REF_REFCOUNT_TABLE,
  REF_REFCOUNT_BLOCK,
  REF_SNAPSHOT_TABLE,
  REF_BITMAP,                   /* directory, table or bits */
};

/* What became of a reference. */
enum ref_verdict {
  REF_GOOD,
  REF_SHARED,                   /* counted, but it is used for something else,
                                   too, or is metadata that can't be shared */
  REF_OUTSIDE,                  /* past the end of the file */
  REF_TOO_MANY,
};

/* The map may take this much; so a file of 16 TiB with clusters of
 * 64 KiB is the largest.
 */
#define REF_MAP_MAX_BYTES (UINT64_C (1) << 30)

struct ref_map {
  unsigned cluster_bits;
  uint64_t file_bytes;
  uint64_t nr_clusters;         /* a part of one at the end counts */
  uint64_t room;
  _Atomic uint64_t first_outside; /* the first cluster past the end that
                                   something names, or UINT64_MAX */
  _Atomic uint32_t *words;      /* the first kind seen, and its count */
  _Atomic uint32_t *others;     /* how often it is used for other things */
  _Atomic bool has_others;      /* not all of them are 0 */
};

/* An empty map for a file of that size.  -EFBIG if it would take too much
 * memory.  The caller calls ref_map_clear later.
 */
extern int ref_map_init (struct ref_map *map, uint64_t file_bytes,
                         unsigned cluster_bits);
extern void ref_map_clear (struct ref_map *map);

/* Note TIMES references to each cluster of the BYTES from OFFSET on; from
 * many threads at once, if all say the same KIND.  Only data and L2 tables
 * may be referenced more than once.  Data may reach past the end of the
 * file within its last cluster; all else lies in the file.  Nothing is
 * noted if that is not so.
 */
extern enum ref_verdict ref_map_add (struct ref_map *map, enum ref_kind kind,
                                     uint64_t offset, uint64_t bytes,
                                     uint32_t times);

/* One of the references of KIND to each of these clusters, which were
 * noted, is no more.
 */
extern void ref_map_drop (struct ref_map *map, enum ref_kind kind,
                          uint64_t first, uint64_t nr);

/* The first kind that was noted; REF_NONE past the end. */
extern enum ref_kind ref_map_kind (const struct ref_map *map,
                                   uint64_t cluster);

/* All references; 0 past the end. */
extern uint32_t ref_map_count (const struct ref_map *map, uint64_t cluster);

/* Those of the first kind only. */
extern uint32_t ref_map_times (const struct ref_map *map, uint64_t cluster);

/* At least COUNT references there shall be to CLUSTER. */
extern void ref_map_raise (struct ref_map *map, uint64_t cluster,
                           uint64_t count);

/* Find NR free clusters in a row from *FIRST on, and use them for KIND.
 * Past the end of the file only if CAN_GROW, and nothing names what the file
 * would grow to then; the map grows, too.  -ENOSPC if there are none.
 */
extern int ref_map_take (struct ref_map *map, enum ref_kind kind,
                         uint64_t nr, bool can_grow, uint64_t *first);

#endif /* QCOW2_REF_MAP_H */
