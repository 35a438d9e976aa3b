/* SPDX-License-Identifier: BSD-3-Clause */

/* The qcow2 format: on-disk structures, constants, entry encoding.
 *
 * Everything here is pure: no state, no I/O.  The reference is the
 * specification docs/interop/qcow2.rst of the QEMU project; sections
 * are named in quotes.  All numbers on disk are big-endian; the structs
 * below are laid over bytes as they are on disk.
 */

#ifndef QCOW2_FORMAT_H
#define QCOW2_FORMAT_H

#include <assert.h>
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>

/*----- Limits, those of QEMU where the specification has none -----*/

#define MIN_CLUSTER_BITS 9
#define MAX_CLUSTER_BITS 21
#define MIN_EXTENDED_L2_CLUSTER_BITS 14
#define MAX_REFCOUNT_ORDER 6
#define MAX_L1_BYTES (UINT64_C (32) << 20)
#define MAX_REFCOUNT_TABLE_BYTES (UINT64_C (8) << 20)
#define MAX_SNAPSHOTS 65536
#define MAX_SNAPSHOT_TABLE_BYTES (UINT64_C (1024) * MAX_SNAPSHOTS)
#define MAX_SNAPSHOT_EXTRA_BYTES 1024
#define MAX_BITMAPS 65535
#define MAX_BITMAP_DIRECTORY_BYTES (UINT64_C (1024) * MAX_BITMAPS)
#define MAX_BITMAP_BYTES (UINT64_C (512) << 20) /* of one's clusters of bits */
#define MAX_BACKING_NAME_BYTES 1023
#define MAX_BACKING_FORMAT_BYTES 15
#define MAX_DATA_FILE_NAME_BYTES 4095 /* QEMU: PATH_MAX and a NUL */

/*----- "Header" -----*/

#define QCOW_MAGIC UINT32_C (0x514649fb) /* "QFI\xfb" */

struct disk_header {
  uint32_t magic;
  uint32_t version;
  uint64_t backing_file_offset;
  uint32_t backing_file_size;
  uint32_t cluster_bits;
  uint64_t size;
  uint32_t crypt_method;
  uint32_t l1_size;
  uint64_t l1_table_offset;
  uint64_t refcount_table_offset;
  uint32_t refcount_table_clusters;
  uint32_t nb_snapshots;
  uint64_t snapshots_offset;
  /* From here on in version 3 only. */
  uint64_t incompatible_features;
  uint64_t compatible_features;
  uint64_t autoclear_features;
  uint32_t refcount_order;
  uint32_t header_length;
  /* "Additional fields", absent where header_length says so. */
  uint8_t compression_type;
  uint8_t padding[7];
} __attribute__ ((__packed__));

#define V2_HEADER_BYTES 72
#define V3_MIN_HEADER_BYTES 104

static_assert (sizeof (struct disk_header) == 112, "header size");

enum crypt_method { CRYPT_NONE = 0, CRYPT_AES = 1, CRYPT_LUKS = 2 };

#define INCOMPAT_DIRTY           (UINT64_C (1) << 0)
#define INCOMPAT_CORRUPT         (UINT64_C (1) << 1)
#define INCOMPAT_DATA_FILE       (UINT64_C (1) << 2)
#define INCOMPAT_COMPRESSION     (UINT64_C (1) << 3)
#define INCOMPAT_EXTENDED_L2     (UINT64_C (1) << 4)
#define INCOMPAT_KNOWN           (UINT64_C (0x1f))

#define COMPAT_LAZY_REFCOUNTS    (UINT64_C (1) << 0)

#define AUTOCLEAR_BITMAPS        (UINT64_C (1) << 0)
#define AUTOCLEAR_RAW_DATA       (UINT64_C (1) << 1)

/*----- "Header extensions" -----*/

struct disk_extension {
  uint32_t type;
  uint32_t length;              /* of the data, not padded to 8 bytes */
} __attribute__ ((__packed__));

static_assert (sizeof (struct disk_extension) == 8, "extension size");

enum extension_type {
  EXTENSION_END            = 0x00000000,
  EXTENSION_BACKING_FORMAT = 0xe2792aca,
  EXTENSION_FEATURE_NAMES  = 0x6803f857,
  EXTENSION_BITMAPS        = 0x23852875,
  EXTENSION_CRYPTO         = 0x0537be77,
  EXTENSION_DATA_FILE      = 0x44415441,
  /* Not of the specification: room that is not in use.  It is there for
   * a moment while the header is rewritten; others take it for one that
   * they don't know.
   */
  EXTENSION_GAP            = 0x9d1c4e2a,
};

