/* SPDX-License-Identifier: BSD-3-Clause */

/* Images whose metadata was mutated at random are checked and repaired: the
 * engine neither crashes nor hangs nor eats memory.  A repair makes nothing
 * worse: what could be read reads the same, no more is wrong than before,
 * and what it says is left is what the next check finds; a second repair
 * finds nothing to do.
 */

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "fuzz-mutant.h"
#include "qcow2/qcow2.h"
#include "scratch-dir.h"
#include "tap.h"

#define MAX_FILE_BYTES (64 << 20)
#define MAX_DISK_BYTES (1 << 20) /* so much is compared, in pieces */
#define PIECE 4096
#define NR_PIECES (MAX_DISK_BYTES / PIECE)

/* Shared with the parent. */
struct report {
  unsigned nr_checked, nr_repaired, nr_right, nr_failed;
  unsigned nr_changed, nr_worse, nr_lies, nr_again, nr_odd_errors;
  uint64_t first_bad_seed;
};

static struct report *report;
static uint64_t seed_at_work;

static void
bad (unsigned *count, const char *what)
{
  ++*count;
  printf ("# seed %" PRIu64 ": %s\n", seed_at_work, what);
  if (!report->first_bad_seed)
    report->first_bad_seed = seed_at_work;
}

static void
check_error (int r)
{
  switch (r) {
  case -EIO: case -EINVAL: case -ENOTSUP: case -EFBIG: case -ENOSPC:
  case -ENOENT: case -ENOMEM: case -ELOOP: case -EACCES: case -ENOTDIR:
  case -ENAMETOOLONG:
    return;
  }
  bad (&report->nr_odd_errors, strerror (-r));
}

/*----- What the disk holds -----*/

struct disk {
  bool readable[NR_PIECES];
  uint8_t bytes[MAX_DISK_BYTES];
};

static struct disk before, after;

static void
read_disk (struct qcow2 *image, struct disk *d)
{
  struct qcow2_view *view;
  struct qcow2_error error;
  uint64_t size_bytes, offset;
  unsigned i;

  memset (d->readable, 0, sizeof d->readable);
  if (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0)
    return;
  size_bytes = qcow2_view_size (view);
  for (i = 0; i < NR_PIECES; ++i) {
    offset = (uint64_t) i * PIECE;
    if (offset + PIECE <= size_bytes)
      d->readable[i] = qcow2_pread (view, d->bytes + offset, PIECE,
                                    offset) == 0;
  }
  qcow2_view_close (view);
}

/* A COPIED flag is a bit of the first byte of an entry; should a cluster
 * of the disk be an L2 table, it shows there.
 */
static bool
is_same (const uint8_t *a, const uint8_t *b)
{
  unsigned i;

  for (i = 0; i < PIECE; ++i)
    if (a[i] != b[i] && (i % 8 != 0 || (a[i] ^ b[i]) != 0x80))
      return false;
  return true;
}

static bool
is_unharmed (void)
{
  unsigned i;

  for (i = 0; i < NR_PIECES; ++i)
    if (before.readable[i] &&
        !(after.readable[i] && is_same (before.bytes + i * PIECE,
                                        after.bytes + i * PIECE)))
      return false;
  return true;
}

/*----- A mutant -----*/

static void
write_mutant (void)
{
  FILE *f = fopen ("mutant.qcow2", "w");

  must (f && fwrite (mutant, 1, mutant_bytes, f) == mutant_bytes &&
        fclose (f) == 0, "mutant.qcow2");
}

static int
open_mutant (struct qcow2 **image)
{
  const char *allowed = ".";
  struct qcow2_options options;
  struct qcow2_error error;
  int r;

  qcow2_options_init (&options);
  options.check = options.writable = true;
  options.lock = false;
  options.no_backing = true;
  options.cache_bytes = options.compressed_cache_bytes = 128 << 10;
  options.allow_dirs = &allowed;
  options.nr_allow_dirs = 1;
  r = qcow2_open ("mutant.qcow2", &options, image, &error);
  if (r < 0)
    check_error (r);
  return r;
}

