/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that QEMU made, with their metadata mutated at random: whatever
 * stands there, the engine neither crashes nor hangs nor eats memory, and
 * its extents never call data zero.
 *
 * Mutants live in memory, behind the storage hook; only the pristine
 * files are on disk.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fuzz-mutant.h"
#include "qcow2/qcow2.h"
#include "scratch-dir.h"
#include "tap.h"

#define READ_BYTES (256 << 10)

/*----- The mutant as a storage -----*/

struct mutant_storage {
  struct qcow2_storage storage;
  struct qcow2_storage *file;
};

static ssize_t
mutant_pread (struct qcow2_storage *s, void *buf, size_t count,
              uint64_t offset)
{
  if (offset >= mutant_bytes)
    return 0;
  if (count > mutant_bytes - offset)
    count = mutant_bytes - offset;
  memcpy (buf, mutant + offset, count);
  return (ssize_t) count;
}

static int64_t
mutant_size (struct qcow2_storage *s)
{
  return (int64_t) mutant_bytes;
}

/* So that clusters in use are counted. */
static int64_t
mutant_disk_bytes (struct qcow2_storage *s)
{
  return 4096;
}

static void
mutant_close (struct qcow2_storage *s)
{
  struct mutant_storage *m = (struct mutant_storage *) s;

  qcow2_storage_close (m->file);
  free (m);
}

static const struct qcow2_storage_ops mutant_ops = {
  .pread = mutant_pread,
  .size = mutant_size,
  .disk_bytes = mutant_disk_bytes,
  .close = mutant_close,
};

/* The hook: OPAQUE is the base whose file stands for the mutant. */
static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  const struct fuzz_base *b = opaque;
  struct mutant_storage *m;

  if (role != QCOW2_STORAGE_IMAGE || strcmp (filename, b->path) != 0)
    return 0;
  m = malloc (sizeof *m);
  if (!m)
    return -ENOMEM;
  m->storage.ops = &mutant_ops;
  m->file = *s;
  *s = &m->storage;
  return 0;
}

/*----- What is done with each mutant -----*/

/* Shared with the parent. */
struct report {
  uint64_t seed;                /* of the mutant at work */
  unsigned nr_infos, nr_opened, nr_views, nr_read;
  unsigned nr_lies;             /* extents called data zero */
  unsigned nr_different;        /* a second read gave something else */
  unsigned nr_odd_errors;
  uint64_t first_bad_seed;
};

static struct report *report;
static uint8_t content[READ_BYTES], again[READ_BYTES];

static void
bad (unsigned *counter)
{
  if (report->first_bad_seed == 0)
    report->first_bad_seed = report->seed;
  ++*counter;
}

static void
check_error (int r)
{
  /* What a bad image may lead to, and a name that it gives. */
  static const int usual[] = {
    EINVAL, EIO, ENOTSUP, EFBIG, ENOENT, EACCES, ELOOP, ENAMETOOLONG, ENOTDIR,
  };
  size_t i;

  for (i = 0; i < sizeof usual / sizeof usual[0]; ++i)
    if (r == -usual[i])
      return;
  bad (&report->nr_odd_errors);
}

struct extent_check {
  uint64_t next, end;
  bool lie;
};

/* qcow2_extent_fn: OPAQUE is a struct extent_check; content is that of
 * the range from offset 0 on.
 */
static int
check_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
              uint64_t count)
{
  struct extent_check *c = opaque;
  uint64_t i;

  if (offset != c->next || count == 0 || count > c->end - offset)
    c->lie = true;
  else if (type != QCOW2_EXTENT_DATA)
    for (i = offset; i < offset + count; ++i)
      c->lie |= content[i] != 0;
  c->next = offset + count;
  return 0;
}

/* qcow2_map_fn: the same. */
static int
check_map (void *opaque, const struct qcow2_map_extent *e)
{
  struct extent_check *c = opaque;

  if (e->depth > QCOW2_MAX_CHAIN_DEPTH || (e->data && !e->present) ||
      (!e->data && !e->zero))
    c->lie = true;
  return check_extent (c, e->zero ? QCOW2_EXTENT_ZERO : QCOW2_EXTENT_DATA,
                       e->offset, e->count);
}

