/* SPDX-License-Identifier: BSD-3-Clause */

/* Long writes to one file come one after the other.
 *
 * BUSY says that somebody makes long writes:
 *
 *   idle -- a request writes --> busy -- nobody waits ----------> idle
 *                                busy -- some wait: hand over --> handed over
 *   handed over -- the thread has written all that wait --------> idle
 *
 * A request makes its own write and no other, so that none is kept from its
 * answer by those that come after it.  The thread writes as long as there is
 * something to write: to take turns among the requests instead was slower,
 * since nobody writes while the next one wakes up.
 */

#include <signal.h>
#include <stdint.h>
#include <time.h>

#include "write-queue.h"

/* A shorter write is done before another thread has gone to sleep and has been
 * woken, or soon after.
 */
#define LONG_NS 16000
/* A write that the host, or the scheduler, has interrupted says nothing. */
#define LIMIT_NS (4 * LONG_NS)
/* How many writes it takes to change an opinion.  One that was made beside
 * others may have waited for them: that it took long means less.
 */
#define MEMORY 16
#define MEMORY_BESIDE 32
/* Of those that need no queue, as far as is known, each thread times only one
 * in so many: to look at the clock takes a tenth of the shortest.
 */
#define SAMPLE 8
/* The bytes of larger writes are in the cache of the CPU of the one who has
 * received them: to have them written elsewhere costs more than to wait.
 */
#define MAX_BYTES 65536

/*----- What a write takes -----*/

static unsigned
size_index (size_t bytes)
{
  unsigned i = 0;

  while (bytes >= 4096 && i < WRITE_QUEUE_SIZES - 1) {
    bytes /= 2;
    i++;
  }
  return i;
}

static uint64_t
now_ns (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (uint64_t) now.tv_sec * 1000000000 + (uint64_t) now.tv_nsec;
}

/* An update that another one overwrites is no loss. */
static void
learn (_Atomic unsigned *cost_ns, uint64_t ns, bool alone)
{
  unsigned old = atomic_load_explicit (cost_ns, memory_order_relaxed);
  unsigned new = ns < LIMIT_NS ? (unsigned) ns : LIMIT_NS;
  unsigned memory = alone || new < old ? MEMORY : MEMORY_BESIDE;

  atomic_store_explicit (cost_ns, old - old / memory + new / memory,
                         memory_order_relaxed);
}

/* ALONE: those that pass the queue wait for this one. */
static int
run_timed (struct write_queue *q, struct write_job *job, bool alone)
{
  uint64_t start = now_ns ();
  int r = job->run (job);

  learn (&q->cost_ns[size_index (job->bytes)], now_ns () - start, alone);
  return r;
}

static int
run_short (struct write_queue *q, struct write_job *job)
{
  static _Thread_local unsigned count;

  if (++count % SAMPLE != 0)
    return job->run (job);
  return run_timed (q, job, false);
}

static bool
is_long (struct write_queue *q, const struct write_job *job)
{
  return atomic_load_explicit (&q->cost_ns[size_index (job->bytes)],
                               memory_order_relaxed) >= LONG_NS;
}

/*----- The thread -----*/

/* A job is its owner's again once it is done. */
static void
run_list (struct write_queue *q, struct write_job *job)
{
  while (job) {
    struct write_job *next = job->next;

    job->result = run_timed (q, job, true);
    sem_post (&job->done);
    job = next;
  }
}

static void
run_waiting (struct write_queue *q)
{
  while (q->first) {
    struct write_job *list = q->first;

    q->first = NULL;
    q->last = &q->first;
    pthread_mutex_unlock (&q->lock);
    run_list (q, list);
    pthread_mutex_lock (&q->lock);
  }
}

/* Not to be stopped while someone is busy, who may yet hand over. */
static void *
writer_thread (void *opaque)
{
  struct write_queue *q = opaque;

  pthread_mutex_lock (&q->lock);
  while (q->busy || !q->stop) {
    if (q->handed_over) {
      run_waiting (q);
      q->handed_over = q->busy = false;
    }
    else
      pthread_cond_wait (&q->wake, &q->lock);
  }
  pthread_mutex_unlock (&q->lock);
  return NULL;
}

/* Signals are for the server's own threads. */
static bool
have_thread (struct write_queue *q)
{
  sigset_t all, old;

  if (!q->on || q->has_thread)
    return q->on;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  q->has_thread = pthread_create (&q->thread, NULL, writer_thread, q) == 0;
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return q->has_thread;
}

void
write_queue_switch (struct write_queue *q, bool on)
{
  bool end;

  pthread_mutex_lock (&q->lock);
  q->on = on;
  end = q->stop = !on && q->has_thread;
  pthread_cond_signal (&q->wake);
  pthread_mutex_unlock (&q->lock);
  if (!end)
    return;

  pthread_join (q->thread, NULL);
  pthread_mutex_lock (&q->lock);
  q->has_thread = q->stop = false;
  pthread_mutex_unlock (&q->lock);
}

/*----- Requests -----*/

static void
hand_over (struct write_queue *q)
{
  pthread_mutex_lock (&q->lock);
  if (q->first)
    q->handed_over = true;
  else
    q->busy = false;
  if (q->handed_over || q->stop)
    pthread_cond_signal (&q->wake);
  pthread_mutex_unlock (&q->lock);
}

static int
run_as_first (struct write_queue *q, struct write_job *job)
{
  int r = run_timed (q, job, true);

  hand_over (q);
  return r;
}

/* With the lock held, which it gives up. */
static int
wait_for_thread (struct write_queue *q, struct write_job *job)
{
  sem_init (&job->done, 0, 0);
  job->next = NULL;
  *q->last = job;
  q->last = &job->next;
  pthread_mutex_unlock (&q->lock);

  while (sem_wait (&job->done) == -1)
    ;                           /* a signal */
  sem_destroy (&job->done);
  return job->result;
}

int
write_queue_run (struct write_queue *q, struct write_job *job)
{
  bool first;

  if (job->bytes > MAX_BYTES || !atomic_load_explicit (&q->on,
                                                       memory_order_relaxed))
    return job->run (job);
  if (!is_long (q, job))
    return run_short (q, job);

  pthread_mutex_lock (&q->lock);
  if (q->busy && have_thread (q))
    return wait_for_thread (q, job);
  first = !q->busy;
  q->busy = true;
  pthread_mutex_unlock (&q->lock);
  return first ? run_as_first (q, job) : run_timed (q, job, false);
}

void
write_queue_init (struct write_queue *q)
{
  unsigned i;

  atomic_init (&q->on, false);
  for (i = 0; i < WRITE_QUEUE_SIZES; ++i)
    atomic_init (&q->cost_ns[i], 0);
  pthread_mutex_init (&q->lock, NULL);
  pthread_cond_init (&q->wake, NULL);
  q->first = NULL;
  q->last = &q->first;
  q->busy = q->handed_over = q->has_thread = q->stop = false;
}

void
write_queue_destroy (struct write_queue *q)
{
  write_queue_switch (q, false);
  pthread_cond_destroy (&q->wake);
  pthread_mutex_destroy (&q->lock);
}
