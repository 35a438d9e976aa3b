/* SPDX-License-Identifier: BSD-3-Clause */

/* An image that was not closed properly is repaired when it is opened
 * for writing: whatever its refcounts and flags were, `qemu-img check'
 * finds nothing then, not even a leak, and no content has changed.  What
 * is damaged in another way is served read-only, and not one byte of it is
 * written.
 */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "metadata-damage.h"
#include "power-check.h"
#include "qcow2/format.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define QEMU "qemu-img create -q -f qcow2 -o "

/*----- Opening -----*/

static char warning[1000];

static void
note_warning (void *opaque, enum qcow2_log_level level, const char *text)
{
  snprintf (warning, sizeof warning, "%s", text);
}

/* Open for writing, close.  Returns whether it could have been written.
 * With WRITE, it is.
 */
static bool
open_and_close (const char *write)
{
  static const char *const anywhere[] = { "/" };
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2_view *view;
  struct qcow2 *image;
  bool can_write;
  int r;

  warning[0] = '\0';
  qcow2_options_init (&options);
  options.writable = true;
  options.lock = false;
  options.allow_dirs = anywhere;
  options.nr_allow_dirs = 1;
  options.log = note_warning;
  r = qcow2_open ("disk.qcow2", &options, &image, &error);
  if (r == 0)
    r = qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
  if (r < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  can_write = qcow2_view_can_write (view);
  if (can_write && write && qcow2_pwrite (view, write, strlen (write), 1000,
                                          false) < 0)
    ok (false, "writing fails");
  qcow2_view_close (view);
  if (qcow2_close (image) < 0)
    ok (false, "closing fails");
  return can_write;
}

/*----- Numbers in the file -----*/

static uint64_t
get64 (uint64_t offset)
{
  uint64_t be;
  int fd = open ("disk.qcow2", O_RDONLY | O_CLOEXEC);

  if (fd == -1 || pread (fd, &be, 8, (off_t) offset) != 8)
    abort ();
  close (fd);
  return be64toh (be);
}

static void
put64 (uint64_t offset, uint64_t value)
{
  uint64_t be = htobe64 (value);
  int fd = open ("disk.qcow2", O_WRONLY | O_CLOEXEC);

  if (fd == -1 || pwrite (fd, &be, 8, (off_t) offset) != 8)
    abort ();
  close (fd);
}

/*----- What can be repaired -----*/

struct kind {
  const char *name;
  const char *create;           /* shell command */
  unsigned kinds;               /* of requests, WRITE_ZEROES ... */
  uint64_t cluster_bytes;
  bool snapshots;
  const char *after;            /* shell command */
};

#define MiB UINT64_C (1048576)
#define DISK_BYTES (4 * MiB)
#define ALL (WRITE_ZEROES | WRITE_UNMAP)

static const struct kind kinds[] = {
  { "64K clusters", QEMU "cluster_size=64k disk.qcow2 4M",
    ALL | WRITE_COMPRESSED, 65536, false, NULL },
  { "snapshots", QEMU "cluster_size=4k disk.qcow2 4M", ALL, 4096, true,
    NULL },
  { "compressed clusters, snapshots",
    QEMU "cluster_size=16k,refcount_bits=32 disk.qcow2 4M",
    ALL | WRITE_COMPRESSED, 16384, true, NULL },
  { "compressed clusters across host clusters",
    "seq 100000 900000 | head -c 4M > in.raw && qemu-img convert -c -f raw "
    "-O qcow2 -o cluster_size=4k in.raw disk.qcow2", ALL, 4096, true, NULL },
  { "512-byte clusters", QEMU "cluster_size=512 disk.qcow2 4M", ALL, 512,
    false, NULL },
  { "512-byte clusters, snapshots, 64 refcount bits",
    QEMU "cluster_size=512,refcount_bits=64 disk.qcow2 4M", ALL, 512, true,
    NULL },
  { "1 refcount bit", QEMU "cluster_size=512,refcount_bits=1 disk.qcow2 4M",
    ALL, 512, false, NULL },
  { "2 refcount bits", QEMU "cluster_size=1k,refcount_bits=2 disk.qcow2 4M",
    ALL, 1024, true, NULL },
  { "4 refcount bits", QEMU "cluster_size=4k,refcount_bits=4 disk.qcow2 4M",
    ALL, 4096, true, NULL },
  { "8 refcount bits", QEMU "cluster_size=1k,refcount_bits=8 disk.qcow2 4M",
    ALL, 1024, true, NULL },
  { "2M clusters", QEMU "cluster_size=2M disk.qcow2 4M", ALL, 2 * MiB, true,
    NULL },
  { "extended L2", QEMU "extended_l2=on,cluster_size=16k disk.qcow2 4M",
    ALL | WRITE_COMPRESSED, 16384, true, NULL },
  { "data file", QEMU "data_file=data.raw,cluster_size=4k disk.qcow2 4M",
    ALL, 4096, false, NULL },
  { "preallocated",
    QEMU "preallocation=metadata,cluster_size=4k disk.qcow2 4M", ALL, 4096,
    false, NULL },
  { "bitmaps", QEMU "cluster_size=4k disk.qcow2 4M", ALL, 4096, true,
    "qemu-img bitmap --add -g 512 disk.qcow2 one && qemu-img bitmap --add "
    "disk.qcow2 two && qemu-io -f qcow2 -c 'write -q 0 3M' disk.qcow2" },
  /* The bits are left over from before somebody cleared the autoclear
   * bit: they count no more.
   */
  { "stale bitmaps", QEMU "cluster_size=4k disk.qcow2 4M", ALL, 4096, false,
    "qemu-img bitmap --add disk.qcow2 one && printf '\\000' | "
    "dd of=disk.qcow2 bs=1 seek=95 conv=notrunc status=none" },
  { "an unknown autoclear bit", QEMU "cluster_size=4k disk.qcow2 4M", ALL,
    4096, false, "printf '\\200' | "
    "dd of=disk.qcow2 bs=1 seek=95 conv=notrunc status=none" },
  { "overlay", QEMU "cluster_size=4k base.qcow2 4M && "
    QEMU "cluster_size=16k -F qcow2 -b base.qcow2 disk.qcow2 4M",
    ALL | WRITE_COMPRESSED, 16384, false, NULL },
};

#define NR_KINDS (sizeof kinds / sizeof kinds[0])

static void
make_kind (const struct kind *k, uint64_t *state)
{
  uint64_t max_bytes = k->cluster_bytes > 32768 ? 3 * k->cluster_bytes :
    100000;

  run_command ("rm -f *; %s", k->create);
  random_writes ("qcow2", "disk.qcow2", DISK_BYTES, max_bytes,
                 k->cluster_bytes, 20, k->kinds, state);
  if (k->snapshots) {
    run_command ("qemu-img snapshot -c s disk.qcow2");
    random_writes ("qcow2", "disk.qcow2", DISK_BYTES, max_bytes,
                   k->cluster_bytes, 10, k->kinds & ~WRITE_COMPRESSED, state);
  }
  if (k->after)
    run_command ("%s", k->after);
}

static bool
holds (const char *snapshot, const uint8_t *content, uint64_t bytes)
{
  uint64_t now_bytes;
  uint8_t *now = qemu_content ("disk.qcow2", snapshot, &now_bytes);
  bool same = now_bytes == bytes && memcmp (now, content, bytes) == 0;

  free (now);
  return same;
}

static void
test_kind (const struct kind *k, uint64_t seed)
{
  struct metadata_damage damage;
  uint64_t state = seed, bytes, snapshot_bytes = 0;
  uint8_t *content, *snapshot = NULL;

  make_kind (k, &state);
  content = qemu_content ("disk.qcow2", NULL, &bytes);
  if (k->snapshots)
    snapshot = qemu_content ("disk.qcow2", "s", &snapshot_bytes);
  damage_metadata ("disk.qcow2", &state, &damage);
  printf ("# %u refcounts too low, %u too high, %u blocks missing, %u "
          "flags wrong\n", damage.nr_lower, damage.nr_higher,
          damage.nr_blocks, damage.nr_flags);

  ok (open_and_close (NULL), "%s: it can be written", k->name);
  ok (strstr (warning, "disk.qcow2: the image was not closed properly; it "
              "has been repaired: ") != NULL, "%s: a warning says so: %s",
      k->name, warning);
  ok (!damage_is_dirty ("disk.qcow2"), "%s: the dirty bit is gone", k->name);
  is_int (qemu_check ("disk.qcow2"), 0, "%s: the check is clean", k->name);
  ok (holds (NULL, content, bytes) &&
      (!snapshot || holds ("s", snapshot, snapshot_bytes)),
      "%s: the content is what it was", k->name);

  ok (open_and_close ("changed"), "%s: then it is written", k->name);
  is_str (warning, "", "%s: without warnings", k->name);
  memcpy (content + 1000, "changed", 7);
  ok (holds (NULL, content, bytes) &&
      (!snapshot || holds ("s", snapshot, snapshot_bytes)),
      "%s: which changes nothing else", k->name);
  free (content);
  free (snapshot);
}

/* QEMU does not repair this. */
static void
test_compressed_flags (void)
{
  uint64_t bytes, entries, i;
  uint8_t *content;

  run_command ("rm -f *; " QEMU "cluster_size=4k disk.qcow2 4M && "
               "qemu-io -f qcow2 -c 'write -q -c -P 1 0 4k' "
               "-c 'write -q -c -P 2 4k 4k' disk.qcow2");
  content = qemu_content ("disk.qcow2", NULL, &bytes);
  entries = get64 (get64 (40)) & ENTRY_OFFSET_MASK;
  for (i = 0; i < 2; ++i)
    put64 (entries + i * 8, get64 (entries + i * 8) | ENTRY_COPIED);
  is_int (qemu_check ("disk.qcow2"), 2, "flags of compressed clusters");
  damage_set_dirty ("disk.qcow2");
  ok (open_and_close (NULL), "are cleared: %s", warning);
  is_int (qemu_check ("disk.qcow2"), 0, "then the check is clean");
  ok (holds (NULL, content, bytes), "and the content is what it was");
  free (content);
}

/* Bitmaps that are valid stay so, with all their bits. */
static void
test_bitmaps_kept (void)
{
  struct metadata_damage damage;
  uint64_t state = 5;
  unsigned i;

  for (i = 0; i < NR_KINDS; ++i)
    if (strcmp (kinds[i].name, "bitmaps") == 0)
      make_kind (&kinds[i], &state);
  run_command ("qemu-img map --output=json --image-opts driver=qcow2,"
               "file.filename=disk.qcow2 > map && qemu-img info disk.qcow2 | "
               "sed -n '/bitmaps:/,/refcount/p' > before");
  damage_metadata ("disk.qcow2", &state, &damage);
  ok (open_and_close (NULL), "an image with bitmaps is repaired");
  run_command ("qemu-img info disk.qcow2 | "
               "sed -n '/bitmaps:/,/refcount/p' > after");
  run_command ("grep -q two after && cmp before after");
  run_command ("qemu-img bitmap --clear disk.qcow2 one && "
               "qemu-img bitmap --merge two disk.qcow2 one");
  is_int (qemu_check ("disk.qcow2"), 0, "QEMU uses them");
}

/* The table does not reach to all clusters that are in use. */
static void
test_small_table (void)
{
  uint64_t state = 9, bytes;
  uint8_t *content;

  run_command ("rm -f *; " QEMU "cluster_size=512,refcount_bits=64 "
               "disk.qcow2 4M");
  random_writes ("qcow2", "disk.qcow2", DISK_BYTES, 200000, 512, 60,
                 WRITE_ZEROES, &state);
  content = qemu_content ("disk.qcow2", NULL, &bytes);
  ok (damage_shrink_table ("disk.qcow2") > 1, "a table is cut");
  ok (open_and_close (NULL), "an image whose refcount table is too small "
      "is repaired: %s", warning);
  is_int (qemu_check ("disk.qcow2"), 0, "its check is clean");
  ok (holds (NULL, content, bytes), "its content is what it was");
  free (content);
}

/*----- What can't be repaired -----*/

static void
is_left_alone (const char *what, const char *message)
{
  uint64_t bytes, bytes_now;
  uint8_t *before, *now;

  damage_set_dirty ("disk.qcow2");
  before = file_content ("disk.qcow2", &bytes);
  ok (!open_and_close ("changed"), "%s: it can't be written", what);
  ok (strstr (warning, message) != NULL &&
      strstr (warning, "qcow2-img check -r all") != NULL,
      "%s: a warning says why: %s", what, warning);
  now = file_content ("disk.qcow2", &bytes_now);
  ok (bytes == bytes_now && memcmp (before, now, bytes) == 0,
      "%s: nothing of it was changed", what);
  free (before);
  free (now);
}

/* An image with a snapshot, and where things are in it. */
static uint64_t l1, l2, table, snapshot_l2;

static void
make_image (const char *options)
{
  run_command ("rm -f *; " QEMU "%s disk.qcow2 4M && "
               "qemu-io -f qcow2 -c 'write -q -P 1 0 1M' disk.qcow2",
               options);
  if (!strstr (options, "data_file"))
    run_command ("qemu-img snapshot -c s disk.qcow2 && "
                 "qemu-io -f qcow2 -c 'write -q -P 2 0 512k' disk.qcow2");
  l1 = get64 (40);
  l2 = get64 (l1) & ENTRY_OFFSET_MASK;
  table = get64 (48);
  if (get64 (64))
    snapshot_l2 = get64 (get64 (get64 (64))) & ENTRY_OFFSET_MASK;
}

static void
test_entries (void)
{
  make_image ("cluster_size=4k");
  put64 (l2 + 8, (get64 (l2 + 8) + 512));
  is_left_alone ("a data cluster out of place", "data cluster is not aligned");
  make_image ("cluster_size=4k");
  put64 (l2 + 8, get64 (l2 + 8) | 2);
  is_left_alone ("a reserved bit of an L2 entry", "reserved bits");
  make_image ("cluster_size=4k");
  put64 (l2 + 8, UINT64_C (0x40000000) | ENTRY_COPIED);
  is_left_alone ("a data cluster past the end", "past the end of the file");
  make_image ("cluster_size=4k");
  put64 (snapshot_l2 + 8, UINT64_C (0x40000000));
  is_left_alone ("the same in a snapshot", "past the end of the file");
  make_image ("cluster_size=4k");
  put64 (l2 + 8, l1 | ENTRY_COPIED);
  is_left_alone ("data in place of the L1 table", "something else");
  make_image ("cluster_size=4k");
  put64 (l2 + 8, l2 | ENTRY_COPIED);
  is_left_alone ("data in place of its L2 table", "something else");
  make_image ("cluster_size=4k");
  put64 (l2 + 8, ENTRY_COMPRESSED | UINT64_C (0x40000000));
  is_left_alone ("compressed data past the end", "past the end of the file");
  make_image ("extended_l2=on,cluster_size=16k");
  put64 (l2 + 8, UINT64_MAX);
  is_left_alone ("an impossible subcluster bitmap", "subcluster bitmap");
  make_image ("extended_l2=on,cluster_size=16k");
  put64 (l2, get64 (l2) | ENTRY_ZERO);
  is_left_alone ("a zero flag with subclusters", "zero flag");
  make_image ("data_file=data.raw,cluster_size=4k");
  put64 (l2 + 8, ENTRY_COMPRESSED | 4096);
  is_left_alone ("a compressed cluster with a data file", "compressed");
}

static void
test_tables (void)
{
  uint64_t at, i;

  make_image ("cluster_size=4k");
  put64 (l1, get64 (l1) + 512);
  is_left_alone ("an L2 table out of place", "the L2 table is not aligned");
  make_image ("cluster_size=4k");
  put64 (l1, get64 (l1) | 1);
  is_left_alone ("a reserved bit of an L1 entry", "reserved bits");
  make_image ("cluster_size=4k");
  put64 (l1, UINT64_C (0x40000000));
  is_left_alone ("an L2 table past the end", "past the end of the file");
  make_image ("cluster_size=4k");
  put64 (l1, UINT64_C (0xfffffffffff000) | ENTRY_COPIED);
  is_left_alone ("an L2 table far past the end", "past the end of the file");
  make_image ("cluster_size=4k");
  put64 (l1, 0);
  put64 (l1, table);
  is_left_alone ("the refcount table as L2 table", "something else");
  make_image ("cluster_size=4k");
  put64 (get64 (64), l1);
  is_left_alone ("a snapshot with the active L1 table", "something else");
  make_image ("cluster_size=4k");
  put64 (get64 (64), UINT64_C (0x40000000));
  is_left_alone ("a snapshot past the end", "past the end of the file");
  make_image ("cluster_size=4k");
  put64 (get64 (64), get64 (get64 (64)) + 512);
  is_left_alone ("a snapshot out of place", "not aligned");
  make_image ("cluster_size=4k");
  at = get64 (64);
  for (i = 0; i < 128; i += 8)
    put64 (at + i, 0);
  is_left_alone ("a snapshot table of zeros", "has no L1 table");
}

static void
test_refcount_structures (void)
{
  make_image ("cluster_size=4k");
  put64 (table, get64 (table) + 512);
  is_left_alone ("a refcount block out of place", "block is not aligned");
  make_image ("cluster_size=4k");
  put64 (table, get64 (table) | 1);
  is_left_alone ("a reserved bit of the refcount table", "reserved bits");
  make_image ("cluster_size=4k");
  put64 (table + 8, get64 (table));
  is_left_alone ("a refcount block twice", "something else");
  make_image ("cluster_size=4k");
  put64 (table + 8, UINT64_C (0x40000000));
  is_left_alone ("a refcount block past the end", "past the end");
  make_image ("cluster_size=4k");
  put64 (l2 + 8, get64 (l2));
  put64 (l2 + 16, get64 (l2));
  damage_set_dirty ("disk.qcow2");
  ok (open_and_close (NULL), "a cluster that is there three times is");
  is_int (qemu_check ("disk.qcow2"), 0, "repaired");

  run_command ("rm -f *; " QEMU "cluster_size=4k,refcount_bits=1 disk.qcow2 "
               "4M && qemu-io -f qcow2 -c 'write -q 0 1M' disk.qcow2");
  l2 = get64 (get64 (40)) & ENTRY_OFFSET_MASK;
  put64 (l2 + 8, get64 (l2));
  is_left_alone ("two references and one refcount bit", "has 2 references");
}

static void
test_bitmaps (void)
{
  static const char *const add =
    "qemu-img bitmap --add -g 512 disk.qcow2 one && "
    "qemu-io -f qcow2 -c 'write -q 0 1M' disk.qcow2";
  uint64_t directory, bits;

  make_image ("cluster_size=4k");
  run_command ("%s", add);
  /* The extension is the first that qemu-img writes or one of the next. */
  for (bits = 112; get64 (bits) >> 32 != EXTENSION_BITMAPS; bits += 8)
    if (bits > 1000)
      abort ();
  directory = get64 (bits + 24);
  put64 (get64 (directory), l1);
  is_left_alone ("bits in place of the L1 table", "something else");
  make_image ("cluster_size=4k");
  run_command ("%s", add);
  put64 (get64 (directory), get64 (get64 (directory)) + 512);
  is_left_alone ("bits out of place", "not aligned");
  make_image ("cluster_size=4k");
  run_command ("%s", add);
  put64 (directory, get64 (directory) + 512);
  is_left_alone ("a bitmap table out of place", "not aligned");
  make_image ("cluster_size=4k");
  run_command ("%s", add);
  put64 (directory + 8, UINT64_C (0xffffffff00000000));
  is_left_alone ("a bitmap table of 32 GiB", "too large");
  make_image ("cluster_size=4k");
  run_command ("%s", add);
  put64 (directory + 16, UINT64_C (0x010900ff00000000));
  is_left_alone ("a long name in a short directory", "past the end");
}

/* It claims nothing that a file of its size could not have. */
static void
test_large_file (void)
{
  make_image ("cluster_size=512");
  damage_set_dirty ("disk.qcow2");
  run_command ("truncate -s 8T disk.qcow2");
  ok (!open_and_close (NULL), "a file of 8 TiB with tiny clusters is not "
      "repaired");
  ok (strstr (warning, "memory") != NULL, "a warning says why: %s", warning);
  run_command ("truncate -s 100G disk.qcow2");
  ok (open_and_close (NULL), "one of 100 GiB, most of it a hole, is");
  is_int (qemu_check ("disk.qcow2"), 0, "and its check is clean");
}

/* Memory and time are for what is there. */
static void
test_holes_as_tables (void)
{
  uint64_t i;

  run_command ("rm -f *; " QEMU "cluster_size=2M disk.qcow2 100T");
  run_command ("truncate -s 512G disk.qcow2");
  l1 = get64 (40);
  for (i = 0; i < 200; ++i)
    put64 (l1 + i * 8, (i + 64) << 30);
  damage_set_dirty ("disk.qcow2");
  ok (open_and_close (NULL), "200 tables of 2 MiB in holes are no work");
}

int
main (void)
{
  unsigned i;

  scratch_dir_enter ();
  for (i = 0; i < NR_KINDS; ++i)
    test_kind (&kinds[i], i + 1);
  test_compressed_flags ();
  test_bitmaps_kept ();
  test_small_table ();
  test_entries ();
  test_tables ();
  test_refcount_structures ();
  test_bitmaps ();
  test_large_file ();
  test_holes_as_tables ();
  return tap_done ();
}
