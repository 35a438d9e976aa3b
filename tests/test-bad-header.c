/* SPDX-License-Identifier: BSD-3-Clause */

/* Each field of the header below, at and above its limit.
 *
 * The images have clusters of 4 KiB, one L2 table and a 2 MiB disk,
 * which is just what one L1 entry covers.
 */

#include <stdlib.h>
#include <unistd.h>

#include "image-builder.h"
#include "scratch-dir.h"
#include "verdict.h"

#define CLUSTER UINT64_C (4096)
#define DISK (UINT64_C (2) << 20)
#define IMAGE "disk.qcow2"

static const char past_end[] =
  "metadata past the end of the file is lost, not zero";

static void
make (struct image *img, const struct image_options *options)
{
  struct image_options o = *options;

  if (o.cluster_bits == 0)
    o.cluster_bits = 12;
  if (o.size_bytes == 0)
    o.size_bytes = DISK;
  image_create (img, IMAGE, &o);
  image_add_data (img, 0, 0x11);
  image_add_data (img, 5 * img->cluster_bytes, 0x22);
  if (o.compression_type == 0)
    image_add_compressed (img, 6 * img->cluster_bytes, 0x33);
}

struct patch {
  const char *what;
  unsigned offset, width;
  uint64_t value;
  int err;
  const char *message, *warning, *stricter, *looser;
};

#define FIELD(name) \
  .what = #name, .offset = offsetof (struct disk_header, name), \
  .width = FIELD_WIDTH (disk_header, name)

/* The file has: header, refcount table and block, L1 table at 3 clusters,
 * data, L2 table, data, compressed data: 8 clusters.
 */
#define FILE_CLUSTERS 8

