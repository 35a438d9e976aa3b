/* SPDX-License-Identifier: BSD-3-Clause */

/* Repairing an image: one that was not closed properly, when it is opened
 * for writing; and any, by `check -r'.
 */

#ifndef QCOW2_REPAIR_H
#define QCOW2_REPAIR_H

#include "count-refs.h"
#include "layer.h"
#include "snapshot-mend.h"

/* Repair the image L, which has the dirty bit, before anything of it is
 * used: its refcounts and COPIED flags become what its tables say, then
 * the dirty bit is cleared.  L follows.  Logs what was done.
 *
 * On error the image still has the dirty bit, or is repaired; it can be
 * read in either case, and repaired again.  -EINVAL: something else is
 * damaged, and nothing was changed.  The message does not name the file.
 */
extern int repair_image (struct layer *l,
                         const struct snapshot_table *snapshots,
                         struct qcow2_error *error);

/*----- For a check that has counted already -----*/

struct repair {
  struct layer *layer;          /* follows */
  struct ref_map *map;          /* from count_refs; follows */
  bool table_is_bad;            /* as in struct ref_walk */
  bool table_counted;
  bool keep;                    /* references may have been lost: nothing that
                                   may be in use becomes free */
  bool mend;                    /* L2 entries, too */
  const struct snapshot_mend *snapshots; /* a table to be written, or NULL */

  /* Told of each change; may be NULL. */
  void (*found) (void *opaque, const char *text);
  void *opaque;
  struct qcow2_error *error;

  uint64_t nr_raised;           /* results: refcounts */
  uint64_t nr_lowered;
  uint64_t nr_flags;            /* COPIED flags that were wrong */
  uint64_t nr_mended;           /* L2 entries */
  uint64_t nr_left;             /* flags that are wrong still: something lies in
                                   the active L1 table */
};

/* Repair all that can be.  What may be wrong after that is only what was
 * PROBLEM_BAD.  Returns 0, or a negative errno with the error set: nothing
 * is worse than before then.
 */
extern int repair_all (struct repair *rep);

/* Lower refcounts that are too high, and change nothing else.  Refcount
 * structures are sound.
 */
extern int repair_leaks (struct repair *rep);

/* Only COPIED flags are wrong: make them right. */
extern int repair_flags (struct repair *rep);

/* The image is right: clear the dirty and the corrupt bit. */
extern int repair_mark_clean (struct layer *l, struct qcow2_error *error);

#endif /* QCOW2_REPAIR_H */
