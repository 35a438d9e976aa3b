/* SPDX-License-Identifier: BSD-3-Clause */

/* Keeping a damaged image from being made worse.
 *
 * An image that is open for writing has a guard, which knows where its live
 * metadata is (metadata-set.h).  Before anything is written to the image file,
 * given back to the host, or handed out by the allocator, the guard is asked
 * whether it may be.
 *
 * Where it may not, and wherever else metadata contradicts itself, the image
 * is corrupt: from then on nothing is written but the header, where the
 * corrupt bit is set.
 *
 * Only the top layer of a writable image has a guard; layer->guard is NULL
 * elsewhere, and corruption is only reported there.
 */

#ifndef QCOW2_GUARD_H
#define QCOW2_GUARD_H

#include <stdatomic.h>

#include "header-write.h"
#include "layer.h"
#include "metadata-set.h"
#include "snapshot-table.h"

struct guard {
  struct metadata_set set;
  _Atomic bool corrupt;
  struct header_writer *header;
};

/* Make the guard of L.  It knows the header, the active L1 table with the L2
 * tables that this names, the snapshot table, the snapshots' L1 tables, and
 * the bitmap directory if the bitmaps are valid.  What is not aligned leads
 * nowhere, and is left out.  HEADER is used until guard_free.  -ENOMEM.
 */
extern int guard_new (struct layer *l, const struct snapshot_table *snapshots,
                      struct header_writer *header);

/* L may have none. */
extern void guard_free (struct layer *l);

/* Put under guard BYTES at OFFSET, which have just become a table of this
 * kind (from METADATA_HEADER on) and are about to be written; or no more.
 */
extern int guard_add_table (struct layer *l, enum metadata_kind kind,
                            uint64_t offset, uint64_t bytes);
extern void guard_remove_table (struct layer *l, enum metadata_kind kind,
                                uint64_t offset, uint64_t bytes);

/* The same for one L2 table or refcount block at OFFSET. */
extern int guard_add (struct layer *l, enum metadata_kind kind,
                      uint64_t offset);
extern void guard_remove (struct layer *l, enum metadata_kind kind,
                          uint64_t offset);

/* The image is corrupt, as the text says: report it and, on the first call
 * for a writable image, set the corrupt bit and refuse all writes from now
 * on.  Writes the header: no lock may be held.  Returns -EIO.
 */
extern int guard_corrupt (const struct layer *l, const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Does L have a guard that refuses all writes? */
static inline bool
guard_is_corrupt (const struct layer *l)
{
  return l->guard &&
    atomic_load_explicit (&l->guard->corrupt, memory_order_relaxed);
}

/* Does the file end before OFFSET + BYTES, where metadata should be?  False
 * without a guard.
 */
extern bool guard_is_past_end (const struct layer *l, uint64_t offset,
                               uint64_t bytes);

/* For guard_check. */
extern int guard_refuse (const struct layer *l, const char *what,
                         const struct metadata_hit *hit);

/* May BYTES (at least 1) at host OFFSET of the image file be written, given
 * up or taken as KIND?  Only if all of it is of this kind, where METADATA_NONE
 * stands for anything that isn't metadata.  WHAT is about to happen there, for
 * the message.  0, or -EIO: the image is corrupt, and was already or is now
 * marked so.  No lock may be held.
 */
static inline int
guard_check (const struct layer *l, enum metadata_kind kind, uint64_t offset,
             uint64_t bytes, const char *what)
{
  unsigned bits = l->header.cluster_bits;
  uint64_t first = offset >> bits;
  uint64_t nr = ((offset + bytes - 1) >> bits) - first + 1;
  struct metadata_hit hit;

  if (metadata_set_is (&l->guard->set, kind, first, nr, &hit))
    return guard_is_corrupt (l) ? -EIO : 0;
  return guard_refuse (l, what, &hit);
}

#endif /* QCOW2_GUARD_H */
