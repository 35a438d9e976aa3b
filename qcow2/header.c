/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading the header: from bytes to a checked struct header.
 *
 * An image is input from an enemy until this file has looked at it.
 * Nothing is allocated by a size that the file claims before that size
 * was compared with a limit and with the size of the file itself.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "extension.h"
#include "format.h"
#include "header.h"

/* Version 2 has fixed values for what version 3 added. */
static void
decode_version_3 (const struct disk_header *d, struct header *h)
{
  if (h->version < 3) {
    h->refcount_order = 4;
    h->header_bytes = V2_HEADER_BYTES;
    return;
  }
  h->incompatible_features = be64toh (d->incompatible_features);
  h->compatible_features = be64toh (d->compatible_features);
  h->autoclear_features = be64toh (d->autoclear_features);
  h->refcount_order = be32toh (d->refcount_order);
  h->header_bytes = be32toh (d->header_length);
}

static void
decode (const struct disk_header *d, struct header *h)
{
  h->version = be32toh (d->version);
  h->cluster_bits = be32toh (d->cluster_bits);
  h->size_bytes = be64toh (d->size);
  h->crypt_method = be32toh (d->crypt_method);
  h->l1_entries = be32toh (d->l1_size);
  h->l1_offset = be64toh (d->l1_table_offset);
  h->refcount_table_offset = be64toh (d->refcount_table_offset);
  h->refcount_table_clusters = be32toh (d->refcount_table_clusters);
  h->nr_snapshots = be32toh (d->nb_snapshots);
  h->snapshots_offset = be64toh (d->snapshots_offset);
  decode_version_3 (d, h);
}

/* What has to be right before the rest of the first cluster is read. */
static int
check_geometry (const struct header *h, uint64_t file_bytes,
                struct qcow2_error *error)
{
  if (h->cluster_bits < MIN_CLUSTER_BITS ||
      h->cluster_bits > MAX_CLUSTER_BITS)
    return qcow2_error_set (error, EINVAL,
                            "unsupported cluster size: cluster_bits is %u, "
                            "must be %d to %d",
                            h->cluster_bits, MIN_CLUSTER_BITS,
                            MAX_CLUSTER_BITS);

  if (h->version == 3 &&
      (h->header_bytes < V3_MIN_HEADER_BYTES || h->header_bytes % 8 != 0))
    return qcow2_error_set (error, EINVAL,
                            "header_length is %" PRIu32 ", must be at least "
                            "%d and a multiple of 8",
                            h->header_bytes, V3_MIN_HEADER_BYTES);

  if (h->header_bytes > UINT32_C (1) << h->cluster_bits)
    return qcow2_error_set (error, EINVAL,
                            "header_length %" PRIu32 " exceeds the cluster "
                            "size", h->header_bytes);

  if (h->header_bytes > file_bytes)
    return qcow2_error_set (error, EINVAL,
                            "header_length %" PRIu32 " exceeds the file, "
                            "which is truncated", h->header_bytes);
  return 0;
}

/* Refuse what nobody could know how to read, by its name if the image
 * has it in its feature name table.
 */
static int
refuse_incompatible (const struct header *h, struct qcow2_error *error)
{
  char names[1024];

  extension_feature_names (h, FEATURE_INCOMPATIBLE,
                           h->incompatible_features & ~INCOMPAT_KNOWN,
                           names, sizeof names);
  return qcow2_error_set (error, ENOTSUP,
                          "unsupported incompatible feature(s): %s", names);
}

static int
check_compression_type (const struct header *h, struct qcow2_error *error)
{
  bool has_bit = h->incompatible_features & INCOMPAT_COMPRESSION;

  if (has_bit && h->compression_type == COMPRESSION_DEFLATE)
    return qcow2_error_set (error, EINVAL,
                            "the compression type feature bit is set, but "
                            "compression_type is 0 (zlib)");
  if (!has_bit && h->compression_type != COMPRESSION_DEFLATE)
    return qcow2_error_set (error, EINVAL,
                            "compression_type is %u, but the compression "
                            "type feature bit is not set",
                            h->compression_type);
  if (!codec_type_name (h->compression_type))
    return qcow2_error_set (error, ENOTSUP, "unknown compression_type %u",
                            h->compression_type);
  if (!codec_find (h->compression_type))
    return qcow2_error_set (error, ENOTSUP,
                            "compression_type %u (%s): this library was "
                            "built without it", h->compression_type,
                            codec_type_name (h->compression_type));
  return 0;
}

