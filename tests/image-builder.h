/* SPDX-License-Identifier: BSD-3-Clause */

/* Exact qcow2 images, byte by byte.
 *
 * qemu-img makes only images that are right, and lays them out as it
 * likes.  This helper makes small valid images with a known layout, whose
 * fields a test then patches at will:
 *
 *     cluster 0   header, extensions, backing file name
 *     cluster 1   refcount table
 *     cluster 2   the one refcount block
 *     cluster 3   L1 table, then whatever is added, in that order
 *
 * Offsets that a test needs are members of struct image or results.
 * Everything is written through at once, so the file is always what was
 * said so far; image_close adds the refcounts.  A failure of the system
 * ends the program.
 */

#ifndef IMAGE_BUILDER_H
#define IMAGE_BUILDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/format.h"

/* What is 0 has the default that is told. */
struct image_options {
  unsigned version;             /* 3 */
  unsigned cluster_bits;        /* 16 */
  uint64_t size_bytes;          /* virtual size; 0 is 0 */
  uint32_t header_length;       /* 112, or 72 in version 2 */
  uint64_t incompatible;        /* feature bits */
  uint64_t compatible;
  uint64_t autoclear;
  uint8_t compression_type;
};

struct image {
  int fd;
  const char *path;             /* as given */
  unsigned version;
  unsigned cluster_bits;
  uint64_t cluster_bytes;
  bool extended_l2;
  uint64_t l1_offset;
  uint32_t l1_entries;
  uint64_t end;                 /* of what is allocated, cluster-aligned */
  size_t header_end;            /* where the next extension begins */
};

/* Make a new image, with all of it unallocated. */
extern void image_create (struct image *img, const char *path,
                          const struct image_options *options);

/* Open the file again, to patch it after image_close. */
extern void image_reopen (struct image *img);

/* Write the refcounts and close the file.  Refcounts are 1 for each
 * cluster that was allocated, as far as one refcount block goes.
 */
extern void image_close (struct image *img);

/*----- Raw access -----*/

extern void image_write (struct image *img, uint64_t offset,
                         const void *buf, size_t count);

/* Write and read big-endian numbers of 1, 2, 4 or 8 bytes. */
extern void image_put (struct image *img, uint64_t offset, unsigned width,
                       uint64_t value);
extern uint64_t image_get (struct image *img, uint64_t offset,
                           unsigned width);

#define FIELD_WIDTH(type, field) sizeof (((struct type *) NULL)->field)

#define image_put_header(img, field, value)             \
  image_put ((img), offsetof (struct disk_header, field), \
             FIELD_WIDTH (disk_header, field), (value))

/* Cut the file, or make it longer with a hole. */
extern void image_truncate (struct image *img, uint64_t bytes);

/* Take the next clusters for BYTES; the file becomes that long.
 * Returns the host offset.
 */
extern uint64_t image_alloc (struct image *img, uint64_t bytes);

/*----- Header -----*/

/* Append an extension.  LENGTH may differ from the bytes given. */
extern void image_add_extension (struct image *img, uint32_t type,
                                 const void *data, size_t bytes);

/* Put the name behind the extensions; none can be added any more. */
extern void image_set_backing (struct image *img, const char *name);

/*----- Mapping -----*/

/* The host offset of the L2 entry for guest offset GUEST; makes the L2
 * table when there is none.
 */
extern uint64_t image_l2_entry (struct image *img, uint64_t guest);

/* Set the L2 entry; BITMAP counts with extended L2 entries only. */
extern void image_map (struct image *img, uint64_t guest, uint64_t entry,
                       uint64_t bitmap);

/* Map a new cluster full of bytes FILL at GUEST.  Returns its host
 * offset.
 */
extern uint64_t image_add_data (struct image *img, uint64_t guest,
                                uint8_t fill);

/* The same, zlib-compressed, in a host cluster of its own. */
extern uint64_t image_add_compressed (struct image *img, uint64_t guest,
                                      uint8_t fill);

/* The entry of a compressed cluster of COMPRESSED_BYTES at HOST. */
extern uint64_t image_compressed_entry (const struct image *img,
                                        uint64_t host,
                                        size_t compressed_bytes);

/*----- Snapshots -----*/

struct image_snapshot {
  const char *id, *name;
  uint64_t l1_offset;
  uint32_t l1_size;
  uint64_t disk_size;           /* in the extra data */
  uint32_t extra_bytes;         /* of extra data; 0 is none at all */
  uint64_t entry_offset;        /* result: where the entry is */
};

/* Write a snapshot table with these entries, and tell the header. */
extern void image_set_snapshots (struct image *img,
                                 struct image_snapshot *snapshots,
                                 uint32_t nr_snapshots);

/* Copy the L1 table and the L2 tables under it, as a snapshot has them
 * when the active layer has been written to since.  Returns the offset
 * of the new L1 table.
 */
extern uint64_t image_copy_tables (struct image *img);

#endif /* IMAGE_BUILDER_H */
