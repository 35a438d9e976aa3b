/* SPDX-License-Identifier: BSD-3-Clause */

/* The header of an image and its extensions, checked and in host order. */

#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "format.h"
#include "storage.h"

/* A header extension that the engine does not know. */
struct unknown_extension {
  uint32_t type;
  uint32_t length_bytes;
  uint8_t *data;
};

struct header {
  unsigned version;
  unsigned cluster_bits;
  uint64_t size_bytes;          /* virtual size */
  uint32_t crypt_method;
  uint32_t l1_entries;
  uint64_t l1_offset;
  uint64_t refcount_table_offset;
  uint32_t refcount_table_clusters;
  uint32_t nr_snapshots;
  uint64_t snapshots_offset;
  uint64_t incompatible_features;
  uint64_t compatible_features;
  uint64_t autoclear_features;
  unsigned refcount_order;
  uint32_t header_bytes;
  uint8_t compression_type;

  /* Fields behind those we know, NULL where there are none; kept for
   * when the header is rewritten.
   */
  uint8_t *unknown_fields;
  size_t nr_unknown_bytes;

  char *backing_name;           /* or NULL */
  char *backing_format;         /* or NULL */
  char *data_file;              /* or NULL */

  uint8_t *feature_names;       /* the table as on disk, or NULL */
  size_t nr_feature_names;

  bool has_bitmaps;             /* valid ones */
  bool has_stale_bitmaps;       /* the autoclear bit is not set */
  uint32_t nr_bitmaps;
  uint64_t bitmap_directory_offset;
  uint64_t bitmap_directory_bytes;

  struct unknown_extension *unknown_extensions;
  size_t nr_unknown_extensions;
};

/* Read and check the header of the image in S: every field against the
 * specification ("Header", "Header extensions"), QEMU's limits, and the
 * size of the file.  On success the caller calls header_clear later.
 * The error message tells field and value; the caller prefixes the
 * file's name.  -EINVAL: not a qcow2 image, or it is damaged; -ENOTSUP:
 * a feature that is not supported; -EFBIG: a table beyond its limit.
 */
extern int header_read (struct qcow2_storage *s, struct header *h,
                        struct qcow2_error *error);

/* The same for an image that may be encrypted, which header_read refuses:
 * for who does not want to read its disk.
 */
extern int header_read_encrypted (struct qcow2_storage *s, struct header *h,
                                  struct qcow2_error *error);

/* The same for an image that is to be checked or repaired: refcount table
 * (even none), L1 table and snapshot table may lie anywhere; sizes and
 * alignments but those of the snapshot table are right.
 */
extern int header_read_damaged (struct qcow2_storage *s, struct header *h,
                                struct qcow2_error *error);

/* Free what the members point to, not H. */
extern void header_clear (struct header *h);

/* Bytes per L2 entry: 16 with extended L2 entries, else 8. */
static inline unsigned
header_l2_entry_bytes (const struct header *h)
{
  return h->incompatible_features & INCOMPAT_EXTENDED_L2 ? 16 : 8;
}

/* How many guest bytes one L1 entry covers, as a power of two. */
static inline unsigned
header_l1_entry_bits (const struct header *h)
{
  unsigned entry_bits = header_l2_entry_bytes (h) == 16 ? 4 : 3;

  return h->cluster_bits + h->cluster_bits - entry_bits;
}

/* How many L1 entries a disk of SIZE_BYTES needs.  Behind them come those
 * of the VM state.
 */
static inline uint64_t
header_disk_l1_entries (const struct header *h, uint64_t size_bytes)
{
  unsigned bits = header_l1_entry_bits (h);

  return (size_bytes >> bits) +
    !!(size_bytes & ((UINT64_C (1) << bits) - 1));
}

/* Check that a table of COUNT entries of ENTRY_BYTES at OFFSET is
 * aligned to clusters, at most MAX_BYTES long, and lies in the file of
 * FILE_BYTES, unless COUNT is 0.  WHAT names it in messages.
 */
extern int header_check_table (const struct header *h, uint64_t file_bytes,
                               const char *what, uint64_t offset,
                               uint64_t count, uint64_t entry_bytes,
                               uint64_t max_bytes, struct qcow2_error *error);

#endif /* QCOW2_HEADER_H */
