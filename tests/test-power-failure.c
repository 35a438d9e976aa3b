/* SPDX-License-Identifier: BSD-3-Clause */

/* A power failure at any moment loses nothing that was flushed, and
 * leaves no corrupt image.
 *
 * For images of many kinds a random run of requests is logged as the
 * storage sees it.  States which a power failure may have left are made
 * of the log: `qemu-img check' finds no corruption in any (leaks are
 * allowed), and each sector holds what the last flush made durable, or
 * something newer.  With lazy refcounts this holds after a repair, which
 * most states need.  Then steps are left out of the log one by one: each
 * time the same checks find that.
 *
 * POWER_STATES (states in all) and POWER_SEED in the environment make
 * longer and other runs; POWER_SUBJECT runs one kind of image.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crash-state.h"
#include "grow-disk.h"
#include "image.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define DEFAULT_STATES 2480
#define MUTANT_STATES 1000

static uint64_t
from_environment (const char *name, uint64_t otherwise)
{
  const char *value = getenv (name);

  return value && value[0] ? strtoull (value, NULL, 0) : otherwise;
}

typedef unsigned run_fn (const struct write_subject *s,
                         struct qcow2_view *view, struct write_log *log,
                         struct guest *guest, uint64_t seed);

/*----- Growing -----*/

struct grower {
  struct qcow2 *image;
  uint64_t size_bytes;
  int result;
};

static void *
grow (void *opaque)
{
  struct grower *g = opaque;
  struct qcow2_error error;

  g->result = grow_disk (g->image, g->size_bytes, &error);
  return NULL;
}

/* Requests run while the disk grows by a part, and after it has. */
static unsigned
grow_run (const struct write_subject *s, struct qcow2_view *view,
          struct write_log *log, struct guest *guest, uint64_t seed)
{
  uint64_t part = (s->disk_bytes - s->start_bytes) /
    (s->nr_sessions * s->nr_parts) / GUEST_SECTOR * GUEST_SECTOR;
  struct write_subject now = *s;
  struct grower grower = { .image = view->image };
  unsigned nr_failed = 0;
  pthread_t thread;

  now.disk_bytes = qcow2_view_size (view);
  grower.size_bytes = now.disk_bytes + part;
  if (pthread_create (&thread, NULL, grow, &grower) != 0) {
    printf ("Bail out! can't start a thread\n");
    exit (1);
  }
  nr_failed += subject_run (&now, view, log, guest, seed);
  pthread_join (thread, NULL);
  now.disk_bytes = grower.size_bytes;
  nr_failed += subject_run (&now, view, log, guest, seed + 100);
  return nr_failed + (grower.result < 0);
}

static run_fn *
run_of (const struct write_subject *s)
{
  return s->start_bytes ? grow_run : subject_run;
}

/*----- Runs -----*/

/* From the first view's opening to the last one's closing, which makes
 * all durable.
 */
static unsigned
run_part (struct power_run *run, struct qcow2 *image, run_fn *requests,
          uint64_t seed)
{
  struct qcow2_error error;
  struct qcow2_view *view;
  unsigned nr_failed;
  uint64_t begin;

  if (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0) {
    printf ("Bail out! %s: %s\n", run->subject->name, error.message);
    exit (1);
  }
  nr_failed = requests (run->subject, view, &run->log, &run->guest, seed);
  begin = write_log_tick (&run->log);
  qcow2_view_close (view);
  guest_flushed (&run->guest, begin, write_log_tick (&run->log));
  return nr_failed;
}

