/* SPDX-License-Identifier: BSD-3-Clause */

/* Lazy refcounts: the dirty bit is on disk before anything else is
 * changed and goes when the image is closed, and in between refcounts are
 * written only when there are too many to be kept.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)
#define QEMU "rm -f *; qemu-img create -q -f qcow2 -o "

static struct write_log wlog;
static struct qcow2 *image;
static struct qcow2_view *view;
static uint64_t cache_bytes = 1 * MiB;

static int
try_open (enum qcow2_lazy_refcounts lazy, struct qcow2_error *error)
{
  struct qcow2_options options;
  int r;

  write_log_init (&wlog);
  qcow2_options_init (&options);
  options.writable = true;
  options.lazy_refcounts = lazy;
  options.cache_bytes = cache_bytes;
  write_log_use (&wlog, &options);
  r = qcow2_open ("disk.qcow2", &options, &image, error);
  return r < 0 ? r : qcow2_view_open (image, QCOW2_ACTIVE, &view, error);
}

static void
open_image (enum qcow2_lazy_refcounts lazy)
{
  struct qcow2_error error;

  if (try_open (lazy, &error) < 0) {
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
  return r;
}

static int
write_bytes (size_t count, uint64_t offset, bool fua)
{
  uint8_t *bytes = malloc (count);
  int r;

  if (!bytes)
    abort ();
  memset (bytes, 'x', count);
  r = qcow2_pwrite (view, bytes, count, offset, fua);
  free (bytes);
  return r;
}

/*----- Which images -----*/

static const struct {
  const char *what, *options;
  enum qcow2_lazy_refcounts lazy;
  bool dirty;
} cases[] = {
  { "an image with lazy refcounts", "lazy_refcounts=on",
    QCOW2_LAZY_AS_IMAGE, true },
  { "the same with lazy refcounts off", "lazy_refcounts=on", QCOW2_LAZY_OFF,
    false },
  { "an image without", "lazy_refcounts=off", QCOW2_LAZY_AS_IMAGE, false },
  { "the same with lazy refcounts on", "lazy_refcounts=off", QCOW2_LAZY_ON,
    true },
  { "version 2", "compat=0.10", QCOW2_LAZY_AS_IMAGE, false },
};

static void
test_which (void)
{
  struct qcow2_error error;
  unsigned i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    run_command (QEMU "%s disk.qcow2 8M", cases[i].options);
    open_image (cases[i].lazy);
    ok (!damage_is_dirty ("disk.qcow2"), "%s: not dirty when opened",
        cases[i].what);
    is_int (write_bytes (100 * KiB, 0, false), 0, "%s: written",
            cases[i].what);
    ok (damage_is_dirty ("disk.qcow2") == cases[i].dirty,
        "%s: %s then", cases[i].what, cases[i].dirty ? "dirty" : "not dirty");
    is_int (close_image (), 0, "%s: closed", cases[i].what);
    ok (!damage_is_dirty ("disk.qcow2"), "%s: not dirty any more",
        cases[i].what);
    is_int (qemu_check ("disk.qcow2"), 0, "%s: the check is clean",
            cases[i].what);
    write_log_clear (&wlog);
  }

  is_int (try_open (QCOW2_LAZY_ON, &error), -ENOTSUP,
          "version 2 can't have lazy refcounts");
  is_str (error.message, "disk.qcow2: lazy refcounts need an image of "
          "version 3 (compat=1.1), this one has version 2",
          "a message says so");
  write_log_clear (&wlog);
}

/*----- What is written when -----*/

/* How many requests of a class there are among the first NR. */
static unsigned
count_class (enum write_class class, size_t nr)
{
  struct write_classes classes;
  unsigned count = 0;
  size_t i;

  write_classes_init (&classes, &wlog);
  for (i = 0; i < nr; ++i)
    count += classes.of[i] == class;
  write_classes_clear (&classes);
  return count;
}

static void
test_what_is_written (void)
{
  const struct log_event *first, *last;
  unsigned i;
  size_t nr;

  run_command (QEMU "lazy_refcounts=on disk.qcow2 64M");
  open_image (QCOW2_LAZY_AS_IMAGE);
  for (i = 0; i < 50; ++i)
    if (write_bytes (4 * KiB, i * MiB, false) < 0 || qcow2_flush (view) < 0)
      abort ();
  nr = wlog.nr;
  first = wlog.events[0];
  ok (first->kind == LOG_WRITE && first->offset == 0 && first->durable,
      "the header is written durably before anything else");
  is_int (count_class (CLASS_REFCOUNTS, nr), 0,
          "fifty flushes write no refcount");
  is_int (count_class (CLASS_FLUSH_FIRST, nr) +
          count_class (CLASS_FLUSH_SECOND, nr), 100, "with two flushes each");
  write_bytes (4 * KiB, 0, true);
  is_int (wlog.nr, nr + 1, "FUA on what is there is one durable write");

  is_int (close_image (), 0, "closed");
  ok (count_class (CLASS_REFCOUNTS, wlog.nr) > 0,
      "closing writes the refcounts");
  last = wlog.events[wlog.nr - 1];
  ok (last->kind == LOG_WRITE && last->offset == 0 && last->durable,
      "the header comes last");
  ok (wlog.events[wlog.nr - 2]->kind == LOG_FLUSH, "behind a flush");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  write_log_clear (&wlog);
}