static int
check_features (const struct header *h, struct qcow2_error *error)
{
  bool data_file = h->incompatible_features & INCOMPAT_DATA_FILE;

  if (h->incompatible_features & INCOMPAT_EXTENDED_L2 &&
      h->cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS)
    return qcow2_error_set (error, EINVAL,
                            "extended L2 entries need clusters of at least "
                            "16 KiB, but cluster_bits is %u",
                            h->cluster_bits);
  if (data_file && h->nr_snapshots > 0)
    return qcow2_error_set (error, EINVAL,
                            "nb_snapshots is %" PRIu32 ", but an image with "
                            "an external data file can't have snapshots",
                            h->nr_snapshots);
  if (h->autoclear_features & AUTOCLEAR_RAW_DATA && !data_file)
    return qcow2_error_set (error, EINVAL,
                            "the raw external data bit is set, but the image "
                            "has no external data file");
  if (h->autoclear_features & AUTOCLEAR_RAW_DATA &&
      h->backing_name)
    return qcow2_error_set (error, EINVAL,
                            "the raw external data bit is set, but the image "
                            "has a backing file");
  return check_compression_type (h, error);
}

static int
check_crypt_method (const struct header *h, struct qcow2_error *error)
{
  switch (h->crypt_method) {
  case CRYPT_NONE:
    return 0;
  case CRYPT_AES:
    return qcow2_error_set (error, ENOTSUP,
                            "the image is encrypted (crypt_method 1, AES), "
                            "which is not supported");
  case CRYPT_LUKS:
    return qcow2_error_set (error, ENOTSUP,
                            "the image is encrypted (crypt_method 2, LUKS), "
                            "which is not supported");
  default:
    return qcow2_error_set (error, EINVAL, "unknown crypt_method %" PRIu32,
                            h->crypt_method);
  }
}

int
header_check_table (const struct header *h, uint64_t file_bytes,
                    const char *what, uint64_t offset,
                    uint64_t count, uint64_t entry_bytes,
                    uint64_t max_bytes, struct qcow2_error *error)
{
  uint64_t bytes;

  if (count > max_bytes / entry_bytes)
    return qcow2_error_set (error, EFBIG,
                            "%s too large: %" PRIu64 " entries of %" PRIu64
                            " bytes, at most %" PRIu64 " bytes are allowed",
                            what, count, entry_bytes, max_bytes);
  bytes = count * entry_bytes;

  if (offset & ((UINT64_C (1) << h->cluster_bits) - 1))
    return qcow2_error_set (error, EINVAL,
                            "%s offset 0x%" PRIx64 " is not aligned to a "
                            "cluster", what, offset);
  /* Nothing is where an empty table points to. */
  if (bytes == 0)
    return 0;
  if (offset == 0)
    return qcow2_error_set (error, EINVAL,
                            "%s offset is 0, which is the header's place",
                            what);
  if (offset > file_bytes || bytes > file_bytes - offset)
    return qcow2_error_set (error, EINVAL,
                            "%s at 0x%" PRIx64 ", %" PRIu64 " bytes, is "
                            "past the end of the file (%" PRIu64 " bytes), "
                            "which is truncated",
                            what, offset, bytes, file_bytes);
  return 0;
}

/* A size of the file that tells check_tables not to compare with it. */
#define ANY_FILE UINT64_MAX

/* Does the L1 table cover the virtual size? */
static int
check_size (const struct header *h, struct qcow2_error *error)
{
  unsigned bits = header_l1_entry_bits (h);
  uint64_t needed = (h->size_bytes >> bits) +
    !!(h->size_bytes & ((UINT64_C (1) << bits) - 1));

  if (h->size_bytes > INT64_MAX)
    return qcow2_error_set (error, EFBIG,
                            "virtual size %" PRIu64 " is too large",
                            h->size_bytes);
  if (needed > MAX_L1_BYTES / 8)
    return qcow2_error_set (error, EFBIG,
                            "virtual size %" PRIu64 " is too large for "
                            "clusters of %u bytes", h->size_bytes,
                            1u << h->cluster_bits);
  if (h->l1_entries < needed)
    return qcow2_error_set (error, EINVAL,
                            "the active L1 table is too small: l1_size is "
                            "%" PRIu32 ", a virtual size of %" PRIu64
                            " bytes needs %" PRIu64,
                            h->l1_entries, h->size_bytes, needed);
  return 0;
}

/* What a check of the image is not stopped by: whether tables lie in the
 * file, or are there at all, is its business.
 */
