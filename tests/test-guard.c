/* SPDX-License-Identifier: BSD-3-Clause */

/* Damaged images that are written to: what is damaged is not made worse.
 * Nothing is written over live metadata, whatever entries and refcounts say;
 * the corrupt bit is set, nothing more is written, and what is sound can
 * still be read.
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "image-builder.h"
#include "qcow2/qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"

#define IMAGE "disk.qcow2"
#define KiB UINT64_C (1024)
#define CLUSTER (4 * KiB)
#define L1_SPAN (2048 * KiB)
#define DISK (4 * L1_SPAN)

/* Of the guest: what is patched, and what is sound. */
#define BAD (64 * KiB)
#define SOUND 0

/*----- The image -----*/

enum target {
  HEADER, L1_TABLE, L2_TABLE, REFCOUNT_TABLE, REFCOUNT_BLOCK, SNAPSHOT_TABLE,
  SNAPSHOT_L1, BITMAP_DIRECTORY, NR_TARGETS,
};

static const char *const target_names[NR_TARGETS] = {
  "the header", "the L1 table", "an L2 table", "the refcount table",
  "a refcount block", "the snapshot table", "a snapshot's L1 table",
  "the bitmap directory",
};

static struct image img;
static uint64_t place[NR_TARGETS];

/* Data at 0, and under the second and third L1 entry; a snapshot with
 * tables of its own; valid bitmaps (not in version 2).  The file is open.
 */
static void
build (unsigned version)
{
  struct image_snapshot sn = {
    .id = "1", .name = "before", .disk_size = DISK, .extra_bytes = 16,
  };
  struct disk_bitmaps bitmaps = { .nb_bitmaps = htobe32 (1) };

  image_create (&img, IMAGE, &(struct image_options) {
      .version = version, .cluster_bits = 12, .size_bytes = DISK,
      .autoclear = version < 3 ? 0 : AUTOCLEAR_BITMAPS });
  image_add_data (&img, SOUND, 0x11);
  image_add_data (&img, L1_SPAN, 0x22);
  image_add_data (&img, 2 * L1_SPAN, 0x33);
  place[REFCOUNT_TABLE] = CLUSTER;
  place[REFCOUNT_BLOCK] = 2 * CLUSTER;
  place[L1_TABLE] = img.l1_offset;
  place[L2_TABLE] = image_l2_entry (&img, L1_SPAN) & ~(CLUSTER - 1);
  sn.l1_offset = place[SNAPSHOT_L1] = image_copy_tables (&img);
  sn.l1_size = img.l1_entries;
  place[SNAPSHOT_TABLE] = img.end;
  image_set_snapshots (&img, &sn, 1);
  place[BITMAP_DIRECTORY] = image_alloc (&img, CLUSTER);
  if (version >= 3) {
    bitmaps.bitmap_directory_size = htobe64 (32);
    bitmaps.bitmap_directory_offset = htobe64 (place[BITMAP_DIRECTORY]);
    image_add_extension (&img, EXTENSION_BITMAPS, &bitmaps, sizeof bitmaps);
  }
  image_add_data (&img, 3 * L1_SPAN, 0x44);
  image_close (&img);
  image_reopen (&img);
}

static void
set_refcount (uint64_t offset, unsigned refcount)
{
  image_put (&img, place[REFCOUNT_BLOCK] + 2 * (offset / CLUSTER), 2,
             refcount);
}

static uint64_t
l1_entry (unsigned index)
{
  return image_get (&img, img.l1_offset + 8 * index, 8);
}

static void
set_l1_entry (unsigned index, uint64_t entry)
{
  image_put (&img, img.l1_offset + 8 * index, 8, entry);
}

/*----- The engine -----*/

static struct write_log logged;
static struct qcow2 *image;
static struct qcow2_view *view;
static char buf[64 * KiB];

