/* SPDX-License-Identifier: BSD-3-Clause */

/* Images whose metadata was mutated at random are opened for writing, and
 * written to in all ways: the engine neither crashes nor hangs nor eats
 * memory, and its errors are those of bad images.  Half of the mutants are
 * dirty, so that they are repaired first, if they can be.
 *
 * A repair refuses what is damaged.  So where it has been made, all content
 * has to be right to the last byte, while the image is written to and when
 * it is opened again, snapshots' content, too; and QEMU finds no errors.
 *
 * A mutant is a file.  How large a file may become is limited, so that one
 * which claims to be huge finds an end.
 */

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "fuzz-content.h"
#include "fuzz-mutant.h"
#include "qcow2/qcow2.h"
#include "scratch-dir.h"
#include "tap.h"

#define MAX_FILE_BYTES (64 << 20)
#define MAX_REQUEST_BYTES (300 << 10)
#define NR_REQUESTS 12
#define QEMU_EVERY 8            /* mutants; it is slow */

/* Where the low byte of the incompatible features is. */
#define INCOMPATIBLE_LOW 79

/* Shared with the parent. */
struct report {
  unsigned nr_writable, nr_changed, nr_refused, nr_closed_badly;
  unsigned nr_odd_errors, nr_repaired, nr_wrong, nr_asked;
  uint64_t first_bad_seed;
};

static struct report *report;
static uint64_t seed_at_work;
static uint8_t buf[MAX_REQUEST_BYTES];

static void
check_error (int r)
{
  switch (r) {
  case -EIO: case -EINVAL: case -ENOTSUP: case -EFBIG: case -ENOSPC:
  case -EROFS: case -ENOENT: case -ENOMEM: case -ELOOP:
  case -EACCES: case -ENOTDIR: case -ENAMETOOLONG:
    return;
  }
  printf ("# seed %" PRIu64 ": error %d\n", seed_at_work, r);
  report->nr_odd_errors++;
  if (!report->first_bad_seed)
    report->first_bad_seed = seed_at_work;
}

/* A request that may have changed something; DATA: what it has written. */
static int
changed (int r, uint64_t offset, uint64_t count, const uint8_t *data)
{
  if (r < 0)
    content_is_unknown (offset, count);
  else
    content_is (offset, count, data);
  return r;
}

static int
grow (struct qcow2 *image, struct qcow2_view *view, uint64_t size_bytes)
{
  struct qcow2_error error;
  int r = qcow2_resize (image, size_bytes, fuzz_random_below (4), false,
                        &error);

  content_size_is (qcow2_view_size (view));
  return r;
}

/* Not while it is in use.  The disk may be smaller even after an error. */
static int
shrink (struct qcow2 *image, struct qcow2_view **view)
{
  uint64_t size_bytes = 1 + fuzz_random_below (qcow2_view_size (*view));
  struct qcow2_error error;
  int r, r2;

  qcow2_view_close (*view);
  r = qcow2_resize (image, size_bytes, QCOW2_PREALLOCATION_OFF, true, &error);
  r2 = qcow2_view_open (image, QCOW2_ACTIVE, view, &error);
  must (r2 == 0, "a view can be opened again");
  content_size_is (qcow2_view_size (*view));
  return r;
}

static int
request (struct qcow2 *image, struct qcow2_view *view)
{
  uint64_t size_bytes = qcow2_view_size (view);
  uint64_t offset = fuzz_random_below (size_bytes);
  uint64_t count = 1 + fuzz_random_below (MAX_REQUEST_BYTES);
  bool fua = fuzz_random_below (8) == 0;
  static uint8_t read[MAX_REQUEST_BYTES];

  if (count > size_bytes - offset)
    count = size_bytes - offset;
  switch (fuzz_random_below (10)) {
  case 0: return qcow2_flush (view);
  case 1:
    content_is_unknown (offset, count);
    return qcow2_trim (view, count, offset, fua);
  case 2:
    return changed (qcow2_zero (view, count, offset, fuzz_random_below (2),
                                fuzz_random_below (2), fua), offset, count,
                    NULL);
  case 3:
    return grow (image, view, size_bytes + fuzz_random_below (1 << 20));
  case 4: return qcow2_pread (view, read, count, offset);
  default:
    return changed (qcow2_pwrite (view, buf, count, offset, fua), offset,
                    count, buf);
  }
}

static void
use_image (struct qcow2 *image)
{
  struct qcow2_view *view;
  struct qcow2_error error;
  unsigned i;
  int r;

  r = qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
  if (r < 0) {
    check_error (r);
    return;
  }
  report->nr_writable += qcow2_view_can_write (view);
  for (i = 0; i < NR_REQUESTS && qcow2_view_size (view) > 0; ++i) {
    r = fuzz_random_below (NR_REQUESTS) == 0 ? shrink (image, &view) :
      request (image, view);
    report->nr_changed += r >= 0;
    report->nr_refused += r < 0;
    if (r < 0)
      check_error (r);
  }
  qcow2_view_close (view);
}

