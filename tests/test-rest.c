/* SPDX-License-Identifier: BSD-3-Clause */

/* When the last view of an image is closed, its file is as a clean close
 * leaves it, though the image stays open; and it goes on from there.
 *
 * Also the gate: what waits for what.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "active-view.h"
#include "grow-disk.h"
#include "guard.h"
#include "image.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"
#include "writer.h"

#define KiB ((uint64_t) 1024)
#define MiB (KiB * 1024)
#define DISK_BYTES (8 * MiB)

static void
print_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  printf ("# log: %s\n", text);
}

static bool lock_off;

static struct qcow2 *
open_with (const char *create, struct write_log *log,
           enum qcow2_cache_mode cache, size_t cache_bytes)
{
  static const char *const anywhere[] = { "/" };
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  run_command ("rm -rf *; %s", create);
  qcow2_options_init (&options);
  options.writable = true;
  options.lock = !lock_off;
  options.repair = !lock_off;
  options.cache = cache;
  options.cache_bytes = cache_bytes;
  options.allow_dirs = anywhere;
  options.nr_allow_dirs = 1;
  options.log = print_message;
  if (log)
    write_log_use (log, &options);
  if (qcow2_open ("disk.qcow2", &options, &image, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return image;
}

static struct qcow2 *
open_image (const char *create, struct write_log *log)
{
  return open_with (create, log, QCOW2_CACHE_WRITEBACK,
                    QCOW2_DEFAULT_CACHE_BYTES);
}

static uint64_t
file_bytes (void)
{
  struct stat st;

  return stat ("disk.qcow2", &st) == 0 ? (uint64_t) st.st_size : 0;
}

/*----- The file while nobody is there -----*/

struct content {
  struct qcow2_view *view;
  uint8_t *model;
  uint8_t *buf;
  uint64_t state;
};

/* Trims leave zeros, or what was there. */
static int
some_requests (struct content *c, unsigned nr)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < nr && r == 0; ++i) {
    uint64_t offset = random_below (&c->state, DISK_BYTES - 300 * KiB);
    uint64_t count = 1 + random_below (&c->state, 300 * KiB);

    if (random_below (&c->state, 3) == 0)
      count = 1 + count % 700;
    if (random_below (&c->state, 3) == 0) {
      memset (c->model + offset, 0, count);
      r = qcow2_zero (c->view, count, offset, true, false, false);
      continue;
    }
    memset (c->model + offset, 1 + (int) random_below (&c->state, 255),
            count);
    r = qcow2_pwrite (c->view, c->model + offset, count, offset, false);
  }
  return r;
}

static void
test_file (const char *name, const char *create)
{
  struct qcow2 *image = open_image (create, NULL);
  struct content c = {
    .model = calloc (1, DISK_BYTES), .buf = malloc (DISK_BYTES), .state = 5,
  };
  unsigned i, nr_failed = 0, nr_unclean = 0, nr_wrong = 0, nr_begun = 0;
  uint64_t bytes;
  uint8_t *now;

  for (i = 0; i < 12; ++i) {
    c.view = must_open_view (image);
    nr_failed += some_requests (&c, 1 + i * 2) < 0;
    nr_failed += qcow2_pread (c.view, c.buf, DISK_BYTES, 0) < 0 ||
      memcmp (c.buf, c.model, DISK_BYTES) != 0;
    qcow2_view_close (c.view);

    /* A copy, as a power failure would leave it: nothing of the image's
     * memory is in it.
     */
    run_command ("rm -rf copy && mkdir copy && "
                 "cp --sparse=always *.* copy/");
    nr_unclean += qemu_check ("copy/disk.qcow2") != 0;
    nr_begun += system ("qemu-img info -U copy/disk.qcow2 > info && "
                        "! grep -q 'dirty flag' info") != 0;
    now = qemu_content ("copy/disk.qcow2", NULL, &bytes);
    nr_wrong += bytes != DISK_BYTES || memcmp (now, c.model, bytes) != 0;
    free (now);
  }
  is_int (nr_failed, 0, "%s: 12 clients write one after the other", name);
  is_int (nr_unclean, 0, "after each of them the check is clean");
  is_int (nr_begun, 0, "no dirty bit is set");
  is_int (nr_wrong, 0, "and the file holds what was written");
  is_int (qcow2_close (image), 0, "it can be closed");
  free (c.model);
  free (c.buf);
}