static int
check_tables_damaged (const struct header *h, struct qcow2_error *error)
{
  int r = header_check_table (h, UINT64_MAX, "refcount table",
                              h->refcount_table_offset ?
                              h->refcount_table_offset :
                              UINT64_C (1) << h->cluster_bits,
                              h->refcount_table_clusters,
                              UINT64_C (1) << h->cluster_bits,
                              MAX_REFCOUNT_TABLE_BYTES, error);

  if (r == 0)
    r = header_check_table (h, UINT64_MAX, "active L1 table", h->l1_offset,
                            h->l1_entries, 8, MAX_L1_BYTES, error);
  return r == 0 ? check_size (h, error) : r;
}

static int
check_tables (const struct header *h, uint64_t file_bytes,
              struct qcow2_error *error)
{
  int r;

  if (h->refcount_order > MAX_REFCOUNT_ORDER)
    return qcow2_error_set (error, EINVAL,
                            "refcount_order is %u, must be at most %d",
                            h->refcount_order, MAX_REFCOUNT_ORDER);
  if (file_bytes == ANY_FILE)
    return check_tables_damaged (h, error);
  if (h->refcount_table_clusters == 0)
    return qcow2_error_set (error, EINVAL,
                            "the image has no refcount table "
                            "(refcount_table_clusters is 0)");
  if (h->nr_snapshots > MAX_SNAPSHOTS)
    return qcow2_error_set (error, EFBIG,
                            "too many snapshots: nb_snapshots is %" PRIu32
                            ", at most %d are allowed",
                            h->nr_snapshots, MAX_SNAPSHOTS);

  r = header_check_table (h, file_bytes, "refcount table",
                          h->refcount_table_offset,
                          h->refcount_table_clusters,
                          UINT64_C (1) << h->cluster_bits,
                          MAX_REFCOUNT_TABLE_BYTES, error);
  if (r < 0)
    return r;
  /* The least that a snapshot takes; the table's own reader goes on. */
  r = header_check_table (h, file_bytes, "snapshot table",
                          h->snapshots_offset, h->nr_snapshots,
                          sizeof (struct disk_snapshot),
                          MAX_SNAPSHOT_TABLE_BYTES, error);
  if (r < 0)
    return r;
  r = header_check_table (h, file_bytes, "active L1 table", h->l1_offset,
                          h->l1_entries, 8, MAX_L1_BYTES, error);
  if (r < 0)
    return r;
  return check_size (h, error);
}

/* The backing file's name lies in the first cluster, behind the
 * extensions.
 */
static int
read_backing_name (const struct disk_header *d, const uint8_t *cluster,
                   size_t cluster_bytes, struct header *h,
                   struct qcow2_error *error)
{
  uint64_t offset = be64toh (d->backing_file_offset);
  uint32_t size = be32toh (d->backing_file_size);

  if (offset == 0)
    return 0;
  if (size > MAX_BACKING_NAME_BYTES)
    return qcow2_error_set (error, EINVAL,
                            "backing file name is too long: "
                            "backing_file_size is %" PRIu32 ", at most %d "
                            "are allowed", size, MAX_BACKING_NAME_BYTES);
  if (offset < h->header_bytes || offset > cluster_bytes ||
      size > cluster_bytes - offset)
    return qcow2_error_set (error, EINVAL,
                            "backing file name at 0x%" PRIx64 ", %" PRIu32
                            " bytes, is not within the first cluster "
                            "behind the header", offset, size);
  /* QEMU takes an empty name for none. */
  if (size == 0)
    return 0;
  if (memchr (cluster + offset, '\0', size))
    return qcow2_error_set (error, EINVAL,
                            "the backing file name contains a NUL byte");

  h->backing_name = strndup ((const char *) cluster + offset, size);
  if (!h->backing_name)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  return 0;
}

static int
read_additional_fields (const uint8_t *cluster, struct header *h,
                        struct qcow2_error *error)
{
  const struct disk_header *d = (const struct disk_header *) cluster;

  if (h->header_bytes > offsetof (struct disk_header, compression_type))
    h->compression_type = d->compression_type;

  if (h->header_bytes > sizeof *d) {
    h->nr_unknown_bytes = h->header_bytes - sizeof *d;
    h->unknown_fields = malloc (h->nr_unknown_bytes);
    if (!h->unknown_fields)
      return qcow2_error_set (error, ENOMEM, "out of memory");
    memcpy (h->unknown_fields, cluster + sizeof *d, h->nr_unknown_bytes);
  }
  return 0;
}

/* Headers that are read although they can't be used. */
enum header_too { ENCRYPTED_TOO = 1, DAMAGED_TOO = 2 };

/* CLUSTER holds the first cluster, or what there is of it. */
static int
parse_cluster (const uint8_t *cluster, size_t cluster_bytes,
               uint64_t file_bytes, unsigned too, struct header *h,
               struct qcow2_error *error)
{
  const struct disk_header *d = (const struct disk_header *) cluster;
  int r;

