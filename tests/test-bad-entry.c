/* SPDX-License-Identifier: BSD-3-Clause */

/* L1 and L2 entries: reserved bits, offsets at and above their limits,
 * of standard, compressed and extended entries and with an external data
 * file.  A bad entry fails the reads that need it with EIO and a message
 * in the log, and no others.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "image-builder.h"
#include "scratch-dir.h"
#include "verdict.h"

#define IMAGE "disk.qcow2"
#define DATA "disk.raw"
#define BIT(n) (UINT64_C (1) << (n))

/*----- What is around a bad entry -----*/

/* Read the image in pieces, of which those in the range of BYTES from
 * GUEST on must fail, and no others.
 */
static void
expect_rest_readable (const char *what, uint64_t guest, uint64_t bytes,
                      uint64_t disk)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2_view *view;
  struct qcow2 *image;
  struct verdict v;
  unsigned nr_failed = 0, nr_others = 0;
  uint64_t offset, piece = disk > 65536 ? disk / 128 : 512;
  static char buf[65536];

  verdict_options (&v, &options);
  if (!ok (qcow2_open (IMAGE, &options, &image, &error) == 0, "%s: opens",
           what))
    return;
  qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
  for (offset = 0; offset < disk; offset += piece) {
    int r = qcow2_pread (view, buf, piece, offset);

    if (r < 0 && offset - guest < bytes)
      nr_failed += r == -EIO;
    else if (r < 0)
      nr_others++;
  }
  qcow2_close (image);
  is_int (nr_failed, (int64_t) (bytes / piece),
          "%s: reads of the area fail", what);
  is_int (nr_others, 0, "%s: all others don't", what);
}

/*----- L1 entries -----*/

/* 64 KiB for each of 4 L1 entries, with clusters of 512 bytes and some
 * data under the first three.
 */
#define L1_SPAN UINT64_C (32768)

static void
make_l1 (struct image *img)
{
  unsigned i;

  image_create (img, IMAGE, &(struct image_options) {
      .cluster_bits = 9, .size_bytes = 4 * L1_SPAN });
  for (i = 0; i < 3; ++i)
    image_add_data (img, i * L1_SPAN + 512, (uint8_t) (0x11 * (i + 1)));
}

struct entry_patch {
  const char *what;
  uint64_t set;                 /* bits to set in the good entry */
  bool replace;                 /* nothing stays of the good entry */
  const char *message;          /* of EIO, or NULL: read as before */
  const char *stricter;
};

static const char lost[] =
  "metadata past the end of the file is lost, not zero";

static const struct entry_patch l1_patches[] = {
  { "reserved bits 0 to 8", 0x1ff, false, NULL, NULL },
  { "reserved bits 56 to 62", 0x7f00000000000000, false, NULL, NULL },
  { "copied flag", BIT (63), false, NULL, NULL },
  { "no L2 table", 0, true, NULL, NULL },
  { "all bits but the offset", ~ENTRY_OFFSET_MASK, true, NULL, NULL },
  { "L2 table at the last offset", ENTRY_OFFSET_MASK, true,
    "can't read the L2 table at 0xfffffffffffe00 (guest offset 0x8000)",
    lost },
  { "L2 table at 1 TiB", BIT (40), true,
    "can't read the L2 table at 0x10000000000 (guest offset 0x8000)", lost },
};

static void
test_l1 (void)
{
  struct image img;
  uint64_t entry;
  size_t i;

  for (i = 0; i < sizeof l1_patches / sizeof l1_patches[0]; ++i) {
    const struct entry_patch *p = &l1_patches[i];

    make_l1 (&img);
    entry = image_get (&img, img.l1_offset + 8, 8);
    image_put (&img, img.l1_offset + 8, 8,
               p->replace ? p->set : entry | p->set);
    image_close (&img);
    expect (&(struct expectation) {
        .what = p->what, .path = IMAGE, .err = p->message ? EIO : 0,
        .message = p->message, .stricter = p->stricter });
    if (p->message)
      expect_rest_readable (p->what, L1_SPAN, L1_SPAN, 4 * L1_SPAN);
  }
}

