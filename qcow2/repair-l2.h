/* SPDX-License-Identifier: BSD-3-Clause */

/* Making right what stands in L1 and L2 tables and can be: COPIED flags of
 * the active layer, set exactly where there is one reference, and entries
 * that l2_judge calls mendable.
 */

#ifndef QCOW2_REPAIR_L2_H
#define QCOW2_REPAIR_L2_H

#include <stdbool.h>

#include "layer.h"
#include "ref-map.h"

struct l2_repair {
  struct layer *layer;          /* its L1 table follows */
  const struct ref_map *map;    /* what refcounts on disk are by the time that
                                   flags are set */
  bool mend;                    /* entries of all tables, too */

  /* Told of each change; may be NULL. */
  void (*found) (void *opaque, const char *text);
  void *opaque;

  uint64_t nr_flags;            /* results: changed; */
  uint64_t nr_mended;
  uint64_t nr_missing;          /* flags that are to be set, and are not */
  uint64_t nr_left;             /* flags that are wrong, in a table that is
                                   left alone */
  struct qcow2_error *error;
};

/* Mend entries (if they are to be), clear the flags that must not be set,
 * or (SET) set those that should be.  L2 tables in which something else lies,
 * too, are not mended, and of their flags only those of sound entries are
 * corrected; an active L1 table like that is left alone.
 * Takes what l2_walk takes, and a bit for each cluster.  Returns 0, or a
 * negative errno with the error set.
 */
extern int l2_repair (struct l2_repair *rep, bool set);

#endif /* QCOW2_REPAIR_L2_H */
