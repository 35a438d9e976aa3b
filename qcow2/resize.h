/* SPDX-License-Identifier: BSD-3-Clause */

/* Giving the disk another size: the parts of which qcow2_resize is made.
 * The gate is closed.
 */

#ifndef QCOW2_RESIZE_H
#define QCOW2_RESIZE_H

#include <stdint.h>

#include "qcow2.h"
#include "writer.h"

struct resize {
  struct writer *w;
  uint64_t old_bytes, new_bytes;
  uint32_t l1_entries;          /* that the new size needs */
  enum qcow2_preallocation preallocation;
};

/* Make the disk larger (grow.c).  After an error it has its old size. */
extern int disk_grow (struct resize *r);

/* Make it smaller (shrink.c).  After an error it has its old size, if
 * image_size says so; else there is space that was not given back.
 */
extern int disk_shrink (struct resize *r);

/* Map the clusters [FROM, END) (guest bytes; FROM is the start of a cluster)
 * and reserve their space, as PREALLOCATION says.  What is unallocated, or
 * zeros without space, gets some; it reads as zeros afterwards.  Of an image
 * with subclusters it reads as before, though: only the space is there.
 */
extern int preallocate_guest (struct writer *w, uint64_t from, uint64_t end,
                              enum qcow2_preallocation preallocation);

/* Unmap what is mapped behind the end of the disk, from FROM on (the start of
 * a cluster), in the tables on disk: nobody can see it.  The worker is
 * stopped.
 */
extern int unmap_behind (struct writer *w, uint64_t from);

/* Give up refcount blocks at the end that count nothing but themselves
 * (refcount-shrink.c).  *SOME: there were some, and a round may make more of
 * them.  Everything is durable and retired, and the worker is stopped.
 */
extern int refcount_drop_blocks (struct allocator *a, bool *some);

#endif /* QCOW2_RESIZE_H */