/* More refcounts change than the cache can hold. */
static void
test_many_refcounts (void)
{
  uint64_t offset;
  int r = 0;

  run_command (QEMU "lazy_refcounts=on,cluster_size=512,refcount_bits=64 "
               "disk.qcow2 16M");
  cache_bytes = 64 * KiB;
  open_image (QCOW2_LAZY_AS_IMAGE);
  for (offset = 0; r == 0 && offset < 8 * MiB; offset += 64 * KiB)
    r = write_bytes (64 * KiB, offset, false);
  is_int (r, 0, "refcounts find room in a small cache");
  ok (count_class (CLASS_REFCOUNTS, wlog.nr) > 0, "some are written");
  is_int (close_image (), 0, "closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  write_log_clear (&wlog);
  cache_bytes = 1 * MiB;
}

/*----- Errors -----*/

static atomic_bool fail_header, fail_flushes;

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  if (fail_header && event->kind == LOG_WRITE && event->offset == 0)
    return -EIO;
  return fail_flushes && event->kind == LOG_FLUSH ? -EIO : 0;
}

static void
test_errors (void)
{
  run_command (QEMU "lazy_refcounts=on disk.qcow2 8M");
  open_image (QCOW2_LAZY_AS_IMAGE);
  wlog.hook = maybe_fail;
  fail_header = true;
  is_int (write_bytes (4 * KiB, 0, false), -EIO,
          "without a dirty bit nothing is written");
  is_int (wlog.nr, 1, "nothing at all");
  fail_header = false;
  is_int (write_bytes (4 * KiB, 0, false), 0, "the next try succeeds");
  fail_header = true;
  is_int (close_image (), -EIO, "closing fails when the bit can't be cleared");
  ok (damage_is_dirty ("disk.qcow2"), "it stays");
  fail_header = false;
  write_log_clear (&wlog);

  open_image (QCOW2_LAZY_AS_IMAGE);
  ok (!damage_is_dirty ("disk.qcow2"), "the image is repaired");
  wlog.hook = maybe_fail;
  is_int (write_bytes (4 * KiB, MiB, false), 0, "written");
  fail_flushes = true;
  is_int (qcow2_flush (view), -EIO, "a flush fails");
  fail_flushes = false;
  is_int (close_image (), -EIO, "closing fails then, too");
  ok (damage_is_dirty ("disk.qcow2"), "and the image stays dirty");
  write_log_clear (&wlog);

  open_image (QCOW2_LAZY_AS_IMAGE);
  is_int (close_image (), 0, "the next one repairs it");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  write_log_clear (&wlog);
}

/* All links are durable, and the last client leaves: only what was written
 * of the refcounts is at stake in the flush that fails.  The kernel tells of
 * that once.
 */
static void
test_failed_flush_at_rest (void)
{
  struct qcow2_error error;

  run_command (QEMU "lazy_refcounts=on disk.qcow2 8M");
  open_image (QCOW2_LAZY_AS_IMAGE);
  wlog.hook = maybe_fail;
  is_int (write_bytes (4 * KiB, 0, false), 0, "written");
  is_int (qcow2_flush (view), 0, "and flushed");
  fail_flushes = true;
  qcow2_view_close (view);
  fail_flushes = false;
  ok (wlog.message[0], "the client leaves, and refcounts can't be flushed: %s",
      wlog.message);
  ok (damage_is_dirty ("disk.qcow2"), "the image stays dirty");
  is_int (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error), 0,
          "the next client comes");
  is_int (write_bytes (4 * KiB, 1 * MiB, false), -EROFS, "and can't write");
  is_int (close_image (), -EIO, "closing fails");
  ok (damage_is_dirty ("disk.qcow2"), "the image is dirty still");
  write_log_clear (&wlog);
}

int
main (void)
{
  scratch_dir_enter ();
  test_which ();
  test_what_is_written ();
  test_many_refcounts ();
  test_errors ();
  test_failed_flush_at_rest ();
  return tap_done ();
}
