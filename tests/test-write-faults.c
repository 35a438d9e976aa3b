/* SPDX-License-Identifier: BSD-3-Clause */

/* Whatever the storage refuses, nothing else is damaged.
 *
 * Random requests run on images of several kinds while one request to the
 * storage fails, or all of its kind from one on.  A request that fails
 * leaves its range with the old or the new content, and all else as it
 * was, seen live and after closing, and after a power failure.  Nothing
 * is corrupt.  Then the image goes on as before; but after a failed
 * flush it can't be written or flushed any more, since nobody knows what
 * was lost, while reads go on.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "active-view.h"
#include "crash-state.h"
#include "image.h"
#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define NR_POINTS 8             /* of failure, for each kind of fault */
#define STATES_PER_CASE 4

struct fault_case {
  enum log_kind kind;
  int err;                      /* positive */
  bool lasting;
  bool leaving;                 /* not before the last client leaves */
};

static const struct fault_case fault_cases[] = {
  { LOG_READ, EIO, false, false },
  { LOG_READ, EIO, true, false },
  { LOG_WRITE, EIO, false, false },
  { LOG_WRITE, EIO, true, false },
  { LOG_WRITE, ENOSPC, false, false },
  { LOG_WRITE, ENOSPC, true, false },
  { LOG_FLUSH, EIO, false, false },
  { LOG_FLUSH, ENOSPC, false, false },
  { LOG_ZERO, EIO, false, false },
  { LOG_TRUNCATE, EIO, false, false },
  { LOG_TRUNCATE, ENOSPC, false, false },
  { LOG_DISCARD, EIO, true, false },
  { LOG_READ, EIO, false, true },
  { LOG_WRITE, EIO, false, true },
  { LOG_WRITE, EIO, true, true },
  { LOG_FLUSH, EIO, false, true },
};

#define NR_FAULT_CASES (sizeof fault_cases / sizeof fault_cases[0])

static const char *const kind_names[NR_LOG_KINDS] = {
  "read", "write", "zero", "discard", "truncate", "flush",
};

/* What the hook knows. */
struct faulty {
  struct fault_case fault;
  atomic_bool armed;
  atomic_long count[NR_LOG_KINDS];
  long nth;
  atomic_uint nr_hit;
  atomic_bool flush_failed;
  atomic_bool durable_failed;   /* a durable write */
};

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  struct faulty *f = opaque;
  long n = atomic_fetch_add (&f->count[event->kind], 1) + 1;

  if (!atomic_load (&f->armed) || event->kind != f->fault.kind ||
      n < f->nth || (n > f->nth && !f->fault.lasting))
    return 0;
  atomic_fetch_add (&f->nr_hit, 1);
  if (event->kind == LOG_FLUSH)
    atomic_store (&f->flush_failed, true);
  if (event->durable)
    atomic_store (&f->durable_failed, true);
  return -f->fault.err;
}

/* Sums over the cases of a kind of image. */
struct tally {
  unsigned nr_cases, nr_hit, nr_ended;
  unsigned nr_wrong_live, nr_wrong_closed, nr_corrupt, nr_bad_states;
  unsigned nr_not_going_on, nr_not_ended, nr_unread, nr_false_close;
  unsigned nr_leaking;
  char first[600];
};

static void
note (struct tally *t, const struct faulty *f, unsigned *counter,
      const char *what)
{
  ++*counter;
  if (t->first[0] == '\0')
    snprintf (t->first, sizeof t->first, "%s %s %ld with errno %d: %s",
              f->fault.lasting ? "every" : "one", kind_names[f->fault.kind],
              f->nth, f->fault.err, what);
}

struct subject_state {
  struct write_subject s;       /* shorter runs */
  uint8_t *initial;
  uint8_t *snapshot;            /* or NULL */
  uint8_t *buf;
};

/*----- One case -----*/

static void
check_live (struct subject_state *ss, struct qcow2_view *view,
            struct guest *guest, const struct faulty *f, struct tally *t)
{
  uint64_t first = 0;

  if (qcow2_pread (view, ss->buf, ss->s.disk_bytes, 0) < 0)
    note (t, f, &t->nr_unread, "reading does not go on");
  else if (guest_check_live (guest, ss->buf, &first) > 0)
    note (t, f, &t->nr_wrong_live, "content is wrong");
}

/* With no faults any more: a write and a flush.  Returns true if the
 * image can't be written any more.
 */