/* With larger clusters an offset can be out of line. */
static void
test_l1_alignment (void)
{
  static const uint64_t disk = 4 << 20;
  struct image img;
  char what[100];
  unsigned bit;

  for (bit = 9; bit <= 12; ++bit) {
    image_create (&img, IMAGE, &(struct image_options) {
        .cluster_bits = 12, .size_bytes = disk });
    image_add_data (&img, 0, 0x11);
    image_alloc (&img, 65536);
    image_put (&img, img.l1_offset, 8,
               image_get (&img, img.l1_offset, 8) | BIT (bit));
    image_close (&img);
    snprintf (what, sizeof what, "L2 table with offset bit %u", bit);
    if (bit == 12) {
      expect (&(struct expectation) { .what = what, .path = IMAGE });
      continue;
    }
    expect (&(struct expectation) {
        .what = what, .path = IMAGE, .err = EIO,
        .message = "corrupt: guest offset 0x0: L2 table is not aligned" });
    expect_rest_readable (what, 0, 2 << 20, disk);
  }
}

/* An L2 table of which the end is cut off: what was cut off is lost. */
static void
test_l2_cut_off (void)
{
  struct image img;
  uint64_t table;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 16, .size_bytes = 1 << 20 });
  image_alloc (&img, 65536);
  table = image_l2_entry (&img, 0);
  image_close (&img);

  image_reopen (&img);
  image_truncate (&img, table + 4096);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "the file ends after the first slice", .path = IMAGE });

  image_reopen (&img);
  image_truncate (&img, table + 4095);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "the file ends within the first slice", .path = IMAGE,
      .err = EIO, .message = "can't read the L2 table", .stricter = lost });
}

/*----- Standard L2 entries -----*/

#define L2_CLUSTER UINT64_C (4096)
#define L2_DISK UINT64_C (65536)
#define BAD (3 * L2_CLUSTER)    /* the guest offset with the bad entry */

static void
make_l2 (struct image *img, unsigned version)
{
  image_create (img, IMAGE, &(struct image_options) {
      .version = version, .cluster_bits = 12, .size_bytes = L2_DISK });
  image_add_data (img, 0, 0x11);
  image_add_data (img, BAD, 0x22);
  image_add_data (img, BAD + L2_CLUSTER, 0x33);
}

static void
expect_l2 (const struct entry_patch *p, unsigned version)
{
  struct image img;
  uint64_t where;
  char what[200];

  make_l2 (&img, version);
  where = image_l2_entry (&img, BAD);
  image_put (&img, where, 8,
             p->replace ? p->set : image_get (&img, where, 8) | p->set);
  image_close (&img);
  snprintf (what, sizeof what, "version %u, %s", version, p->what);
  expect (&(struct expectation) {
      .what = what, .path = IMAGE, .err = p->message ? EIO : 0,
      .message = p->message, .stricter = p->stricter });
  if (p->message)
    expect_rest_readable (what, BAD, L2_CLUSTER, L2_DISK);
}

#define FARTHEST (ENTRY_OFFSET_MASK & ~(L2_CLUSTER - 1))

static const char not_aligned[] =
  "corrupt: guest offset 0x3000: data cluster is not aligned";

static const struct entry_patch l2_patches[] = {
  { "reserved bits 1 to 8", 0x1fe, false, NULL, NULL },
  { "reserved bits 56 to 61", 0x3f00000000000000, false, NULL, NULL },
  { "no copied flag", BIT (63), false, NULL, NULL },
  { "unallocated", 0, true, NULL, NULL },
  { "copied flag without offset", BIT (63), true, NULL, NULL },
  { "offset bit 9", BIT (9), false, not_aligned, NULL },
  { "offset bit 11", BIT (11), false, not_aligned, NULL },
  { "offset not aligned, and far away", FARTHEST | BIT (9), true,
    not_aligned, NULL },
  { "data past the end", BIT (40), true, NULL, NULL },
  { "data at the last offset", FARTHEST, true, NULL, NULL },
  { "data is the header", BIT (63) | 4096, true, NULL, NULL },
};

