/* SPDX-License-Identifier: BSD-3-Clause */

/* Each field of the snapshot table at and above its limit.  What makes
 * the table unreadable fails the image; a snapshot whose L1 table is bad
 * fails alone.
 */

#include <stdlib.h>
#include <unistd.h>

#include "image-builder.h"
#include "scratch-dir.h"
#include "verdict.h"

#define CLUSTER UINT64_C (4096)
#define DISK (UINT64_C (2) << 20)
#define IMAGE "disk.qcow2"

/* The snapshots "first" and "second" show the disk before its second
 * cluster was written.  Returns the entry of the first.
 */
static uint64_t
make (struct image *img, uint32_t extra_bytes)
{
  struct image_snapshot sn[2] = {
    { .id = "1", .name = "first" }, { .id = "2", .name = "second" },
  };
  unsigned i;

  image_create (img, IMAGE, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = DISK });
  image_add_data (img, 0, 0x11);
  for (i = 0; i < 2; ++i) {
    sn[i].l1_offset = image_copy_tables (img);
    sn[i].l1_size = img->l1_entries;
    sn[i].disk_size = DISK;
    sn[i].extra_bytes = extra_bytes;
  }
  image_add_data (img, CLUSTER, 0x22);
  image_set_snapshots (img, sn, 2);
  return sn[0].entry_offset;
}

/* A table that ends with the file: the second entry is the last thing
 * in it.
 */
static uint64_t
table_end (struct image *img, uint64_t entry)
{
  uint64_t bytes = 40 + 16 + 1 + 5;     /* first */

  return entry + ((bytes + 7) & ~UINT64_C (7)) + 40 + 16 + 1 + 6;
}

/*----- A snapshot's own fields -----*/

struct patch {
  const char *what;
  unsigned offset, width;
  uint64_t value;
  int err;                      /* of that snapshot alone */
  const char *message, *stricter;
};

#define FIELD(name) \
  .what = #name, .offset = offsetof (struct disk_snapshot, name), \
  .width = FIELD_WIDTH (disk_snapshot, name)
#define EXTRA(name) \
  .what = "extra data: " #name, \
  .offset = sizeof (struct disk_snapshot) + \
            offsetof (struct disk_snapshot_extra, name), .width = 8

static const char lost[] =
  "metadata past the end of the file is lost, not zero";

static const struct patch patches[] = {
  { FIELD (l1_table_offset), .value = 0, .err = EINVAL,
    .message = "snapshot L1 table offset is 0",
    .stricter = "the header is no L1 table" },
  { FIELD (l1_table_offset), .value = 4 * CLUSTER + 8, .err = EINVAL,
    .message = "snapshot L1 table offset 0x4008 is not aligned" },
  { FIELD (l1_table_offset), .value = UINT64_C (1) << 40, .err = EINVAL,
    .message = "snapshot L1 table at 0x10000000000, 8 bytes, is past the end",
    .stricter = lost },
  { FIELD (l1_table_offset), .value = UINT64_C (1) << 63, .err = EINVAL,
    .message = "snapshot L1 table at 0x8000000000000000" },
  { FIELD (l1_table_offset), .value = -CLUSTER, .err = EINVAL,
    .message = "snapshot L1 table at 0xfffffffffffff000" },
  { FIELD (l1_size), .value = 0 },
  { FIELD (l1_size), .value = 2 },
  { FIELD (l1_size), .value = MAX_L1_BYTES / 8, .err = EINVAL,
    .message = "33554432 bytes, is past the end", .stricter = lost },
  { FIELD (l1_size), .value = MAX_L1_BYTES / 8 + 1, .err = EFBIG,
    .message = "snapshot L1 table too large: 4194305 entries" },
  { FIELD (l1_size), .value = UINT32_MAX, .err = EFBIG,
    .message = "snapshot L1 table too large" },
  { FIELD (date_sec), .value = UINT32_MAX },
  { FIELD (date_nsec), .value = UINT32_MAX },
  { FIELD (vm_clock_nsec), .value = UINT64_MAX },
  { FIELD (vm_state_size), .value = UINT32_MAX },
  { EXTRA (vm_state_size), .value = UINT64_MAX },
  { EXTRA (disk_size), .value = UINT64_C (1) << 63, .err = EFBIG,
    .message = "disk size 9223372036854775808 is too large",
    .stricter = "QEMU gives each snapshot the size of the active layer" },
  { EXTRA (disk_size), .value = UINT64_MAX, .err = EFBIG,
    .message = "disk size 18446744073709551615 is too large",
    .stricter = "QEMU gives each snapshot the size of the active layer" },
};

