/* SPDX-License-Identifier: BSD-3-Clause */

/* The map of a disk, extent by extent. */

#ifndef IMG_EXTENT_READER_H
#define IMG_EXTENT_READER_H

#include "qcow2.h"

#define IMG_EXTENTS_AT_ONCE 1024

struct img_extent_reader {
  struct qcow2_view *view;
  uint64_t end;                 /* of the disk */
  uint64_t read_to;             /* EXTENTS reach up to here */
  struct qcow2_map_extent extents[IMG_EXTENTS_AT_ONCE];
  unsigned next, nr;            /* of EXTENTS */
};

/* Read the map of VIEW, of which DISK_BYTES count (see img_disk_bytes). */
extern void img_extent_reader_init (struct img_extent_reader *reader,
                                    struct qcow2_view *view,
                                    uint64_t disk_bytes);

/* The extent that holds OFFSET, which is below the disk's end and not less
 * than before; extents are not cut.  Valid until the next call.  Errors of
 * qcow2_map.
 */
extern int img_extent_reader_at (struct img_extent_reader *reader,
                                 uint64_t offset,
                                 const struct qcow2_map_extent **extent);

#endif /* IMG_EXTENT_READER_H */