static const struct patch patches[] = {
  { FIELD (magic), .value = 0x514649fc, .err = EINVAL, .message = "magic" },
  { FIELD (magic), .value = 0, .err = EINVAL, .message = "magic" },

  { FIELD (version), .value = 0, .err = ENOTSUP, .message = "version 0" },
  { FIELD (version), .value = 1, .err = ENOTSUP,
    .message = "version 1, must be 2 or 3; convert the image" },
  { FIELD (version), .value = 4, .err = ENOTSUP, .message = "version 4" },
  { FIELD (version), .value = UINT32_MAX, .err = ENOTSUP,
    .message = "version 4294967295" },

  { FIELD (cluster_bits), .value = 0, .err = EINVAL,
    .message = "cluster_bits is 0" },
  { FIELD (cluster_bits), .value = 8, .err = EINVAL,
    .message = "cluster_bits is 8" },
  { FIELD (cluster_bits), .value = 22, .err = EINVAL,
    .message = "cluster_bits is 22" },
  { FIELD (cluster_bits), .value = 32, .err = EINVAL,
    .message = "cluster_bits is 32" },
  { FIELD (cluster_bits), .value = UINT32_MAX, .err = EINVAL,
    .message = "cluster_bits is 4294967295" },

  { FIELD (size), .value = 0 },
  { FIELD (size), .value = 1 },
  { FIELD (size), .value = 511 },
  { FIELD (size), .value = 5 * CLUSTER + 513 },
  { FIELD (size), .value = DISK - 1 },
  { FIELD (size), .value = DISK },
  { FIELD (size), .value = DISK + 1, .err = EINVAL,
    .message = "L1 table is too small" },
  { FIELD (size), .value = DISK + 512, .err = EINVAL,
    .message = "L1 table is too small" },
  { FIELD (size), .value = UINT64_C (1) << 43, .err = EINVAL,
    .message = "L1 table is too small" },
  { FIELD (size), .value = (UINT64_C (1) << 43) + 1, .err = EFBIG,
    .message = "virtual size 8796093022209 is too large" },
  { FIELD (size), .value = INT64_MAX, .err = EFBIG,
    .message = "virtual size" },
  { FIELD (size), .value = UINT64_C (1) << 63, .err = EFBIG,
    .message = "virtual size" },
  { FIELD (size), .value = UINT64_MAX, .err = EFBIG,
    .message = "virtual size" },

  { FIELD (crypt_method), .value = 1, .err = ENOTSUP, .message = "AES" },
  { FIELD (crypt_method), .value = 2, .err = ENOTSUP, .message = "LUKS" },
  { FIELD (crypt_method), .value = 3, .err = EINVAL,
    .message = "crypt_method 3" },
  { FIELD (crypt_method), .value = UINT32_MAX, .err = EINVAL,
    .message = "crypt_method 4294967295" },

  { FIELD (l1_size), .value = 0, .err = EINVAL,
    .message = "l1_size is 0, a virtual size of 2097152 bytes needs 1" },
  { FIELD (l1_size), .value = 1 },
  { FIELD (l1_size), .value = 2 },
  { FIELD (l1_size), .value = 5 * CLUSTER / 8 },
  { FIELD (l1_size), .value = 5 * CLUSTER / 8 + 1, .err = EINVAL,
    .message = "active L1 table at 0x3000, 20488 bytes, is past the end",
    .stricter = past_end },
  { FIELD (l1_size), .value = MAX_L1_BYTES / 8, .err = EINVAL,
    .message = "active L1 table at 0x3000, 33554432 bytes, is past the end",
    .stricter = past_end },
  { FIELD (l1_size), .value = MAX_L1_BYTES / 8 + 1, .err = EFBIG,
    .message = "active L1 table too large: 4194305 entries" },
  { FIELD (l1_size), .value = UINT32_MAX, .err = EFBIG,
    .message = "active L1 table too large" },

  { FIELD (l1_table_offset), .value = 0, .err = EINVAL,
    .message = "active L1 table offset is 0",
    .stricter = "the header is no L1 table" },
  { FIELD (l1_table_offset), .value = 3 * CLUSTER + 8, .err = EINVAL,
    .message = "active L1 table offset 0x3008 is not aligned" },
  { FIELD (l1_table_offset), .value = 3 * CLUSTER + 512, .err = EINVAL,
    .message = "active L1 table offset 0x3200 is not aligned" },
  { FIELD (l1_table_offset), .value = FILE_CLUSTERS * CLUSTER, .err = EINVAL,
    .message = "active L1 table at 0x8000, 8 bytes, is past the end",
    .stricter = past_end },
  { FIELD (l1_table_offset), .value = UINT64_C (1) << 62, .err = EINVAL,
    .message = "active L1 table at 0x4000000000000000", .stricter = past_end },
  { FIELD (l1_table_offset), .value = UINT64_C (1) << 63, .err = EINVAL,
    .message = "active L1 table at 0x8000000000000000" },
  { FIELD (l1_table_offset), .value = -CLUSTER, .err = EINVAL,
    .message = "active L1 table at 0xfffffffffffff000" },

  { FIELD (refcount_table_offset), .value = 0, .err = EINVAL,
    .message = "refcount table offset is 0",
    .stricter = "the header is no refcount table" },
  { FIELD (refcount_table_offset), .value = CLUSTER + 8, .err = EINVAL,
    .message = "refcount table offset 0x1008 is not aligned" },
  { FIELD (refcount_table_offset), .value = (FILE_CLUSTERS - 1) * CLUSTER },
  { FIELD (refcount_table_offset), .value = FILE_CLUSTERS * CLUSTER,
    .err = EINVAL,
    .message = "refcount table at 0x8000, 4096 bytes, is past the end",
    .stricter = past_end },
  { FIELD (refcount_table_offset), .value = -CLUSTER, .err = EINVAL,
    .message = "refcount table at 0xfffffffffffff000" },

  { FIELD (refcount_table_clusters), .value = 0, .err = EINVAL,
    .message = "refcount_table_clusters is 0" },
  { FIELD (refcount_table_clusters), .value = FILE_CLUSTERS - 1 },
  { FIELD (refcount_table_clusters), .value = FILE_CLUSTERS, .err = EINVAL,
    .message = "refcount table at 0x1000, 32768 bytes, is past the end",
    .stricter = past_end },
  { FIELD (refcount_table_clusters), .value = 2048, .err = EINVAL,
    .message = "refcount table at 0x1000, 8388608 bytes, is past the end",
    .stricter = past_end },
  { FIELD (refcount_table_clusters), .value = 2049, .err = EFBIG,
    .message = "refcount table too large: 2049 entries" },
  { FIELD (refcount_table_clusters), .value = UINT32_MAX, .err = EFBIG,
    .message = "refcount table too large" },

  { FIELD (nb_snapshots), .value = 1, .err = EINVAL,
    .message = "snapshot table offset is 0",
    .stricter = "the header is no snapshot table" },
  { FIELD (nb_snapshots), .value = 65536, .err = EINVAL,
    .message = "snapshot table" },
  { FIELD (nb_snapshots), .value = 65537, .err = EFBIG,
    .message = "nb_snapshots is 65537" },
  { FIELD (nb_snapshots), .value = UINT32_MAX, .err = EFBIG,
    .message = "nb_snapshots is 4294967295" },
  { FIELD (snapshots_offset), .value = CLUSTER },
  { FIELD (snapshots_offset), .value = CLUSTER + 8, .err = EINVAL,
    .message = "snapshot table offset 0x1008 is not aligned" },
  /* Where QEMU puts a table of no entries: at the next free cluster. */
  { FIELD (snapshots_offset), .value = FILE_CLUSTERS * CLUSTER },
  { FIELD (snapshots_offset), .value = (FILE_CLUSTERS + 5) * CLUSTER },

  { FIELD (compatible_features), .value = 1 },
  { FIELD (compatible_features), .value = UINT64_MAX },
  { FIELD (autoclear_features), .value = AUTOCLEAR_RAW_DATA, .err = EINVAL,
    .message = "raw external data bit is set, but the image has no" },
  { FIELD (autoclear_features),
    .value = ~(AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA) },
  { FIELD (autoclear_features), .value = AUTOCLEAR_BITMAPS, .err = EINVAL,
    .message = "bitmaps feature bit is set, but there is no bitmaps",
    .stricter = "the specification calls it an error" },

  { FIELD (incompatible_features), .value = INCOMPAT_DIRTY,
    .warning = "dirty bit" },
  { FIELD (incompatible_features), .value = INCOMPAT_CORRUPT,
    .warning = "marked corrupt" },
  { FIELD (incompatible_features),
    .value = INCOMPAT_CORRUPT | INCOMPAT_DIRTY, .warning = "marked corrupt" },
  { FIELD (incompatible_features), .value = INCOMPAT_DATA_FILE,
    .err = EINVAL, .message = "has an external data file, but does not name" },
  { FIELD (incompatible_features), .value = INCOMPAT_COMPRESSION,
    .err = EINVAL, .message = "compression_type is 0" },
  { FIELD (incompatible_features), .value = INCOMPAT_EXTENDED_L2,
    .err = EINVAL, .message = "extended L2 entries need clusters of" },

  { FIELD (refcount_order), .value = 0 },
  { FIELD (refcount_order), .value = 6 },
  { FIELD (refcount_order), .value = 7, .err = EINVAL,
    .message = "refcount_order is 7" },
  { FIELD (refcount_order), .value = 64, .err = EINVAL,
    .message = "refcount_order is 64" },
  { FIELD (refcount_order), .value = UINT32_MAX, .err = EINVAL,
    .message = "refcount_order is 4294967295" },

  { FIELD (header_length), .value = 0, .err = EINVAL,
    .message = "header_length is 0" },
  { FIELD (header_length), .value = 72, .err = EINVAL,
    .message = "header_length is 72" },
  { FIELD (header_length), .value = 103, .err = EINVAL,
    .message = "header_length is 103" },
  { FIELD (header_length), .value = 104 },
  { FIELD (header_length), .value = 105, .err = EINVAL,
    .message = "header_length is 105, must be at least 104 and a multiple",
    .stricter = "the specification wants a multiple of 8" },
  { FIELD (header_length), .value = 112 },
  { FIELD (header_length), .value = 116, .err = EINVAL,
    .message = "header_length is 116",
    .stricter = "the specification wants a multiple of 8" },
  { FIELD (header_length), .value = 120 },
  { FIELD (header_length), .value = CLUSTER - 8 },
  { FIELD (header_length), .value = CLUSTER },
  { FIELD (header_length), .value = CLUSTER + 8, .err = EINVAL,
    .message = "header_length 4104 exceeds the cluster size" },
  { FIELD (header_length), .value = 0xfffffff8, .err = EINVAL,
    .message = "header_length 4294967288 exceeds" },

  { FIELD (compression_type), .value = 1, .err = EINVAL,
    .message = "compression_type is 1, but the compression type feature" },
  { FIELD (compression_type), .value = 255, .err = EINVAL,
    .message = "compression_type is 255" },
  { .what = "padding", .offset = offsetof (struct disk_header, padding),
    .width = 4, .value = UINT32_MAX },
};

