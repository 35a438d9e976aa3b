/* SPDX-License-Identifier: BSD-3-Clause */

/* Changing the active L1 table: in memory at once, on disk by a commit. */

#ifndef QCOW2_L1_WRITE_H
#define QCOW2_L1_WRITE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "layer.h"

struct l1_change {
  uint32_t index;
  uint64_t value;
};

struct l1_changes {
  struct l1_change *items;
  size_t nr, room;
};

struct l1_writer {
  struct layer *layer;
  uint64_t *durable;            /* the table as on disk, big-endian */
  pthread_mutex_t lock;
  struct l1_changes changed;    /* under the lock; values are not used */
  size_t nr_sealed;             /* under the lock: CHANGED has room for as
                                   many more, should they come back */
};

extern int l1_writer_init (struct l1_writer *w, struct layer *l);
extern void l1_writer_destroy (struct l1_writer *w);

/* A larger table for the same entries. */
struct l1_larger {
  _Atomic uint64_t *entries;
  uint64_t *durable;
  uint32_t nr_entries;
};

/* Make one of NR entries, not less than there are; what is added is 0. */
extern int l1_larger_init (const struct l1_writer *w, uint32_t nr,
                           struct l1_larger *larger);
extern void l1_larger_clear (struct l1_larger *larger);

/* The header names a table at HOST_OFFSET that holds the durable entries:
 * use LARGER, which is emptied, from now on.  The caller has the turn,
 * and the gate is closed.
 */
extern void l1_replace (struct l1_writer *w, struct l1_larger *larger,
                        uint64_t host_offset);

/* Set an entry of the live table.  The table that it names was written.
 * -ENOMEM, and nothing was changed.
 */
extern int l1_set (struct l1_writer *w, uint32_t index, uint64_t value);

/* Are there no changes to be written? */
extern bool l1_is_clean (struct l1_writer *w);

/* For the committer: take the changes with the values of now; write
 * them; say how it went (!WRITTEN: they are to be written again).
 */
extern void l1_seal (struct l1_writer *w, struct l1_changes *sealed);
extern int l1_write (struct l1_writer *w, struct l1_changes *sealed);
extern void l1_unseal (struct l1_writer *w, struct l1_changes *sealed,
                       bool written);

#endif /* QCOW2_L1_WRITE_H */
