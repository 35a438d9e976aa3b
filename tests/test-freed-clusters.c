/* SPDX-License-Identifier: BSD-3-Clause */

/* What was cached of a host cluster goes with it, and what a snapshot
 * still needs is not taken for the active layer's own.
 */

#include <endian.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "format.h"
#include "hooked-storage.h"
#include "image.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)
#define CLUSTER_BYTES (64 * KiB)

static struct qcow2 *image;
static struct qcow2_view *view;
static uint8_t buf[CLUSTER_BYTES], want[CLUSTER_BYTES];

static void
must (bool good, const char *what)
{
  if (!good) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

static void
open_image (void)
{
  open_hooked (real_pwritev, &image, &view);
  worker_stop (image->writer);  /* only the test commits */
}

static void
close_image (void)
{
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
}

/* All clusters that were unlinked are free after this. */
static void
commit_and_free (void)
{
  must (qcow2_flush (view) == 0 && worker_round (image->writer) == 0,
        "can't commit");
}

static bool
reads_as (uint64_t offset, int byte)
{
  memset (want, byte, sizeof want);
  return qcow2_pread (view, buf, sizeof buf, offset) == 0 &&
    memcmp (buf, want, sizeof buf) == 0;
}

/*----- Tables on disk -----*/

static uint64_t
get_word (uint64_t offset)
{
  uint64_t word = 0;
  int fd = open ("disk.qcow2", O_RDONLY | O_CLOEXEC);

  must (pread (fd, &word, sizeof word, (off_t) offset) == sizeof word,
        "can't read the image");
  close (fd);
  return be64toh (word);
}

static void
set_word (uint64_t offset, uint64_t word)
{
  int fd = open ("disk.qcow2", O_WRONLY | O_CLOEXEC);

  word = htobe64 (word);
  must (pwrite (fd, &word, sizeof word, (off_t) offset) == sizeof word,
        "can't write the image");
  close (fd);
}

static uint64_t
l1_offset (void)
{
  return get_word (offsetof (struct disk_header, l1_table_offset));
}

/*----- Tests -----*/

/* The table is replaced since it does not say that it is our own; then its
 * cluster becomes the table of another part of the disk.
 */
static void
test_table_reused (void)
{
  uint64_t l1, table;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 disk.qcow2 2G "
               "&& qemu-io -f qcow2 -c 'write -q -P 1 0 1M' disk.qcow2");
  l1 = get_word (l1_offset ());
  table = l1 & ENTRY_OFFSET_MASK;
  set_word (l1_offset (), table);
  open_image ();
  ok (reads_as (0, 1), "data is read");
  memset (buf, 2, sizeof buf);
  must (qcow2_pwrite (view, buf, sizeof buf, 0, false) == 0, "write");
  commit_and_free ();
  alloc_note_full (&image->writer->alloc);
  must (qcow2_pwrite (view, buf, sizeof buf, 512 * MiB, false) == 0,
        "write");
  is_int (image->writer->top->l1.entries[1] & ENTRY_OFFSET_MASK, table,
          "the table's cluster becomes another table");
  ok (reads_as (512 * MiB, 2), "what was written there is read");
  ok (reads_as (512 * MiB + CLUSTER_BYTES, 0), "the rest is zeros");
  ok (reads_as (0, 2) && reads_as (CLUSTER_BYTES, 1),
      "where the old table was, all is as before");
  close_image ();
}

/* Flags say that clusters are the active layer's own that a snapshot
 * shares, as does its table.
 */