static void
test_patches (void)
{
  struct image img;
  uint64_t entry;
  char what[100], message[200];
  size_t i;

  for (i = 0; i < sizeof patches / sizeof patches[0]; ++i) {
    const struct patch *p = &patches[i];

    entry = make (&img, 16);
    image_put (&img, entry + p->offset, p->width, p->value);
    image_close (&img);
    snprintf (what, sizeof what, "%s %#" PRIx64, p->what, p->value);
    snprintf (message, sizeof message, "%s", p->message ? p->message : "");
    expect (&(struct expectation) {
        .what = what, .path = IMAGE, .snapshot = "first", .err = p->err,
        .message = message, .stricter = p->stricter });
    expect (&(struct expectation) {
        .what = "the other snapshot", .path = IMAGE, .snapshot = "second" });
    expect (&(struct expectation) {
        .what = "the active layer", .path = IMAGE });
  }
}

/* The message says which entry of which file. */
static void
test_message (void)
{
  struct image img;
  uint64_t entry = make (&img, 16);
  struct qcow2_options options;
  struct verdict v;

  image_put (&img, entry, 8, 8);
  image_close (&img);
  verdict_options (&v, &options);
  verdict_ours (&v, IMAGE, "first", &options);
  is_str (v.message, IMAGE ": snapshot table entry 0: snapshot L1 table "
          "offset 0x8 is not aligned to a cluster", "the whole message");
  verdict_clear (&v);
}

/*----- Sizes -----*/

static void
expect_size (const char *what, uint64_t size)
{
  struct qcow2_options options;
  struct verdict v;
  size_t i, nr_wrong = 0;

  verdict_options (&v, &options);
  verdict_ours (&v, IMAGE, "first", &options);
  is_int (v.err, 0, "%s: read", what);
  is_int ((int64_t) v.size_bytes, (int64_t) size, "%s: size", what);
  for (i = 0; i < v.content_bytes; ++i)
    nr_wrong += v.content[i] != (i < CLUSTER ? 0x11 : 0);
  is_int ((int64_t) nr_wrong, 0, "%s: content", what);
  ok (!v.extents_lie, "%s: extents", what);
  verdict_clear (&v);
}

/* A snapshot has the size that its extra data says, even if its L1 table
 * covers less; without, that of the image.
 */
static void
test_sizes (void)
{
  static const uint64_t sizes[] = {
    0, 1, 4095, 100000, DISK + 1, DISK * 2, UINT64_C (1) << 50, INT64_MAX,
  };
  struct image img;
  uint64_t entry;
  char what[100];
  size_t i;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
    entry = make (&img, 16);
    image_put (&img, entry + 48, 8, sizes[i]);
    image_close (&img);
    snprintf (what, sizeof what, "disk size %" PRIu64, sizes[i]);
    expect_size (what, sizes[i]);
  }
}

static void
test_extra_data (void)
{
  static const struct {
    uint32_t bytes;
    const char *stricter;
  } sizes[] = {
    { 0, NULL }, { 8, NULL }, { 15, NULL }, { 16, NULL }, { 24, NULL },
    { 1000, NULL }, { MAX_SNAPSHOT_EXTRA_BYTES, NULL },
  };
  struct image img;
  uint64_t entry;
  char what[100];
  size_t i;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
    make (&img, sizes[i].bytes);
    image_close (&img);
    snprintf (what, sizeof what, "extra data of %u bytes", sizes[i].bytes);
    expect (&(struct expectation) {
        .what = what, .path = IMAGE, .snapshot = "second" });
    expect_size (what, DISK);
  }

  make (&img, MAX_SNAPSHOT_EXTRA_BYTES + 1);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "extra data of 1025 bytes", .path = IMAGE, .err = EINVAL,
      .message = "snapshot table entry 0: extra_data_size is 1025" });
  entry = make (&img, 16);
  image_put (&img, entry + 36, 4, UINT32_MAX);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "extra data of 4 GiB", .path = IMAGE, .err = EINVAL,
      .message = "snapshot table entry 0: extra_data_size is 4294967295" });
}

/*----- The end of the table -----*/

static void
test_end (void)
{
  struct image img;
  uint64_t entry, end;

  entry = make (&img, 16);
  end = table_end (&img, entry);
  is_int (image_get (&img, end - 1, 1), 'd', "the last byte of the table");
  image_close (&img);
  image_reopen (&img);
  image_truncate (&img, end);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "the file ends with the last name", .path = IMAGE });

  image_reopen (&img);
  image_truncate (&img, end - 1);
  close (img.fd);
  expect (&(struct expectation) {
      .what = "the file ends within the last name", .path = IMAGE,
      .err = EIO, .message = "can't read snapshot table entry 1",
      .stricter = lost });

  entry = make (&img, 16);
  image_put (&img, entry + offsetof (struct disk_snapshot, name_size), 2,
             UINT16_MAX);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "name of 65535 bytes past the end", .path = IMAGE, .err = EIO,
      .message = "can't read snapshot table entry 0", .stricter = lost });

  entry = make (&img, 16);
  image_put (&img, entry + offsetof (struct disk_snapshot, id_str_size), 2,
             UINT16_MAX);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "id of 65535 bytes past the end", .path = IMAGE, .err = EIO,
      .message = "can't read snapshot table entry 0", .stricter = lost });

  make (&img, 16);
  image_put_header (&img, nb_snapshots, 3);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "an entry of zeros", .path = IMAGE });

  make (&img, 16);
  image_put_header (&img, snapshots_offset, img.end);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "table past the end", .path = IMAGE, .err = EINVAL,
      .message = "snapshot table at 0x", .stricter = lost });

  make (&img, 16);
  image_put_header (&img, snapshots_offset, -CLUSTER);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "table at the end of all numbers", .path = IMAGE,
      .err = EINVAL, .message = "snapshot table at 0xfffffffffffff000" });
}