/* What is allocated after the tail was cut is fresh: a part of a cluster is
 * written, and the rest of it reads as zeros.
 */
static void
test_tail (void)
{
  struct qcow2 *image =
    open_image ("qemu-img create -q -f qcow2 disk.qcow2 8M", NULL);
  struct qcow2_view *view = must_open_view (image);
  uint8_t *buf = malloc (4 * MiB);
  uint64_t empty = file_bytes (), full, cut;
  size_t i, wrong = 0;
  int r;

  memset (buf, 0xaa, 4 * MiB);
  r = qcow2_pwrite (view, buf, 4 * MiB, 0, true);
  full = file_bytes ();
  r = r < 0 ? r : qcow2_zero (view, 4 * MiB, 0, true, false, true);
  qcow2_view_close (view);
  cut = file_bytes ();
  is_int (r, 0, "4 MiB are written, and given up");
  ok (full > 4 * MiB && cut < empty + 256 * KiB,
      "the tail of the file is cut when the client leaves (%" PRIu64
      ", %" PRIu64 ", then %" PRIu64 " bytes)", empty, full, cut);

  view = must_open_view (image);
  r = qcow2_pwrite (view, "x", 1, 64 * KiB + 100, false);
  if (r == 0)
    r = qcow2_pread (view, buf, 64 * KiB, 64 * KiB);
  for (i = 0; i < 64 * KiB; ++i)
    wrong += buf[i] != (i == 100 ? 'x' : 0);
  is_int (r, 0, "one byte is written then");
  is_int ((int64_t) wrong, 0, "all around it is zeros");
  qcow2_view_close (view);
  ok (file_bytes () <= cut + 192 * KiB, "and takes the place at the end");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  qcow2_close (image);
  free (buf);
}

/* An entry of a hostile image names a place far behind the end of the file,
 * and a client writes there.  It is 4096 * 65536 clusters away.
 */
#define FAR "qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 8M && " \
  "qemu-io -f qcow2 -c 'write -q 0 4k' disk.qcow2 && " \
  "printf '\\200\\0\\1\\0\\0\\0\\0\\0' | " \
  "dd of=disk.qcow2 bs=1 seek=16k conv=notrunc status=none"

static void
test_far_end (void)
{
  struct qcow2 *image = open_image (FAR, NULL);
  struct qcow2_view *view = must_open_view (image);
  const uint64_t far = (uint64_t) 1 << 40;
  clock_t before;
  char buf[4];
  unsigned i;

  is_int (qcow2_pwrite (view, "far", 4, 0, false), 0,
          "an entry names what is 1 TiB behind the end: written");
  ok (file_bytes () > far, "there");
  for (i = 1; i < 3; ++i) {
    is_int (qcow2_pwrite (view, "new", 4, i * MiB, false), 0,
            "and somewhere else");
    before = clock ();
    qcow2_view_close (view);
    ok (clock () - before < 5 * CLOCKS_PER_SEC, "coming to rest is quick");
    view = must_open_view (image);
    ok (qcow2_pread (view, buf, 4, 0) == 0 && strcmp (buf, "far") == 0,
        "what was written far away is there");
    ok (qcow2_pread (view, buf, 4, i * MiB) == 0 && strcmp (buf, "new") == 0,
        "and what was written elsewhere");
  }
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "it can be closed");
}

/* Who only looks does not write. */
static void
test_readers (void)
{
  struct write_log log;
  struct qcow2 *image;
  unsigned i;
  char buf[512];

  write_log_init (&log);
  image = open_image ("qemu-img create -q -f qcow2 disk.qcow2 8M", &log);
  for (i = 0; i < 5; ++i) {
    struct qcow2_view *view = must_open_view (image);

    qcow2_pread (view, buf, sizeof buf, 0);
    qcow2_flush (view);
    qcow2_view_close (view);
  }
  is_int (qcow2_close (image), 0, "readers come and go");
  for (i = 0; i < log.nr && log.events[i]->kind == LOG_FLUSH; ++i)
    ;
  is_int ((int64_t) log.nr - i, 0, "nothing is written");
  write_log_clear (&log);
}

