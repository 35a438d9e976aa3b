/* SPDX-License-Identifier: BSD-3-Clause */

/* What creating, applying and deleting a snapshot have in common.
 *
 * All of them go the same way, with the gate closed and the image at rest:
 *
 *     plan     count references, judge all refcounts; nothing is changed
 *     header   the dirty bit (version 3)                    -> durable
 *     clear    COPIED flags of what will be shared          -> flush
 *     write    new tables, where nothing is; raise refcounts -> flush
 *     switch   the header's first sector                    -> durable
 *     lower    refcounts of what was referenced before      -> flush
 *     set      COPIED flags where a refcount is 1 again     -> flush
 *     rest     the dirty bit goes                           -> durable
 *
 * If something fails before the switch, what was done is undone; after it,
 * the operation has succeeded, and what is left to do is left to a repair.
 */

#ifndef QCOW2_SNAPSHOT_CHANGE_H
#define QCOW2_SNAPSHOT_CHANGE_H

#include "header-write.h"
#include "image.h"
#include "l1-refs.h"
#include "metadata-set.h"
#include "snapshot-encode.h"
#include "writer.h"

/* A table in clusters of its own. */
struct new_table {
  enum metadata_kind kind;
  uint64_t offset;
  uint64_t bytes;               /* 0: there is none */
};

struct snapshot_change {
  struct qcow2 *image;
  struct writer *w;
  struct layer *top;
  struct qcow2_error *error;
  struct l1_refs refs;
  bool has_refs;

  bool flags_cleared;           /* of the active layer, perhaps in part */
  struct new_table snapshot_l1, snapshots, active_l1;
  struct l1_larger larger;      /* the active L1 table that is to come */
};

/* Close the gate, see whether the image can be changed, bring it to rest.
 * snapshot_change_end follows in any case.
 */
extern int snapshot_change_begin (struct snapshot_change *c,
                                  struct qcow2 *image,
                                  struct qcow2_error *error);

/* Bring the image to rest, open the gate.  R: how it went; if it is an error
 * and has no message yet, that is what WHAT could not be done.  Returns R.
 */
extern int snapshot_change_end (struct snapshot_change *c, int r,
                                const char *what);

/* Allocate clusters for a table of that kind, put them under guard, and write
 * it, with zeros up to the end of the last one.  Nothing is done for 0 bytes.
 */
extern int snapshot_new_table (struct snapshot_change *c,
                               struct new_table *table,
                               enum metadata_kind kind, const void *data,
                               uint64_t bytes);

/* Clear the COPIED flags of what L1 names, if there are any, durably. */
extern int snapshot_clear_flags (struct snapshot_change *c,
                                 const struct l1_table *l1, uint32_t nr,
                                 bool is_active);

/* Raise the refcounts, and make them and all new tables durable. */
extern int snapshot_raise (struct snapshot_change *c);

/* Before the switch: all that was done. */
extern void snapshot_undo (struct snapshot_change *c);

/* CHANGE the header, durably; if it names c->active_l1, c->larger becomes the
 * active L1 table.  After an error nothing is written any more.
 */
extern int snapshot_switch (struct snapshot_change *c,
                            const struct header_change *change);

/* After the switch: NEXT is the snapshot table; SKIP as for
 * next_snapshots_replace.  The old one is given up.
 */
extern void snapshot_replace_table (struct snapshot_change *c,
                                    struct next_snapshots *next,
                                    size_t skip);

/* Give up a table that nothing on disk names any more. */
extern void snapshot_retire (struct snapshot_change *c,
                             enum metadata_kind kind, uint64_t offset,
                             uint64_t bytes);

/* Lower the refcounts; set COPIED flags that are missing then. */
extern int snapshot_lower (struct snapshot_change *c);
extern int snapshot_set_flags (struct snapshot_change *c,
                               const struct ref_map *map);

/* R is the result of cleaning up: if it is an error, a repair has to. */
extern void snapshot_cleaned_up (struct snapshot_change *c, int r);

#endif /* QCOW2_SNAPSHOT_CHANGE_H */
