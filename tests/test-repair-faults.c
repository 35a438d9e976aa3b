/* SPDX-License-Identifier: BSD-3-Clause */

/* A repair that fails at any point, or that power fails in, does no harm:
 * the image has the dirty bit still, or is right, its content is what it
 * was, and the next repair makes it right.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define NR_POINTS 8             /* of failure, for each kind of fault */
#define NR_STATES 60
#define GROWING "lazy refcounts, growing"

struct subject_state {
  const struct write_subject *s;
  uint8_t *content;
  uint8_t *snapshot;            /* or NULL */
  uint8_t *buf;
};

/*----- Faults -----*/

struct fault_case {
  enum log_kind kind;
  bool lasting;
};

static const struct fault_case fault_cases[] = {
  { LOG_READ, false },
  { LOG_READ, true },
  { LOG_WRITE, false },
  { LOG_WRITE, true },
  { LOG_FLUSH, false },
};

struct faulty {
  struct fault_case fault;
  atomic_long count[NR_LOG_KINDS];
  long nth;
};

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  struct faulty *f = opaque;
  long n = atomic_fetch_add (&f->count[event->kind], 1) + 1;

  return f->nth > 0 && event->kind == f->fault.kind &&
    (f->fault.lasting ? n >= f->nth : n == f->nth) ? -EIO : 0;
}

/* Open for writing and close.  Returns whether it could be written. */
static bool
open_and_close (struct subject_state *ss, struct write_log *log)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2_view *view = NULL;
  struct qcow2 *image;
  bool can_write = false;

  subject_options (ss->s, ".", &options);
  options.writable = true;
  log->fixed_size = ss->s->spare_bytes > 0;
  write_log_use (log, &options);
  if (qcow2_open (SUBJECT_IMAGE, &options, &image, &error) < 0)
    return false;
  if (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) == 0)
    can_write = qcow2_view_can_write (view);
  qcow2_view_close (view);
  qcow2_close (image);
  return can_write;
}

static bool
is_unharmed (struct subject_state *ss)
{
  struct qcow2_error error;

  if (subject_read (ss->s, ".", false, ss->buf, &error) < 0 ||
      memcmp (ss->buf, ss->content, ss->s->disk_bytes) != 0)
    return false;
  return !ss->snapshot ||
    (subject_read (ss->s, ".", true, ss->buf, &error) == 0 &&
     memcmp (ss->buf, ss->snapshot, ss->s->disk_bytes) == 0);
}

struct tally {
  unsigned nr_cases, nr_hit, nr_writable, nr_false, nr_harmed, nr_not_repaired;
};

static void
one_case (struct subject_state *ss, struct faulty *f, struct tally *t)
{
  struct write_log log;
  bool can_write;

  run_command ("cp --sparse=always pristine/* .");
  write_log_init (&log);
  log.hook = maybe_fail;
  log.opaque = f;
  can_write = open_and_close (ss, &log);
  write_log_clear (&log);

  t->nr_cases++;
  t->nr_writable += can_write;
  t->nr_hit += f->nth > 0 && f->count[f->fault.kind] >= f->nth;
  if (!damage_is_dirty (SUBJECT_IMAGE))
    t->nr_false += qemu_check (SUBJECT_IMAGE) != 0;
  else
    t->nr_false += can_write;
  t->nr_harmed += !is_unharmed (ss);
  if (subject_repair (ss->s, ".") < 0 || damage_is_dirty (SUBJECT_IMAGE) ||
      qemu_check (SUBJECT_IMAGE) != 0)
    t->nr_not_repaired++;
  t->nr_harmed += !is_unharmed (ss);
}

static void
test_faults (struct subject_state *ss)
{
  struct faulty none = { .nth = 0 };
  struct tally t = { .nr_cases = 0 };
  const char *name = ss->s->name;
  unsigned i, point;

  one_case (ss, &none, &t);
  ok (t.nr_writable == 1, "%s: without faults it can be written", name);
  for (i = 0; i < sizeof fault_cases / sizeof fault_cases[0]; ++i) {
    long total = none.count[fault_cases[i].kind], last = -1;

    for (point = 0; point < NR_POINTS; ++point) {
      struct faulty f = {
        .fault = fault_cases[i],
        .nth = 1 + (total - 1) * (long) point / (NR_POINTS - 1),
      };

      if (total > 0 && f.nth != last)
        one_case (ss, &f, &t);
      last = f.nth;
    }
  }
  is_int (t.nr_hit + 1, t.nr_cases, "%s: %u runs met a fault", name,
          t.nr_hit);
  ok (t.nr_writable * 4 < t.nr_cases, "%s: few of them could be written",
      name);
  is_int (t.nr_false, 0, "%s: what is not right is dirty and read-only",
          name);
  is_int (t.nr_harmed, 0, "%s: the content is what it was", name);
  is_int (t.nr_not_repaired, 0, "%s: the next repair makes it right", name);
}

