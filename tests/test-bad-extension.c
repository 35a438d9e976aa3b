/* SPDX-License-Identifier: BSD-3-Clause */

/* Header extensions: lengths, contents and repetitions at and above
 * their limits, the feature name table, and what is kept of extensions
 * that the engine does not know.
 */

#include <fcntl.h>
#include <unistd.h>

#include "image-builder.h"
#include "qcow2/header.h"
#include "qcow2/io-file.h"
#include "scratch-dir.h"
#include "verdict.h"

#define CLUSTER 4096
#define IMAGE "disk.qcow2"
#define UNKNOWN UINT32_C (0x12345678)

/* What is left for the data of an extension that comes first. */
#define ROOM (CLUSTER - (int) sizeof (struct disk_header) - 8)

static uint8_t zeros[2 * CLUSTER];

static void
make (struct image *img, uint64_t incompatible, uint64_t autoclear)
{
  image_create (img, IMAGE, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = 2 << 20,
      .incompatible = incompatible, .autoclear = autoclear });
  if (!(incompatible & INCOMPAT_DATA_FILE))
    image_add_data (img, 4 * CLUSTER, 0x66);
}

/* An image with one extension, of which LENGTH is said. */
static void
make_one (uint32_t type, const void *data, size_t bytes, uint32_t length)
{
  struct image img;

  make (&img, 0, 0);
  image_add_extension (&img, type, data, bytes);
  image_put (&img, sizeof (struct disk_header) + 4, 4, length);
  image_close (&img);
}

/*----- Lengths -----*/

static const struct {
  const char *what;
  uint32_t type, length;
  const char *message;          /* or NULL: it is right */
  const char *looser;
} lengths[] = {
  { "unknown, empty", UNKNOWN, 0, NULL, NULL },
  { "unknown, 1 byte", UNKNOWN, 1, NULL, NULL },
  { "unknown, up to the end of the cluster", UNKNOWN, ROOM, NULL, NULL },
  { "unknown, a byte longer", UNKNOWN, ROOM + 1,
    "extension 0x12345678 at byte 120 is too long: 3977 bytes, 3976 are left",
    NULL },
  { "unknown, 4 GiB - 8", UNKNOWN, 0xfffffff8, "too long", NULL },
  { "unknown, 4 GiB - 1", UNKNOWN, UINT32_MAX, "too long", NULL },
  { "end, with a length", EXTENSION_END, 0x1000, NULL,
    "what an extension of type 0 says ends the list; QEMU checks its "
    "length first, which nothing uses" },
  { "crypto, without encryption", EXTENSION_CRYPTO, 16, NULL,
    "nothing is encrypted, so nothing is missing" },
  { "feature names, empty", EXTENSION_FEATURE_NAMES, 0, NULL, NULL },
  { "feature names, not a whole one", EXTENSION_FEATURE_NAMES, 47, NULL,
    NULL },
  { "bitmaps, without the feature bit", EXTENSION_BITMAPS, 24, NULL, NULL },
};

static void
test_lengths (void)
{
  size_t i;

  for (i = 0; i < sizeof lengths / sizeof lengths[0]; ++i) {
    uint32_t length = lengths[i].length;

    make_one (lengths[i].type, zeros, length < ROOM ? length : ROOM, length);
    expect (&(struct expectation) {
        .what = lengths[i].what, .path = IMAGE,
        .err = lengths[i].message ? EINVAL : 0,
        .message = lengths[i].message, .looser = lengths[i].looser });
  }
}