static void
test_shared_table (void)
{
  uint8_t *content;
  uint64_t table, bytes, i;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 disk.qcow2 4M "
               "&& qemu-io -f qcow2 -c 'write -q -P 1 0 1M' disk.qcow2 && "
               "qemu-img snapshot -c snap disk.qcow2");
  table = get_word (l1_offset ()) & ENTRY_OFFSET_MASK;
  for (i = 0; i < 16; ++i)
    set_word (table + i * 8, get_word (table + i * 8) | ENTRY_COPIED);
  open_image ();
  memset (buf, 2, sizeof buf);
  for (i = 0; i < 4; ++i)
    must (qcow2_pwrite (view, buf, 4096, i * CLUSTER_BYTES, false) == 0,
          "write");
  commit_and_free ();
  close_image ();
  content = qemu_content ("disk.qcow2", "snap", &bytes);
  memset (want, 1, sizeof want);
  ok (memcmp (content, want, sizeof want) == 0 &&
      memcmp (content + CLUSTER_BYTES, want, sizeof want) == 0,
      "the snapshot is as before");
  free (content);
  content = qemu_content ("disk.qcow2", NULL, &bytes);
  ok (content[0] == 2 && content[4096] == 1, "the disk has what was written");
  free (content);
}

/* Compressed data fills about three quarters of a cluster. */
static void
test_decompressed (void)
{
  struct cluster_cache_stats before, after;
  uint64_t i, bytes;
  uint8_t *content;

  run_command ("rm -f disk.qcow2; head -c 1M /dev/urandom | base64 -w0 | "
               "head -c 1M > disk.raw && "
               "qemu-img convert -c -f raw -O qcow2 disk.raw disk.qcow2");
  content = file_content ("disk.raw", &bytes);
  open_image ();
  for (i = 0; i < 16; ++i)
    must (qcow2_pread (view, buf, 512, i * CLUSTER_BYTES) == 0, "read");
  cluster_cache_get_stats (image->clusters, &before);
  is_int (before.memory_bytes, MiB, "all clusters were decompressed");
  for (i = 0; i < 8; ++i)
    must (qcow2_pwrite (view, want, CLUSTER_BYTES, i * CLUSTER_BYTES,
                        false) == 0, "write");
  commit_and_free ();
  cluster_cache_get_stats (image->clusters, &after);
  ok (after.memory_bytes <= 9 * CLUSTER_BYTES,
      "what was freed is not kept (%zu KiB)", after.memory_bytes / 1024);
  for (i = 9; i < 16; ++i)
    must (qcow2_pread (view, buf, 512, i * CLUSTER_BYTES) == 0 &&
          memcmp (buf, content + i * CLUSTER_BYTES, 512) == 0, "read");
  cluster_cache_get_stats (image->clusters, &after);
  is_int (after.nr_decompressed, before.nr_decompressed, "all else is");
  free (content);
  close_image ();
  run_command ("qemu-img check -q disk.qcow2");
}

static int
fill_slice (void *opaque, uint64_t key, uint64_t *words)
{
  memset (words, 0xff, SLICE_MAX_BYTES);
  return 0;
}

/* Adjacent tables are freed together.  In an overlay with small clusters, slots
 * are larger than a table.
 */
static void
test_adjacent_tables (void)
{
  struct slice_cache *slices;
  struct slice_ref ref;
  uint64_t first = 0, i;
  unsigned nr_left = 0;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 base.qcow2 1M "
               "&& qemu-img create -q -f qcow2 -o cluster_size=512 -F qcow2 "
               "-b base.qcow2 disk.qcow2 1M");
  open_image ();
  slices = image->writer->top->slices;
  must (qcow2_pwrite (view, buf, 512, 0, false) == 0 &&
        alloc_run (&image->writer->alloc, 8, &first) == 0, "allocate");
  for (i = first; i < first + 8; ++i) {
    must (slice_cache_pin (slices, i * 512, fill_slice, NULL, &ref) == 0,
          "pin");
    slice_unpin (slices, &ref);
  }
  retire_unlinked (&image->writer->retire, first, 8, RETIRED_TABLE);
  commit_and_free ();
  for (i = first; i < first + 8; ++i)
    nr_left += slice_cache_find (slices, i * 512, &ref);
  is_int (nr_left, 0, "of 8 tables that were freed at once, none is cached");
  close_image ();
}

int
main (void)
{
  scratch_dir_enter ();
  test_table_reused ();
  test_shared_table ();
  test_decompressed ();
  test_adjacent_tables ();
  return tap_done ();
}