/* From opening to closing. */
static bool
run_session (struct power_run *run, run_fn *requests, uint64_t seed)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;
  unsigned nr_failed = 0, i = 0;
  int r;

  subject_options (run->subject, ".", &options);
  options.writable = true;
  run->log.fixed_size = run->subject->spare_bytes > 0;
  write_log_use (&run->log, &options);
  if (qcow2_open (SUBJECT_IMAGE, &options, &image, &error) < 0) {
    printf ("Bail out! %s: %s\n", run->subject->name, error.message);
    exit (1);
  }
  do
    nr_failed += run_part (run, image, requests, seed + 1000 * i);
  while (++i < run->subject->nr_parts);
  r = qcow2_close (image);
  return r == 0 && (nr_failed == 0 || run->log.fixed_size);
}

static void
make_run (struct power_run *run, const struct write_subject *s,
          run_fn *requests, uint64_t seed)
{
  uint64_t state = seed * 16 + 1, first = 0;
  bool answered = true;
  uint8_t *content;
  unsigned i;

  memset (run, 0, sizeof *run);
  run->subject = s;
  subject_make (s, &state);
  guest_init (&run->guest, subject_must_read (s, false),
              s->disk_bytes / GUEST_SECTOR);
  if (s->snapshot)
    run->snapshot = subject_must_read (s, true);
  write_log_init (&run->log);
  for (i = 0; i < s->nr_sessions; ++i)
    if (!run_session (run, requests, seed + i))
      answered = false;
  ok (answered, "%s: requests succeed (%s)", s->name, run->log.message);

  guest_index (&run->guest);
  write_classes_init (&run->classes, &run->log);
  content = subject_must_read (s, false);
  is_int (guest_check_live (&run->guest, content, &first), 0,
          "%s: all content is right after the end (first wrong sector "
          "%" PRIu64 ")", s->name, first);
  is_int (qemu_check (SUBJECT_IMAGE), 0, "%s: the check is clean, too",
          s->name);
  free (content);
}

static void
clear_run (struct power_run *run)
{
  write_classes_clear (&run->classes);
  write_log_clear (&run->log);
  guest_clear (&run->guest);
  free (run->snapshot);
}

static void
tell (const struct power_run *run)
{
  unsigned i;

  printf ("# %zu requests, %zu I/Os:", run->guest.nr_ops, run->log.nr);
  for (i = 0; i < NR_WRITE_CLASSES; ++i)
    printf (" %s %zu%s", write_class_name (i), run->classes.count[i],
            i + 1 < NR_WRITE_CLASSES ? "," : "\n");
}

static void
test_subject (const struct write_subject *s, unsigned nr_states,
              uint64_t seed)
{
  struct power_run run;
  struct power_result result;

  make_run (&run, s, run_of (s), seed);
  tell (&run);
  power_check (&run, MUTANT_NONE, nr_states, seed, false, &result);
  is_int (result.nr_bad, 0, "%s: all of %u states are sound%s%s", s->name,
          result.nr_states, result.nr_bad > 0 ? ": " : "", result.first);
  ok (result.nr_balance > 0,
      "%s: %.1f I/Os were in the balance, %u states have leaks", s->name,
      (double) result.nr_balance / result.nr_states, result.nr_leaks);
  ok (strstr (s->create, "lazy_refcounts=on") ? result.nr_repaired > 0 :
      result.nr_repaired == 0, "%s: %u states were repaired", s->name,
      result.nr_repaired);
  clear_run (&run);
}

/* Each mutant, and a kind of image that shows it. */
static const struct {
  enum write_mutant mutant;
  const char *subject;
} mutants[] = {
  { MUTANT_NO_FIRST, "64K clusters" },
  { MUTANT_NO_SECOND, "64K clusters" },
  { MUTANT_NO_L1, "growing disk" },
  { MUTANT_NO_DATA_FILE, "data file" },
  { MUTANT_LATE_REFCOUNTS, "one-bit refcounts" },
  { MUTANT_NO_FIRST, "lazy refcounts" },
  { MUTANT_NO_SECOND, "lazy refcounts" },
  { MUTANT_LATE_HEADER, "lazy refcounts" },
  { MUTANT_LATE_DATA, "overlay" },
  { MUTANT_LATE_TABLE, "snapshots in version 2" },
  { MUTANT_LATE_AREA, "growing refcounts" },
  { MUTANT_LATE_AREA, "growing refcount table" },
  { MUTANT_LATE_L1, "growing disk" },
  { MUTANT_LATE_L1_REFCOUNTS, "growing disk" },
  { MUTANT_EARLY_FREE, "full device" },
};