static void
test_l2 (void)
{
  static const struct entry_patch zero[] = {
    { "zero flag", BIT (0), false, NULL, NULL },
    { "zero flag alone", BIT (0), true, NULL, NULL },
    { "zero flag and offset bit 9", BIT (0) | BIT (9), false, not_aligned,
      NULL },
    { "zero flag and data past the end", BIT (0) | FARTHEST, true, NULL,
      NULL },
  };
  static const struct entry_patch zero_v2[] = {
    { "zero flag", BIT (0), false, "zero flag in a version 2 image", NULL },
    { "zero flag alone", BIT (0), true, "zero flag in a version 2 image",
      NULL },
  };
  size_t i;

  for (i = 0; i < sizeof l2_patches / sizeof l2_patches[0]; ++i) {
    expect_l2 (&l2_patches[i], 2);
    expect_l2 (&l2_patches[i], 3);
  }
  for (i = 0; i < sizeof zero / sizeof zero[0]; ++i)
    expect_l2 (&zero[i], 3);
  for (i = 0; i < sizeof zero_v2 / sizeof zero_v2[0]; ++i)
    expect_l2 (&zero_v2[i], 2);
}

/* The last cluster may be short, and clusters may lie past the end. */
static void
test_short_file (void)
{
  static const int cut[] = { 1, 511, 512, 4095, 4096, 4097, 8192 };
  struct image img;
  char what[100];
  size_t i;

  for (i = 0; i < sizeof cut / sizeof cut[0]; ++i) {
    make_l2 (&img, 3);
    image_close (&img);
    image_reopen (&img);
    image_truncate (&img, img.end - (uint64_t) cut[i]);
    close (img.fd);
    snprintf (what, sizeof what, "file shorter by %d bytes", cut[i]);
    expect (&(struct expectation) { .what = what, .path = IMAGE });
  }
}

/*----- Compressed L2 entries -----*/

struct compressed_patch {
  const char *what;
  unsigned cluster_bits;
  uint64_t flip;                /* bits of the good entry */
  int64_t move;                 /* of its host offset */
  const char *message;
  const char *stricter;
};

static void
expect_compressed (const struct compressed_patch *p)
{
  uint64_t bytes = UINT64_C (1) << p->cluster_bits, where, entry;
  struct image img;
  char what[200];

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = p->cluster_bits, .size_bytes = 4 * bytes });
  image_add_compressed (&img, 0, 0x11);
  image_add_compressed (&img, bytes, 0x22);
  image_add_data (&img, 2 * bytes, 0x33);
  where = image_l2_entry (&img, 0);
  entry = image_get (&img, where, 8);
  image_put (&img, where, 8, (entry ^ p->flip) + (uint64_t) p->move);
  image_close (&img);
  snprintf (what, sizeof what, "cluster_bits %u, %s", p->cluster_bits,
            p->what);
  expect (&(struct expectation) {
      .what = what, .path = IMAGE, .err = p->message ? EIO : 0,
      .message = p->message, .stricter = p->stricter });
  if (p->message)
    expect_rest_readable (what, 0, bytes, 4 * bytes);
}

static const char not_inflated[] = "can't read the compressed cluster at 0x";

static const struct compressed_patch compressed_patches[] = {
  { "as it is", 9, 0, 0, NULL, NULL },
  { "as it is", 16, 0, 0, NULL, NULL },
  { "as it is", 21, 0, 0, NULL, NULL },
  { "copied flag", 16, BIT (63), 0, NULL, NULL },
  { "all the sectors there can be", 9, BIT (61), 0, NULL, NULL },
  { "all the sectors there can be", 16, UINT64_C (0xff) << 54, 0, NULL,
    NULL },
  { "all the sectors there can be", 21, UINT64_C (0x1fff) << 49, 0, NULL,
    NULL },
  { "a byte too far", 16, 0, 1, not_inflated, NULL },
  { "a byte too near", 16, 0, -1, not_inflated, NULL },
  { "past the end", 9, BIT (60), 0, not_inflated, NULL },
  { "past the end", 16, BIT (53), 0, not_inflated, NULL },
  { "past the end", 21, BIT (48), 0, not_inflated, NULL },
  { "at the last offset", 16, BIT (54) - 65536, 0, not_inflated, NULL },
};

