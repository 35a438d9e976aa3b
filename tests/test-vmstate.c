/* SPDX-License-Identifier: BSD-3-Clause */

/* VM state is where QEMU has it: what its `qemu-io -b' wrote is read, and it
 * reads what is written here; the disk, backing files and snapshots are not
 * touched.  (tests/vmstate.bats does it with real virtual machines.)
 */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "grow-disk.h"
#include "image.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)
#define CREATE "qemu-img create -q -f qcow2 "
#define IO "qemu-io -f qcow2 -c "

struct kind {
  const char *name;
  const char *make;             /* shell command that makes disk.qcow2 */
  uint64_t state_bytes;
};

static const struct kind kinds[] = {
  { "512-byte clusters", CREATE "-o cluster_size=512 disk.qcow2 100k && "
    IO "'write -q -P 1 0 100k' disk.qcow2", 3 * MiB },
  { "512-byte clusters, 64-bit refcounts", CREATE
    "-o cluster_size=512,refcount_bits=64 disk.qcow2 1M", 2 * MiB },
  { "4K clusters, version 2", CREATE
    "-o cluster_size=4k,compat=0.10 disk.qcow2 3M && "
    IO "'write -q -P 1 1M 2M' disk.qcow2", 9 * MiB },
  { "64K clusters, a disk that ends in the middle of one", CREATE
    "disk.qcow2 1000448 && " IO "'write -q -P 1 0 1000448' disk.qcow2",
    9 * MiB },
  { "a disk of nothing", CREATE "disk.qcow2 0", 1 * MiB },
  { "a disk that fills its L1 entry", CREATE
    "-o cluster_size=4k disk.qcow2 2M", 5 * MiB },
  { "2M clusters", CREATE "-o cluster_size=2M disk.qcow2 5M && "
    IO "'write -q -P 1 0 5M' disk.qcow2", 9 * MiB },
  { "extended L2", CREATE "-o extended_l2=on,cluster_size=16k "
    "disk.qcow2 1111040 && " IO "'write -q -P 1 0 1111040' disk.qcow2",
    9 * MiB },
  { "lazy refcounts", CREATE "-o lazy_refcounts=on,cluster_size=4k "
    "disk.qcow2 1M", 5 * MiB },
  { "a longer backing file", CREATE "base.qcow2 60M && "
    IO "'write -q -P 7 0 60M' base.qcow2 && " CREATE
    "-o cluster_size=4k -F qcow2 -b base.qcow2 disk.qcow2 1M", 9 * MiB },
  { "a longer backing file, extended L2, 16K", CREATE "base.qcow2 300M && "
    IO "'write -q -P 7 0 300M' base.qcow2 && " CREATE
    "-o extended_l2=on,cluster_size=16k "
    "-F qcow2 -b base.qcow2 disk.qcow2 1M", 9 * MiB },
};

static struct qcow2 *image;
static struct qcow2_view *view;
static char message[500];

static void
keep_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  snprintf (message, sizeof message, "%s", text);
}