/* An error is not the end: the next one to leave tries again. */
static int
fail_writes (void *opaque, const struct log_event *event)
{
  return event->kind == LOG_WRITE && *(atomic_bool *) opaque ? -EIO : 0;
}

static void
test_error (void)
{
  atomic_bool failing = false;
  struct write_log log;
  struct qcow2_view *view;
  struct qcow2 *image;
  int r;

  write_log_init (&log);
  log.hook = fail_writes;
  log.opaque = &failing;
  image = open_image ("qemu-img create -q -f qcow2 disk.qcow2 8M", &log);
  view = must_open_view (image);
  r = qcow2_pwrite (view, "data", 4, 0, false);
  atomic_store (&failing, true);
  qcow2_view_close (view);
  atomic_store (&failing, false);
  is_int (r, 0, "a client writes, and leaves when nothing can be written");
  ok (strstr (log.message, "could not be brought to rest") != NULL,
      "the log says so: %s", log.message);
  view = must_open_view (image);
  is_int (qcow2_pwrite (view, "more", 4, MiB, false), 0,
          "the next one writes");
  qcow2_view_close (view);
  is_int (qemu_check ("disk.qcow2"), 0, "and leaves a clean image");
  is_int (system ("qemu-io -r -U -f qcow2 -c 'read -q -P 0x64 0 1' "
                  "-c 'read -q -P 0x6d 1M 1' disk.qcow2"), 0,
          "that has both");
  qcow2_close (image);
  write_log_clear (&log);
}

/*----- Without locks, in turns with other programs -----*/

/* What a hook lets fail. */
struct failing {
  atomic_bool writes, flushes;
};

static int
fail_some (void *opaque, const struct log_event *event)
{
  struct failing *f = opaque;

  return (event->kind == LOG_WRITE && atomic_load (&f->writes)) ||
    (event->kind == LOG_FLUSH && atomic_load (&f->flushes)) ? -ENOSPC : 0;
}

/* The turn of another program, which changes where everything lies. */
static void
others_turn (void)
{
  run_command ("qemu-io -f qcow2 -c 'write -q -P 0x6f 0 3M' disk.qcow2 && "
               "qemu-img snapshot -c s disk.qcow2 && "
               "qemu-io -f qcow2 -c 'write -q -P 0x70 1M 3M' disk.qcow2");
}

/* What the next client sees, and whether it can write. */
static void
next_turn (struct qcow2 *image, bool can_write, const char *after)
{
  struct qcow2_error error = { "" };
  struct qcow2_view *view;
  char buf[2] = "";

  is_int (qcow2_reopen (image, &error), 0,
          "after %s the image is read again %s", after, error.message);
  view = must_open_view (image);
  ok (qcow2_pread (view, buf, 1, 0) == 0 &&
      qcow2_pread (view, buf + 1, 1, 2 * MiB) == 0 &&
      memcmp (buf, "op", 2) == 0, "the next client sees what is new");
  is_int (qcow2_pwrite (view, "next", 4, 5 * MiB, true),
          can_write ? 0 : -EROFS, "it %s", can_write ? "writes" :
          "can't write");
  qcow2_view_close (view);
  qcow2_close (image);
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  is_int (system ("qemu-io -r -f qcow2 -c 'read -q -P 0x6f 0 1M' "
                  "-c 'read -q -P 0x70 1M 3M' disk.qcow2"), 0,
          "nothing of the other program's is lost");
}

static void
test_turn_after_failure (const char *after, bool flush, bool corrupt)
{
  struct failing failing = { .writes = false };
  struct write_log log;
  struct qcow2_view *view;
  struct qcow2 *image;
  int r;

  write_log_init (&log);
  log.hook = fail_some;
  log.opaque = &failing;
  image = open_image ("qemu-img create -q -f qcow2 -o compat=0.10 disk.qcow2 "
                      "8M", &log);
  view = must_open_view (image);
  r = qcow2_pwrite (view, "early", 5, 0, true);
  r = r < 0 ? r : qcow2_pwrite (view, "late", 4, MiB, false);
  is_int (r, 0, "a client writes");
  if (corrupt)
    guard_corrupt (image->chain.layers[0], "the test says so");
  atomic_store (&failing.flushes, flush);
  atomic_store (&failing.writes, !flush && !corrupt);
  if (flush)
    is_int (qcow2_flush (view), -ENOSPC, "a flush fails");
  qcow2_view_close (view);
  atomic_store (&failing.writes, false);
  atomic_store (&failing.flushes, false);
  ok (!image->writer->has_thread, "nothing is tried in the background");
  /* What was flushed is there, whatever came after it. */
  is_int (system ("qemu-io -r -f qcow2 -c 'read -q -P 0x65 0 1' disk.qcow2"),
          0, "what was flushed is there");
  run_command ("qemu-img check -q -r leaks disk.qcow2 || :");
  others_turn ();
  next_turn (image, !flush, after);
  write_log_clear (&log);
}