/* The list ends where the backing file's name begins. */
static void
test_end_at_backing_name (void)
{
  static const char name[] = "base.raw";
  struct image img;
  int fd = open (name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

  close (fd);
  make (&img, 0, 0);
  image_add_extension (&img, EXTENSION_BACKING_FORMAT, "raw", 3);
  image_add_extension (&img, UNKNOWN, zeros, 16);
  image_set_backing (&img, name);
  image_close (&img);
  expect (&(struct expectation) { .what = "backing name", .path = IMAGE });

  image_reopen (&img);
  image_put (&img, img.header_end - 20, 4, 24);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "extension up to the backing name", .path = IMAGE });

  image_reopen (&img);
  image_put (&img, img.header_end - 20, 4, 25);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "extension into the backing name", .path = IMAGE,
      .err = EINVAL, .message = "is too long: 25 bytes, 24 are left" });
}

/*----- Strings -----*/

/* Formats and names are used only where there is a file to use them
 * for; how they are spelled is checked anyway.
 */
static void
test_strings (void)
{
  static char name[4097];

  memset (name, 'n', sizeof name);
  make_one (EXTENSION_BACKING_FORMAT, name, 15, 15);
  expect (&(struct expectation) {
      .what = "format name of 15 bytes", .path = IMAGE });
  make_one (EXTENSION_BACKING_FORMAT, name, 16, 16);
  expect (&(struct expectation) {
      .what = "format name of 16 bytes", .path = IMAGE, .err = EINVAL,
      .message = "backing file format name extension is too long: 16 bytes" });
  make_one (EXTENSION_BACKING_FORMAT, "ra\0w", 4, 4);
  expect (&(struct expectation) {
      .what = "format name with a NUL", .path = IMAGE, .err = EINVAL,
      .message = "backing file format name extension contains a NUL",
      .stricter = "programs would not agree on what it says" });
  make_one (EXTENSION_DATA_FILE, name, 3000, 3000);
  expect (&(struct expectation) {
      .what = "data file name that nobody needs", .path = IMAGE });
  make_one (EXTENSION_DATA_FILE, "a\0b", 3, 3);
  expect (&(struct expectation) {
      .what = "data file name with a NUL", .path = IMAGE, .err = EINVAL,
      .message = "external data file name extension contains a NUL",
      .stricter = "programs would not agree on what it says" });
}

static void
test_long_data_file_name (void)
{
  static char name[4096];
  struct image img;

  memset (name, 'n', sizeof name);
  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 16, .size_bytes = 1 << 20 });
  image_add_extension (&img, EXTENSION_DATA_FILE, name, 4095);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "data file name of 4095 bytes", .path = IMAGE });
  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 16, .size_bytes = 1 << 20 });
  image_add_extension (&img, EXTENSION_DATA_FILE, name, 4096);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "data file name of 4096 bytes", .path = IMAGE, .err = EINVAL,
      .message = "external data file name extension is too long: 4096",
      .stricter = "no file can be opened by such a name" });
}

/*----- Repetitions -----*/

static void
test_repetitions (void)
{
  static const struct {
    uint32_t type;
    const char *data;
    size_t bytes;
    const char *message;        /* or NULL: it is right */
    bool qemu_refuses;
  } types[] = {
    { EXTENSION_BACKING_FORMAT, "raw", 3, "0xe2792aca appears twice", false },
    { EXTENSION_FEATURE_NAMES, "", 0, "0x6803f857 appears twice", false },
    { EXTENSION_DATA_FILE, "data", 4, "0x44415441 appears twice", false },
    { EXTENSION_BITMAPS, (char *) zeros, 24, "0x23852875 appears twice",
      false },
    { EXTENSION_CRYPTO, "", 0, "0x0537be77 appears twice", true },
    { UNKNOWN, "some", 4, NULL, false },
  };
  struct image img;
  char what[100];
  size_t i;

  for (i = 0; i < sizeof types / sizeof types[0]; ++i) {
    make (&img, 0, 0);
    image_add_extension (&img, types[i].type, types[i].data,
                         types[i].bytes);
    image_add_extension (&img, types[i].type, types[i].data,
                         types[i].bytes);
    image_close (&img);
    snprintf (what, sizeof what, "extension 0x%08" PRIx32 " twice",
              types[i].type);
    expect (&(struct expectation) {
        .what = what, .path = IMAGE, .err = types[i].message ? EINVAL : 0,
        .message = types[i].message,
        .stricter = types[i].message && !types[i].qemu_refuses ?
          "the specification allows a type once" : NULL });
  }
}

