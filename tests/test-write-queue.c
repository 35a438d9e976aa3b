/* SPDX-License-Identifier: BSD-3-Clause */

/* The queue of writes to a file: long ones come one at a time and leave nobody
 * without an answer, the others are made as if there were no queue.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "qcow2/write-queue.h"
#include "qcow2/storage.h"
#include "storage-fault.h"
#include "storage-place.h"
#include "tap.h"
#include "watchdog.h"

enum { THREADS = 8, JOBS = 300 };

/* Takes NS, and counts who runs beside it. */
struct fake_write {
  struct write_job job;
  long ns;
  int answer;
  pthread_t runner;
  unsigned runs;
};

static _Atomic unsigned running, most_running;

static void
run_for (long ns)
{
  struct timespec length = { .tv_nsec = ns };

  if (ns > 0)
    nanosleep (&length, NULL);
}

static int
run_fake (struct write_job *job)
{
  struct fake_write *w = (struct fake_write *) job;
  unsigned now = atomic_fetch_add (&running, 1) + 1;
  unsigned most = atomic_load (&most_running);

  while (most < now &&
         !atomic_compare_exchange_weak (&most_running, &most, now))
    ;
  run_for (w->ns);
  w->runner = pthread_self ();
  w->runs++;
  atomic_fetch_sub (&running, 1);
  return w->answer;
}

/* Run FN in THREADS threads, each with its element of ARGS. */
static void
run_crowd (void *(*fn) (void *), void *args, size_t arg_bytes)
{
  pthread_t threads[THREADS];
  int i;

  for (i = 0; i < THREADS; ++i)
    must (pthread_create (&threads[i], NULL, fn,
                          (char *) args + i * arg_bytes) == 0,
          "pthread_create");
  for (i = 0; i < THREADS; ++i)
    pthread_join (threads[i], NULL);
}

/*----- Many requests at once -----*/

struct requests {
  struct write_queue *q;
  size_t bytes;
  long ns;
  int nr;                       /* of the thread */
  unsigned wrong;               /* answers of others, or not one run */
  unsigned elsewhere;           /* runs in another thread */
};

static void *
make_requests (void *opaque)
{
  struct requests *q = opaque;
  int i;

  for (i = 0; i < JOBS; ++i) {
    struct fake_write w = { .job = { .run = run_fake, .bytes = q->bytes },
                            .ns = q->ns, .answer = -(q->nr * JOBS + i) };
    int r = write_queue_run (q->q, &w.job);

    q->wrong += r != w.answer || w.runs != 1;
    q->elsewhere += !pthread_equal (w.runner, pthread_self ());
  }
  return NULL;
}

struct outcome {
  unsigned wrong, elsewhere, at_once;
};

static struct outcome
many_requests (struct write_queue *q, size_t bytes, long ns)
{
  struct requests requests[THREADS];
  struct outcome outcome = { 0, 0, 0 };
  int i;

  atomic_store (&most_running, 0);
  for (i = 0; i < THREADS; ++i)
    requests[i] = (struct requests) { q, bytes, ns, i, 0, 0 };
  run_crowd (make_requests, requests, sizeof requests[0]);
  for (i = 0; i < THREADS; ++i) {
    outcome.wrong += requests[i].wrong;
    outcome.elsewhere += requests[i].elsewhere;
  }
  outcome.at_once = atomic_load (&most_running);
  return outcome;
}

static void
long_writes (void)
{
  struct write_queue q;
  struct outcome outcome;

  write_queue_init (&q);
  write_queue_switch (&q, true);
  outcome = many_requests (&q, 4096, 50000);
  is_int (outcome.wrong, 0, "long writes: each is made once and answered");
  ok (q.has_thread && outcome.elsewhere > THREADS * JOBS / 2,
      "... most of them by the thread (%u)", outcome.elsewhere);
  outcome = many_requests (&q, 4096, 50000);
  is_int (outcome.at_once, 1, "... one at a time, once that is known");

  outcome = many_requests (&q, 65536, 0);
  is_int (outcome.wrong, 0, "what is long for one size");
  is_int (outcome.elsewhere, 0, "... need not be for another");
  outcome = many_requests (&q, 65537, 50000);
  ok (outcome.wrong == 0 && outcome.elsewhere == 0 && outcome.at_once > 1,
      "large writes are left to those who have the bytes");
  write_queue_destroy (&q);
}

static void
short_writes (void)
{
  struct write_queue q;
  struct outcome outcome;

  write_queue_init (&q);
  write_queue_switch (&q, true);
  outcome = many_requests (&q, 4096, 0);
  is_int (outcome.wrong, 0, "short writes: each is made once and answered");
  ok (!q.has_thread && outcome.elsewhere == 0, "... without the thread");
  write_queue_destroy (&q);
}

