/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage that dawdles: some of its requests pause before and after.
 *
 * Files in a page cache answer so quickly that requests seldom meet.
 * Behind this storage they do: whatever may come between two steps of a
 * request comes there at times.  A flush pauses, and does nothing else,
 * for these tests end without a power failure.
 *
 * It also stands for a device of fixed size, where clusters that became
 * free are soon used again.
 */

#ifndef DAWDLING_STORAGE_H
#define DAWDLING_STORAGE_H

#include "qcow2.h"

struct dawdling {
  unsigned per_1024;            /* how many of 1024 steps pause */
  unsigned max_usec;            /* for how long at most; a few for a
                                   hundred times as long */
  bool fixed_size;              /* the image is on a device: it can't grow */
  bool queued;                  /* long writes go through a write queue */
};

/* Set wrap and opaque of OPTIONS.  D lives longer than the image. */
extern void dawdling_init (const struct dawdling *d,
                           struct qcow2_options *options);

#endif /* DAWDLING_STORAGE_H */