/*----- Names -----*/

/* As many bytes as there can be, with anything in it. */
static void
test_names (void)
{
  static char name[UINT16_MAX + 1];
  struct image_snapshot sn = { .id = "1", .extra_bytes = 16,
                               .disk_size = DISK, .l1_size = 1 };
  struct image img;
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2_snapshot_info info;
  struct qcow2 *image;
  struct verdict v;

  memset (name, 'x', UINT16_MAX);
  memcpy (name, "\033[2J\n\xff", 6);
  sn.name = name;
  image_create (&img, IMAGE, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = DISK });
  image_add_data (&img, 0, 0x11);
  sn.l1_offset = image_copy_tables (&img);
  image_set_snapshots (&img, &sn, 1);
  image_close (&img);
  expect (&(struct expectation) {
      .what = "name of 65535 bytes", .path = IMAGE, .snapshot = "1" });

  verdict_options (&v, &options);
  is_int (qcow2_open (IMAGE, &options, &image, &error), 0,
          "name of 65535 bytes: open");
  qcow2_snapshot_get (image, 0, &info);
  is_str (info.name, name, "name of 65535 bytes: kept as it is");
  is_int (qcow2_snapshot_find (image, name), 0, "and found");
  is_int (qcow2_snapshot_find (image, ""), -ENOENT, "no empty name");
  qcow2_close (image);
}

/*----- Numbers -----*/

/* A table of NR small entries, all with one L1 table; the name and id of
 * each have NAME_BYTES bytes of NUL.
 */
static void
make_many (struct image *img, uint32_t nr, uint16_t id_bytes)
{
  size_t bytes = (sizeof (struct disk_snapshot) + id_bytes + 7) & ~(size_t) 7;
  struct disk_snapshot d = { .l1_size = htobe32 (1),
                             .id_str_size = htobe16 (id_bytes) };
  uint64_t table;
  uint32_t i;

  image_create (img, IMAGE, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = DISK });
  image_add_data (img, 0, 0x11);
  d.l1_table_offset = htobe64 (image_copy_tables (img));
  table = image_alloc (img, nr * bytes);
  for (i = 0; i < nr; ++i)
    image_write (img, table + i * bytes, &d, sizeof d);
  image_put_header (img, nb_snapshots, nr);
  image_put_header (img, snapshots_offset, table);
  image_close (img);
}

/* Without QEMU, which takes seconds for such a table. */
static void
expect_alone (const struct expectation *e)
{
  struct qcow2_options options;
  struct verdict v;

  verdict_options (&v, &options);
  verdict_ours (&v, e->path, NULL, &options);
  expect_ours (e, &v);
  verdict_clear (&v);
}

static void
test_numbers (void)
{
  struct image img;

  make_many (&img, MAX_SNAPSHOTS, 0);
  expect_alone (&(struct expectation) {
      .what = "65536 snapshots", .path = IMAGE });
  make_many (&img, MAX_SNAPSHOTS + 1, 0);
  expect (&(struct expectation) {
      .what = "65537 snapshots", .path = IMAGE, .err = EFBIG,
      .message = "nb_snapshots is 65537" });

  /* 64 MiB altogether: 65536 entries of 1024 bytes. */
  make_many (&img, MAX_SNAPSHOTS, 1024 - sizeof (struct disk_snapshot));
  expect_alone (&(struct expectation) {
      .what = "a table of 64 MiB", .path = IMAGE });
  make_many (&img, MAX_SNAPSHOTS, 1025 - sizeof (struct disk_snapshot));
  expect_alone (&(struct expectation) {
      .what = "a table of more than 64 MiB", .path = IMAGE, .err = EFBIG,
      .message = "snapshot table too large: entry 65" });
}

int
main (void)
{
  scratch_dir_enter ();
  test_patches ();
  test_message ();
  test_sizes ();
  test_extra_data ();
  test_end ();
  test_names ();
  test_numbers ();
  return tap_done ();
}