/* NR writes that take NS each, by one thread. */
static void
one_by_one (struct write_queue *q, int nr, long ns)
{
  int i;

  for (i = 0; i < nr; ++i) {
    struct fake_write w = { .job = { .run = run_fake, .bytes = 4096 },
                            .ns = ns };

    write_queue_run (q, &w.job);
  }
}

/* Of eight short writes one is timed. */
static void
interrupted_write (void)
{
  struct write_queue q;

  write_queue_init (&q);
  write_queue_switch (&q, true);
  one_by_one (&q, 8, 20000000);
  ok (q.cost_ns[1] > 0 && q.cost_ns[1] < 16000,
      "one write that took 20 ms is not the rule (%u ns)", q.cost_ns[1]);
  one_by_one (&q, 500, 50000);
  ok (q.cost_ns[1] >= 16000, "... some more that take 50 us are (%u ns)",
      q.cost_ns[1]);
  one_by_one (&q, 400, 0);
  ok (q.cost_ns[1] < 16000, "... until they are short again (%u ns)",
      q.cost_ns[1]);
  write_queue_destroy (&q);
}

/*----- The thread comes and goes -----*/

static void
switched_off (void)
{
  struct write_queue q;
  struct outcome outcome;

  write_queue_init (&q);
  outcome = many_requests (&q, 4096, 50000);
  ok (outcome.wrong == 0 && outcome.elsewhere == 0 && !q.has_thread,
      "there is no thread before the queue is on");
  write_queue_switch (&q, true);
  many_requests (&q, 4096, 50000);
  ok (q.has_thread, "there is one then");
  write_queue_switch (&q, false);
  ok (!q.has_thread, "... and none afterwards");
  outcome = many_requests (&q, 4096, 50000);
  ok (outcome.wrong == 0 && outcome.elsewhere == 0 && outcome.at_once > 1,
      "... when each writes for itself");
  write_queue_destroy (&q);
}

static void *
switch_often (void *opaque)
{
  struct write_queue *q = opaque;
  int i;

  for (i = 0; i < 200; ++i) {
    write_queue_switch (q, i % 2 == 0);
    run_for (i % 7 * 30000);
  }
  return NULL;
}

static void
switched_meanwhile (void)
{
  struct write_queue q;
  struct outcome outcome;
  pthread_t thread;

  write_queue_init (&q);
  write_queue_switch (&q, true);
  many_requests (&q, 4096, 50000);
  must (pthread_create (&thread, NULL, switch_often, &q) == 0,
        "pthread_create");
  outcome = many_requests (&q, 4096, 20000);
  pthread_join (thread, NULL);
  is_int (outcome.wrong, 0, "switched while requests are in progress: "
          "each is made once and answered");
  ok (!q.busy && !q.first && !q.has_thread, "... and nothing is left");
  write_queue_destroy (&q);
}

/* Threads whose stack has no room in any address space can't be had. */
static void
no_thread (void)
{
  struct write_queue q;
  struct outcome outcome;
  pthread_attr_t usual, huge;
  struct fake_write w = { .job = { .run = run_fake, .bytes = 4096 } };

  must (pthread_getattr_default_np (&usual) == 0, "pthread_getattr");
  write_queue_init (&q);
  write_queue_switch (&q, true);
  q.cost_ns[1] = 60000;
  q.busy = true;                /* somebody else writes */

  pthread_attr_init (&huge);
  pthread_attr_setstacksize (&huge, (size_t) 1 << 60);
  must (pthread_setattr_default_np (&huge) == 0, "pthread_setattr");
  is_int (write_queue_run (&q, &w.job), 0, "without a thread to be had");
  ok (w.runs == 1 && pthread_equal (w.runner, pthread_self ()),
      "... a write does not wait");
  must (pthread_setattr_default_np (&usual) == 0, "pthread_setattr");

  ok (q.busy && !q.has_thread, "... nor takes the other's place");
  q.busy = false;
  outcome = many_requests (&q, 4096, 50000);
  ok (outcome.wrong == 0 && q.has_thread, "... it is there when it can be");
  write_queue_destroy (&q);
}

/*----- In a file -----*/

enum { PIECE_BYTES = 6000, PIECES = 60 };

struct pieces {
  struct qcow2_storage *s;
  int nr;
  unsigned wrong;
};

static uint64_t
piece_offset (int nr, int i)
{
  return (uint64_t) (i * THREADS + nr) * PIECE_BYTES;
}

