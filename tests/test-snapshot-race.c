/* SPDX-License-Identifier: BSD-3-Clause */

/* Snapshots are created, applied and deleted beside requests.
 *
 * Threads write blocks, each filled with one value, zero and trim some, read
 * and flush; another one reads a snapshot.  An operation comes between
 * requests, so in a snapshot, and after one was applied, no block is mixed.
 * What a snapshot holds never changes.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "snapshot-subject.h"
#include "tap.h"

#define BLOCK_BYTES 10000u
#define NR_BLOCKS 80u
#define DISK_BYTES (BLOCK_BYTES * NR_BLOCKS)
#define NR_WRITERS 3u
#define MAX_SNAPSHOTS 4u
#define NR_ROUNDS 60u

struct race {
  struct qcow2_view *view;
  struct qcow2_view *snapshot;  /* of the first one, or NULL */
  const uint8_t *kept;          /* its content */
  atomic_bool stop;
  atomic_uint nr_requests, nr_failed, nr_mixed, nr_wrong;
};

struct worker {
  struct race *race;
  unsigned nr;
  pthread_t thread;
};

static bool
is_mixed (const uint8_t *block)
{
  return memcmp (block, block + 1, BLOCK_BYTES - 1) != 0;
}

/* Of its own blocks, one after the other. */
static void *
writer (void *opaque)
{
  struct worker *w = opaque;
  struct race *race = w->race;
  uint8_t buf[BLOCK_BYTES];
  uint64_t state = w->nr + 1;
  int r;

  while (!atomic_load (&race->stop)) {
    uint64_t block = random_below (&state, NR_BLOCKS / NR_WRITERS) *
      NR_WRITERS + w->nr;
    uint64_t offset = block * BLOCK_BYTES, kind = random_below (&state, 8);

    memset (buf, (int) random_below (&state, 255) + 1, sizeof buf);
    if (kind == 0)
      r = qcow2_zero (race->view, sizeof buf, offset, true, false, false);
    else if (kind == 1)
      r = qcow2_flush (race->view);
    else if (kind == 2) {
      r = qcow2_pread (race->view, buf, sizeof buf, offset);
      race->nr_mixed += is_mixed (buf);
    }
    else
      r = qcow2_pwrite (race->view, buf, sizeof buf, offset, kind == 3);
    race->nr_failed += r < 0;
    race->nr_requests++;
  }
  return NULL;
}

static void *
reader (void *opaque)
{
  struct worker *w = opaque;
  struct race *race = w->race;
  uint8_t buf[BLOCK_BYTES];
  uint64_t state = 99;

  while (!atomic_load (&race->stop)) {
    uint64_t offset = random_below (&state, NR_BLOCKS) * BLOCK_BYTES;

    race->nr_failed += qcow2_pread (race->snapshot, buf, sizeof buf,
                                    offset) < 0;
    race->nr_wrong += memcmp (buf, race->kept + offset, sizeof buf) != 0;
  }
  return NULL;
}

struct kept_snapshot {
  char name[20];
  uint8_t *content;
};

struct state {
  struct race race;
  struct qcow2 *image;
  struct kept_snapshot kept[MAX_SNAPSHOTS];
  unsigned nr, serial;
  struct qcow2_error error;
};

static void
read_snapshot (struct state *s, size_t index, uint8_t *content)
{
  struct qcow2_view *view;
  unsigned i;

  if (qcow2_view_open (s->image, index, &view, &s->error) < 0 ||
      qcow2_pread (view, content, DISK_BYTES, 0) < 0)
    s->race.nr_failed++;
  qcow2_view_close (view);
  for (i = 0; i < NR_BLOCKS; ++i)
    s->race.nr_mixed += is_mixed (content + i * BLOCK_BYTES);
}

static int
create (struct state *s)
{
  struct kept_snapshot *k = &s->kept[s->nr];
  struct qcow2_snapshot_params params = { .name = k->name };
  int r;

  snprintf (k->name, sizeof k->name, "s%u", s->serial++);
  r = qcow2_snapshot_create (s->image, &params, &s->error);
  if (r < 0)
    return r;
  k->content = malloc (DISK_BYTES);
  read_snapshot (s, s->nr, k->content);
  s->nr++;
  return 0;
}

/* Not the first, which is in use. */
static int
delete (struct state *s, unsigned i)
{
  int r = qcow2_snapshot_delete (s->image, i, &s->error);

  if (r < 0)
    return r;
  free (s->kept[i].content);
  memmove (&s->kept[i], &s->kept[i + 1],
           (s->nr - i - 1) * sizeof s->kept[0]);
  s->nr--;
  return 0;
}