/*----- Power failures -----*/

static void
make_run (struct subject_state *ss, struct power_run *run)
{
  uint8_t *content = malloc (ss->s->disk_bytes);

  if (!content)
    abort ();
  memset (run, 0, sizeof *run);
  run->subject = ss->s;
  run_command ("cp --sparse=always pristine/* .");
  memcpy (content, ss->content, ss->s->disk_bytes);
  guest_init (&run->guest, content, ss->s->disk_bytes / GUEST_SECTOR);
  run->snapshot = ss->snapshot;
  write_log_init (&run->log);
  ok (open_and_close (ss, &run->log), "%s: it is repaired", ss->s->name);
  guest_index (&run->guest);
  write_classes_init (&run->classes, &run->log);
}

/* Whenever the header is written, to name another refcount table or to
 * clear the dirty bit, all that came before is durable.  Returns how often
 * it is not; *NR: how often the header is written.
 */
static unsigned
count_early_headers (const struct write_log *log, unsigned *nr)
{
  unsigned nr_early = 0;
  bool pending = false;
  size_t i;

  *nr = 0;
  for (i = 0; i < log->nr; ++i) {
    const struct log_event *e = log->events[i];

    if (e->kind == LOG_FLUSH)
      pending = false;
    else if (e->kind == LOG_WRITE && !(e->durable && e->offset == 0))
      pending = true;
    else {
      nr_early += pending;
      ++*nr;
    }
  }
  return nr_early;
}

static void
test_power (struct subject_state *ss, enum write_mutant mutant)
{
  struct power_run run;
  struct power_result result;
  unsigned nr;

  make_run (ss, &run);
  is_int (count_early_headers (&run.log, &nr), 0,
          "%s: the header is written after all else", ss->s->name);
  is_int (nr, strcmp (ss->s->name, GROWING) == 0 ? 2 : 1,
          "%s: so often", ss->s->name);
  power_check (&run, mutant, NR_STATES, 1, mutant != MUTANT_NONE, &result);
  if (mutant != MUTANT_NONE)
    ok (result.nr_bad > 0, "caught: %s: %s", write_mutant_name (mutant),
        result.first);
  else
    ok (result.nr_bad == 0 && result.nr_repaired > 0,
        "%s: all of %u states of a repair are sound, %u after one more%s%s",
        ss->s->name, result.nr_states, result.nr_repaired,
        result.nr_bad > 0 ? ": " : "", result.first);
  write_classes_clear (&run.classes);
  write_log_clear (&run.log);
  guest_clear (&run.guest);
}

/*----- Subjects -----*/

static void
test_subject (const struct write_subject *s)
{
  struct subject_state ss = { .s = s };
  struct metadata_damage damage;
  uint64_t state = 11;

  subject_make (s, &state);
  if (s->nr_before == 0)
    random_writes ("qcow2", SUBJECT_IMAGE, s->disk_bytes, s->max_bytes,
                   s->cluster_bytes, 90, WRITE_ZEROES, &state);
  ss.content = subject_must_read (s, false);
  ss.snapshot = s->snapshot ? subject_must_read (s, true) : NULL;
  ss.buf = malloc (s->disk_bytes);
  damage_metadata (SUBJECT_IMAGE, &state, &damage);
  /* So that it has to move. */
  if (strcmp (s->name, GROWING) == 0)
    ok (damage_shrink_table (SUBJECT_IMAGE) > 1, "%s: its table is cut",
        s->name);
  printf ("# %u refcounts too low, %u too high, %u blocks missing, %u "
          "flags wrong\n", damage.nr_lower, damage.nr_higher,
          damage.nr_blocks, damage.nr_flags);
  run_command ("mkdir pristine && mv *.* pristine/ && cp pristine/* .");
  test_faults (&ss);
  test_power (&ss, MUTANT_NONE);
  if (strcmp (s->name, "64K clusters") == 0)
    test_power (&ss, MUTANT_NO_SECOND);
  free (ss.content);
  free (ss.snapshot);
  free (ss.buf);
}

int
main (void)
{
  static const char *const names[] = {
    "64K clusters", "snapshots", "512-byte clusters", "extended L2",
    GROWING, "lazy refcounts, data file",
    "lazy refcounts, full device", "one-bit refcounts",
  };
  unsigned i, j;

  scratch_dir_enter_memory ();
  for (i = 0; i < sizeof names / sizeof names[0]; ++i)
    for (j = 0; j < nr_write_subjects; ++j)
      if (strcmp (write_subjects[j].name, names[i]) == 0)
        test_subject (&write_subjects[j]);
  return tap_done ();
}