/*----- Bitmaps -----*/

/* The file has 6 clusters, then a bitmap directory with one entry, then
 * the table of that bitmap.
 */
#define DIRECTORY (UINT64_C (6) * CLUSTER)
#define DIRECTORY_BYTES 32
#define FILE_END (UINT64_C (8) * CLUSTER)

struct bitmaps_case {
  const char *what;
  uint32_t nr, reserved;
  uint64_t bytes, offset;
  uint32_t length;
  int err;
  const char *message;          /* with ERR */
  const char *stricter, *looser;
};

static const char not_read[] =
  "what the directory holds does not matter to a reader";

static const struct bitmaps_case bitmaps[] = {
  { "one bitmap", 1, 0, DIRECTORY_BYTES, DIRECTORY, 24, 0, NULL, NULL, NULL },
  { "65535 bitmaps", 65535, 0, DIRECTORY_BYTES, DIRECTORY, 24, 0, NULL,
    NULL, not_read },
  { "65536 bitmaps", 65536, 0, DIRECTORY_BYTES, DIRECTORY, 24, EINVAL,
    "nb_bitmaps is 65536", NULL, NULL },
  { "no bitmap", 0, 0, DIRECTORY_BYTES, DIRECTORY, 24, EINVAL,
    "nb_bitmaps is 0", NULL, NULL },
  { "bitmaps, reserved", 1, 1, DIRECTORY_BYTES, DIRECTORY, 24, EINVAL,
    "reserved field is not 0", NULL, NULL },
  { "bitmaps, 23 bytes", 1, 0, DIRECTORY_BYTES, DIRECTORY, 23, EINVAL,
    "length is 23", NULL, NULL },
  { "bitmaps, 25 bytes", 1, 0, DIRECTORY_BYTES, DIRECTORY, 25, EINVAL,
    "length is 25", NULL, NULL },
  { "bitmaps, empty", 1, 0, DIRECTORY_BYTES, DIRECTORY, 0, EINVAL,
    "length is 0", NULL, NULL },
  { "bitmap directory of no bytes", 1, 0, 0, DIRECTORY, 24, EINVAL,
    "bitmap_directory_size is 0", NULL, NULL },
  { "bitmap directory not aligned", 1, 0, DIRECTORY_BYTES, DIRECTORY + 8, 24,
    EINVAL, "bitmap directory offset 0x6008 is not aligned", NULL, NULL },
  { "bitmap directory at 0", 1, 0, DIRECTORY_BYTES, 0, 24, EINVAL,
    "bitmap directory offset is 0", NULL, NULL },
  { "bitmap directory up to the end", 1, 0, FILE_END - DIRECTORY, DIRECTORY,
    24, 0, NULL, NULL, not_read },
  { "bitmap directory past the end", 1, 0, FILE_END - DIRECTORY + 1,
    DIRECTORY, 24, EINVAL,
    "bitmap directory at 0x6000, 8193 bytes, is past the end", NULL, NULL },
  { "bitmap directory at its limit", 1, 0, MAX_BITMAP_DIRECTORY_BYTES,
    DIRECTORY, 24, EINVAL, "is past the end", NULL, NULL },
  { "bitmap directory above its limit", 1, 0, MAX_BITMAP_DIRECTORY_BYTES + 1,
    DIRECTORY, 24, EFBIG, "bitmap directory too large", NULL, NULL },
  { "bitmap directory of 16 EiB", 1, 0, UINT64_MAX, DIRECTORY, 24, EFBIG,
    "bitmap directory too large", NULL, NULL },
};