static void
open_image (bool fixed_size)
{
  struct qcow2_options options;
  struct qcow2_error error;

  qcow2_options_init (&options);
  options.writable = true;
  write_log_init (&logged);
  write_log_use (&logged, &options);
  logged.fixed_size = fixed_size;
  if (qcow2_open (IMAGE, &options, &image, &error) < 0 ||
      qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
}

static int
close_image (void)
{
  int r;

  qcow2_view_close (view);
  r = qcow2_close (image);
  write_log_clear (&logged);
  return r;
}

static bool
reads_as (uint64_t offset, char byte)
{
  return qcow2_pread (view, buf, CLUSTER, offset) == 0 &&
    buf[0] == byte && memcmp (buf, buf + 1, CLUSTER - 1) == 0;
}

enum operation {
  WRITE, WRITE_PART, WRITE_LONG, ZERO, ZERO_KEEP_SPACE, TRIM, NR_OPERATIONS,
};

static const char *const operation_names[NR_OPERATIONS] = {
  "write", "write of a part", "write of several clusters", "zero",
  "zero that keeps the space", "trim",
};

static int
operate (enum operation operation, uint64_t offset)
{
  memset (buf, 0x77, sizeof buf);
  switch (operation) {
  case WRITE:
    return qcow2_pwrite (view, buf, CLUSTER, offset, false);
  case WRITE_PART:
    return qcow2_pwrite (view, buf, 100, offset + 5, false);
  case WRITE_LONG:
    return qcow2_pwrite (view, buf, 4 * CLUSTER, offset - 2 * CLUSTER, false);
  case ZERO:
    return qcow2_zero (view, CLUSTER, offset, true, false, false);
  case ZERO_KEEP_SPACE:
    return qcow2_zero (view, CLUSTER, offset, false, false, false);
  default:
    return qcow2_trim (view, CLUSTER, offset, false);
  }
}

/*----- What should have become of it -----*/

#define FEATURES offsetof (struct disk_header, incompatible_features)
#define INCOMPATIBLE_LOW (FEATURES + 7) /* the byte with the known bits */

static bool
says_corrupt (void)
{
  return strstr (logged.message, "further writes are refused") != NULL &&
    (img.version < 3 ||
     strstr (logged.message, "disk.qcow2: marking image as corrupt: "));
}

static void
check_refusals (const char *what)
{
  bool refused = true;
  int i;

  for (i = 0; i < NR_OPERATIONS; ++i)
    if (operate (i, SOUND + 16 * KiB) != -EIO)
      refused = false;
  ok (refused && qcow2_flush (view) == -EIO,
      "%s: nothing is written or flushed any more", what);
}

/* The file is as BEFORE, but for header fields, and for clusters that were
 * free (from FREE on; 0: none).
 */
static void
check_file (const char *what, const uint8_t *before, uint64_t before_bytes,
            uint64_t free_from)
{
  uint64_t bytes;
  uint8_t *after = file_content (IMAGE, &bytes);
  const size_t features_end = FEATURES + 24;
  uint64_t same_to = free_from ? free_from : before_bytes;

  ok (bytes >= before_bytes && (free_from || bytes == before_bytes) &&
      memcmp (before, after, FEATURES) == 0 &&
      memcmp (before + features_end, after + features_end,
              same_to - features_end) == 0, "%s: the file is unharmed", what);
  if (img.version >= 3)
    ok (after[INCOMPATIBLE_LOW] & INCOMPAT_CORRUPT,
        "%s: the corrupt bit is set", what);
  else
    ok (memcmp (before, after, CLUSTER) == 0,
        "%s: version 2 has no corrupt bit", what);
  free (after);
}

static void
check_next_open (const char *what)
{
  if (img.version < 3)
    return;
  open_image (false);
  ok (!qcow2_view_can_write (view) && reads_as (SOUND, 0x11),
      "%s: opened again, it can be read only", what);
  close_image ();
}

/* The patches were made, the file is closed.  One operation must fail, and
 * what follows from that must be so.
 */
static void
expect_refused (const char *what, enum operation operation, uint64_t offset,
                bool fixed_size)
{
  uint64_t bytes;
  uint8_t *before = file_content (IMAGE, &bytes);

  open_image (fixed_size);
  is_int (operate (operation, offset), -EIO, "%s: refused", what);
  if (!ok (says_corrupt (), "%s: the message says so", what))
    printf ("#   %s\n", logged.message);
  ok (reads_as (SOUND, 0x11), "%s: what is sound can be read", what);
  check_refusals (what);
  is_int (close_image (), -EIO, "%s: closing says so", what);
  check_file (what, before, bytes, 0);
  check_next_open (what);
  free (before);
}

/*----- Entries that name metadata -----*/

enum entry_kind { OWNED, SHARED, COMPRESSED, ALLOCATED_ZERO, NR_ENTRY_KINDS };

static const char *const entry_names[NR_ENTRY_KINDS] = {
  "owned", "shared", "compressed", "zero",
};

static void
patch_entry (enum target target, enum entry_kind kind)
{
  uint64_t host = place[target], entry = host;

  switch (kind) {
  case OWNED: entry |= ENTRY_COPIED; break;
  case SHARED: break;
  case COMPRESSED: entry = image_compressed_entry (&img, host + 5, 600); break;
  default: entry |= ENTRY_COPIED | ENTRY_ZERO;
  }
  image_map (&img, BAD, entry, 0);
}

/* A trim of an allocated zero cluster gives up the cluster. */
static void
test_data_entry (unsigned version, enum target target, enum entry_kind kind,
                 enum operation operation)
{
  char what[200];

  build (version);
  patch_entry (target, kind);
  close (img.fd);
  snprintf (what, sizeof what, "version %u, %s entry names %s, %s", version,
            entry_names[kind], target_names[target],
            operation_names[operation]);
  expect_refused (what, operation, BAD, false);
}

static void
test_data_entries (void)
{
  unsigned target, kind, operation, version;

  for (target = 0; target < NR_TARGETS; ++target)
    for (kind = 0; kind < NR_ENTRY_KINDS; ++kind) {
      if (place[target] == 0 && kind != OWNED && kind != COMPRESSED)
        continue;               /* offset 0 says: no cluster */
      for (operation = 0; operation < NR_OPERATIONS; ++operation)
        for (version = 2; version <= 3; ++version) {
          if (version == 2 && (kind == ALLOCATED_ZERO ||
                               target == BITMAP_DIRECTORY ||
                               operation == ZERO_KEEP_SPACE))
            continue;
          if (target == HEADER && kind == OWNED)
            continue;           /* taken for unallocated */
          /* Not all of them, twice: that tells nothing new. */
          if (version == 2 && operation != WRITE && operation != TRIM)
            continue;
          test_data_entry (version, target, kind, operation);
        }
    }
}

/* Allocated where no cluster is, with the flag: QEMU takes such an entry
 * for unallocated, too.  The header is not hit.
 */
static void
test_entry_names_header (void)
{
  build (3);
  image_map (&img, BAD, ENTRY_COPIED, 0);
  close (img.fd);
  open_image (false);
  is_int (operate (WRITE, BAD), 0, "a flag without a cluster: written");
  is_int (close_image (), 0, "closed");
  run_command ("qemu-img info %s > info", IMAGE);
}

/*----- Refcounts that are too low -----*/

/* On a device of fixed size holes are looked for from its beginning, so what
 * has refcount 0 there is the first to be handed out.
 */
static void
test_refcounts (void)
{
  unsigned target;
  char what[200];

  for (target = 0; target < NR_TARGETS; ++target) {
    build (3);
    set_refcount (place[target], 0);
    close (img.fd);
    snprintf (what, sizeof what, "refcount 0 of %s", target_names[target]);
    expect_refused (what, WRITE, BAD, true);
  }
  /* A new L2 table, too. */
  build (3);
  set_l1_entry (2, 0);
  set_refcount (place[SNAPSHOT_L1], 0);
  close (img.fd);
  expect_refused ("refcount 0, and an L2 table is needed", WRITE,
                  2 * L1_SPAN + BAD, true);
}

/* At the end of the file, free by its refcount: not to be cut off. */
static void
test_tail (void)
{
  uint64_t table, bytes, after_bytes;
  uint8_t *before, *after;

  build (3);
  table = image_alloc (&img, CLUSTER);
  set_l1_entry (3, table | ENTRY_COPIED);
  image_put (&img, table, 8, ENTRY_ZERO);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  open_image (false);
  is_int (operate (WRITE, SOUND), 0, "an L2 table in the free tail: written");
  is_int (close_image (), -EIO, "the tail can't be cut off");
  after = file_content (IMAGE, &after_bytes);
  ok (after_bytes == bytes &&
      memcmp (before + table, after + table, CLUSTER) == 0,
      "and is there");
  ok (after[INCOMPATIBLE_LOW] & INCOMPAT_CORRUPT, "the corrupt bit is set");
  free (before);
  free (after);
}

/* A data cluster with refcount 0 is given up. */
static void
test_underflow (void)
{
  uint64_t bytes;
  uint8_t *before, *after;

  build (3);
  set_refcount (image_get (&img, image_l2_entry (&img, L1_SPAN), 8) &
                ENTRY_OFFSET_MASK, 0);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  free (before);
  open_image (false);
  is_int (operate (TRIM, L1_SPAN), 0, "data with refcount 0 is trimmed");
  is_int (qcow2_flush (view), 0, "that is committed");
  is_int (qcow2_finish (image), -EIO, "it can't be given up");
  ok (says_corrupt () && strstr (logged.message, "is 0 while"),
      "the message says so");
  is_int (close_image (), 0, "closed");
  after = file_content (IMAGE, &bytes);
  ok (after[INCOMPATIBLE_LOW] & INCOMPAT_CORRUPT, "the corrupt bit is set");
  free (after);
}

/*----- L1 and refcount table entries -----*/

static void
test_l1_entry (const char *name, uint64_t entry)
{
  unsigned operation, copied;
  char what[200];

  for (copied = 0; copied < 2; ++copied)
    for (operation = 0; operation < NR_OPERATIONS; ++operation) {
      build (3);
      set_l1_entry (3, entry | (copied ? ENTRY_COPIED : 0));
      close (img.fd);
      snprintf (what, sizeof what, "L1 entry names %s%s, %s", name,
                copied ? "" : ", not owned", operation_names[operation]);
      expect_refused (what, operation, 3 * L1_SPAN + 16 * KiB, false);
    }
}

static void
test_l1_entries (void)
{
  unsigned target;

  for (target = 1; target < NR_TARGETS; ++target)
    test_l1_entry (target_names[target], place[target]);
  test_l1_entry ("nothing that is aligned", place[L2_TABLE] + 512);
  test_l1_entry ("what is past the end", UINT64_C (1) << 40);
}

/* The other entry that names the same table is no better. */
static void
test_shared_table (void)
{
  build (3);
  set_l1_entry (3, l1_entry (1));
  close (img.fd);
  expect_refused ("two L1 entries name one table", WRITE, L1_SPAN, false);
}

/* The next cluster at the end of the file is in use already. */
static void
test_table_at_end (void)
{
  build (3);
  set_l1_entry (3, img.end | ENTRY_COPIED);
  close (img.fd);
  expect_refused ("L1 entry names the next cluster", WRITE, BAD, false);
}

static void
test_refcount_table (void)
{
  static const struct {
    const char *what;
    uint64_t entry;
  } entries[] = {
    { "refcount block not aligned", 2 * CLUSTER + 512 },
    { "refcount block past the end", UINT64_C (1) << 40 },
    { "refcount block beyond all offsets", UINT64_C (1) << 60 },
    { "refcount block in the refcount table", CLUSTER },
    { "refcount block in the L1 table", 3 * CLUSTER },
    { "refcount block in an L2 table", 5 * CLUSTER },
  };
  size_t i;

  for (i = 0; i < sizeof entries / sizeof entries[0]; ++i) {
    build (3);
    image_put (&img, place[REFCOUNT_TABLE], 8, entries[i].entry);
    close (img.fd);
    expect_refused (entries[i].what, WRITE, BAD, false);
  }
}

/* New refcount blocks go where no block covers what is there. */
static void
test_growth (void)
{
  const uint64_t uncovered = CLUSTER / 2 * CLUSTER;

  build (3);
  set_l1_entry (3, uncovered | ENTRY_COPIED);
  image_truncate (&img, uncovered + CLUSTER);
  close (img.fd);
  expect_refused ("an L2 table where no refcount block is", WRITE, BAD, false);

  build (3);
  set_l1_entry (3, (uncovered + CLUSTER) | ENTRY_COPIED);
  image_truncate (&img, uncovered);
  close (img.fd);
  open_image (false);
  is_int (operate (WRITE, BAD), -EIO, "an L2 table behind the next block");
  ok (says_corrupt (), "the message says so");
  is_int (close_image (), -EIO, "closing says so");
}

static void
test_header_shared (void)
{
  build (3);
  image_put (&img, place[SNAPSHOT_TABLE], 8, place[REFCOUNT_TABLE]);
  image_put (&img, place[SNAPSHOT_TABLE] + 8, 4, CLUSTER / 8 * 200);
  close (img.fd);
  expect_refused ("a snapshot's L1 table that is everywhere", WRITE, BAD,
                  false);
}

/*----- Reads -----*/

static void
test_reads (void)
{
  uint64_t bytes;
  uint8_t *before;

  build (3);
  image_map (&img, BAD, place[L2_TABLE] + 512, 0);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  open_image (false);
  is_int (qcow2_pread (view, buf, CLUSTER, BAD), -EIO,
          "a read meets corruption");
  ok (says_corrupt (), "the message says so");
  check_refusals ("after that");
  ok (reads_as (SOUND, 0x11), "what is sound can be read");
  is_int (qcow2_pread (view, buf, CLUSTER, BAD), -EIO, "the rest can't");
  close_image ();
  check_file ("after that", before, bytes, 0);
  free (before);
}

static void
test_read_only (void)
{
  struct qcow2_options options;
  struct qcow2_error error;
  uint64_t bytes, after_bytes;
  uint8_t *before, *after;

  build (3);
  image_map (&img, BAD, place[L2_TABLE] + 512, 0);
  close (img.fd);
  before = file_content (IMAGE, &bytes);
  qcow2_options_init (&options);
  write_log_init (&logged);
  write_log_use (&logged, &options);
  if (qcow2_open (IMAGE, &options, &image, &error) < 0 ||
      qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0)
    abort ();
  is_int (qcow2_pread (view, buf, CLUSTER, BAD), -EIO,
          "opened read-only, it is EIO");
  ok (strstr (logged.message, "the image is corrupt: guest offset 0x10000: "
              "data cluster is not aligned; use") != NULL, "with a message");
  close_image ();
  after = file_content (IMAGE, &after_bytes);
  ok (bytes == after_bytes && memcmp (before, after, bytes) == 0,
      "and nothing is written");
  free (before);
  free (after);
}

/*----- What was under way -----*/

/* What was flushed is there, what was not is not half there. */
static void
test_unflushed (void)
{
  uint64_t bytes;
  uint8_t *content;

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=4k %s 8M && "
               "qemu-io -f qcow2 -c 'write -q -P 17 0 4k' %s", IMAGE, IMAGE);
  image_reopen (&img);
  img.l1_offset = image_get (&img, offsetof (struct disk_header,
                                             l1_table_offset), 8);
  image_map (&img, BAD, img.l1_offset | ENTRY_COPIED, 0);
  close (img.fd);
  open_image (false);
  is_int (operate (WRITE, 128 * KiB), 0, "a cluster is written");
  is_int (qcow2_flush (view), 0, "and flushed");
  is_int (operate (WRITE, 192 * KiB), 0, "another one is not flushed");
  is_int (operate (WRITE, BAD), -EIO, "then corruption is met");
  ok (reads_as (128 * KiB, 0x77) && reads_as (192 * KiB, 0x77),
      "both can be read");
  is_int (close_image (), -EIO, "closing says so");

  image_reopen (&img);
  image_map (&img, BAD, 0, 0);
  image_put (&img, INCOMPATIBLE_LOW, 1, 0);
  close (img.fd);
  run_command ("qemu-img check -q %s || test $? -eq 3", IMAGE);
  content = qemu_content (IMAGE, NULL, &bytes);
  ok (content[128 * KiB] == 0x77, "without the bad entry all is sound, and "
      "what was flushed is there");
  is_int (content[192 * KiB], 0, "what was not is not");
  free (content);
}

