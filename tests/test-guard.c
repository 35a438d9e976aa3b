/* SPDX-License-Identifier: BSD-3-Clause */

/* Nothing is written over live metadata, given up or cut off, whatever
 * entries and refcounts say.
 */

#include <unistd.h>

#include "damaged-image.h"
#include "scratch-dir.h"

/*----- Entries that name metadata -----*/

static const char *const entry_names[NR_ENTRY_KINDS] = {
  "owned", "shared", "compressed", "zero",
};

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

/* Offset 0 says that there is no cluster.  Version 2 has neither zero flag
 * nor bitmaps, and does the rest in the same way.
 */
static bool
is_possible (unsigned version, enum target target, enum entry_kind kind,
             enum operation operation)
{
  if (target == HEADER && kind != COMPRESSED)
    return false;
  if (version >= 3)
    return true;
  return kind != ALLOCATED_ZERO && target != BITMAP_DIRECTORY &&
    (operation == WRITE || operation == TRIM);
}

static void
test_data_entries (void)
{
  unsigned target, kind, operation, version;

  for (target = 0; target < NR_TARGETS; ++target)
    for (kind = 0; kind < NR_ENTRY_KINDS; ++kind)
      for (operation = 0; operation < NR_OPERATIONS; ++operation)
        for (version = 2; version <= 3; ++version)
          if (is_possible (version, target, kind, operation))
            test_data_entry (version, target, kind, operation);
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
  open_image (true, false);
  is_int (operate (WRITE, BAD), 0, "a flag without a cluster: written");
  is_int (close_image (), 0, "closed");
  run_command ("qemu-img info %s > info 2>&1", IMAGE);
}

/*----- Refcounts that are too low -----*/

/* On a device of fixed size holes are looked for from its beginning, so what
 * has refcount 0 there is the first to be handed out; but for the header,
 * where nobody looks.
 */
static void
test_refcounts (void)
{
  unsigned target;
  char what[200];

  for (target = 1; target < NR_TARGETS; ++target) {
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
  open_image (true, false);
  is_int (operate (WRITE, SOUND), 0, "an L2 table in the free tail: written");
  is_int (close_image (), 0, "closed");
  after = file_content (IMAGE, &after_bytes);
  ok (after_bytes == bytes &&
      memcmp (before + table, after + table, CLUSTER) == 0,
      "the tail was not cut off");
  free (before);
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

/* New refcount blocks go behind the end of the file: not over what no block
 * covers.  What is named there they don't go over, either.
 */
static void
test_growth (void)
{
  static const uint8_t zeros[CLUSTER];
  const uint64_t uncovered = CLUSTER / 2 * CLUSTER;
  uint64_t bytes;
  uint8_t *after;

  build (3);
  set_l1_entry (3, uncovered | ENTRY_COPIED);
  image_truncate (&img, uncovered + CLUSTER);
  close (img.fd);
  open_image (true, false);
  is_int (operate (WRITE, BAD), 0,
          "an L2 table where no refcount block is: written");
  is_int (close_image (), 0, "... and closed");
  after = file_content (IMAGE, &bytes);
  ok (bytes > uncovered + CLUSTER &&
      memcmp (after + uncovered, zeros, CLUSTER) == 0,
      "... and nothing is where the table is");
  free (after);

  build (3);
  set_l1_entry (3, (uncovered + CLUSTER) | ENTRY_COPIED);
  image_truncate (&img, uncovered);
  close (img.fd);
  open_image (true, false);
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

/* A snapshot's L1 table ends behind 2^64: all others are still known. */
static void
test_snapshot_far_away (void)
{
  unsigned target;
  char what[200];

  for (target = 1; target < NR_TARGETS; ++target) {
    if (target == SNAPSHOT_L1)
      continue;
    build (3);
    image_put (&img, place[SNAPSHOT_TABLE], 8, -CLUSTER);
    patch_entry (target, OWNED);
    close (img.fd);
    snprintf (what, sizeof what, "a snapshot's L1 table far away, an entry "
              "names %s", target_names[target]);
    expect_refused (what, WRITE, BAD, false);
  }
}

/* Reserved bits and clusters of allocated kinds that are right. */
static void
test_sound (void)
{
  build (3);
  close (img.fd);
  open_image (true, false);
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
  test_l1_entries ();
  test_shared_table ();
  test_table_at_end ();
  test_refcount_table ();
  test_growth ();
  test_header_shared ();
  test_snapshot_far_away ();
  return tap_done ();
}