static void
test_compressed (void)
{
  size_t i;

  for (i = 0; i < sizeof compressed_patches / sizeof compressed_patches[0];
       ++i)
    expect_compressed (&compressed_patches[i]);
}

/* Damaged compressed data, and data for less than a cluster. */
static void
test_compressed_data (void)
{
  static const uint8_t end_of_block[] = { 0x03, 0x00 };
  struct image img;
  uint64_t host;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 16, .size_bytes = 1 << 20 });
  host = image_add_compressed (&img, 65536, 0x22);
  image_put (&img, host, 8, UINT64_MAX);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "damaged deflate data", .path = IMAGE, .err = EIO,
      .message = not_inflated });
  expect_rest_readable ("damaged deflate data", 65536, 65536, 1 << 20);

  image_reopen (&img);
  image_write (&img, host, end_of_block, sizeof end_of_block);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "deflate data for no byte", .path = IMAGE, .err = EIO,
      .message = not_inflated });
}

/* Version 1.1 images of type zstd whose data is not zstd. */
static void
test_compressed_type (void)
{
  struct image img;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 16, .size_bytes = 1 << 20, .compression_type = 1,
      .incompatible = INCOMPAT_COMPRESSION });
  image_add_compressed (&img, 65536, 0x22);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "deflate data in a zstd image", .path = IMAGE, .err = EIO,
      .message = not_inflated });
}

/*----- Extended L2 entries -----*/

#define EX_CLUSTER UINT64_C (16384)

struct extended_patch {
  const char *what;
  bool has_host;
  uint64_t flags;               /* of the entry */
  uint32_t zero, allocated;     /* subclusters */
  const char *message;
};

static const char bad_bitmap[] =
  "corrupt: guest offset 0x4000: invalid subcluster bitmap";

static const struct extended_patch extended_patches[] = {
  { "all allocated", true, 0, 0, UINT32_MAX, NULL },
  { "nothing, with a host cluster", true, 0, 0, 0, NULL },
  { "all zero, with a host cluster", true, 0, UINT32_MAX, 0, NULL },
  { "some of each", true, 0, 0x000ff0f0, 0xfff0000f, NULL },
  { "zero flag is reserved", true, 1, 0, 0x0000ffff, NULL },
  { "one both zero and allocated", true, 0, 1, 1, bad_bitmap },
  { "the last both zero and allocated", true, 0, BIT (31), BIT (31),
    bad_bitmap },
  { "all both", true, 0, UINT32_MAX, UINT32_MAX, bad_bitmap },
  { "nothing", false, 0, 0, 0, NULL },
  { "all zero", false, 0, UINT32_MAX, 0, NULL },
  { "zero flag without host cluster", false, 1, 0, 0, NULL },
  { "one allocated without host cluster", false, 0, 0, 1, bad_bitmap },
  { "the last allocated, others zero", false, 0, INT32_MAX, BIT (31),
    bad_bitmap },
  { "host cluster not aligned", true, BIT (13), 0, UINT32_MAX,
    "corrupt: guest offset 0x4000: data cluster is not aligned" },
};

