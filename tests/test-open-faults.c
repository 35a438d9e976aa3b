/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening, viewing, reading and reopening an image while something fails
 * half-way: each N-th read, each N-th allocation.
 *
 * Every step fails with a message or succeeds and is right; in the end all
 * files are closed and all memory is free.
 *
 * The allocator's functions are replaced in this program, so that calls
 * from libraries come here, too.  A sanitizer has its own ways around
 * that, and looks for leaks itself: memory is counted only without one.
 * Valgrind puts its own functions in the place of these, too.
 */

#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "faulty-storage.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define KiB ((uint64_t) 1024)

/*----- Allocations that fail -----*/

/* These run before a sanitizer's runtime library is ready. */
#define RAW __attribute__ ((__no_sanitize__ ("address", "thread", "undefined")))
#define EXPORTED RAW __attribute__ ((__visibility__ ("default")))

/* Allocations up to the one that fails; 0: none will. */
static long allocation_countdown;
static bool allocation_failed;
static long nr_live;            /* allocations not freed */

RAW static bool
fails_now (void)
{
  if (allocation_countdown == 0 || --allocation_countdown > 0)
    return false;
  allocation_failed = true;
  errno = ENOMEM;
  return true;
}

RAW static void *
count (void *p)
{
  nr_live += p != NULL;
  return p;
}

/* A sanitizer's allocator has priority over the C library's. */
#define ALLOCATOR(name) (__interceptor_##name ? __interceptor_##name : \
                         __libc_##name)
#define DECLARE(result, name, ...)                                      \
  extern result __libc_##name (__VA_ARGS__);                            \
  extern result __interceptor_##name (__VA_ARGS__) __attribute__ ((__weak__))

DECLARE (void *, malloc, size_t);
DECLARE (void *, calloc, size_t, size_t);
DECLARE (void *, realloc, void *, size_t);
DECLARE (void *, memalign, size_t, size_t);
DECLARE (void, free, void *);

EXPORTED void *
malloc (size_t bytes)
{
  return fails_now () ? NULL : count (ALLOCATOR (malloc) (bytes));
}

EXPORTED void *
calloc (size_t nr, size_t bytes)
{
  return fails_now () ? NULL : count (ALLOCATOR (calloc) (nr, bytes));
}

EXPORTED void *
realloc (void *p, size_t bytes)
{
  if (fails_now ())
    return NULL;
  nr_live -= p != NULL;
  return count (ALLOCATOR (realloc) (p, bytes));
}

EXPORTED void *
aligned_alloc (size_t alignment, size_t bytes)
{
  return fails_now () ? NULL : count (ALLOCATOR (memalign) (alignment, bytes));
}

EXPORTED void
free (void *p)
{
  nr_live -= p != NULL;
  ALLOCATOR (free) (p);
}

static bool
is_sanitized (void)
{
  return __interceptor_malloc != NULL;
}

static bool
is_under_valgrind (void)
{
  const char *preload = getenv ("LD_PRELOAD");

  return preload && strstr (preload, "vgpreload");
}

/*----- Images -----*/

struct subject {
  const char *what;
  const char *filename;
  const char *allow_dir;        /* or NULL */
  uint8_t *content;
  uint64_t bytes;
  uint8_t *buf;
};

static void
make_image (struct subject *s, const char *what, const char *filename)
{
  s->what = what;
  s->filename = filename;
  s->content = qemu_content (filename, NULL, &s->bytes);
  s->buf = malloc (s->bytes);
}

static uint64_t seed = 271828;

/* Snapshots, compressed clusters, and a backing chain with a json: name. */
static void
make_chain (struct subject *s)
{
  run_command ("qemu-img create -q -f raw base.raw 100k");
  random_writes ("raw", "base.raw", 100 * KiB, 9 * KiB, 512, 10, 0, &seed);
  run_command ("qemu-img create -q -f qcow2 -F raw -b base.raw "
               "-o cluster_size=4k mid.qcow2 130k");
  random_writes ("qcow2", "mid.qcow2", 130 * KiB, 5 * KiB, 4 * KiB, 10,
                 WRITE_ZEROES | WRITE_COMPRESSED, &seed);
  run_command ("qemu-img create -q -f qcow2 -F qcow2 "
               "-b 'json:{\"driver\": \"qcow2\", \"file\": "
               "{\"driver\": \"file\", \"filename\": \"mid.qcow2\"}}' "
               "-o cluster_size=4k,compression_type=zstd top.qcow2 150k");
  random_writes ("qcow2", "top.qcow2", 150 * KiB, 3 * KiB, 4 * KiB, 16,
                 WRITE_COMPRESSED, &seed);
  run_command ("qemu-img snapshot -c one top.qcow2");
  run_command ("qemu-img snapshot -c two top.qcow2");
  make_image (s, "chain", "top.qcow2");
}

static void
make_data_file (struct subject *s)
{
  run_command ("qemu-img create -q -f qcow2 -o cluster_size=4k,"
               "data_file=data.raw,extended_l2=off outside.qcow2 100k");
  random_writes ("qcow2", "outside.qcow2", 100 * KiB, 9 * KiB, 4 * KiB, 10,
                 0, &seed);
  make_image (s, "data file", "outside.qcow2");
  s->allow_dir = ".";
}

