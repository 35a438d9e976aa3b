/* SPDX-License-Identifier: BSD-3-Clause */

/* The directory of bitmaps (specification: "Bitmap directory"). */

#ifndef QCOW2_BITMAP_DIRECTORY_H
#define QCOW2_BITMAP_DIRECTORY_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "header.h"
#include "storage.h"

struct bitmap {
  char *name;
  uint64_t table_offset;
  uint32_t table_entries;
  uint32_t flags;               /* BITMAP_IN_USE, BITMAP_AUTO */
  unsigned granularity_bits;
};

struct bitmap_directory {
  struct bitmap *bitmaps;
  size_t nr_bitmaps;
};

/* Read and check the directory of the image in S with header H; an image
 * without bitmaps has an empty one.  What the entries point to is not
 * looked at.  On success the caller calls bitmap_directory_clear later.
 * Memory is bounded by what the file really holds.  -EINVAL for a damaged
 * directory, -ENOTSUP for bitmaps of a kind that is not known.
 */
extern int bitmap_directory_read (struct qcow2_storage *s,
                                  const struct header *h,
                                  struct bitmap_directory *directory,
                                  struct qcow2_error *error);

/* Free the entries, not DIRECTORY. */
extern void bitmap_directory_clear (struct bitmap_directory *directory);

#endif /* QCOW2_BITMAP_DIRECTORY_H */