static bool
check_goes_on (struct qcow2_view *view, struct write_log *log,
               struct guest *guest, const struct faulty *f, struct tally *t)
{
  uint8_t buf[GUEST_SECTOR];
  bool may_end = f->flush_failed || f->durable_failed;
  size_t op = guest_begin (guest, GUEST_WRITE, 7, 1, write_log_tick (log),
                           buf);
  int r = qcow2_pwrite (view, buf, sizeof buf, 7 * GUEST_SECTOR, false), r2;
  uint64_t begin;

  guest_end (guest, op, r == 0, false, write_log_tick (log));
  begin = write_log_tick (log);
  r2 = qcow2_flush (view);
  if (r2 == 0)
    guest_flushed (guest, begin, write_log_tick (log));
  if (!may_end && (r < 0 || r2 < 0))
    note (t, f, &t->nr_not_going_on, "it does not go on");
  if (f->flush_failed && (r != -EROFS || r2 == 0))
    note (t, f, &t->nr_not_ended, "it goes on after a failed flush");
  return r2 < 0;
}

static void
check_after (struct subject_state *ss, struct power_run *run, bool closed,
             const struct faulty *f, struct tally *t)
{
  struct power_result result;
  struct qcow2_error error;
  uint64_t first = 0;
  int status;

  guest_index (&run->guest);
  write_classes_init (&run->classes, &run->log);
  /* Lazy refcounts are right again after a repair. */
  if (damage_is_dirty (SUBJECT_IMAGE) &&
      (closed || subject_repair (&ss->s, ".") < 0))
    note (t, f, &t->nr_corrupt, "it is dirty");
  status = qemu_check (SUBJECT_IMAGE);
  if (status != 0 && status != 3)
    note (t, f, &t->nr_corrupt, "qemu-img check finds corruption");
  if (status == 3 && closed)
    note (t, f, &t->nr_leaking, "a clean close leaves leaks");
  if (subject_read (&ss->s, ".", false, ss->buf, &error) < 0 ||
      (closed && guest_check_live (&run->guest, ss->buf, &first) > 0))
    note (t, f, &t->nr_wrong_closed, "content is wrong after closing");
  power_check (run, MUTANT_NONE, STATES_PER_CASE, (uint64_t) f->nth, false,
               &result);
  if (result.nr_bad > 0)
    note (t, f, &t->nr_bad_states, result.first);
  write_classes_clear (&run->classes);
}

/* The last client leaves, meets the fault, and another one comes. */
static struct qcow2_view *
leave_and_come (struct qcow2_view *view, struct faulty *f)
{
  struct qcow2 *image = view->image;
  int i;

  for (i = 0; i < NR_LOG_KINDS; ++i)
    atomic_store (&f->count[i], 0);
  atomic_store (&f->armed, true);
  qcow2_view_close (view);
  atomic_store (&f->armed, false);
  return must_open_view (image);
}

static void
one_case (struct subject_state *ss, struct faulty *f, uint64_t seed,
          struct tally *t)
{
  struct power_run run = { .subject = &ss->s, .snapshot = ss->snapshot };
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2_view *view;
  struct qcow2 *image;
  uint8_t *initial = malloc (ss->s.disk_bytes);
  bool ended;
  int r;

