/* SPDX-License-Identifier: BSD-3-Clause */

/* A power failure while a disk gets another size leaves the old size and
 * content, or the new one.  All moments are looked at, with different parts of
 * what was not durable then.
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crash-state.h"
#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "resize-case.h"
#include "scratch-dir.h"
#include "tap.h"

#define MODES_PER_MOMENT 3
#define MAX_CHECKS 30           /* by qemu-img, for each case: they are slow */

struct tally {
  unsigned nr_states, nr_checks, nr_old, nr_new, nr_leaks, nr_bad;
  char first[400];
};

static void
note (struct tally *t, uint64_t time, enum crash_mode mode,
      const char *wrong)
{
  if (wrong && t->nr_bad++ == 0)
    snprintf (t->first, sizeof t->first, "at %" PRIu64 ", %s: %.300s", time,
              crash_mode_name (mode), wrong);
}

/* The state in a directory where it may be changed. */
static void
copy_state (void)
{
  run_command ("rm -rf copy && mkdir copy && cp -L crash/* copy/");
}

/* By QEMU, and by growing. */
static const char *
judge_slowly (struct resize_truth *truth, struct tally *t)
{
  struct qcow2_error error;
  struct qcow2 *image;
  int status;

  t->nr_checks++;
  copy_state ();
  if (damage_is_dirty ("copy/" RESIZE_IMAGE)) {
    image = resize_open (NULL, "copy", NULL, &error);
    if (!image)
      return "it can't be repaired";
    qcow2_close (image);
  }
  status = qemu_check ("copy/" RESIZE_IMAGE);
  t->nr_leaks += status == 3;
  if (status != 0 && status != 3)
    return "qemu-img check finds something";
  return resize_judge_grown (truth, "copy");
}

static void
judge (struct resize_truth *truth, struct tally *t, uint64_t time,
       enum crash_mode mode, bool slowly)
{
  const char *wrong = resize_judge (truth, "crash");

  t->nr_states++;
  t->nr_old += !wrong && truth->size_bytes == truth->old_bytes;
  t->nr_new += !wrong && truth->size_bytes != truth->old_bytes;
  if (!wrong && slowly)
    wrong = judge_slowly (truth, t);
  note (t, time, mode, wrong);
}

static void
judge_all (struct resize_truth *truth, const struct write_log *log,
           struct tally *t)
{
  struct write_classes classes;
  struct crash *crash;
  uint64_t time, state = 7;
  uint64_t every = log->now * MODES_PER_MOMENT / MAX_CHECKS + 1;
  unsigned i;

  write_classes_init (&classes, log);
  crash = crash_new (log, &classes, MUTANT_NONE, "crash");
  run_command ("test ! -e base.qcow2 || ln -s ../base.qcow2 crash");
  for (time = 1; time <= log->now + 1; ++time) {
    crash_go (crash, time);
    for (i = 0; i < MODES_PER_MOMENT; ++i) {
      enum crash_mode mode = random_below (&state, NR_CRASH_MODES);

      crash_build (crash, mode, random_next (&state));
      judge (truth, t, time, mode,
             (time * MODES_PER_MOMENT + i) % every == 0);
    }
  }
  crash_free (crash);
  write_classes_clear (&classes);
}

/* Let the worker commit what there is before each write of the others. */
static int
wait_for_worker (void *opaque, const struct log_event *event)
{
  const pthread_t *operating = opaque;

  if (event->kind == LOG_WRITE && pthread_equal (*operating, pthread_self ()))
    usleep (2000);
  return 0;
}

static void
test_case (const struct resize_case *c)
{
  pthread_t self = pthread_self ();
  struct resize_truth truth;
  struct tally t = { .nr_states = 0 };
  struct qcow2_error error = { "" };
  struct write_log log;
  const char *wrong;

  resize_make (c, &truth);
  write_log_init (&log);
  if (c->small_cache) {
    log.hook = wait_for_worker;
    log.opaque = &self;
  }
  is_int (resize_do (c, ".", &log, &error), 0, "%s: resized %s", c->name,
          error.message);
  wrong = resize_judge (&truth, ".");
  ok (!wrong && truth.size_bytes == c->size_bytes,
      "%s: size and content are right: %s", c->name, wrong ? wrong : "yes");
  is_int (qemu_check (RESIZE_IMAGE), 0, "%s: the check is clean", c->name);
  judge_all (&truth, &log, &t);
  is_int (t.nr_bad, 0, "%s: of %u states all are sound%s%s", c->name,
          t.nr_states, t.nr_bad > 0 ? ": " : "", t.first);
  ok (t.nr_old > 2 && t.nr_new > 2, "%s: %u states have the old size, %u the "
      "new one; of %u that were checked %u have leaks", c->name, t.nr_old,
      t.nr_new, t.nr_checks, t.nr_leaks);
  write_log_clear (&log);
  resize_clear (&truth);
}

int
main (void)
{
  scratch_dir_enter_memory ();
  resize_cases_test (test_case);
  return tap_done ();
}
