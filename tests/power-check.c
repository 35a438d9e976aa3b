/* SPDX-License-Identifier: BSD-3-Clause */

/* Judging what power failures leave of a run of requests. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crash-state.h"
#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"

#define NR_CHECKERS 2
#define MODES_PER_MOMENT 4

extern char **environ;

/* In DIR if that is not NULL. */
static int
run_qemu (const char *dir, char *const argv[])
{
  posix_spawn_file_actions_t actions;
  pid_t pid;
  int status, r;

  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_addopen (&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen (&actions, 2, "/dev/null", O_WRONLY, 0);
  if (dir)
    posix_spawn_file_actions_addchdir_np (&actions, dir);
  r = posix_spawnp (&pid, argv[0], &actions, NULL, argv, environ);
  posix_spawn_file_actions_destroy (&actions);
  if (r != 0 || waitpid (pid, &status, 0) != pid) {
    printf ("Bail out! can't run qemu-img\n");
    exit (1);
  }
  return WIFEXITED (status) ? WEXITSTATUS (status) : 99;
}

int
qemu_check (const char *image)
{
  char *const argv[] = { "qemu-img", "check", "-q", "-U", "-f", "qcow2",
                         (char *) image, NULL };

  return run_qemu (NULL, argv);
}

/* QEMU takes the name of the data file relative to where it runs. */
static int
qemu_repair (const char *dir)
{
  char *const argv[] = { "qemu-img", "check", "-q", "-r", "all", "-f",
                         "qcow2", SUBJECT_IMAGE, NULL };

  return run_qemu (dir, argv);
}

struct checking {
  const struct power_run *run;
  enum write_mutant mutant;
  unsigned nr_moments;
  const uint64_t *moments;      /* ascending */
  unsigned nr;                  /* which thread */
  uint64_t seed;
  bool only_first;
  atomic_bool *stop;
  struct power_result result;
  uint8_t *buf;
  char dir[64];
  char copy[80];                /* the same, repaired */
};

/* What is wrong, or NULL. */
static const char *
judge_content (struct checking *c, const char *dir, uint64_t time)
{
  static __thread char text[300];
  const struct power_run *run = c->run;
  const struct write_subject *s = run->subject;
  struct qcow2_error error;
  uint64_t first = 0, nr;
  int r = subject_read (s, dir, false, c->buf, &error);

  if (r < 0) {
    snprintf (text, sizeof text, "%.200s: %s", error.message, strerror (-r));
    return text;
  }
  nr = guest_check (&run->guest, time, c->buf, &first);
  if (nr > 0) {
    snprintf (text, sizeof text, "%" PRIu64 " sectors are wrong, the first "
              "at %" PRIu64, nr, first * GUEST_SECTOR);
    return text;
  }
  if (!run->snapshot)
    return NULL;
  r = subject_read (s, dir, true, c->buf, &error);
  if (r < 0 || memcmp (c->buf, run->snapshot, s->disk_bytes) != 0)
    return "the snapshot has changed";
  return NULL;
}

static void
copy_file (const struct checking *c, const char *name)
{
  char from[200], to[200];
  uint64_t bytes;
  uint8_t *content;
  int fd;

  snprintf (from, sizeof from, "%s/%s", c->dir, name);
  snprintf (to, sizeof to, "%s/%s", c->copy, name);
  content = file_content (from, &bytes);
  fd = open (to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd == -1 || write (fd, content, bytes) != (ssize_t) bytes) {
    printf ("Bail out! %s: %s\n", to, strerror (errno));
    exit (1);
  }
  close (fd);
  free (content);
}

/* Repair a copy, and judge it.  *STATUS: of `qemu-img check' then. */
static const char *
judge_repaired (struct checking *c, uint64_t time, int *status)
{
  char copy[100];

  snprintf (copy, sizeof copy, "%s/" SUBJECT_IMAGE, c->copy);
  copy_file (c, SUBJECT_IMAGE);
  if (c->run->subject->data_file)
    copy_file (c, c->run->subject->data_file);
  *status = 0;
  if (c->result.nr_repaired++ % 2 == 0)
    *status = qemu_repair (c->copy);
  else if (subject_repair (c->run->subject, c->copy) < 0)
    return "it can't be repaired";
  if (damage_is_dirty (copy))
    return "it is dirty after its repair";
  if (*status == 0)
    *status = qemu_check (copy);
  if (*status == 3)
    return "it has leaks after its repair";
  return judge_content (c, c->copy, time);
}

static void
judge (struct checking *c, uint64_t time, enum crash_mode mode,
       uint64_t seed, size_t balance)
{
  struct power_result *result = &c->result;
  char image[100], qemu[60] = "";
  const char *wrong;
  int status;

  snprintf (image, sizeof image, "%s/" SUBJECT_IMAGE, c->dir);
  wrong = judge_content (c, c->dir, time);
  if (wrong || !damage_is_dirty (image))
    status = qemu_check (image);
  else
    wrong = judge_repaired (c, time, &status);
  result->nr_states++;
  result->nr_balance += balance;
  if (status == 3)
    result->nr_leaks++;
  if (status != 0 && status != 3)
    snprintf (qemu, sizeof qemu, "; qemu-img check exits with %d", status);
  if (!wrong && !qemu[0])
    return;
  if (result->nr_bad++ == 0)
    snprintf (result->first, sizeof result->first, "at %" PRIu64 ", %s, "
              "seed %" PRIu64 ": %s%s", time, crash_mode_name (mode), seed,
              wrong ? wrong : "content is right", qemu);
  if (c->only_first)
    atomic_store (c->stop, true);
}

/* A backing file does not change. */
static void
make_place_for_copy (const struct checking *c)
{
  char base[100], copy_base[100];

  snprintf (base, sizeof base, "%s/base.qcow2", c->dir);
  snprintf (copy_base, sizeof copy_base, "%s/base.qcow2", c->copy);
  if (symlink ("../base.qcow2", base) == -1 || mkdir (c->copy, 0777) == -1 ||
      symlink ("../../base.qcow2", copy_base) == -1) {
    printf ("Bail out! %s: %s\n", c->dir, strerror (errno));
    exit (1);
  }
}

static void *
checker (void *opaque)
{
  struct checking *c = opaque;
  struct crash *crash = crash_new (&c->run->log, &c->run->classes,
                                   c->mutant, c->dir);
  uint64_t state = c->seed + c->nr + 1;
  unsigned i, j;

  make_place_for_copy (c);
  for (i = c->nr; i < c->nr_moments; i += NR_CHECKERS) {
    crash_go (crash, c->moments[i]);
    for (j = 0; j < MODES_PER_MOMENT && !atomic_load (c->stop); ++j) {
      enum crash_mode mode = random_below (&state, NR_CRASH_MODES);
      uint64_t seed = random_next (&state);

      judge (c, c->moments[i], mode, seed, crash_build (crash, mode, seed));
    }
  }
  crash_free (crash);
  return NULL;
}

static int
compare (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* A random one, but with each class of I/O equally often: some are rare. */
static size_t
draw_event (const struct power_run *run, uint64_t *state)
{
  const struct write_classes *classes = &run->classes;
  unsigned class;
  size_t nth, i;

  do
    class = (unsigned) random_below (state, NR_WRITE_CLASSES);
  while (classes->count[class] == 0);
  nth = random_below (state, classes->count[class]);
  for (i = 0; i < run->log.nr; ++i)
    if (classes->of[i] == class && nth-- == 0)
      break;
  return i;
}

/* Moments shortly after something was begun. */
static uint64_t *
draw_moments (const struct power_run *run, enum write_mutant mutant,
              unsigned nr, uint64_t *state)
{
  uint64_t *moments = malloc ((nr + 1) * sizeof *moments);
  unsigned i;

  for (i = 0; i < nr; ++i)
    moments[i] = mutant_begin (&run->classes, mutant,
                               draw_event (run, state)) + 1 +
      random_below (state, 16);
  qsort (moments, nr, sizeof *moments, compare);
  return moments;
}

static void
add_result (struct power_result *sum, const struct power_result *one)
{
  if (sum->nr_bad == 0 && one->nr_bad > 0)
    memcpy (sum->first, one->first, sizeof sum->first);
  sum->nr_states += one->nr_states;
  sum->nr_bad += one->nr_bad;
  sum->nr_leaks += one->nr_leaks;
  sum->nr_repaired += one->nr_repaired;
  sum->nr_balance += one->nr_balance;
}

void
power_check (const struct power_run *run, enum write_mutant mutant,
             unsigned nr_states, uint64_t seed, bool only_first,
             struct power_result *result)
{
  struct checking checks[NR_CHECKERS];
  pthread_t threads[NR_CHECKERS];
  unsigned nr_moments = (nr_states + MODES_PER_MOMENT - 1) /
    MODES_PER_MOMENT, i;
  uint64_t state = seed * 2 + 1;
  uint64_t *moments = draw_moments (run, mutant, nr_moments, &state);
  atomic_bool stop = false;

  memset (result, 0, sizeof *result);
  for (i = 0; i < NR_CHECKERS; ++i) {
    checks[i] = (struct checking) {
      .run = run, .mutant = mutant, .nr_moments = nr_moments,
      .moments = moments, .nr = i, .seed = seed, .only_first = only_first,
      .stop = &stop, .buf = malloc (run->subject->disk_bytes),
    };
    snprintf (checks[i].dir, sizeof checks[i].dir, "state%u", i);
    snprintf (checks[i].copy, sizeof checks[i].copy, "state%u/repaired", i);
    if (!checks[i].buf ||
        pthread_create (&threads[i], NULL, checker, &checks[i]) != 0) {
      printf ("Bail out! can't start threads\n");
      exit (1);
    }
  }
  for (i = 0; i < NR_CHECKERS; ++i) {
    pthread_join (threads[i], NULL);
    add_result (result, &checks[i].result);
    free (checks[i].buf);
  }
  free (moments);
}