static void
add_bitmaps (struct image *img, const struct bitmaps_case *c)
{
  uint8_t data[32] = { 0 };
  struct disk_bitmaps d = {
    .nb_bitmaps = htobe32 (c->nr),
    .reserved = htobe32 (c->reserved),
    .bitmap_directory_size = htobe64 (c->bytes),
    .bitmap_directory_offset = htobe64 (c->offset),
  };

  memcpy (data, &d, sizeof d);
  image_add_extension (img, EXTENSION_BITMAPS, data, c->length);
}

/* "Bitmap directory": one entry, an enabled bitmap of 64 KiB bits whose
 * name has 8 bytes.
 */
static void
add_directory (struct image *img)
{
  uint64_t directory = image_alloc (img, DIRECTORY_BYTES);
  uint64_t table = image_alloc (img, 8);

  image_put (img, directory, 8, table);
  image_put (img, directory + 8, 4, 1); /* entries in the table */
  image_put (img, directory + 16, 1, 1); /* dirty tracking */
  image_put (img, directory + 17, 1, 16); /* granularity bits */
  image_put (img, directory + 18, 2, 8);
  image_write (img, directory + 24, "mybitmap", 8);
}

static void
test_bitmaps (void)
{
  struct image img;
  size_t i;

  for (i = 0; i < sizeof bitmaps / sizeof bitmaps[0]; ++i) {
    const struct bitmaps_case *c = &bitmaps[i];

    make (&img, 0, AUTOCLEAR_BITMAPS);
    add_bitmaps (&img, c);
    add_directory (&img);
    is_int (img.end, FILE_END, "the file is as planned");
    image_close (&img);
    expect (&(struct expectation) {
        .what = c->what, .path = IMAGE, .err = c->err, .message = c->message,
        .stricter = c->stricter, .looser = c->looser });
  }
}

/*----- The feature name table -----*/

static void
add_name (uint8_t *table, unsigned nr, uint8_t type, uint8_t bit,
          const char *name)
{
  struct disk_feature_name d = { .type = type, .bit = bit };

  memcpy (d.name, name, strnlen (name, sizeof d.name));
  memcpy (table + nr * sizeof d, &d, sizeof d);
}

static void
expect_names (const char *what, uint64_t bits, const uint8_t *table,
              size_t bytes, const char *message)
{
  struct image img;

  make (&img, bits, 0);
  image_add_extension (&img, EXTENSION_FEATURE_NAMES, table, bytes);
  image_close (&img);
  expect (&(struct expectation) {
      .what = what, .path = IMAGE, .err = ENOTSUP, .message = message });
}

static void
test_feature_names (void)
{
  uint8_t table[10 * 48] = { 0 };
  const uint64_t bit = UINT64_C (1) << 40;

  add_name (table, 0, FEATURE_COMPATIBLE, 40, "of another type");
  add_name (table, 1, FEATURE_INCOMPATIBLE, 41, "time travel");
  add_name (table, 2, FEATURE_INCOMPATIBLE, 40, "");
  add_name (table, 3, FEATURE_INCOMPATIBLE, 40, "holograms");
  expect_names ("feature with a name", bit, table, 4 * 48,
                "unsupported incompatible feature(s): holograms");
  expect_names ("features with and without names",
                bit | bit << 1 | bit << 2, table, 4 * 48,
                "feature(s): holograms, time travel, unknown feature bit 42");
  expect_names ("feature whose name is cut off", bit, table, 4 * 48 - 1,
                "unknown feature bit 40");

  add_name (table, 0, FEATURE_INCOMPATIBLE, 40,
            "0123456789012345678901234567890123456789012345");
  add_name (table, 1, FEATURE_INCOMPATIBLE, 41, "next");
  expect_names ("feature name without NUL", bit | bit << 1, table, 2 * 48,
                "6789012345678901234567890123456789012345, next");
  add_name (table, 0, FEATURE_INCOMPATIBLE, 40, "\033[2J\r\n\x9b\xff" "end");
  expect_names ("feature name with control characters", bit, table, 48,
                "feature(s): \\x1b[2J\\x0d\\x0a\\x9b\\xffend");
  expect_names ("all features", ~INCOMPAT_KNOWN, table, 48,
                "unknown feature bit 39, \\x1b");
}