/* In one piece, then in pieces that no boundary knows of. */
static void
read_twice (struct qcow2_view *view, size_t count)
{
  struct extent_check c = { .end = count };
  int r = qcow2_pread (view, content, count, 0);
  size_t done, n;

  if (r < 0)
    check_error (r);
  for (done = 0; done < count; done += n) {
    int r2;

    n = 1 + fuzz_random_below (50000);
    if (n > count - done)
      n = count - done;
    r2 = qcow2_pread (view, again + done, n, done);
    if (r2 < 0)
      check_error (r2);
    if (r == 0 && (r2 < 0 || memcmp (again + done, content + done, n) != 0))
      bad (&report->nr_different);
  }
  if (r < 0)
    return;
  report->nr_read++;
  if (qcow2_extents (view, count, 0, check_extent, &c) < 0 || c.lie)
    bad (&report->nr_lies);
  c.next = 0;
  if (qcow2_map (view, count, 0, check_map, &c) < 0 || c.lie ||
      c.next != count)
    bad (&report->nr_lies);
}

/* qcow2_extent_fn */
static int
ignore_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
               uint64_t count)
{
  return 0;
}

static void
use_view (struct qcow2_view *view)
{
  uint64_t size = qcow2_view_size (view);
  uint64_t max = size < UINT32_MAX ? size : UINT32_MAX;
  unsigned i;

  report->nr_views++;
  if (size == 0)
    return;
  read_twice (view, size < READ_BYTES ? (size_t) size : READ_BYTES);
  qcow2_extents (view, max, size - max, ignore_extent, NULL);
  qcow2_prefetch (view, max, 0);
  for (i = 0; i < 8; ++i) {
    uint64_t offset = fuzz_random_below (size);
    uint64_t left = size - offset;

    qcow2_pread (view, content, left < 5000 ? (size_t) left : 5000, offset);
  }
}

static void
use_image (struct qcow2 *image)
{
  size_t i, n = qcow2_nr_snapshots (image);
  struct qcow2_error error;
  struct qcow2_view *view;
  int r;

  report->nr_opened++;
  for (i = 0; i <= n && i < 5; ++i) {
    struct qcow2_snapshot_info info;

    r = qcow2_view_open (image, i == n ? QCOW2_ACTIVE : i, &view, &error);
    if (i < n) {
      qcow2_snapshot_get (image, i, &info);
      qcow2_snapshot_find (image, info.name);
    }
    if (r < 0) {
      check_error (r);
      continue;
    }
    use_view (view);
    qcow2_view_close (view);
  }
}

/* What needs no disk. */
static void
use_info (const char *path, const struct qcow2_options *options)
{
  struct qcow2_error error;
  struct qcow2_info *info;
  int r = qcow2_info_read (path, options, true, &info, &error);

  if (r < 0)
    check_error (r);
  else {
    report->nr_infos++;
    qcow2_measure_bitmaps (info, 65536);
    qcow2_info_free (info);
  }
}

static void
log_nothing (void *opaque, enum qcow2_log_level level, const char *text)
{
}

static void
run_mutant (uint64_t seed)
{
  const struct fuzz_base *b = make_mutant (seed);
  const char *allowed = ".";
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;
  int r;

  report->seed = seed;
  qcow2_options_init (&options);
  options.lock = false;
  options.cache_bytes = options.compressed_cache_bytes = 128 << 10;
  options.allow_dirs = &allowed;
  options.nr_allow_dirs = 1;
  options.log = log_nothing;
  options.wrap = wrap;
  options.opaque = (void *) b;
  use_info (b->path, &options);
  r = qcow2_open (b->path, &options, &image, &error);
  if (r < 0)
    check_error (r);
  else {
    use_image (image);
    qcow2_close (image);
  }
}

int
main (void)
{
  struct fuzz_result result;

  scratch_dir_enter ();
  fuzz_begin ();
  report = mmap (NULL, sizeof *report, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  must (report != MAP_FAILED, "memory");

  fuzz_run (run_mutant, &result);
  printf ("# FUZZ_SEED=%" PRIu64 ": %u mutants, %u described, %u "
          "opened, %u disks, of which %u were read whole\n",
          result.first_seed, result.nr_runs, report->nr_infos,
          report->nr_opened, report->nr_views, report->nr_read);
  fuzz_report (&result);
  is_int (report->nr_lies, 0, "extents tell the truth");
  is_int (report->nr_different, 0, "what is read once is read again");
  is_int (report->nr_odd_errors, 0, "errors are those of bad images");
  if (report->first_bad_seed)
    printf ("# first bad one: FUZZ_RUNS=1 FUZZ_SEED=%" PRIu64 "\n",
            report->first_bad_seed);
  return tap_done ();
}
