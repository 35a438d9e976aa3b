/* SPDX-License-Identifier: BSD-3-Clause */

/* I/O that fails while a disk gets another size: at each point in turn.  The
 * image has the old size and content or the new one, is sound, and can be
 * resized afterwards.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grow-disk.h"
#include "metadata-damage.h"
#include "image.h"
#include "power-check.h"
#include "qemu-image.h"
#include "resize-case.h"
#include "scratch-dir.h"
#include "tap.h"

struct fault {
  enum log_kind kind;
  int err;
  long countdown;               /* 0: none */
  bool hit;
};

static const struct fault kinds[] = {
  { .kind = LOG_READ, .err = EIO },
  { .kind = LOG_WRITE, .err = EIO },
  { .kind = LOG_WRITE, .err = ENOSPC },
  { .kind = LOG_ZERO, .err = EIO },
  { .kind = LOG_DISCARD, .err = EIO },
  { .kind = LOG_TRUNCATE, .err = EIO },
  { .kind = LOG_FLUSH, .err = EIO },
};

struct tally {
  unsigned nr_cases, nr_failed, nr_silent, nr_untrue, nr_grown, nr_bad;
  char first[400];
};

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  struct fault *f = opaque;

  if (event->kind != f->kind || f->countdown == 0 || --f->countdown > 0)
    return 0;
  f->hit = true;
  return -f->err;
}

static void
note (struct tally *t, const struct fault *f, long nth, const char *wrong)
{
  if (wrong && t->nr_bad++ == 0)
    snprintf (t->first, sizeof t->first, "kind %d, number %ld: %.300s",
              f->kind, nth, wrong);
}

/* Once more, without faults.  Nothing leaks if the file could not be given a
 * length: that is done before anything names what is there.
 */
static const char *
judge (struct resize_truth *truth, enum log_kind kind)
{
  static struct qcow2_error error;
  const char *wrong = resize_judge (truth, ".");
  int leaks = kind == LOG_TRUNCATE ? 0 : 3;

  if (wrong)
    return wrong;
  if (!damage_is_dirty (RESIZE_IMAGE) && qemu_check (RESIZE_IMAGE) & ~leaks)
    return "the check finds something";
  if (resize_do (truth->c, ".", NULL, &error) < 0)
    return error.message;
  wrong = resize_judge (truth, ".");
  if (!wrong && truth->size_bytes != truth->c->size_bytes)
    return "the second try gives another size";
  if (!wrong && qemu_check (RESIZE_IMAGE) & ~3)
    return "the check finds something after the second try";
  return wrong ? wrong : resize_judge_grown (truth, ".");
}

/* The disk goes on to be used after an error. */
static bool
grows_on (struct resize_truth *truth, struct qcow2 *image)
{
  struct qcow2_view *view;
  struct qcow2_error error;

  if (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0)
    return false;
  truth->size_bytes = qcow2_view_size (view);
  qcow2_view_close (view);
  /* A disk that is smaller now: to where the old L1 table would do. */
  return grow_disk (image, truth->size_bytes < truth->old_bytes ?
                    truth->old_bytes :
                    2 * truth->old_bytes + truth->c->size_bytes,
                    &error) == 0;
}

/* The image is opened before there are faults. */
static bool
one_fault (struct resize_truth *truth, const struct fault *kind, long nth,
           bool grow, struct tally *t)
{
  struct qcow2_error error = { "" };
  struct fault f = *kind;
  struct write_log log;
  struct qcow2 *image;
  bool grown = false;
  int r;

  run_command ("cp --sparse=always pristine/* .");
  write_log_init (&log);
  log.hook = maybe_fail;
  log.opaque = &f;
  image = resize_open (truth->c, ".", &log, &error);
  if (!image) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  f.countdown = nth;
  r = qcow2_resize (image, truth->c->size_bytes, truth->c->preallocation,
                    true, &error);
  f.countdown = 0;
  t->nr_cases++;
  t->nr_failed += r < 0;
  t->nr_silent += r < 0 && !strstr (error.message, RESIZE_IMAGE);
  t->nr_untrue += r < 0 && !strstr (error.message, "was made") !=
    (image->chain.layers[0]->size_bytes != truth->c->size_bytes);
  if (r < 0 && grow)
    grown = grows_on (truth, image);
  qcow2_close (image);
  t->nr_grown += grown;
  note (t, &f, nth, grown ? resize_judge_grown (truth, ".") :
        judge (truth, f.kind));
  write_log_clear (&log);
  return f.hit;
}

static void
test_case (const struct resize_case *c)
{
  struct resize_truth truth;
  struct tally t = { .nr_cases = 0 };
  unsigned i;
  long nth;

  if (c->small_cache)           /* nothing here fails in another way */
    return;
  resize_make (c, &truth);
  run_command ("mkdir pristine && mv *.* pristine/");
  for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i)
    for (nth = 1; one_fault (&truth, &kinds[i], nth, false, &t); ++nth)
      if (kinds[i].kind <= LOG_WRITE)
        one_fault (&truth, &kinds[i], nth, true, &t);
  is_int (t.nr_bad, 0, "%s: %u faults leave a sound image%s%s", c->name,
          t.nr_cases, t.nr_bad > 0 ? ": " : "", t.first);
  is_int (t.nr_silent, 0, "%s: each message names the file", c->name);
  is_int (t.nr_untrue, 0, "%s: and tells of another size if there is one",
          c->name);
  ok (t.nr_failed > 3 && t.nr_grown > 1, "%s: %u of them let resizing fail, "
      "%u times the disk grew on", c->name, t.nr_failed, t.nr_grown);
  resize_clear (&truth);
}

int
main (void)
{
  scratch_dir_enter_memory ();
  resize_cases_test (test_case);
  return tap_done ();
}
