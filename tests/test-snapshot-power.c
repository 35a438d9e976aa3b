/* SPDX-License-Identifier: BSD-3-Clause */

/* Power failures while a snapshot is created, applied or deleted.
 *
 * Each operation's writes are logged; for each moment at which one of them had
 * begun or ended, states are made that a power failure may leave then.  Each
 * holds, in the active layer and in all snapshots, what was there before or
 * what is there after.  An image with the dirty bit is right once it is
 * repaired; of any other, a check finds nothing, but in version 2 leaks, and
 * COPIED flags that are missing.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crash-state.h"
#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "snapshot-subject.h"
#include "tap.h"

#define QEMU_EVERY 97           /* states */

struct run {
  const struct snapshot_subject *s;
  enum snapshot_operation op;
  struct write_log log;
  struct image_content before, after, now;
};

struct tally {
  unsigned nr_states, nr_before, nr_dirty, nr_leaks, nr_missing_flags;
  unsigned nr_qemu;
  char wrong[600];              /* the first thing */
};

static void
operate (struct run *run)
{
  struct qcow2_options options;
  struct qcow2_error error = { "" };
  struct qcow2 *image;

  snapshot_subject_options (&options);
  write_log_use (&run->log, &options);
  if (qcow2_open (SNAPSHOT_IMAGE, &options, &image, &error) < 0 ||
      snapshot_operate (image, run->op, &error) < 0 ||
      qcow2_close (image) < 0) {
    printf ("Bail out! %s: %s\n", run->s->name, error.message);
    exit (1);
  }
}

/*----- Judging -----*/

/* NULL, or what is wrong. */
static const char *
judge_content (struct run *run, const char *file, struct tally *t)
{
  static char text[400];
  struct qcow2_error error;

  if (image_content_read (file, &run->now, &error) < 0) {
    snprintf (text, sizeof text, "%.300s", error.message);
    return text;
  }
  if (image_content_same (&run->now, &run->before)) {
    t->nr_before++;
    return NULL;
  }
  return image_content_same (&run->now, &run->after) ? NULL :
    "the content is neither that before nor that after";
}

static const char *
judge_metadata (struct run *run, const char *file, bool repaired,
                struct tally *t)
{
  static char text[400];
  struct snapshot_check check;
  bool lax = run->s->version == 2 && !repaired;
  int status;

  snapshot_check_file (file, &check);
  t->nr_leaks += check.nr_leaks > 0;
  t->nr_missing_flags += check.nr_missing_flags > 0;
  if (check.nr_bad > 0 ||
      (!lax && (check.nr_leaks > 0 || check.nr_missing_flags > 0))) {
    snprintf (text, sizeof text, "%u leaks, %u missing flags, %u bad: %s",
              (unsigned) check.nr_leaks, (unsigned) check.nr_missing_flags,
              (unsigned) check.nr_bad, check.first);
    return text;
  }
  if (t->nr_states % QEMU_EVERY != 0)
    return NULL;
  t->nr_qemu++;
  status = qemu_check (file);
  return status == 0 || (lax && status == 3 && check.nr_missing_flags == 0) ||
    (lax && status == 2 && check.nr_missing_flags > 0) ? NULL :
    "qemu-img check finds something else";
}

static const char *
repair (const char *from, const char *to, bool by_qemu)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;
  uint64_t nr;
  uint8_t *bytes = file_content (from, &nr);
  FILE *fp = fopen (to, "w");

  if (!fp || fwrite (bytes, 1, nr, fp) != nr || fclose (fp) != 0)
    exit (1);
  free (bytes);
  if (by_qemu) {
    run_command ("qemu-img check -q -r all %s > qemu.log 2>&1 || :", to);
    return NULL;
  }
  snapshot_subject_options (&options);
  if (qcow2_open (to, &options, &image, &error) < 0)
    return "it can't be opened to be repaired";
  qcow2_close (image);
  return NULL;
}

static void
judge (struct run *run, struct tally *t, uint64_t time, enum crash_mode mode)
{
  const char *file = "state/" SNAPSHOT_IMAGE;
  const char *wrong = judge_content (run, file, t);

  t->nr_states++;
  if (!wrong && damage_is_dirty (file)) {
    t->nr_dirty++;
    wrong = repair (file, "repaired.qcow2", t->nr_states % QEMU_EVERY == 0);
    file = "repaired.qcow2";
    if (!wrong && damage_is_dirty (file))
      wrong = "it can't be repaired";
    if (!wrong)
      wrong = judge_content (run, file, t);
    if (!wrong)
      wrong = judge_metadata (run, file, true, t);
  }
  else if (!wrong)
    wrong = judge_metadata (run, file, false, t);
  if (wrong && !t->wrong[0])
    snprintf (t->wrong, sizeof t->wrong, "at %u, %s: %s", (unsigned) time,
              crash_mode_name (mode), wrong);
}

static int
compare (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

static void
judge_moments (struct run *run, struct tally *t)
{
  struct write_classes classes;
  struct crash *crash;
  size_t nr = 0, i;
  uint64_t *moments = malloc ((2 * run->log.nr + 1) * sizeof *moments);
  unsigned mode;

  for (i = 0; i < run->log.nr; ++i) {
    moments[nr++] = run->log.events[i]->begin + 1;
    moments[nr++] = run->log.events[i]->end + 1;
  }
  qsort (moments, nr, sizeof *moments, compare);
  write_classes_init (&classes, &run->log);
  crash = crash_new (&run->log, &classes, MUTANT_NONE, "state");
  for (i = 0; i < nr; ++i) {
    if (i > 0 && moments[i] == moments[i - 1])
      continue;
    crash_go (crash, moments[i]);
    for (mode = i % 2; mode < NR_CRASH_MODES; mode += 2)
      /* With nothing in the balance all modes are the same. */
      if (crash_build (crash, mode, moments[i] * 100 + mode) > 0 || mode < 2)
        judge (run, t, moments[i], mode);
  }
  crash_free (crash);
  write_classes_clear (&classes);
  free (moments);
}

static void
test_operation (const struct snapshot_subject *s, enum snapshot_operation op)
{
  struct run run = { .s = s, .op = op };
  struct tally t = { .nr_states = 0 };
  struct qcow2_error error;

  run_command ("cp --sparse=always pristine/disk.qcow2 .");
  write_log_init (&run.log);
  if (image_content_read (SNAPSHOT_IMAGE, &run.before, &error) < 0)
    exit (1);
  operate (&run);
  if (image_content_read (SNAPSHOT_IMAGE, &run.after, &error) < 0)
    exit (1);
  judge_moments (&run, &t);
  is_str (t.wrong, "", "%s: %s: %u states, %u of them dirty, %u with leaks, "
          "%u with missing flags, %u checked by QEMU", s->name,
          snapshot_operation_name (op), t.nr_states, t.nr_dirty, t.nr_leaks,
          t.nr_missing_flags, t.nr_qemu);
  ok (t.nr_before > 0 && t.nr_states > 20 && (s->version == 2) ==
      (t.nr_dirty == 0), "states of both kinds have been seen");
  ok (!image_content_same (&run.before, &run.after),
      "the operation has changed something");
  write_log_clear (&run.log);
  image_content_clear (&run.before);
  image_content_clear (&run.after);
  image_content_clear (&run.now);
}

int
main (void)
{
  scratch_dir_enter_memory ();
  snapshot_subjects_test (test_operation);
  return tap_done ();
}