/* Check, and read what there is to be read. */
static int
look (enum qcow2_repair repair, struct qcow2_check_result *result,
      struct disk *d)
{
  const struct qcow2_check_options how = {
    .repair = repair, .nr_threads = 1 + seed_at_work % 3,
  };
  struct qcow2_error error;
  struct qcow2 *image;
  int r = open_mutant (&image);

  if (r < 0)
    return r;
  r = qcow2_check (image, &how, result, &error);
  if (r < 0)
    check_error (r);
  if (d)
    read_disk (image, d);
  qcow2_close (image);
  return r;
}

static void
judge_repair (enum qcow2_repair how, bool was_checked,
              const struct qcow2_check_result *first,
              const struct qcow2_check_result *said)
{
  struct qcow2_check_result left, again;

  if (look (QCOW2_REPAIR_NONE, &left, &after) < 0) {
    bad (&report->nr_worse, "it can't be checked any more");
    return;
  }
  report->nr_right += left.corruptions == 0 && left.check_errors == 0;
  if (!is_unharmed ())
    bad (&report->nr_changed, "the disk has changed");
  if (was_checked && left.corruptions + left.check_errors >
      first->corruptions + first->check_errors)
    bad (&report->nr_worse, "more is wrong than before");
  if (how != QCOW2_REPAIR_ALL)
    return;
  if (left.corruptions != said->corruptions ||
      left.check_errors != said->check_errors)
    bad (&report->nr_lies, "something else is left than was said");
  /* What discarded snapshots may have named was kept. */
  if (left.corruptions == 0 && left.leaks > 0)
    return;
  if (look (how, &again, NULL) < 0 || again.corruptions_fixed > 0 ||
      again.leaks_fixed > 0)
    bad (&report->nr_again, "a second repair has something to do");
}

static void
run_mutant (uint64_t seed)
{
  enum qcow2_repair how = seed % 4 == 0 ? QCOW2_REPAIR_LEAKS :
    QCOW2_REPAIR_ALL;
  struct qcow2_check_result first, said;
  bool was_checked;

  seed_at_work = seed;
  make_mutant (seed);
  write_mutant ();
  was_checked = look (QCOW2_REPAIR_NONE, &first, &before) == 0;
  report->nr_checked += was_checked;
  if (look (how, &said, NULL) < 0) {
    report->nr_failed++;
    return;
  }
  report->nr_repaired += said.corruptions_fixed + said.leaks_fixed > 0;
  judge_repair (how, was_checked, &first, &said);
}

int
main (void)
{
  const struct rlimit limit = { MAX_FILE_BYTES, MAX_FILE_BYTES };
  struct fuzz_result result;

  scratch_dir_enter ();
  fuzz_begin ();
  report = mmap (NULL, sizeof *report, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  must (report != MAP_FAILED, "memory");
  signal (SIGXFSZ, SIG_IGN);
  must (setrlimit (RLIMIT_FSIZE, &limit) == 0, "setrlimit");

  fuzz_run (run_mutant, &result);
  printf ("# FUZZ_SEED=%" PRIu64 ": %u mutants, %u checked, %u repaired, %u "
          "of them right then, %u not opened or repaired\n",
          result.first_seed, result.nr_runs, report->nr_checked,
          report->nr_repaired, report->nr_right, report->nr_failed);
  fuzz_report (&result);
  if (result.nr_runs >= 100)    /* else one is run again */
    ok (report->nr_checked > result.nr_runs / 8 &&
        report->nr_repaired > result.nr_runs / 16 &&
        report->nr_right > result.nr_runs / 16, "many could be repaired");
  is_int (report->nr_changed, 0, "what could be read reads the same");
  is_int (report->nr_worse, 0, "nothing is worse than before");
  is_int (report->nr_lies, 0, "what is said to be left is what is left");
  is_int (report->nr_again, 0, "a second repair has nothing to do");
  is_int (report->nr_odd_errors, 0, "errors are those of bad images");
  if (report->first_bad_seed)
    printf ("# first bad one: FUZZ_RUNS=1 FUZZ_SEED=%" PRIu64 "\n",
            report->first_bad_seed);
  return tap_done ();
}