static void
test_patches (void)
{
  struct image img;
  char what[100];
  size_t i;

  for (i = 0; i < sizeof patches / sizeof patches[0]; ++i) {
    const struct patch *p = &patches[i];

    make (&img, &(struct image_options) { 0 });
    is_int (img.end, FILE_CLUSTERS * CLUSTER, "the file is as planned");
    image_close (&img);
    image_reopen (&img);
    image_put (&img, p->offset, p->width, p->value);
    close (img.fd);
    snprintf (what, sizeof what, "%s %#" PRIx64, p->what, p->value);
    expect (&(struct expectation) {
        .what = what, .path = IMAGE, .err = p->err, .message = p->message,
        .warning = p->warning, .stricter = p->stricter, .looser = p->looser });
  }
}

/* Incompatible bits that nobody knows, without a name table. */
static void
test_unknown_features (void)
{
  struct image img;
  char what[100], message[100];
  unsigned bit;

  make (&img, &(struct image_options) { 0 });
  image_close (&img);
  for (bit = 5; bit < 64; ++bit) {
    image_reopen (&img);
    image_put_header (&img, incompatible_features, UINT64_C (1) << bit);
    close (img.fd);
    snprintf (what, sizeof what, "incompatible feature bit %u", bit);
    snprintf (message, sizeof message, "unknown feature bit %u", bit);
    expect (&(struct expectation) {
        .what = what, .path = IMAGE, .err = ENOTSUP, .message = message });
  }
}