static const struct write_subject *
find_subject (const char *name)
{
  unsigned i;

  for (i = 0; i < nr_write_subjects; ++i)
    if (strcmp (write_subjects[i].name, name) == 0)
      return &write_subjects[i];
  printf ("Bail out! no subject %s\n", name);
  exit (1);
}

static void
test_mutant (enum write_mutant mutant, const char *subject, uint64_t seed)
{
  struct power_run run;
  struct power_result result;

  const struct write_subject *s = find_subject (subject);

  make_run (&run, s, run_of (s), seed);
  power_check (&run, mutant, MUTANT_STATES, seed, true, &result);
  ok (result.nr_bad > 0, "caught after %u states: %s, %s: %s", result.nr_states,
      write_mutant_name (mutant), subject, result.first);
  clear_run (&run);
}

/* Allocating writes that are flushed, then writes in place that are not. */
static unsigned
write_in_place (const struct write_subject *s, struct qcow2_view *view,
                struct write_log *log, struct guest *guest, uint64_t seed)
{
  uint8_t buf[4 * GUEST_SECTOR];
  uint64_t begin;
  unsigned i, nr_failed = 0;

  for (i = 0; i < 20; ++i) {
    size_t op = guest_begin (guest, GUEST_WRITE, (i % 10) * 100, 4,
                             write_log_tick (log), buf);
    int r = qcow2_pwrite (view, buf, sizeof buf,
                          (i % 10) * 100 * GUEST_SECTOR, false);

    guest_end (guest, op, r == 0, false, write_log_tick (log));
    nr_failed += r < 0;
    begin = write_log_tick (log);
    if (i == 9 && qcow2_flush (view) == 0)
      guest_flushed (guest, begin, write_log_tick (log));
  }
  return nr_failed;
}

static void
test_close (const char *subject)
{
  struct power_run run;
  struct crash *crash;
  uint64_t first = 0;
  struct qcow2_error error;
  uint8_t *buf;

  make_run (&run, find_subject (subject), write_in_place, 1);
  buf = subject_must_read (run.subject, false);
  crash = crash_new (&run.log, &run.classes, MUTANT_NONE, "closed");
  crash_go (crash, run.log.now + 1);
  is_int (crash_build (crash, CRASH_NOTHING, 1), 0,
          "%s: nothing is in the balance once the image is closed", subject);
  is_int (subject_read (run.subject, "closed", false, buf, &error), 0,
          "%s: it can be read", subject);
  is_int (guest_check (&run.guest, run.log.now + 1, buf, &first), 0,
          "%s: closing makes durable what was not flushed", subject);
  crash_free (crash);
  free (buf);
  clear_run (&run);
}

int
main (void)
{
  uint64_t nr_states = from_environment ("POWER_STATES", DEFAULT_STATES);
  uint64_t seed = from_environment ("POWER_SEED", 1);
  const char *only = getenv ("POWER_SUBJECT");
  unsigned i;

  scratch_dir_enter ();
  if (only) {
    test_subject (find_subject (only), (unsigned) nr_states, seed);
    return tap_done ();
  }
  for (i = 0; i < nr_write_subjects; ++i)
    test_subject (&write_subjects[i],
                  (unsigned) (nr_states / nr_write_subjects), seed);
  test_close ("64K clusters");
  test_close ("data file");
  for (i = 0; i < sizeof mutants / sizeof mutants[0]; ++i)
    test_mutant (mutants[i].mutant, mutants[i].subject, seed);
  return tap_done ();
}
