/* SPDX-License-Identifier: BSD-3-Clause */

/* What an L1 table refers to, and giving or taking many references at once:
 * for operations on snapshots, which have closed the gate, with the image at
 * rest and no worker.
 */

#ifndef QCOW2_L1_REFS_H
#define QCOW2_L1_REFS_H

#include "ref-map.h"
#include "writer.h"

struct l1_refs {
  struct writer *w;

  /* References that are to come, that are to go, and that stay as they are,
   * for judging; all are there already, the first once.  Each takes 4 bytes
   * for each cluster, where it has any.
   */
  struct ref_map more, less, stay;
  bool has_copied;              /* a table in MORE has COPIED flags */

  uint64_t raised_end;          /* refcounts below it were raised */
  struct qcow2_error *error;
};

/* No references.  The caller calls l1_refs_clear later, after errors too.
 * -EFBIG, with a message, if the file is too large for the map.
 */
extern int l1_refs_init (struct l1_refs *refs, struct writer *w,
                         struct qcow2_error *error);
extern void l1_refs_clear (struct l1_refs *refs);

/* Count what the first NR entries of L1 refer to, in MAP, which is one of
 * REFS.  With a message.  -EIO: there is something that can't be right.
 */
extern int l1_refs_count (struct l1_refs *refs, const struct l1_table *l1,
                          uint32_t nr, bool is_active,
                          struct ref_map *map);

/* May the refcounts be changed by what was counted?  -ERANGE: one would be
 * more than refcounts can be; -EIO: one is less than what was counted.  With
 * a message.
 */
extern int l1_refs_judge (struct l1_refs *refs);

/* Change the refcounts in memory: first where there are more references, for
 * which a commit is due (it flushes) before anything that names them is
 * written; then, when nothing durable names them, where there are less.
 * Undoing the first may be done after an error as well.
 */
extern int l1_refs_raise (struct l1_refs *refs);
extern int l1_refs_undo_raise (struct l1_refs *refs);
extern int l1_refs_lower (struct l1_refs *refs);

/*----- COPIED flags (l1-flags.c) -----*/

/* Clear all flags in the first NR entries of L1, and in the L2 tables that
 * they name; in memory and on disk, for which a commit is due.  The entries of
 * a snapshot's L1 table are left alone.
 */
extern int l1_flags_clear (struct writer *w, const struct l1_table *l1,
                           uint32_t nr, bool is_active);

/* Set the flags that are missing in the active L1 table and its L2 tables,
 * where a refcount is 1; MAP knows of all clusters for which that may be so.
 * The refcounts are durable; a commit is due.
 */
extern int l1_flags_set (struct writer *w, const struct ref_map *map);

#endif /* QCOW2_L1_REFS_H */
