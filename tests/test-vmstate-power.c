/* SPDX-License-Identifier: BSD-3-Clause */

/* Power fails at each point while VM state is written, which moves the L1
 * table, and dropped: what was flushed is there, no byte is anything but old
 * or new, disk and snapshot are as they were, and the image is sound.
 */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "crash-state.h"
#include "image.h"
#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)
#define DISK_BYTES 100352
#define SNAPSHOT_STATE 9        /* bytes in the snapshot's state */
#define CREATE "qemu-img create -q -f qcow2 "
#define QEMU_CHECKS 9           /* so many states for one that QEMU checks */

struct kind {
  const char *name;
  const char *options;
  uint64_t far;                 /* where in the state the second part is */
  bool snapshot;                /* that shares the state that is there */
};

static const struct kind kinds[] = {
  { "512-byte clusters", "cluster_size=512", 40 * KiB, false },
  { "512-byte clusters, version 2, a snapshot",
    "cluster_size=512,compat=0.10", 40 * KiB, true },
  { "4K clusters, a snapshot", "cluster_size=4k", 2 * MiB - 4 * KiB, true },
  { "4K clusters, version 2", "cluster_size=4k,compat=0.10", 4 * MiB, false },
  { "64K clusters, a snapshot", "cluster_size=64k", 512 * MiB, true },
  { "64K clusters, version 2", "cluster_size=64k,compat=0.10",
    512 * MiB - 4 * KiB, false },
  { "extended L2, a snapshot", "cluster_size=16k,extended_l2=on",
    16 * MiB, true },
  { "lazy refcounts", "cluster_size=4k,lazy_refcounts=on", 4 * MiB, false },
};

static void
must (bool good, const char *what)
{
  if (!good) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

/*----- What is done -----*/

#define PART_BYTES (24 * KiB)
#define NR_STEPS 6

/* The bytes of both parts, and when: a step begins at BEGIN, and what it has
 * done is durable from END on.
 */
struct step {
  int byte;
  uint64_t begin, end;
};

struct scenario {
  const struct kind *kind;
  struct step steps[NR_STEPS];
  struct write_log log;
  struct write_classes classes;
};

static struct qcow2 *
open_image (const char *name, struct write_log *log, size_t snapshot,
            struct qcow2_view **view)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  qcow2_options_init (&options);
  options.writable = log != NULL;
  options.lock = log != NULL;
  options.cache_bytes = 256 * KiB;
  options.compressed_cache_bytes = 0;
  if (log)
    write_log_use (log, &options);
  if (qcow2_open (name, &options, &image, &error) < 0)
    return NULL;
  if (qcow2_view_open (image, snapshot, view, &error) == 0)
    return image;
  qcow2_close (image);
  return NULL;
}

/* Both parts, in pieces that are no clusters; so the table moves twice. */
static int
write_state (struct qcow2_view *view, int byte, uint64_t far)
{
  static uint8_t buf[PART_BYTES];
  uint64_t pos, n = 7 * 512;
  int r = 0;

  memset (buf, byte, sizeof buf);
  for (pos = 0; pos < PART_BYTES && r == 0; pos += n)
    r = qcow2_vmstate_pwrite (view, buf, PART_BYTES - pos < n ?
                              PART_BYTES - pos : n, pos);
  return r < 0 ? r : qcow2_vmstate_pwrite (view, buf, PART_BYTES, far);
}

static int
do_step (struct qcow2_view *view, const struct scenario *sc, unsigned nr)
{
  static const uint8_t byte = 2;
  int r = qcow2_pwrite (view, &byte, 1, nr * 9000, false);

  if (r == 0 && sc->steps[nr].byte == 0)
    return qcow2_vmstate_discard (view);
  if (r == 0)
    r = write_state (view, sc->steps[nr].byte, sc->kind->far);
  return r == 0 ? qcow2_flush (view) : r;
}

static void
patch (uint64_t at, uint64_t value)
{
  uint64_t table, word = htobe64 (value);
  int fd = open ("disk.qcow2", O_RDWR | O_CLOEXEC);

  must (pread (fd, &table, 8, 64) == 8 &&
        pwrite (fd, &word, 8, (off_t) (be64toh (table) + at)) == 8, "patch");
  close (fd);
}