static int
fail_header (void *opaque, const struct log_event *event)
{
  return event->kind == LOG_WRITE && event->durable && event->offset == 0 ?
    -EIO : 0;
}

static void
test_bit_fails (void)
{
  build (3);
  patch_entry (L1_TABLE, OWNED);
  close (img.fd);
  open_image (false);
  is_int (operate (WRITE, 128 * KiB), 0, "written");
  logged.hook = fail_header;
  is_int (operate (WRITE, BAD), -EIO, "corruption, and a broken disk");
  ok (strstr (logged.message, "further writes are refused; use \"qemu-img "
              "check -r all\"; the corrupt bit can't be set: ") != NULL,
      "the message tells both");
  check_refusals ("a broken disk");
  logged.hook = NULL;
  close_image ();
}

/* Reserved bits and clusters of allocated kinds that are right. */
static void
test_sound (void)
{
  build (3);
  close (img.fd);
  open_image (false);
  is_int (operate (WRITE_LONG, BAD), 0, "a sound image: written");
  is_int (operate (WRITE, 3 * L1_SPAN + BAD), 0, "somewhere else");
  is_int (operate (ZERO, SOUND), 0, "zeroed");
  is_int (operate (TRIM, 3 * L1_SPAN), 0, "trimmed");
  is_int (close_image (), 0, "closed");
}

int
main (void)
{
  scratch_dir_enter ();
  build (3);
  close (img.fd);
  test_sound ();
  test_data_entries ();
  test_entry_names_header ();
  test_refcounts ();
  test_tail ();
  test_underflow ();
  test_l1_entries ();
  test_shared_table ();
  test_table_at_end ();
  test_refcount_table ();
  test_growth ();
  test_header_shared ();
  test_reads ();
  test_read_only ();
  test_unflushed ();
  test_bit_fails ();
  return tap_done ();
}