static void
test_extended (void)
{
  const uint64_t disk = 4 * EX_CLUSTER;
  struct image img;
  uint64_t host;
  size_t i;

  for (i = 0; i < sizeof extended_patches / sizeof extended_patches[0]; ++i) {
    const struct extended_patch *p = &extended_patches[i];

    image_create (&img, IMAGE, &(struct image_options) {
        .cluster_bits = 14, .size_bytes = disk,
        .incompatible = INCOMPAT_EXTENDED_L2 });
    image_add_data (&img, 0, 0x11);
    host = image_add_data (&img, EX_CLUSTER, 0x22);
    image_add_compressed (&img, 2 * EX_CLUSTER, 0x33);
    image_map (&img, EX_CLUSTER, p->flags | (p->has_host ? host : 0),
               (uint64_t) p->zero << 32 | p->allocated);
    image_close (&img);
    expect (&(struct expectation) {
        .what = p->what, .path = IMAGE, .err = p->message ? EIO : 0,
        .message = p->message });
    if (p->message)
      expect_rest_readable (p->what, EX_CLUSTER, EX_CLUSTER, disk);
  }
}

/* The bitmap of a compressed cluster is reserved. */
static void
test_extended_compressed (void)
{
  struct image img;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 14, .size_bytes = 4 * EX_CLUSTER,
      .incompatible = INCOMPAT_EXTENDED_L2 });
  image_add_compressed (&img, EX_CLUSTER, 0x33);
  image_put (&img, image_l2_entry (&img, EX_CLUSTER) + 8, 8, UINT64_MAX);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "compressed cluster with a bitmap", .path = IMAGE });
}

/*----- External data files -----*/

static const struct {
  const char *what;
  uint64_t guest, entry;
  const char *message;
} data_patches[] = {
  { "at its place", 65536, BIT (63) | 65536, NULL },
  { "at its place, no copied flag", 65536, 65536, NULL },
  { "at 0, copied flag", 0, BIT (63), NULL },
  { "at 0, no copied flag", 0, 0, NULL },
  { "past the end of the data file", 9 * 65536, BIT (63) | 9 * 65536, NULL },
  { "elsewhere", 65536, BIT (63) | 2 * 65536,
    "guest offset 0x10000: offset in the external data file differs" },
  { "at 0, but of another guest offset", 65536, BIT (63),
    "guest offset 0x10000: offset in the external data file differs" },
  { "not aligned", 65536, BIT (63) | 65536 | 512,
    "guest offset 0x10000: data cluster is not aligned" },
  { "compressed", 65536, BIT (62) | 65536,
    "guest offset 0x10000: compressed cluster, but there is an external" },
  { "zero", 65536, 1, NULL },
  { "zero, allocated", 65536, BIT (63) | 65536 | 1, NULL },
};

static void
make_data_file (void)
{
  int fd = open (DATA, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  char buf[8192];
  unsigned i;

  memset (buf, 0x77, sizeof buf);
  for (i = 0; i < 64; ++i)
    if (write (fd, buf, sizeof buf) != sizeof buf)
      exit (1);
  close (fd);
}

static void
test_data_file (void)
{
  struct qcow2_options options;
  struct verdict v;
  struct image img;
  char what[100];
  size_t i;

  make_data_file ();
  for (i = 0; i < sizeof data_patches / sizeof data_patches[0]; ++i) {
    image_create (&img, IMAGE, &(struct image_options) {
        .cluster_bits = 16, .size_bytes = 1 << 20,
        .incompatible = INCOMPAT_DATA_FILE });
    image_add_extension (&img, EXTENSION_DATA_FILE, DATA, strlen (DATA));
    image_map (&img, 3 * 65536, BIT (63) | 3 * 65536, 0);
    image_map (&img, data_patches[i].guest, data_patches[i].entry, 0);
    image_close (&img);
    verdict_options (&v, &options);
    options.data_file = DATA;
    snprintf (what, sizeof what, "data file: %s", data_patches[i].what);
    expect_with (&(struct expectation) {
        .what = what, .path = IMAGE, .err = data_patches[i].message ? EIO : 0,
        .message = data_patches[i].message }, &v, &options);
  }
}

int
main (void)
{
  scratch_dir_enter ();
  test_l1 ();
  test_l1_alignment ();
  test_l2_cut_off ();
  test_l2 ();
  test_short_file ();
  test_compressed ();
  test_compressed_data ();
  test_compressed_type ();
  test_extended ();
  test_extended_compressed ();
  test_data_file ();
  return tap_done ();
}