static int
run_rounds (struct state *s)
{
  uint64_t rand = 7;
  unsigned i;
  int r = 0;

  for (i = 0; i < NR_ROUNDS && r == 0; ++i) {
    unsigned before = s->race.nr_requests;
    uint64_t kind = random_below (&rand, 3);

    if (s->nr < MAX_SNAPSHOTS && (s->nr < 2 || kind == 0))
      r = create (s);
    else if (kind == 1)
      r = qcow2_snapshot_apply (s->image, random_below (&rand, s->nr),
                                &s->error);
    else
      r = delete (s, 1 + (unsigned) random_below (&rand, s->nr - 1));
    while (s->race.nr_requests < before + 20 && s->race.nr_failed == 0)
      sched_yield ();
  }
  return r;
}

static void
check_end (struct state *s, const char *name)
{
  uint8_t *buf = malloc (DISK_BYTES);
  uint64_t bytes;
  unsigned i, nr_changed = 0, nr_other = 0;

  for (i = 0; i < s->nr; ++i) {
    read_snapshot (s, i, buf);
    nr_changed += memcmp (buf, s->kept[i].content, DISK_BYTES) != 0;
  }
  qcow2_view_close (s->race.view);
  is_int (qcow2_close (s->image), 0, "%s: it can be closed", name);
  for (i = 0; i < s->nr; ++i) {
    uint8_t *theirs = qemu_content (SNAPSHOT_IMAGE, s->kept[i].name, &bytes);

    nr_other += memcmp (theirs, s->kept[i].content, DISK_BYTES) != 0;
    free (theirs);
    free (s->kept[i].content);
  }
  free (buf);
  is_int (nr_changed, 0, "of %u snapshots none has changed", s->nr);
  is_int (nr_other, 0, "QEMU reads the same");
  is_int (qemu_check (SNAPSHOT_IMAGE), 0, "the check is clean");
}

static void
test_race (const char *name, const char *create_options)
{
  struct state s = { .nr = 0 };
  struct worker workers[NR_WRITERS + 1];
  struct qcow2_options options;
  unsigned i;
  int r;

  run_command ("rm -rf *; qemu-img create -q -f qcow2 -o %s " SNAPSHOT_IMAGE
               " %u", create_options, DISK_BYTES);
  snapshot_subject_options (&options);
  options.discard = true;
  if (qcow2_open (SNAPSHOT_IMAGE, &options, &s.image, &s.error) < 0 ||
      qcow2_view_open (s.image, QCOW2_ACTIVE, &s.race.view, &s.error) < 0 ||
      create (&s) < 0 ||
      qcow2_view_open (s.image, 0, &s.race.snapshot, &s.error) < 0) {
    printf ("Bail out! %s\n", s.error.message);
    exit (1);
  }
  s.race.kept = s.kept[0].content;
  for (i = 0; i <= NR_WRITERS; ++i) {
    workers[i] = (struct worker) { .race = &s.race, .nr = i };
    pthread_create (&workers[i].thread, NULL,
                    i < NR_WRITERS ? writer : reader, &workers[i]);
  }
  r = run_rounds (&s);
  is_int (qcow2_snapshot_delete (s.image, 0, NULL), -EBUSY,
          "a snapshot in use is not deleted");
  atomic_store (&s.race.stop, true);
  for (i = 0; i <= NR_WRITERS; ++i)
    pthread_join (workers[i].thread, NULL);
  qcow2_view_close (s.race.snapshot);
  is_int (r, 0, "%s: %u operations beside %u requests%s%s", name, NR_ROUNDS,
          s.race.nr_requests, r < 0 ? ": " : "", r < 0 ? s.error.message : "");
  is_int (s.race.nr_failed, 0, "all requests have succeeded");
  is_int (s.race.nr_wrong, 0, "a snapshot in use does not change");
  check_end (&s, name);
  is_int (s.race.nr_mixed, 0, "no block is mixed");
}

int
main (void)
{
  scratch_dir_enter ();
  test_race ("4K clusters", "cluster_size=4k");
  test_race ("64K clusters, lazy refcounts", "lazy_refcounts=on");
  test_race ("512-byte clusters, version 2", "cluster_size=512,compat=0.10");
  test_race ("extended L2 entries", "extended_l2=on,cluster_size=16k");
  return tap_done ();
}