static void
test_turns (void)
{
  lock_off = true;
  test_turn_after_failure ("a failed flush", true, false);
  test_turn_after_failure ("corruption", false, true);
  test_turn_after_failure ("a failure to come to rest", false, false);
  lock_off = false;
}

/*----- The clock -----*/

static _Atomic time_t set_back_seconds;

int
clock_gettime (clockid_t id, struct timespec *now)
{
  int r = (int) syscall (SYS_clock_gettime, id, now);

  if (r == 0 && id == CLOCK_REALTIME)
    now->tv_sec -= atomic_load (&set_back_seconds);
  return r;
}

/* A commit in the background comes when it should. */
static void
test_clock (void)
{
  struct write_log log;
  struct qcow2 *image;
  struct qcow2_view *view;
  unsigned i;

  write_log_init (&log);
  image = open_image ("qemu-img create -q -f qcow2 disk.qcow2 8M", &log);
  view = must_open_view (image);
  is_int (qcow2_pwrite (view, "data", 4, 0, false), 0, "a client writes");
  usleep (100000);              /* the worker waits */
  atomic_store (&set_back_seconds, 3600);
  for (i = 0; i < 80 && !committer_is_clean (&image->writer->committer); ++i)
    usleep (100000);
  atomic_store (&set_back_seconds, 0);
  ok (i < 80, "it is committed soon, though the clock was set back");
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "it can be closed");
  write_log_clear (&log);
}

/*----- Clients that come and go quickly, while the disk grows -----*/

#define NR_CLIENTS 3

struct client {
  struct qcow2 *image;
  unsigned nr;
  uint64_t state;
  uint8_t *model;               /* of its own part of the disk */
  pthread_t thread;
  int error;
};

static int
visit (struct client *c)
{
  uint64_t part = DISK_BYTES / NR_CLIENTS / 512 * 512;
  struct qcow2_view *view = must_open_view (c->image);
  unsigned i, nr = (unsigned) random_below (&c->state, 5);
  int r = 0;

  for (i = 0; i < nr && r == 0; ++i) {
    uint64_t offset = random_below (&c->state, part - 20000);
    uint64_t count = 1 + random_below (&c->state, 20000);

    memset (c->model + offset, 1 + (int) random_below (&c->state, 255),
            count);
    if (random_below (&c->state, 3) == 0) {
      memset (c->model + offset, 0, count);
      r = qcow2_zero (view, count, c->nr * part + offset, true, false, false);
    }
    else
      r = qcow2_pwrite (view, c->model + offset, count,
                        c->nr * part + offset, random_below (&c->state, 9) ==
                        0);
    if (r == 0 && random_below (&c->state, 9) == 0)
      r = qcow2_flush (view);
  }
  qcow2_view_close (view);
  return r;
}

static void *
client (void *opaque)
{
  struct client *c = opaque;
  unsigned i;

  for (i = 0; i < 150 && c->error == 0; ++i) {
    c->error = visit (c);
    if (random_below (&c->state, 3) == 0)
      usleep ((unsigned) random_below (&c->state, 2000));
  }
  return NULL;
}

/* The disk grows meanwhile. */
struct grower {
  struct qcow2 *image;
  pthread_t thread;
  atomic_bool stop;
  int error;
};

static void *
grow_on (void *opaque)
{
  struct grower *g = opaque;
  struct qcow2_error error;
  uint64_t size_bytes;

  for (size_bytes = DISK_BYTES; size_bytes < 100 * MiB && !g->stop &&
       g->error == 0; size_bytes += MiB) {
    g->error = grow_disk (g->image, size_bytes, &error);
    usleep (5000);
  }
  return NULL;
}