/* An unknown feature may change what all the rest means, so it is what
 * the user is told.
 */
static void
test_feature_before_damage (void)
{
  uint8_t table[48] = { 0 };
  struct image img;

  make (&img, UINT64_C (1) << 63, 0);
  add_name (table, 0, FEATURE_INCOMPATIBLE, 63, "new layout");
  image_add_extension (&img, EXTENSION_FEATURE_NAMES, table, sizeof table);
  image_add_extension (&img, UNKNOWN, zeros, 8);
  image_put (&img, img.header_end - 12, 4, UINT32_MAX);
  image_put_header (&img, l1_size, UINT32_MAX);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "unknown feature and damage", .path = IMAGE, .err = ENOTSUP,
      .message = "unsupported incompatible feature(s): new layout" });
}

/*----- What is kept -----*/

static int
read_header (struct header *h)
{
  struct qcow2_storage *s;
  struct qcow2_error error;
  int fd = open (IMAGE, O_RDONLY | O_CLOEXEC), r;

  r = qcow2_io_file_new (fd, IMAGE, false, &s, &error);
  if (r == 0) {
    r = header_read (s, h, &error);
    qcow2_storage_close (s);
  }
  return r;
}

static void
test_kept (void)
{
  struct image img;
  struct header h;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = 1 << 20, .header_length = 128 });
  image_write (&img, 112, "0123456789abcdef", 16);
  image_add_extension (&img, UNKNOWN, "first", 5);
  image_add_extension (&img, EXTENSION_FEATURE_NAMES, zeros, 48);
  image_add_extension (&img, UNKNOWN + 1, "", 0);
  image_add_extension (&img, UNKNOWN, "second one", 10);
  image_close (&img);

  if (!ok (read_header (&h) == 0, "header with unknown parts is read"))
    return;
  ok (h.nr_unknown_bytes == 16 &&
      memcmp (h.unknown_fields, "0123456789abcdef", 16) == 0,
      "unknown fields are kept");
  is_int (h.nr_unknown_extensions, 3, "number of unknown extensions");
  ok (h.unknown_extensions[0].type == UNKNOWN &&
      h.unknown_extensions[0].length_bytes == 5 &&
      memcmp (h.unknown_extensions[0].data, "first", 5) == 0,
      "the first is kept");
  ok (h.unknown_extensions[1].type == UNKNOWN + 1 &&
      h.unknown_extensions[1].length_bytes == 0, "an empty one is kept");
  ok (h.unknown_extensions[2].length_bytes == 10 &&
      memcmp (h.unknown_extensions[2].data, "second one", 10) == 0,
      "one of the same type is kept, too");
  header_clear (&h);
}

/* Nothing but extensions: as many as a large first cluster holds. */
static void
test_many (void)
{
  struct image img;
  unsigned i;

  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 16, .size_bytes = 1 << 20 });
  for (i = 0; i < (65536 - 112) / 8; ++i)
    image_add_extension (&img, UNKNOWN + i, "", 0);
  is_int (img.header_end, 65536, "the cluster is full");
  image_close (&img);
  expect (&(struct expectation) {
      .what = "8178 extensions, no end marker", .path = IMAGE });
}

int
main (void)
{
  scratch_dir_enter ();
  test_lengths ();
  test_end_at_backing_name ();
  test_strings ();
  test_long_data_file_name ();
  test_repetitions ();
  test_bitmaps ();
  test_feature_names ();
  test_feature_before_damage ();
  test_kept ();
  test_many ();
  return tap_done ();
}