static void
must (bool good, const char *what)
{
  if (!good) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

static void
open_view (size_t snapshot)
{
  static const char *const anywhere[] = { "/" };
  struct qcow2_options options;
  struct qcow2_error error = { "" };

  qcow2_options_init (&options);
  options.writable = snapshot == QCOW2_ACTIVE;
  options.cache_bytes = 64 * KiB;
  options.allow_dirs = anywhere;
  options.nr_allow_dirs = 1;
  options.log = keep_message;
  if (qcow2_open ("disk.qcow2", &options, &image, &error) < 0 ||
      qcow2_view_open (image, snapshot, &view, &error) < 0)
    must (false, error.message);
}

static void
close_view (void)
{
  qcow2_view_close (view);
  view = NULL;
  is_int (qcow2_close (image), 0, "closed");
}

/* Does it hold this, read in odd pieces? */
static bool
state_is (const uint8_t *want, uint64_t count)
{
  uint8_t *buf = malloc (100001);
  uint64_t pos, n;
  bool same = true;

  for (pos = 0; pos < count && same; pos += n) {
    n = count - pos < 100001 ? count - pos : 100001;
    same = qcow2_vmstate_pread (view, buf, n, pos) == 0 &&
      memcmp (buf, want + pos, n) == 0;
  }
  free (buf);
  return same;
}

/*----- Beside qemu-io -----*/

#define NR_PIECES 12

struct piece {
  uint64_t offset, count;
  int byte;
};

/* Some begin where the one before ends, as a stream does. */
static void
draw_pieces (struct piece *pieces, uint64_t state_bytes, uint64_t *state)
{
  unsigned i;

  for (i = 0; i < NR_PIECES; ++i) {
    struct piece *p = &pieces[i], *last = &pieces[i > 0 ? i - 1 : 0];

    p->byte = 0x20 + (int) random_below (state, 200);
    p->offset = i > 0 && random_below (state, 2) ?
      last->offset + last->count : random_below (state, state_bytes / 512)
      * 512;
    if (p->offset >= state_bytes)
      p->offset = 0;
    p->count = (1 + random_below (state, 600)) * 512;
    if (p->count > state_bytes - p->offset)
      p->count = state_bytes - p->offset;
  }
}

static FILE *
begin_qemu_io (void)
{
  FILE *f = popen ("qemu-io -f qcow2 disk.qcow2 > qemu.log 2>&1", "w");

  must (f != NULL, "qemu-io");
  return f;
}

static bool
end_qemu_io (FILE *f)
{
  return pclose (f) == 0 && system ("! grep -qi 'fail\\|error' qemu.log") == 0;
}

static bool
qemu_writes (const struct piece *pieces)
{
  FILE *f = begin_qemu_io ();
  unsigned i;

  for (i = 0; i < NR_PIECES; ++i)
    fprintf (f, "write -q -b -P %d %" PRIu64 " %" PRIu64 "\n",
             pieces[i].byte, pieces[i].offset, pieces[i].count);
  return end_qemu_io (f);
}

/* What is not 0 in WANT: QEMU takes the rest from a backing file. */
static bool
qemu_reads (const uint8_t *want, uint64_t state_bytes)
{
  FILE *f = begin_qemu_io ();
  uint64_t pos, end;

  for (pos = 0; pos < state_bytes; pos = end) {
    for (end = pos; end < state_bytes && want[end] == want[pos]; ++end)
      ;
    if (want[pos] != 0)
      fprintf (f, "read -q -b -P %d %" PRIu64 " %" PRIu64 "\n", want[pos],
               pos, end - pos);
  }
  return end_qemu_io (f);
}

static void
note_pieces (uint8_t *want, const struct piece *pieces)
{
  unsigned i;

  for (i = 0; i < NR_PIECES; ++i)
    memset (want + pieces[i].offset, pieces[i].byte, pieces[i].count);
}

static int
write_pieces (const struct piece *pieces)
{
  uint8_t *buf = malloc (300 * KiB + 1);
  unsigned i;
  int r = 0;

  for (i = 0; i < NR_PIECES && r == 0; ++i) {
    memset (buf, pieces[i].byte, pieces[i].count);
    r = qcow2_vmstate_pwrite (view, buf, pieces[i].count, pieces[i].offset);
  }
  free (buf);
  return r;
}

/* QEMU copies what it does not overwrite in a cluster from the backing file,
 * if that goes on so far.
 */
static void
test_kind (const struct kind *kind)
{
  bool backing = strstr (kind->name, "backing") != NULL;
  uint8_t *want = calloc (1, kind->state_bytes), *before, *after;
  struct piece pieces[NR_PIECES];
  uint64_t state = 5, bytes, bytes_after;

  run_command ("rm -f *; %s", kind->make);
  before = qemu_content ("disk.qcow2", NULL, &bytes);
  if (!backing) {
    draw_pieces (pieces, kind->state_bytes, &state);
    must (qemu_writes (pieces), "qemu-io can't write");
    note_pieces (want, pieces);
  }
  open_view (QCOW2_ACTIVE);
  ok (state_is (want, kind->state_bytes), "%s: reads what QEMU wrote",
      kind->name);
  draw_pieces (pieces, kind->state_bytes, &state);
  is_int (write_pieces (pieces), 0, "it is written");
  note_pieces (want, pieces);
  ok (state_is (want, kind->state_bytes), "and read");
  is_int (qcow2_flush (view), 0, "flushed");
  is_int (qcow2_view_size (view), (int64_t) bytes, "the size is as before");
  close_view ();
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  ok (qemu_reads (want, kind->state_bytes), "QEMU reads it");
  after = qemu_content ("disk.qcow2", NULL, &bytes_after);
  ok (bytes == bytes_after && memcmp (before, after, bytes) == 0,
      "the disk is as before");
  free (after);

  open_view (QCOW2_ACTIVE);
  ok (state_is (want, kind->state_bytes), "it is read again");
  is_int (qcow2_vmstate_discard (view), 0, "it is dropped");
  memset (want, 0, kind->state_bytes);
  ok (state_is (want, kind->state_bytes), "and zeros now");
  close_view ();
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  after = qemu_content ("disk.qcow2", NULL, &bytes_after);
  ok (bytes == bytes_after && memcmp (before, after, bytes) == 0,
      "the disk is as before");
  free (before);
  free (after);
  free (want);
}

/*----- Snapshots -----*/

/* Numbers in the first entry of the snapshot table. */
static void
set_number (unsigned at, unsigned width, uint64_t value)
{
  uint64_t table, word = htobe64 (value << (64 - 8 * width));
  int fd = open ("disk.qcow2", O_RDWR | O_CLOEXEC);

  must (pread (fd, &table, 8, 64) == 8 &&
        pwrite (fd, &word, width, (off_t) be64toh (table) + at) ==
        (ssize_t) width, "can't patch the image");
  close (fd);
}

static void
set_state_bytes (uint64_t bytes)
{
  set_number (32, 4, bytes <= UINT32_MAX ? bytes : 0);
  set_number (40, 8, bytes);
}

static bool
disk_is_zeros (uint64_t from, uint64_t end)
{
  static uint8_t buf[64 * KiB];
  uint64_t pos;

  for (pos = from; pos < end; pos += sizeof buf)
    if (qcow2_pread (view, buf, sizeof buf, pos) < 0 || buf[0] != 0 ||
        memcmp (buf, buf + 1, sizeof buf - 1) != 0)
      return false;
  return true;
}

/* QEMU takes it out of the active layer only if it knows its size. */
static void
make_snapshot (const char *options, uint64_t state_bytes)
{
  run_command ("rm -f *; " CREATE "%s disk.qcow2 3M && "
               IO "'write -q -P 1 0 3M' -c 'write -q -b -P 9 0 %" PRIu64
               "' disk.qcow2 && qemu-img snapshot -c snap disk.qcow2",
               options, state_bytes);
  set_state_bytes (state_bytes);
}

static void
test_snapshot (const char *options)
{
  uint64_t bytes = 3 * MiB + 512;
  uint8_t *want = malloc (bytes);
  struct qcow2_error error;

  memset (want, 9, bytes);
  make_snapshot (options, bytes);
  open_view (0);
  ok (state_is (want, bytes), "%s: of a snapshot", options);
  is_int (qcow2_vmstate_pread (view, want, 2, bytes - 1), -EINVAL,
          "not past its end");
  is_int (qcow2_vmstate_pread (view, want, 1, UINT64_MAX), -EINVAL,
          "nor far behind");
  is_int (qcow2_vmstate_pwrite (view, want, 1, 0), -EROFS,
          "nor is it written");
  is_int (qcow2_vmstate_discard (view), -EROFS, "or dropped");
  close_view ();

  open_view (QCOW2_ACTIVE);
  is_int (qcow2_vmstate_discard (view), 0, "that of the active layer is");
  close_view ();
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  open_view (QCOW2_ACTIVE);
  memset (want, 5, bytes);
  is_int (qcow2_vmstate_pwrite (view, want, 70000, 100), 0, "and new");
  if (!strstr (options, "0.10")) {
    is_int (grow_disk (image, 40 * MiB, &error), 0, "the disk grows");
    ok (disk_is_zeros (3 * MiB, 40 * MiB), "what is new reads as zeros");
  }
  memset (want, 6, bytes);
  is_int (qcow2_vmstate_pwrite (view, want, 70000, 100), 0,
          "it is written behind its new end");
  close_view ();
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  memset (want, 9, bytes);
  open_view (0);
  ok (state_is (want, bytes), "that of the snapshot is as before");
  close_view ();
  /* QEMU 7.2 leaks clusters if the disk's size changes. */
  run_command ("qemu-img snapshot -a snap disk.qcow2 && "
               "qemu-img check -r leaks disk.qcow2 > qemu.log 2>&1");
  ok (qemu_reads (want, bytes), "QEMU reads it, too");

  /* Clusters and tables are shared now. */
  open_view (QCOW2_ACTIVE);
  want[100] = 5;
  is_int (qcow2_vmstate_pwrite (view, want + 100, 1, 100), 0,
          "a byte of it is written, shared with the snapshot");
  ok (state_is (want, bytes), "the rest is there");
  close_view ();
  want[100] = 9;
  open_view (0);
  ok (state_is (want, bytes), "the snapshot has its own");
  close_view ();
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  free (want);
}

/* A size that an enemy has written. */
static void
test_wrong_size (void)
{
  uint8_t buf[512];

  make_snapshot ("-o cluster_size=4k", 1 * MiB);
  set_state_bytes (UINT64_MAX);
  open_view (0);
  is_int (qcow2_vmstate_pread (view, buf, 512, 0), 0, "its beginning is read");
  is_int (qcow2_vmstate_pread (view, buf, 1, UINT64_C (1) << 40), -EIO,
          "not what no table maps: %s", message);
  ok (strstr (message, "no room for a VM state") != NULL, "it is said");
  is_int (qcow2_vmstate_pread (view, buf, 512, UINT64_MAX - 512), -EIO,
          "nor what no number can name");
  close_view ();
}

static uint64_t
get_word (uint64_t at)
{
  uint64_t word;
  int fd = open ("disk.qcow2", O_RDONLY | O_CLOEXEC);

  must (pread (fd, &word, 8, (off_t) at) == 8, "can't read the image");
  close (fd);
  return be64toh (word);
}

static void
set_word (uint64_t at, uint64_t word)
{
  int fd = open ("disk.qcow2", O_WRONLY | O_CLOEXEC);

  word = htobe64 (word);
  must (pwrite (fd, &word, 8, (off_t) at) == 8, "can't patch the image");
  close (fd);
}

/* Behind 3 MiB, which take two L1 entries, comes the third.  Its table, or what
 * that names, is the refcount table.
 */
static void
test_damaged (bool table)
{
  uint64_t refcount_table, l1;
  uint8_t buf[512] = { 1 };

  run_command ("rm -f *; " CREATE "-o cluster_size=4k disk.qcow2 3M && "
               IO "'write -q -b -P 9 0 4M' disk.qcow2");
  refcount_table = get_word (48);
  l1 = get_word (40);
  if (table)
    set_word (l1 + 16, refcount_table | ENTRY_COPIED);
  else
    set_word ((get_word (l1 + 16) & ENTRY_OFFSET_MASK) + 8,
              refcount_table | ENTRY_COPIED);
  open_view (QCOW2_ACTIVE);
  is_int (qcow2_vmstate_discard (view), -EIO,
          "nothing is dropped by the word of a damaged %s: %s",
          table ? "L1 entry" : "L2 table", message);
  is_int (qcow2_vmstate_pwrite (view, buf, 512, 4096), -EIO,
          "nor written");
  qcow2_view_close (view);
  qcow2_close (image);
  ok (get_word (72) & INCOMPAT_CORRUPT, "the image is marked corrupt");
  is_int ((int64_t) (get_word (refcount_table) & 4095), 0,
          "the refcount table is as before");
}

/*----- Limits -----*/

static void
test_limits (void)
{
  uint8_t buf[512] = { 1 };
  unsigned i, moves = 0, nr_entries = 0;
  struct layer *top;
  int r = 0;

  run_command ("rm -f *; " CREATE "-o cluster_size=512 disk.qcow2 1M");
  open_view (QCOW2_ACTIVE);
  top = image->chain.layers[0];
  for (i = 0; i < 1000 && r == 0; ++i) {
    r = qcow2_vmstate_pwrite (view, buf, 512, i * 32 * KiB);
    moves += top->l1.nr_entries != nr_entries;
    nr_entries = top->l1.nr_entries;
  }
  is_int (r, 0, "1000 L1 entries");
  ok (moves < 12, "the L1 table has moved %u times", moves - 1);
  ok (nr_entries <= 1032 * 3 / 2, "there is no more to spare than half of it");
  is_int (qcow2_vmstate_pwrite (view, buf, 512, 128 * 1024 * MiB - MiB - 511),
          -EFBIG, "more than the longest L1 table can map");
  is_int (qcow2_vmstate_pwrite (view, buf, 512, UINT64_MAX - 100), -EFBIG,
          "more than any number can name");
  is_int (qcow2_vmstate_pread (view, buf, 512, UINT64_MAX - 100), -EFBIG,
          "reading it, too");
  is_int (qcow2_vmstate_pread (view, buf, 512, 100 * 1024 * MiB), 0,
          "reading what was never written");
  is_int (buf[0], 0, "gives zeros");
  close_view ();
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
}

static void
test_unchanged (void)
{
  run_command ("rm -f *; " CREATE "disk.qcow2 1M && "
               "cp disk.qcow2 before.qcow2");
  open_view (QCOW2_ACTIVE);
  is_int (qcow2_vmstate_discard (view), 0, "nothing is dropped");
  close_view ();
  is_int (system ("cmp disk.qcow2 before.qcow2"), 0, "and nothing written");
}

/* The first autoclear bit tells. */
static void
test_bitmaps (void)
{
  uint8_t byte = 1;

  run_command ("rm -f *; " CREATE "-o cluster_size=4k disk.qcow2 1M && "
               "qemu-img bitmap --add disk.qcow2 dirty");
  open_view (QCOW2_ACTIVE);
  is_int (qcow2_vmstate_pwrite (view, &byte, 1, 9 * MiB), 0, "written");
  is_int (qcow2_vmstate_discard (view), 0, "dropped");
  is_int (qcow2_vmstate_pwrite (view, &byte, 1, 0), 0, "written again");
  is_int (qcow2_flush (view), 0, "flushed");
  close_view ();
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  is_int ((int64_t) (get_word (88) & 1), 1, "the disk's bitmap is valid");
  open_view (QCOW2_ACTIVE);
  is_int (qcow2_vmstate_pwrite (view, &byte, 1, 0), 0, "written again");
  is_int (qcow2_pwrite (view, &byte, 1, 0, false), 0,
          "the disk is written to");
  is_int ((int64_t) (get_word (88) & 1), 0, "now it is not");
  close_view ();
}

static void
test_data_file (void)
{
  uint8_t byte = 1;

  run_command ("rm -f *; " CREATE "-o data_file=data.raw disk.qcow2 1M");
  open_view (QCOW2_ACTIVE);
  is_int (qcow2_vmstate_pwrite (view, &byte, 1, 0), -ENOTSUP,
          "not with a data file");
  is_int (qcow2_vmstate_pread (view, &byte, 1, 0), -ENOTSUP,
          "nor is it read");
  is_int (qcow2_vmstate_discard (view), -ENOTSUP, "nor dropped");
  close_view ();
}

int
main (void)
{
  static const char *const options[] = {
    "-o cluster_size=512", "-o cluster_size=4k,compat=0.10",
    "-o cluster_size=64k", "-o cluster_size=16k,extended_l2=on",
    "-o cluster_size=4k,refcount_bits=2",
  };
  unsigned i;

  scratch_dir_enter ();
  for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i)
    test_kind (&kinds[i]);
  for (i = 0; i < sizeof options / sizeof options[0]; ++i)
    test_snapshot (options[i]);
  test_wrong_size ();
  test_damaged (true);
  test_damaged (false);
  test_limits ();
  test_unchanged ();
  test_bitmaps ();
  test_data_file ();
  return tap_done ();
}