  r = extension_read_all (cluster, extension_bound (cluster, cluster_bytes),
                          file_bytes, h, error);
  /* With an unknown feature everything else may look damaged. */
  if (h->incompatible_features & ~INCOMPAT_KNOWN)
    return refuse_incompatible (h, error);
  if (r < 0)
    return r;
  r = read_additional_fields (cluster, h, error);
  if (r < 0)
    return r;
  r = read_backing_name (d, cluster, cluster_bytes, h, error);
  if (r < 0)
    return r;
  if (!(too & ENCRYPTED_TOO) || h->crypt_method > CRYPT_LUKS) {
    r = check_crypt_method (h, error);
    if (r < 0)
      return r;
  }
  r = check_features (h, error);
  if (r < 0)
    return r;
  return check_tables (h, too & DAMAGED_TOO ? ANY_FILE : file_bytes, error);
}

/* Read the fixed part, enough to know the version and cluster size. */
static int
read_fixed (struct qcow2_storage *s, uint64_t file_bytes, struct header *h,
            struct qcow2_error *error)
{
  struct disk_header d = { 0 };
  size_t n = file_bytes < sizeof d ? (size_t) file_bytes : sizeof d;
  int r;

  r = qcow2_storage_read_meta (s, &d, n, 0);
  if (r < 0)
    return qcow2_error_set (error, -r, "can't read the header: %s",
                            strerror (-r));
  if (n < V2_HEADER_BYTES || be32toh (d.magic) != QCOW_MAGIC)
    return qcow2_error_set (error, EINVAL,
                            "the image is not in qcow2 format "
                            "(the magic bytes are missing)");
  if (be32toh (d.version) != 2 && be32toh (d.version) != 3)
    return qcow2_error_set (error, ENOTSUP,
                            "unsupported qcow version %" PRIu32 ", must be "
                            "2 or 3%s", be32toh (d.version),
                            be32toh (d.version) == 1 ?
                            "; convert the image with "
                            "\"qemu-img convert -O qcow2\"" : "");
  if (be32toh (d.version) == 3 && n < V3_MIN_HEADER_BYTES)
    return qcow2_error_set (error, EINVAL,
                            "the file ends within the header");
  decode (&d, h);
  return check_geometry (h, file_bytes, error);
}

static int
read_header (struct qcow2_storage *s, unsigned too, struct header *h,
             struct qcow2_error *error)
{
  int64_t file_bytes = qcow2_storage_size (s);
  uint8_t *cluster;
  size_t cluster_bytes;
  int r;

  memset (h, 0, sizeof *h);
  if (file_bytes < 0)
    return qcow2_error_set (error, (int) -file_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -file_bytes));

  r = read_fixed (s, (uint64_t) file_bytes, h, error);
  if (r < 0)
    return r;

  cluster_bytes = (size_t) 1 << h->cluster_bits;
  if ((uint64_t) file_bytes < cluster_bytes)
    cluster_bytes = (size_t) file_bytes;
  /* The header struct is laid over it, whatever the file's length. */
  cluster = calloc (1, cluster_bytes + sizeof (struct disk_header));
  if (!cluster)
    return qcow2_error_set (error, ENOMEM, "out of memory");

  r = qcow2_storage_read_meta (s, cluster, cluster_bytes, 0);
  if (r < 0)
    qcow2_error_set (error, -r, "can't read the header: %s", strerror (-r));
  else
    r = parse_cluster (cluster, cluster_bytes, (uint64_t) file_bytes,
                       too, h, error);
  free (cluster);
  if (r < 0)
    header_clear (h);
  return r;
}

int
header_read (struct qcow2_storage *s, struct header *h,
             struct qcow2_error *error)
{
  return read_header (s, 0, h, error);
}

int
header_read_encrypted (struct qcow2_storage *s, struct header *h,
                       struct qcow2_error *error)
{
  return read_header (s, ENCRYPTED_TOO, h, error);
}

int
header_read_damaged (struct qcow2_storage *s, struct header *h,
                     struct qcow2_error *error)
{
  return read_header (s, DAMAGED_TOO, h, error);
}

void
header_clear (struct header *h)
{
  size_t i;

  free (h->unknown_fields);
  free (h->backing_name);
  free (h->backing_format);
  free (h->data_file);
  free (h->feature_names);
  for (i = 0; i < h->nr_unknown_extensions; ++i)
    free (h->unknown_extensions[i].data);
  free (h->unknown_extensions);
  memset (h, 0, sizeof *h);
}