/* The fields of version 3 mean nothing in version 2. */
static void
test_version_2 (void)
{
  struct image img;

  make (&img, &(struct image_options) { .version = 2 });
  image_close (&img);
  expect (&(struct expectation) { .what = "version 2", .path = IMAGE });

  image_reopen (&img);
  image_put_header (&img, crypt_method, 1);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "version 2 with AES", .path = IMAGE, .err = ENOTSUP,
      .message = "AES" });

  image_reopen (&img);
  image_put_header (&img, crypt_method, 0);
  image_put_header (&img, version, 3);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "version 3 with a header of version 2", .path = IMAGE,
      .err = EINVAL, .message = "header_length is 0" });
}

static void
test_cluster_sizes (void)
{
  static const struct {
    unsigned bits;
    bool extended;
    int err;
  } sizes[] = {
    { 9, false, 0 }, { 10, false, 0 }, { 16, false, 0 }, { 20, false, 0 },
    { 21, false, 0 }, { 13, true, EINVAL }, { 14, true, 0 }, { 21, true, 0 },
  };
  struct image img;
  char what[100];
  size_t i;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
    make (&img, &(struct image_options) {
        .cluster_bits = sizes[i].bits, .size_bytes = 20 << 20,
        .incompatible = sizes[i].extended ? INCOMPAT_EXTENDED_L2 : 0 });
    image_close (&img);
    snprintf (what, sizeof what, "cluster_bits %u%s", sizes[i].bits,
              sizes[i].extended ? " with extended L2 entries" : "");
    expect (&(struct expectation) {
        .what = what, .path = IMAGE, .err = sizes[i].err,
        .message = "extended L2 entries need clusters of at least 16 KiB" });
  }
}

/* Tables of just the size that is allowed, in a sparse file. */
static void
test_largest_tables (void)
{
  struct image img;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 21, .size_bytes = UINT64_C (1) << 61 });
  is_int (img.l1_entries, MAX_L1_BYTES / 8, "the largest L1 table");
  image_add_data (&img, 0, 0x44);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "L1 table of 32 MiB, disk of 2 EiB", .path = IMAGE });

  image_reopen (&img);
  image_put_header (&img, size, (UINT64_C (1) << 61) + 512);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "a disk of 2 EiB and a sector", .path = IMAGE, .err = EFBIG,
      .message = "virtual size 2305843009213694464 is too large" });

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 16, .size_bytes = DISK });
  image_add_data (&img, 0, 0x55);
  image_put_header (&img, refcount_table_offset,
                    image_alloc (&img, MAX_REFCOUNT_TABLE_BYTES));
  image_put_header (&img, refcount_table_clusters,
                    MAX_REFCOUNT_TABLE_BYTES >> 16);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "refcount table of 8 MiB", .path = IMAGE });
}

static void
test_compression_type (void)
{
  struct image img;

  make (&img, &(struct image_options) {
      .compression_type = 1, .incompatible = INCOMPAT_COMPRESSION });
  image_close (&img);
  expect (&(struct expectation) { .what = "zstd", .path = IMAGE });

  image_reopen (&img);
  image_put_header (&img, compression_type, 2);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "compression_type 2", .path = IMAGE, .err = ENOTSUP,
      .message = "unknown compression_type 2" });

  image_reopen (&img);
  image_put_header (&img, compression_type, 1);
  image_put_header (&img, header_length, 104);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "compression bit, no such field", .path = IMAGE, .err = EINVAL,
      .message = "compression_type is 0" });
}

/* The builder's images are right, or all this would prove little. */
static void
test_builder (void)
{
  struct image img;

  make (&img, &(struct image_options) { 0 });
  image_close (&img);
  is_int (system ("qemu-img check -q " IMAGE " > check.log 2>&1"), 0,
          "qemu-img check finds nothing in the image before patching");
  make (&img, &(struct image_options) {
      .cluster_bits = 14, .incompatible = INCOMPAT_EXTENDED_L2 });
  image_close (&img);
  is_int (system ("qemu-img check -q " IMAGE " > check.log 2>&1"), 0,
          "nor in one with extended L2 entries");
}

int
main (void)
{
  scratch_dir_enter ();
  test_builder ();
  test_patches ();
  test_unknown_features ();
  test_version_2 ();
  test_cluster_sizes ();
  test_largest_tables ();
  test_compression_type ();
  return tap_done ();
}