static void
make_image (const struct kind *kind)
{
  run_command ("rm -rf *; " CREATE "-o %s disk.qcow2 %d && qemu-io -f qcow2 "
               "-c 'write -q -P 1 0 %d' disk.qcow2", kind->options,
               DISK_BYTES, DISK_BYTES);
  if (!kind->snapshot)
    return;
  run_command ("qemu-io -f qcow2 -c 'write -q -b -P %d 0 %d' disk.qcow2 && "
               "qemu-img snapshot -c snap disk.qcow2", SNAPSHOT_STATE,
               (int) PART_BYTES);
  patch (40, PART_BYTES);
}

static void
run_scenario (struct scenario *sc)
{
  static const int bytes[NR_STEPS] = { 5, 6, 0, 7, 0, 0 };
  struct qcow2_view *view;
  struct qcow2 *image;
  unsigned i;
  int r = 0;

  make_image (sc->kind);
  write_log_init (&sc->log);
  image = open_image ("disk.qcow2", &sc->log, QCOW2_ACTIVE, &view);
  must (image != NULL, "can't open the image");
  for (i = 0; i < NR_STEPS && r == 0; ++i) {
    struct step *step = &sc->steps[i];

    step->byte = bytes[i];
    step->begin = write_log_tick (&sc->log);
    r = do_step (view, sc, i);
    step->end = write_log_tick (&sc->log);
  }
  is_int (r, 0, "%s: written and dropped", sc->kind->name);
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  write_classes_init (&sc->classes, &sc->log);
}

/*----- What is left -----*/

struct tally {
  unsigned nr_states, nr_bad, nr_leaks, nr_qemu;
  char first[300];
};

/* Which bytes may be in the state at TIME; others can't. */
static void
allowed_bytes (const struct scenario *sc, uint64_t time, bool allowed[256])
{
  int before = sc->kind->snapshot ? SNAPSHOT_STATE : 0;
  unsigned i;

  memset (allowed, 0, 256);
  allowed[before] = true;
  /* The second part is new in the first step. */
  allowed[0] |= time < sc->steps[0].end;
  for (i = 0; i < NR_STEPS && sc->steps[i].begin < time; ++i) {
    if (time >= sc->steps[i].end)
      memset (allowed, 0, 256);
    allowed[sc->steps[i].byte] = true;
  }
}

static const char *
judge_state (struct qcow2_view *view, const struct scenario *sc,
             uint64_t time)
{
  static uint8_t buf[PART_BYTES];
  bool allowed[256];
  unsigned part, i;

  allowed_bytes (sc, time, allowed);
  for (part = 0; part < 2; ++part) {
    if (qcow2_vmstate_pread (view, buf, sizeof buf,
                             part * sc->kind->far) < 0)
      return "the state can't be read";
    for (i = 0; i < sizeof buf; ++i)
      if (!allowed[buf[i]])
        return "the state is neither old nor new";
  }
  return NULL;
}

static const char *
judge_disk (struct qcow2_view *view, const struct scenario *sc, uint64_t time)
{
  static uint8_t buf[DISK_BYTES];
  unsigned i;

  if (qcow2_pread (view, buf, sizeof buf, 0) < 0)
    return "the disk can't be read";
  for (i = 0; i < sizeof buf; ++i) {
    unsigned step = i / 9000;
    bool written = i % 9000 == 0 && step < NR_STEPS;

    if (buf[i] != 1 &&
        !(written && buf[i] == 2 && time > sc->steps[step].begin))
      return "the disk is not what it was";
    if (written && buf[i] == 1 && time >= sc->steps[step].end)
      return "a flushed byte of the disk is lost";
  }
  return NULL;
}

static const char *
judge_snapshot (const char *name)
{
  static uint8_t buf[PART_BYTES];
  struct qcow2_view *view;
  struct qcow2 *image = open_image (name, NULL, 0, &view);
  bool good;
  unsigned i;

  if (!image)
    return "the snapshot can't be opened";
  good = qcow2_vmstate_pread (view, buf, sizeof buf, 0) == 0;
  for (i = 0; i < sizeof buf && good; ++i)
    good = buf[i] == SNAPSHOT_STATE;
  qcow2_close (image);
  return good ? NULL : "the snapshot's state is not what it was";
}