/*----- One attempt -----*/

static struct faults faults;
static struct qcow2_error error;

/* An error has to be a negative errno and to have a message. */
static bool
failed_well (int r)
{
  return r < 0 && r > -4096 && error.message[0] != '\0';
}

static bool
try_views (struct subject *s, struct qcow2 *image)
{
  struct qcow2_view *active, *view;
  bool well = true;
  size_t i;
  int r;

  for (i = 0; i < qcow2_nr_snapshots (image); ++i) {
    error.message[0] = '\0';
    r = qcow2_view_open (image, i, &view, &error);
    if (r == 0)
      qcow2_view_close (view);
    else
      well &= failed_well (r) && view == NULL;
  }

  error.message[0] = '\0';
  r = qcow2_view_open (image, QCOW2_ACTIVE, &active, &error);
  if (r < 0)
    return well && failed_well (r) && active == NULL;
  memset (s->buf, 0xa5, s->bytes);
  r = qcow2_pread (active, s->buf, s->bytes, 0);
  if (r == 0)
    well &= memcmp (s->buf, s->content, s->bytes) == 0;
  else
    well &= r == -EIO || r == -ENOMEM;
  qcow2_view_close (active);
  return well;
}

/* The same when the image was read again. */
static bool
try_again (struct subject *s, struct qcow2 *image)
{
  int r;

  error.message[0] = '\0';
  r = qcow2_reopen (image, &error);
  return r < 0 ? failed_well (r) : try_views (s, image);
}

/* Open, look at all, twice, close.  False if something failed the wrong way. */
static bool
try_image (struct subject *s)
{
  struct qcow2_options options;
  struct qcow2 *image;
  bool well;
  int r;

  qcow2_options_init (&options);
  options.wrap = faults_wrap;
  options.opaque = &faults;
  options.allow_dirs = &s->allow_dir;
  options.nr_allow_dirs = s->allow_dir != NULL;
  error.message[0] = '\0';
  r = qcow2_open (s->filename, &options, &image, &error);
  if (r < 0)
    return failed_well (r) && image == NULL;
  well = try_views (s, image) && try_again (s, image);
  qcow2_close (image);
  return well;
}

static unsigned
nr_descriptors (void)
{
  DIR *dir = opendir ("/proc/self/fd");
  unsigned n = 0;

  while (readdir (dir))
    n++;
  closedir (dir);
  return n;
}

/* The same while allocation NR_ALLOCATION fails, and look at what is left
 * behind.
 */
static bool
leaves_nothing (struct subject *s, long nr_allocation, bool *well)
{
  unsigned descriptors = nr_descriptors ();
  long live = nr_live;

  allocation_countdown = nr_allocation;
  *well = try_image (s);
  allocation_countdown = 0;
  faults_disarm (&faults);
  return nr_descriptors () == descriptors &&
    atomic_load (&faults.nr_open) == 0 &&
    (is_sanitized () || nr_live == live);
}

/*----- Tests -----*/

static void
fail_each_read (struct subject *s, enum fault fault)
{
  unsigned nr_bad = 0, nr_left = 0;
  bool well, hit = true;
  long n;

  for (n = 1; hit; ++n) {
    faults_arm (&faults, fault, n);
    nr_left += !leaves_nothing (s, 0, &well);
    hit = atomic_load (&faults.nr_hit) > 0;
    if (!well)
      printf ("# read %ld: %s\n", n, error.message);
    nr_bad += !well;
  }
  ok (n > 10, "%s: reads: %s, for each of %ld", s->what, fault_name (fault),
      n - 2);
  is_int (nr_bad, 0, "%s: reads: failures have messages, data is right",
          s->what);
  is_int (nr_left, 0, "%s: reads: nothing is left behind", s->what);
}

static void
fail_each_allocation (struct subject *s)
{
  unsigned nr_bad = 0, nr_left = 0;
  bool well;
  long n = 0;

  do {
    allocation_failed = false;
    nr_left += !leaves_nothing (s, ++n, &well);
    if (!well)
      printf ("# allocation %ld: %s\n", n, error.message);
    nr_bad += !well;
  } while (allocation_failed);
  ok (n > 10, "%s: allocations: each of %ld fails", s->what, n - 1);
  is_int (nr_bad, 0, "%s: allocations: failures have messages, data is "
          "right", s->what);
  is_int (nr_left, 0, "%s: allocations: nothing is left behind", s->what);
}

static void
test_subject (struct subject *s)
{
  bool well;

  /* What libraries keep for themselves is there from now on. */
  leaves_nothing (s, 0, &well);
  ok (well, "%s: opens", s->what);
  ok (leaves_nothing (s, 0, &well) && well, "%s: leaves nothing when closed",
      s->what);
  fail_each_read (s, FAULT_EIO);
  fail_each_read (s, FAULT_STUCK);
  fail_each_read (s, FAULT_HALF);
  if (!is_under_valgrind ())
    fail_each_allocation (s);
  free (s->content);
  free (s->buf);
}

int
main (void)
{
  static struct subject chain, data_file;

  alarm (280);
  scratch_dir_enter ();
  make_chain (&chain);
  make_data_file (&data_file);
  test_subject (&chain);
  test_subject (&data_file);
  return tap_done ();
}