/* "Feature name table" */
enum feature_type {
  FEATURE_INCOMPATIBLE = 0,
  FEATURE_COMPATIBLE = 1,
  FEATURE_AUTOCLEAR = 2,
};

struct disk_feature_name {
  uint8_t type;
  uint8_t bit;
  char name[46];                /* not necessarily NUL-terminated */
} __attribute__ ((__packed__));

static_assert (sizeof (struct disk_feature_name) == 48, "feature name size");

/* "Bitmaps extension" */
struct disk_bitmaps {
  uint32_t nb_bitmaps;
  uint32_t reserved;
  uint64_t bitmap_directory_size;
  uint64_t bitmap_directory_offset;
} __attribute__ ((__packed__));

static_assert (sizeof (struct disk_bitmaps) == 24, "bitmaps size");

/*----- "Bitmap directory" -----*/

struct disk_bitmap {
  uint64_t bitmap_table_offset;
  uint32_t bitmap_table_size;   /* in entries */
  uint32_t flags;
  uint8_t type;
  uint8_t granularity_bits;
  uint16_t name_size;
  uint32_t extra_data_size;
  /* Then the extra data, the name, and padding to 8 bytes. */
} __attribute__ ((__packed__));

static_assert (sizeof (struct disk_bitmap) == 24, "bitmap size");

#define BITMAP_IN_USE      (UINT32_C (1) << 0)
#define BITMAP_AUTO        (UINT32_C (1) << 1)
#define BITMAP_FLAGS_KNOWN UINT32_C (3)

#define BITMAP_TYPE_DIRTY 1

#define MAX_BITMAP_NAME_BYTES 1023
#define MIN_BITMAP_GRANULARITY_BITS 9
#define MAX_BITMAP_GRANULARITY_BITS 31

/*----- "Snapshots" -----*/

struct disk_snapshot {
  uint64_t l1_table_offset;
  uint32_t l1_size;
  uint16_t id_str_size;
  uint16_t name_size;
  uint32_t date_sec;
  uint32_t date_nsec;
  uint64_t vm_clock_nsec;
  uint32_t vm_state_size;
  uint32_t extra_data_size;
  /* Then the extra data, the id, the name, and padding to 8 bytes. */
} __attribute__ ((__packed__));

static_assert (sizeof (struct disk_snapshot) == 40, "snapshot size");

/* Known extra data; any prefix of it may be there, and more behind it. */
struct disk_snapshot_extra {
  uint64_t vm_state_size;
  uint64_t disk_size;
  uint64_t icount;
} __attribute__ ((__packed__));

static_assert (sizeof (struct disk_snapshot_extra) == 24, "extra data size");

/*----- "Cluster mapping" -----*/

/* Bits 9 to 55 of L1 and standard L2 entries. */
#define ENTRY_OFFSET_MASK UINT64_C (0x00fffffffffffe00)

#define ENTRY_COPIED     (UINT64_C (1) << 63)
#define ENTRY_COMPRESSED (UINT64_C (1) << 62)
#define ENTRY_ZERO       (UINT64_C (1) << 0)

/* "Extended L2 Entries": the second word of an entry. */
#define SUBCLUSTERS_PER_CLUSTER 32
#define SUBCLUSTER_BITS 5

/* Which of the 32 subclusters are allocated, and which read as zeros. */
static inline uint32_t
subclusters_allocated (uint64_t bitmap)
{
  return (uint32_t) bitmap;
}

static inline uint32_t
subclusters_zero (uint64_t bitmap)
{
  return (uint32_t) (bitmap >> 32);
}

/* "Compressed Clusters Descriptor": the host offset takes the low
 * 62 - (cluster_bits - 8) bits, above it is the number of further
 * 512-byte sectors that the data reaches into.
 */
static inline unsigned
compressed_offset_bits (unsigned cluster_bits)
{
  return 62 - (cluster_bits - 8);
}

static inline uint64_t
compressed_offset (uint64_t entry, unsigned cluster_bits)
{
  return entry & ((UINT64_C (1) << compressed_offset_bits (cluster_bits)) - 1);
}

/* How many bytes, from the host offset on, the data may take. */
static inline uint64_t
compressed_bytes (uint64_t entry, unsigned cluster_bits)
{
  unsigned shift = compressed_offset_bits (cluster_bits);
  uint64_t sectors = (entry & (ENTRY_COMPRESSED - 1)) >> shift;

  return (sectors + 1) * 512 - (compressed_offset (entry, cluster_bits) & 511);
}

#endif /* QCOW2_FORMAT_H */