static void
test_clients (const char *name, const char *create,
              enum qcow2_cache_mode cache, size_t cache_bytes)
{
  uint64_t part = DISK_BYTES / NR_CLIENTS / 512 * 512, bytes;
  struct qcow2 *image = open_with (create, NULL, cache, cache_bytes);
  struct grower grower = { .image = image };
  struct client clients[NR_CLIENTS];
  unsigned i, nr_wrong = 0;
  uint8_t *now;
  int r = 0;

  memset (clients, 0, sizeof clients);
  for (i = 0; i < NR_CLIENTS; ++i) {
    clients[i] = (struct client) {
      .image = image, .nr = i, .state = i + 77, .model = calloc (1, part),
    };
    pthread_create (&clients[i].thread, NULL, client, &clients[i]);
  }
  pthread_create (&grower.thread, NULL, grow_on, &grower);
  for (i = 0; i < NR_CLIENTS; ++i) {
    pthread_join (clients[i].thread, NULL);
    r = r < 0 ? r : clients[i].error;
  }
  atomic_store (&grower.stop, true);
  pthread_join (grower.thread, NULL);
  r = r < 0 ? r : grower.error;
  is_int (r, 0, "%s: clients come and go, and write, while the disk grows",
          name);
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean when all left");
  now = qemu_content ("disk.qcow2", NULL, &bytes);
  for (i = 0; i < NR_CLIENTS; ++i) {
    nr_wrong += memcmp (now + i * part, clients[i].model, part) != 0;
    free (clients[i].model);
  }
  free (now);
  is_int (nr_wrong, 0, "all that they wrote is there");
  is_int (qcow2_close (image), 0, "it can be closed");
}

/*----- The gate -----*/

struct gated {
  struct qcow2_view *view;
  atomic_bool hold;             /* reads of the image don't go on */
  atomic_bool reading;
  atomic_bool read_done, write_done, grown;
};

static int
hold_reads (void *opaque, const struct log_event *event)
{
  struct gated *g = opaque;

  if (event->kind != LOG_READ || !atomic_load (&g->hold))
    return 0;
  atomic_store (&g->reading, true);
  while (atomic_load (&g->hold))
    usleep (1000);
  return 0;
}

static void *
read_slowly (void *opaque)
{
  struct gated *g = opaque;
  char buf[512];

  if (qcow2_pread (g->view, buf, sizeof buf, 0) == 0)
    atomic_store (&g->read_done, true);
  return NULL;
}

static void *
grow_meanwhile (void *opaque)
{
  struct gated *g = opaque;
  struct qcow2_error error;

  if (grow_disk (g->view->image, 9 * MiB, &error) == 0)
    atomic_store (&g->grown, true);
  return NULL;
}

static void *
write_meanwhile (void *opaque)
{
  struct gated *g = opaque;

  if (qcow2_pwrite (g->view, "late", 4, MiB, false) == 0)
    atomic_store (&g->write_done, true);
  return NULL;
}