/* In two parts each; some can't be written. */
static void *
write_pieces (void *opaque)
{
  struct pieces *p = opaque;
  char buf[PIECE_BYTES];
  int i;

  for (i = 0; i < PIECES; ++i) {
    struct iovec iov[2] = { { buf, 1000 }, { buf + 1000, sizeof buf - 1000 } };
    bool impossible = (i + p->nr) % 5 == 0;

    if (impossible)
      p->wrong += qcow2_storage_writev (p->s, iov, 2, UINT64_MAX - 10000,
                                        false) != -EFBIG;
    memset (buf, p->nr * PIECES + i, sizeof buf);
    p->wrong += qcow2_storage_writev (p->s, iov, 2, piece_offset (p->nr, i),
                                      i % 7 == 0) != 0;
  }
  return NULL;
}

static unsigned
wrong_pieces (struct qcow2_storage *s)
{
  char buf[PIECE_BYTES], want[PIECE_BYTES];
  unsigned wrong = 0;
  int nr, i;

  for (nr = 0; nr < THREADS; ++nr)
    for (i = 0; i < PIECES; ++i) {
      memset (want, nr * PIECES + i, sizeof want);
      wrong += qcow2_storage_read_meta (s, buf, sizeof buf,
                                        piece_offset (nr, i)) != 0 ||
        memcmp (buf, want, sizeof buf) != 0;
    }
  return wrong;
}

/* Returns how many went wrong. */
static unsigned
write_in_crowd (struct qcow2_storage *s, void *(*fn) (void *))
{
  struct pieces pieces[THREADS];
  unsigned wrong = 0;
  int i;

  no_faults ();
  fault.delay_us = 50;
  for (i = 0; i < THREADS; ++i)
    pieces[i] = (struct pieces) { s, i, 0 };
  run_crowd (fn, pieces, sizeof pieces[0]);
  for (i = 0; i < THREADS; ++i)
    wrong += pieces[i].wrong;
  return wrong;
}

static void
write_by_many (struct qcow2_storage *s, const char *what)
{
  qcow2_storage_threads (s, true);
  is_int (write_in_crowd (s, write_pieces), 0,
          "%s: %s: each of many has the answer to its write", where, what);
  is_int (wrong_pieces (s), 0, "... and the bytes are there");
}

/* Plain writes, which have learned by now that they are long. */
static void *
write_over (void *opaque)
{
  struct pieces *p = opaque;
  char buf[PIECE_BYTES];
  int i;

  memset (buf, p->nr, sizeof buf);
  for (i = 0; i < PIECES; ++i)
    p->wrong += qcow2_storage_write (p->s, buf, sizeof buf,
                                     piece_offset (p->nr, i), false) != 0;
  return NULL;
}

static unsigned
most_at_once (struct qcow2_storage *s)
{
  must (write_in_crowd (s, write_over) == 0, "write");
  return calls.most_at_once;
}

/* Where the filesystem knows such files. */
static struct qcow2_storage *
synchronous_file (void)
{
  int fd = make_file (0, O_RDWR), flags;

  if (ioctl (fd, FS_IOC_GETFLAGS, &flags) == 0) {
    flags |= FS_SYNC_FL;
    must (ioctl (fd, FS_IOC_SETFLAGS, &flags) == 0, "chattr +S");
  }
  return storage_of (fd);
}

/* Of the disk nobody knows what filesystem it has. */
static void
in_files (void)
{
  bool is_tmpfs = strcmp (where, "tmpfs") == 0;
  struct qcow2_storage *s = file_storage (0);

  write_by_many (s, "a file");
  if (is_tmpfs)
    is_int (most_at_once (s), 1, "... which are written one at a time");
  qcow2_storage_threads (s, false);
  ok (most_at_once (s) > 1, "... but not without a thread");
  qcow2_storage_close (s);

  if (!is_tmpfs) {
    s = synchronous_file ();
    write_by_many (s, "a synchronous file");
    ok (most_at_once (s) > 1, "... takes many writes at a time");
    qcow2_storage_close (s);
  }

  s = storage_of (make_loop_device (make_file (8 << 20, O_RDWR), 512));
  write_by_many (s, "a device");
  ok (most_at_once (s) > 1, "... takes many writes at a time");
  qcow2_storage_close (s);
}

int
main (void)
{
  watchdog (120);
  long_writes ();
  short_writes ();
  interrupted_write ();
  switched_off ();
  switched_meanwhile ();
  no_thread ();
  in_each_place (in_files);
  return tap_done ();
}
