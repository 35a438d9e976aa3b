/* SPDX-License-Identifier: BSD-3-Clause */

/* I/O that fails while a snapshot is created, applied or deleted.
 *
 * Each read, write, flush and truncation fails once, in turn.  The image then
 * holds what was there before, if the operation has told so, or else what is
 * there after it; what it told names the file.  It can be tried again, but
 * after a failed flush.  The image is sound in the end, tried again or not.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "metadata-damage.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "snapshot-subject.h"
#include "tap.h"
#include "write-log.h"
#include "writer.h"

struct faults {
  enum log_kind kind;
  int err;
  long countdown;               /* 0: none */
  bool hit;
};

struct tally {
  unsigned nr_cases, nr_failed, nr_ended, nr_cleanups;
  char wrong[600];              /* the first thing */
};

struct testing {
  const struct snapshot_subject *s;
  enum snapshot_operation op;
  bool again;                   /* what has failed is tried again */
  bool done;                    /* it has succeeded */
  struct image_content before, after, now;
  struct tally t;
};

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  struct faults *f = opaque;

  if (event->kind != f->kind || f->countdown == 0 || --f->countdown > 0)
    return 0;
  f->hit = true;
  return -f->err;
}

static void
wrong (struct testing *x, const struct faults *f, long nth, const char *what)
{
  if (!x->t.wrong[0])
    snprintf (x->t.wrong, sizeof x->t.wrong, "%.400s (I/O of kind %d, number "
              "%ld, %s)", what, (int) f->kind, nth, strerror (f->err));
}

static void
repair (struct testing *x, const struct faults *f, long nth)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  snapshot_subject_options (&options);
  if (qcow2_open (SNAPSHOT_IMAGE, &options, &image, &error) < 0 ||
      qcow2_close (image) < 0 || damage_is_dirty (SNAPSHOT_IMAGE))
    wrong (x, f, nth, "it can't be repaired");
}

/* After closing, and a repair. */
static void
judge_file (struct testing *x, const struct faults *f, long nth, bool ended)
{
  struct snapshot_check check;
  struct qcow2_error error;
  bool dirty = damage_is_dirty (SNAPSHOT_IMAGE);
  bool lax = x->s->version == 2 && (ended || x->t.nr_cleanups > 0);

  if (dirty)
    repair (x, f, nth);
  if (image_content_read (SNAPSHOT_IMAGE, &x->now, &error) < 0)
    wrong (x, f, nth, error.message);
  else if (!(x->done || ended) ?
           !image_content_same (&x->now, &x->before) :
           !image_content_same (&x->now, &x->after) &&
           !(ended && image_content_same (&x->now, &x->before)))
    wrong (x, f, nth, "wrong content in the end");
  snapshot_check_file (SNAPSHOT_IMAGE, &check);
  if (check.nr_bad > 0 ||
      (!lax && (check.nr_leaks > 0 || check.nr_missing_flags > 0)))
    wrong (x, f, nth, check.nr_bad > 0 ? check.first : "leaks or flags");
}

static void
operate (struct testing *x, const struct faults *fault, struct faults *f,
         struct qcow2 *image, long nth)
{
  struct qcow2_error error = { "" };
  int r = snapshot_operate (image, x->op, &error);

  f->countdown = 0;
  x->t.nr_failed += r < 0;
  if (r < 0 && !strstr (error.message, SNAPSHOT_IMAGE))
    wrong (x, fault, nth, "the message does not name the file");
  if (image_content_get (image, &x->now) < 0 ||
      !image_content_same (&x->now, r < 0 ? &x->before : &x->after))
    wrong (x, fault, nth, "wrong content while it is open");
  if (r < 0 && x->again && image->writer->committer.failed == 0) {
    r = snapshot_operate (image, x->op, &error);
    if (r < 0)
      wrong (x, fault, nth, "it can't be tried again");
  }
  x->done = r == 0;
}

/* Returns whether there was that I/O. */
static bool
one_fault (struct testing *x, const struct faults *fault, long nth)
{
  struct faults f = *fault;
  struct qcow2_options options;
  struct qcow2_error error;
  struct write_log log;
  struct qcow2 *image;
  bool ended;

  run_command ("cp --sparse=always pristine/disk.qcow2 .");
  write_log_init (&log);
  log.hook = maybe_fail;
  log.opaque = &f;
  snapshot_subject_options (&options);
  write_log_use (&log, &options);
  if (qcow2_open (SNAPSHOT_IMAGE, &options, &image, &error) < 0)
    exit (1);
  f.countdown = nth;
  x->t.nr_cleanups = 0;
  operate (x, fault, &f, image, nth);
  ended = image->writer->committer.failed;
  x->t.nr_cleanups = write_log_said (&log, "cleaning up");
  x->t.nr_ended += ended;
  if ((qcow2_close (image) < 0) != ended)
    wrong (x, fault, nth, "closing has failed, or not");
  judge_file (x, fault, nth, ended);
  write_log_clear (&log);
  x->t.nr_cases++;
  return f.hit;
}

static void
expect_after (struct testing *x)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  run_command ("cp --sparse=always pristine/disk.qcow2 .");
  snapshot_subject_options (&options);
  if (image_content_read (SNAPSHOT_IMAGE, &x->before, &error) < 0 ||
      qcow2_open (SNAPSHOT_IMAGE, &options, &image, &error) < 0 ||
      snapshot_operate (image, x->op, &error) < 0 ||
      image_content_get (image, &x->after) < 0 || qcow2_close (image) < 0) {
    printf ("Bail out! %s: %s\n", x->s->name, error.message);
    exit (1);
  }
}

static void
test_operation (const struct snapshot_subject *s, enum snapshot_operation op)
{
  static const struct faults faults[] = {
    { .kind = LOG_WRITE, .err = EIO }, { .kind = LOG_WRITE, .err = ENOSPC },
    { .kind = LOG_READ, .err = EIO }, { .kind = LOG_FLUSH, .err = EIO },
    { .kind = LOG_TRUNCATE, .err = EIO },
  };
  struct testing x = { .s = s, .op = op };
  unsigned i;
  long nth;

  expect_after (&x);
  for (i = 0; i < sizeof faults / sizeof faults[0]; ++i)
    for (nth = 1; ; ++nth) {
      x.again = (nth + s->version + i) % 2 == 0;
      if (!one_fault (&x, &faults[i], nth))
        break;
    }
  is_str (x.t.wrong, "", "%s: %s: %u faults, %u of them failures, %u ends of "
          "writing", s->name, snapshot_operation_name (op), x.t.nr_cases,
          x.t.nr_failed, x.t.nr_ended);
  ok (x.t.nr_failed > 4 && x.t.nr_ended > 1, "there were failures");
  image_content_clear (&x.before);
  image_content_clear (&x.after);
  image_content_clear (&x.now);
}

int
main (void)
{
  scratch_dir_enter_memory ();
  snapshot_subjects_test (test_operation);
  return tap_done ();
}