static void
write_mutant (void)
{
  FILE *f = fopen ("mutant.qcow2", "w");

  if (fuzz_random_below (2) && mutant_bytes > INCOMPATIBLE_LOW)
    mutant[INCOMPATIBLE_LOW] |= 1;
  must (f && fwrite (mutant, 1, mutant_bytes, f) == mutant_bytes &&
        fclose (f) == 0, "mutant.qcow2");
}

/* The engine's own thread logs, too. */
static atomic_bool was_repaired;

static void
log_repair (void *opaque, enum qcow2_log_level level, const char *text)
{
  if (strstr (text, "has been repaired"))
    was_repaired = true;
}

static int
open_mutant (bool writable, struct qcow2 **image)
{
  const char *allowed = ".";
  struct qcow2_options options;
  struct qcow2_error error;
  int r;

  qcow2_options_init (&options);
  options.writable = writable;
  options.lock = false;
  options.cache_bytes = options.compressed_cache_bytes =
    fuzz_random_below (2) ? 0 : 128 << 10;
  options.discard = fuzz_random_below (2);
  options.detect_zeroes = fuzz_random_below (2) ? QCOW2_DETECT_ZEROES_ON :
    QCOW2_DETECT_ZEROES_OFF;
  options.allow_dirs = &allowed;
  options.nr_allow_dirs = 1;
  options.log = log_repair;
  r = qcow2_open ("mutant.qcow2", &options, image, &error);
  if (r < 0)
    check_error (r);
  return r;
}

static void
check_content (struct qcow2 *image, const char *when)
{
  char where[80];

  if (content_is_right (image, where))
    return;
  printf ("# seed %" PRIu64 ", %s: %s\n", seed_at_work, when, where);
  report->nr_wrong++;
  if (!report->first_bad_seed)
    report->first_bad_seed = seed_at_work;
}

/* What is in a data file is judged by no repair. */
static bool
is_repaired_wholly (const struct fuzz_base *b)
{
  return was_repaired && strcmp (b->path, "data") != 0;
}

/* 2: errors.  3 is leaks, of bitmaps that writing has made invalid, and 1 a
 * header that QEMU does not take: it is stricter about some fields.
 */
static void
ask_qemu (void)
{
  int status = system ("qemu-img check mutant.qcow2 > check.log 2>&1");

  report->nr_asked++;
  if (WIFEXITED (status) && WEXITSTATUS (status) != 2)
    return;
  printf ("# seed %" PRIu64 ": qemu-img check finds errors\n", seed_at_work);
  report->nr_wrong++;
  if (!report->first_bad_seed)
    report->first_bad_seed = seed_at_work;
}

static void
look_again (void)
{
  struct qcow2 *image;

  if (open_mutant (false, &image) < 0) {
    report->nr_wrong++;
    return;
  }
  check_content (image, "opened again");
  qcow2_close (image);
  if (seed_at_work % QEMU_EVERY == 0)
    ask_qemu ();
}

static void
run_mutant (uint64_t seed)
{
  const struct fuzz_base *b = make_mutant (seed);
  struct qcow2 *image;
  int r;

  seed_at_work = seed;
  was_repaired = false;
  write_mutant ();
  if (open_mutant (false, &image) < 0)
    return;
  content_learn (image);
  qcow2_close (image);
  if (open_mutant (true, &image) < 0)
    return;
  report->nr_repaired += was_repaired;
  if (is_repaired_wholly (b))
    check_content (image, "repaired");
  use_image (image);
  if (is_repaired_wholly (b))
    check_content (image, "written");
  r = qcow2_close (image);
  report->nr_closed_badly += r < 0;
  if (r < 0)
    check_error (r);
  else if (is_repaired_wholly (b))
    look_again ();
}

int
main (void)
{
  const struct rlimit limit = { MAX_FILE_BYTES, MAX_FILE_BYTES };
  struct fuzz_result result;

  scratch_dir_enter ();
  fuzz_begin ();
  memset (buf, 0x55, sizeof buf / 2);
  report = mmap (NULL, sizeof *report, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  must (report != MAP_FAILED, "memory");
  signal (SIGXFSZ, SIG_IGN);
  must (setrlimit (RLIMIT_FSIZE, &limit) == 0, "setrlimit");

  fuzz_run (run_mutant, &result);
  printf ("# FUZZ_SEED=%" PRIu64 ": %u mutants, %u of them writable, %u "
          "repaired, %u requests done, %u refused, %u closed with an error, "
          "%u shown to QEMU\n",
          result.first_seed, result.nr_runs, report->nr_writable,
          report->nr_repaired, report->nr_changed, report->nr_refused,
          report->nr_closed_badly, report->nr_asked);
  fuzz_report (&result);
  if (result.nr_runs >= 100)    /* else one is run again */
    ok (report->nr_writable > result.nr_runs / 8 &&
        report->nr_repaired > result.nr_runs / 16 &&
        report->nr_changed > result.nr_runs, "many could be written");
  is_int (report->nr_wrong, 0, "repaired images hold what they should");
  is_int (report->nr_odd_errors, 0, "errors are those of bad images");
  if (report->first_bad_seed)
    printf ("# first bad one: FUZZ_RUNS=1 FUZZ_SEED=%" PRIu64 "\n",
            report->first_bad_seed);
  return tap_done ();
}
