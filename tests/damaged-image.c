/* SPDX-License-Identifier: BSD-3-Clause */

/* Damaged images, and what must become of them. */

#include <stddef.h>
#include <unistd.h>

#include "damaged-image.h"

/*----- The image -----*/

const char *const target_names[NR_TARGETS] = {
  "the header", "the L1 table", "an L2 table", "the refcount table",
  "a refcount block", "the snapshot table", "a snapshot's L1 table",
  "the bitmap directory",
};

struct image img;
uint64_t place[NR_TARGETS];

void
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

void
set_refcount (uint64_t offset, unsigned refcount)
{
  image_put (&img, place[REFCOUNT_BLOCK] + 2 * (offset / CLUSTER), 2,
             refcount);
}

uint64_t
l1_entry (unsigned index)
{
  return image_get (&img, img.l1_offset + 8 * index, 8);
}

void
set_l1_entry (unsigned index, uint64_t entry)
{
  image_put (&img, img.l1_offset + 8 * index, 8, entry);
}

void
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

/*----- The engine -----*/

struct write_log logged;
struct qcow2 *image;
struct qcow2_view *view;
const char *data_file;
static char buf[64 * KiB];

void
open_image (bool writable, bool fixed_size)
{
  struct qcow2_options options;
  struct qcow2_error error;

  qcow2_options_init (&options);
  options.writable = writable;
  options.data_file = data_file;
  write_log_init (&logged);
  write_log_use (&logged, &options);
  logged.fixed_size = fixed_size;
  if (qcow2_open (IMAGE, &options, &image, &error) < 0 ||
      qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
}

int
close_image (void)
{
  int r;

  qcow2_view_close (view);
  r = qcow2_close (image);
  write_log_clear (&logged);
  return r;
}

bool
reads_as (uint64_t offset, char byte)
{
  return qcow2_pread (view, buf, CLUSTER, offset) == 0 &&
    buf[0] == byte && memcmp (buf, buf + 1, CLUSTER - 1) == 0;
}

const char *const operation_names[NR_OPERATIONS] = {
  "write", "write of a part", "write of several clusters", "zero",
  "zero that keeps the space", "trim",
};

int
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

bool
says_corrupt (void)
{
  int i;

  /* The background worker may be the one that tells, a moment later than
   * its flag fails a request, or it may have met the same.
   */
  for (i = 0; i < 500 &&
         !write_log_said (&logged, "further writes are refused"); ++i)
    usleep (10000);
  return write_log_said (&logged, "further writes are refused") &&
    (img.version < 3 ||
     write_log_said (&logged, "disk.qcow2: marking image as corrupt: "));
}

bool
refuses_all (void)
{
  int i;

  for (i = 0; i < NR_OPERATIONS; ++i)
    if (operate (i, SOUND + 16 * KiB) != -EIO)
      return false;
  return qcow2_flush (view) == -EIO;
}

bool
file_is_unharmed (const uint8_t *before, uint64_t before_bytes)
{
  const size_t features_end = img.version >= 3 ? FEATURES + 24 : FEATURES;
  uint64_t bytes;
  uint8_t *after = file_content (IMAGE, &bytes);
  bool same = bytes == before_bytes &&
    memcmp (before, after, FEATURES) == 0 &&
    memcmp (before + features_end, after + features_end,
            bytes - features_end) == 0;

  free (after);
  return same;
}

bool
corrupt_bit_is_set (void)
{
  uint64_t bytes;
  uint8_t *content = file_content (IMAGE, &bytes);
  bool set = content[INCOMPATIBLE_LOW] & INCOMPAT_CORRUPT;

  free (content);
  return set;
}