/* Our check for all, QEMU's for some. */
static const char *
judge_metadata (struct qcow2 *image, const char *name, struct tally *t)
{
  struct qcow2_check_result result;
  struct qcow2_error error;
  int status;

  if (qcow2_check (image, NULL, &result, &error) < 0)
    return "it can't be checked";
  t->nr_leaks += result.leaks > 0;
  if (result.corruptions > 0 || result.check_errors > 0)
    return "the check finds corruptions";
  if (t->nr_states % QEMU_CHECKS != 0)
    return NULL;
  status = qemu_check (name);
  t->nr_qemu++;
  return status == 0 || status == 3 ? NULL : "QEMU's check finds corruptions";
}

/* Repair a copy: the next state is made of this one. */
static void
repair (const char *name)
{
  struct write_log log;
  struct qcow2_view *view;

  run_command ("cp state/disk.qcow2 %s", name);
  write_log_init (&log);
  qcow2_close (open_image (name, &log, QCOW2_ACTIVE, &view));
  write_log_clear (&log);
}

static const char *
judge (const struct scenario *sc, uint64_t time, struct tally *t)
{
  const char *name = "state/disk.qcow2", *wrong;
  struct qcow2_view *view;
  struct qcow2 *image;

  if (damage_is_dirty (name)) {
    name = "repaired.qcow2";
    repair (name);
    if (damage_is_dirty (name))
      return "it can't be repaired";
  }
  image = open_image (name, NULL, QCOW2_ACTIVE, &view);
  if (!image)
    return "it can't be opened";
  wrong = judge_disk (view, sc, time);
  if (!wrong)
    wrong = judge_state (view, sc, time);
  if (!wrong)
    wrong = judge_metadata (image, name, t);
  qcow2_close (image);
  return !wrong && sc->kind->snapshot ? judge_snapshot (name) : wrong;
}

static void
one_state (const struct scenario *sc, struct crash *crash, uint64_t time,
           enum crash_mode mode, uint64_t seed, struct tally *t)
{
  const char *wrong;

  crash_build (crash, mode, seed);
  wrong = judge (sc, time, t);
  t->nr_states++;
  if (wrong && t->nr_bad++ == 0)
    snprintf (t->first, sizeof t->first, ": %s, at %" PRIu64 ", %s, seed %"
              PRIu64, wrong, time, crash_mode_name (mode), seed);
}

/* After each event has begun. */
static void
all_crashes (const struct scenario *sc, enum write_mutant mutant,
             struct tally *t)
{
  struct crash *crash = crash_new (&sc->log, &sc->classes, mutant, "state");
  uint64_t state = 77;
  size_t i;

  memset (t, 0, sizeof *t);
  for (i = 0; i < sc->log.nr; ++i) {
    uint64_t time = mutant_begin (&sc->classes, mutant, i) + 1;

    crash_go (crash, time);
    one_state (sc, crash, time, CRASH_NOTHING, 1, t);
    one_state (sc, crash, time, CRASH_EVERYTHING, 1, t);
    one_state (sc, crash, time, random_below (&state, NR_CRASH_MODES),
               random_next (&state), t);
  }
  crash_free (crash);
  run_command ("rm -rf state");
}

static void
test_kind (const struct kind *kind)
{
  static const enum write_mutant mutants[] = {
    MUTANT_NO_FIRST, MUTANT_NO_SECOND, MUTANT_NO_L1,
  };
  struct scenario sc = { .kind = kind };
  struct tally t;
  unsigned i;

  run_scenario (&sc);
  all_crashes (&sc, MUTANT_NONE, &t);
  ok (t.nr_bad == 0 && t.nr_qemu > 20, "%s: all of %u states are sound (%u "
      "with leaks; %u checked by QEMU)%s", kind->name, t.nr_states,
      t.nr_leaks, t.nr_qemu, t.first);
  for (i = 0; i < 3 && strcmp (kind->name, "4K clusters, a snapshot") == 0;
       ++i) {
    all_crashes (&sc, mutants[i], &t);
    ok (t.nr_bad > 0, "caught: %s%s", write_mutant_name (mutants[i]),
        t.first);
  }
  write_classes_clear (&sc.classes);
  write_log_clear (&sc.log);
}

int
main (void)
{
  unsigned i;

  scratch_dir_enter_memory ();
  for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i)
    test_kind (&kinds[i]);
  return tap_done ();
}