  run_command ("cp --sparse=always pristine/* .");
  memcpy (initial, ss->initial, ss->s.disk_bytes);
  guest_init (&run.guest, initial, ss->s.disk_bytes / GUEST_SECTOR);
  write_log_init (&run.log);
  run.log.hook = maybe_fail;
  run.log.opaque = f;
  subject_options (&ss->s, ".", &options);
  options.writable = true;
  options.lock = true;          /* or an error in leaving would end writing */
  write_log_use (&run.log, &options);
  if (qcow2_open (SUBJECT_IMAGE, &options, &image, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  view = must_open_view (image);

  /* What is done in opening is for another test. */
  for (r = 0; r < NR_LOG_KINDS; ++r)
    atomic_store (&f->count[r], 0);
  atomic_store (&f->armed, f->nth > 0 && !f->fault.leaving);
  subject_run (&ss->s, view, &run.log, &run.guest, seed);
  /* Truncating comes last. */
  if (f->fault.kind != LOG_TRUNCATE)
    atomic_store (&f->armed, false);
  if (f->fault.leaving)
    view = leave_and_come (view, f);
  guest_index (&run.guest);
  check_live (ss, view, &run.guest, f, t);
  ended = check_goes_on (view, &run.log, &run.guest, f, t);
  qcow2_view_close (view);
  r = qcow2_close (image);
  if (r == 0 && ended)
    note (t, f, &t->nr_false_close, "closing succeeds");
  t->nr_cases++;
  t->nr_hit += f->nr_hit > 0;
  t->nr_ended += ended;
  check_after (ss, &run, r == 0, f, t);
  write_log_clear (&run.log);
  guest_clear (&run.guest);
}

/*----- All cases -----*/

static void
run_cases (struct subject_state *ss, struct tally *t)
{
  struct faulty none = { .nth = 0 };
  unsigned i, point;

  one_case (ss, &none, 1, t);   /* how many requests there are */
  t->nr_cases = 0;
  for (i = 0; i < NR_FAULT_CASES; ++i) {
    long total = fault_cases[i].leaving ? NR_POINTS / 2 :
      none.count[fault_cases[i].kind];
    long last = -1;

    for (point = 0; point < NR_POINTS; ++point) {
      struct faulty f = { .fault = fault_cases[i],
                          .nth = 1 + total * (long) point / NR_POINTS };

      if (total > 0 && f.nth != last)
        one_case (ss, &f, point + 1, t);
      last = f.nth;
    }
  }
}

static void
test_subject (const struct write_subject *s)
{
  struct subject_state ss = { .s = *s };
  struct tally t = { .nr_cases = 0 };
  uint64_t state = 77;

  if (ss.s.nr_ops > 30)
    ss.s.nr_ops = 30;
  ss.s.nr_before /= 2;
  subject_make (&ss.s, &state);
  ss.initial = subject_must_read (&ss.s, false);
  ss.snapshot = s->snapshot ? subject_must_read (&ss.s, true) : NULL;
  ss.buf = malloc (s->disk_bytes);
  run_command ("mkdir pristine && mv *.* pristine/ && cp pristine/* .");
  run_cases (&ss, &t);

  ok (t.nr_hit * 2 > t.nr_cases && t.nr_ended > 0,
      "%s: %u of %u runs met a fault, %u ended the writing", s->name,
      t.nr_hit, t.nr_cases, t.nr_ended);
  is_int (t.nr_unread, 0, "%s: reading goes on", s->name);
  is_int (t.nr_wrong_live, 0, "%s: content is right", s->name);
  is_int (t.nr_not_going_on, 0, "%s: writing goes on", s->name);
  is_int (t.nr_not_ended, 0, "%s: but not after a failed flush", s->name);
  is_int (t.nr_false_close, 0, "%s: closing does not succeed then", s->name);
  is_int (t.nr_wrong_closed, 0, "%s: content is right after closing",
          s->name);
  is_int (t.nr_corrupt, 0, "%s: qemu-img check finds no corruption",
          s->name);
  is_int (t.nr_leaking, 0, "%s: nor leaks after a clean close", s->name);
  is_int (t.nr_bad_states, 0, "%s: a power failure leaves no corruption%s%s",
          s->name, t.first[0] ? ": " : "", t.first);
  free (ss.initial);
  free (ss.snapshot);
  free (ss.buf);
}

/*----- A flush that waits for its turn while a durable write fails -----*/

struct meeting {
  atomic_bool armed;
  atomic_bool failing;          /* the failing write has begun */
};

static bool
is_durable_write (const struct log_event *event)
{
  return event->kind == LOG_WRITE && event->durable;
}

static int
fail_slowly (void *opaque, const struct log_event *event)
{
  struct meeting *m = opaque;

  if (!is_durable_write (event) || !atomic_exchange (&m->armed, false))
    return 0;
  atomic_store (&m->failing, true);
  usleep (200000);
  return -EIO;
}

struct flusher {
  struct qcow2_view *view;
  struct meeting *meeting;
  int result;
};

static void *
flush_meanwhile (void *opaque)
{
  struct flusher *f = opaque;

  while (!atomic_load (&f->meeting->failing))
    usleep (1000);
  f->result = qcow2_flush (f->view);
  return NULL;
}

/* Metadata that was written after a failed durable write. */
static unsigned
count_links_after_failure (const struct power_run *run)
{
  uint64_t failed = UINT64_MAX;
  unsigned nr = 0;
  size_t i;

  for (i = 0; i < run->log.nr; ++i) {
    const struct log_event *e = run->log.events[i];

    if (is_durable_write (e) && e->failed && failed == UINT64_MAX)
      failed = e->end;
    if (e->kind == LOG_WRITE && e->begin > failed)
      nr++;
  }
  return nr;
}

/* The refcount structures grow, and the durable write for that fails.  What was
 * to be flushed by the one that waits may be lost with it.
 */
static void
test_waiting_flush (void)
{
  static const struct write_subject s = {
    .name = "a flush that waits", .cluster_bytes = 1024,
    .create = "qemu-img create -q -f qcow2 "
      "-o cluster_size=1k,refcount_bits=64 disk.qcow2 2M",
    .disk_bytes = 2 << 20,
  };
  struct power_run run = { .subject = &s };
  struct meeting meeting = { .armed = false };
  struct flusher flusher = { .meeting = &meeting };
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image = NULL;
  uint8_t *buf = calloc (1, s.disk_bytes);
  uint64_t state = 5;
  pthread_t thread;
  int r = -EINVAL;

  subject_make (&s, &state);
  write_log_init (&run.log);
  run.log.hook = fail_slowly;
  run.log.opaque = &meeting;
  subject_options (&s, ".", &options);
  options.writable = true;
  write_log_use (&run.log, &options);
  if (buf && qcow2_open (SUBJECT_IMAGE, &options, &image, &error) == 0)
    r = qcow2_view_open (image, QCOW2_ACTIVE, &flusher.view, &error);
  if (r == 0)
    r = qcow2_pwrite (flusher.view, buf, 16384, 0, false);
  if (r < 0 ||
      pthread_create (&thread, NULL, flush_meanwhile, &flusher) != 0) {
    printf ("Bail out! can't begin\n");
    exit (1);
  }
  atomic_store (&meeting.armed, true);
  r = qcow2_pwrite (flusher.view, buf, 1 << 20, 1 << 20, false);
  pthread_join (thread, NULL);
  is_int (r, -EIO, "growing fails with its durable write");
  ok (flusher.result < 0, "a flush that waited meanwhile fails");
  is_int (count_links_after_failure (&run), 0, "and it has written nothing");
  qcow2_view_close (flusher.view);
  qcow2_close (image);
  write_log_clear (&run.log);
  free (buf);
}

/*----- A flush after one that failed -----*/

/* The first flush fails at a refcount, before the data file's turn comes;
 * nothing is written before the second one.
 */
static void
test_flush_again (void)
{
  static const struct write_subject s = {
    .name = "a flush again", .data_file = "data.raw",
    .create = "qemu-img create -q -f qcow2 -o data_file=data.raw "
      "disk.qcow2 1M",
  };
  struct power_run run = { .subject = &s };
  struct faulty f = { .fault = { LOG_WRITE, EIO, false, false }, .nth = 1 };
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2_view *view = NULL;
  struct qcow2 *image = NULL;
  struct crash *crash;
  uint64_t state = 6;
  uint8_t buf[GUEST_SECTOR] = "data";
  int r = -EINVAL;

  subject_make (&s, &state);
  write_log_init (&run.log);
  run.log.hook = maybe_fail;
  run.log.opaque = &f;
  subject_options (run.subject, ".", &options);
  options.writable = true;
  write_log_use (&run.log, &options);
  if (qcow2_open (SUBJECT_IMAGE, &options, &image, &error) == 0)
    r = qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
  if (r == 0)
    r = qcow2_pwrite (view, buf, sizeof buf, 1000, false);
  is_int (r, 0, "a write succeeds");
  atomic_store (&f.count[LOG_WRITE], 0);
  atomic_store (&f.armed, true);
  is_int (qcow2_flush (view), -EIO, "a flush fails with a write");
  is_int (qcow2_flush (view), 0, "the next one succeeds");

  write_classes_init (&run.classes, &run.log);
  crash = crash_new (&run.log, &run.classes, MUTANT_NONE, "flushed");
  crash_go (crash, run.log.now + 1);
  is_int (crash_build (crash, CRASH_NOTHING, 1), 0,
          "and makes everything durable");
  crash_free (crash);
  write_classes_clear (&run.classes);
  qcow2_view_close (view);
  qcow2_close (image);
  write_log_clear (&run.log);
}

int
main (void)
{
  static const char *const names[] = {
    "64K clusters", "version 2", "512-byte clusters", "snapshots",
    "small batches", "extended L2", "data file", "growing refcounts", "overlay",
    "lazy refcounts",
  };
  const char *only = getenv ("FAULT_SUBJECT");
  unsigned i, j;

  scratch_dir_enter_memory ();
  for (i = 0; i < sizeof names / sizeof names[0]; ++i)
    for (j = 0; j < nr_write_subjects; ++j)
      if (strcmp (write_subjects[j].name, only ? only : names[i]) == 0 &&
          (!only || i == 0))
        test_subject (&write_subjects[j]);
  test_waiting_flush ();
  test_flush_again ();
  return tap_done ();
}