static void
test_gate (void)
{
  struct gated g = { .hold = false };
  pthread_t threads[3];
  struct write_log log;
  struct qcow2 *image;
  uint8_t data[512] = "data";

  write_log_init (&log);
  log.hook = hold_reads;
  log.opaque = &g;
  image = open_image ("qemu-img create -q -f qcow2 disk.qcow2 8M", &log);
  g.view = must_open_view (image);
  is_int (qcow2_pwrite (g.view, data, sizeof data, 0, true), 0, "a write");
  atomic_store (&g.hold, true);
  pthread_create (&threads[0], NULL, read_slowly, &g);
  while (!atomic_load (&g.reading))
    usleep (1000);
  pthread_create (&threads[1], NULL, grow_meanwhile, &g);
  while (!atomic_load (&image->gate.closed))
    usleep (1000);
  pthread_create (&threads[2], NULL, write_meanwhile, &g);
  is_int (qcow2_flush (g.view), 0, "a flush does not wait for the gate");
  usleep (200000);
  ok (!atomic_load (&g.grown), "growing waits for a request in progress");
  ok (!atomic_load (&g.write_done), "a new request waits for growing");
  atomic_store (&g.hold, false);
  pthread_join (threads[0], NULL);
  pthread_join (threads[1], NULL);
  pthread_join (threads[2], NULL);
  ok (g.read_done && g.grown && g.write_done, "then all of them go on");
  qcow2_view_close (g.view);
  is_int (qcow2_close (image), 0, "it can be closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  write_log_clear (&log);
}

/*----- What is freed when the last client leaves -----*/

struct freeing {
  struct qcow2_view *view;
  atomic_bool hold, held, read_done;
};

static int
hold_discards (void *opaque, const struct log_event *event)
{
  struct freeing *f = opaque;

  if (event->kind != LOG_DISCARD || !atomic_load (&f->hold))
    return 0;
  atomic_store (&f->held, true);
  while (atomic_load (&f->hold))
    usleep (1000);
  return 0;
}

static void *
leave (void *opaque)
{
  qcow2_view_close (opaque);
  return NULL;
}

static void *
come_and_read (void *opaque)
{
  struct freeing *f = opaque;
  char buf[512];

  if (qcow2_pread (f->view, buf, sizeof buf, MiB) == 0 && buf[0] == 'd')
    atomic_store (&f->read_done, true);
  return NULL;
}

static void
test_freeing (void)
{
  struct freeing f = { .hold = false };
  struct qcow2_view *view;
  pthread_t threads[2];
  struct write_log log;
  struct qcow2 *image;
  unsigned i;
  int r;

  write_log_init (&log);
  log.hook = hold_discards;
  log.opaque = &f;
  image = open_image ("qemu-img create -q -f qcow2 disk.qcow2 8M", &log);
  view = must_open_view (image);
  r = qcow2_pwrite (view, "data", 4, 0, false);
  r = r < 0 ? r : qcow2_pwrite (view, "data", 4, MiB, true);
  r = r < 0 ? r : qcow2_zero (view, 64 * KiB, 0, true, false, false);
  is_int (r, 0, "a client writes, and gives up a cluster");
  atomic_store (&f.hold, true);
  pthread_create (&threads[0], NULL, leave, view);
  while (!atomic_load (&f.held))
    usleep (1000);
  f.view = must_open_view (image);
  pthread_create (&threads[1], NULL, come_and_read, &f);
  for (i = 0; i < 500 && !atomic_load (&f.read_done); ++i)
    usleep (10000);
  ok (atomic_load (&f.read_done),
      "it leaves; the next one reads while its clusters are freed");
  atomic_store (&f.hold, false);
  pthread_join (threads[0], NULL);
  pthread_join (threads[1], NULL);
  qcow2_view_close (f.view);
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  is_int (qcow2_close (image), 0, "it can be closed");
  write_log_clear (&log);
}

#define CREATE "qemu-img create -q -f qcow2 "

int
main (void)
{
  alarm (800);
  scratch_dir_enter ();
  test_file ("64K clusters", CREATE "disk.qcow2 8M");
  test_file ("512-byte clusters", CREATE "-o cluster_size=512 disk.qcow2 8M");
  test_file ("version 2", CREATE "-o compat=0.10,cluster_size=4k "
             "disk.qcow2 8M");
  test_file ("a snapshot", CREATE "disk.qcow2 8M && "
             "qemu-img snapshot -c s disk.qcow2");
  test_file ("lazy refcounts", CREATE "-o lazy_refcounts=on disk.qcow2 8M");
  test_file ("a data file", CREATE "-o data_file=data.raw disk.qcow2 8M");
  test_tail ();
  test_far_end ();
  test_readers ();
  test_error ();
  test_turns ();
  test_clock ();
  test_clients ("64K clusters", CREATE "disk.qcow2 8M",
                QCOW2_CACHE_WRITEBACK, QCOW2_DEFAULT_CACHE_BYTES);
  test_clients ("4K clusters, a small cache", CREATE "-o cluster_size=4k "
                "disk.qcow2 8M", QCOW2_CACHE_WRITEBACK, 64 * KiB);
  test_clients ("O_DIRECT, lazy refcounts, 512-byte clusters, a small cache",
                CREATE "-o cluster_size=512,lazy_refcounts=on disk.qcow2 8M",
                QCOW2_CACHE_NONE, 64 * KiB);
  test_gate ();
  test_freeing ();
  return tap_done ();
}
