/* SPDX-License-Identifier: BSD-3-Clause */

/* Going over an image with many threads.
 *
 * Units are dealt out in order, so the first of those in progress never
 * waits for another: each wait for a turn ends.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "parallel.h"

#define NO_UNIT UINT64_MAX

struct parallel {
  const struct parallel_work *work;
  pthread_mutex_t lock;
  pthread_cond_t ended;         /* a unit has */

  /* Under the lock. */
  uint64_t nr_dealt;
  uint64_t current[PARALLEL_MAX_THREADS]; /* unit of each thread */
  unsigned nr_threads;
  unsigned nr_waiting;
  uint64_t failed;              /* the first unit that has */
  int result;
};

/* The first unit in progress.  The lock is held. */
static uint64_t
first_current (const struct parallel *p)
{
  uint64_t first = NO_UNIT;
  unsigned i;

  for (i = 0; i < p->nr_threads; ++i)
    if (p->current[i] < first)
      first = p->current[i];
  return first;
}

void
parallel_wait_turn (struct parallel_unit *unit)
{
  struct parallel *p = unit->parallel;

  pthread_mutex_lock (&p->lock);
  p->nr_waiting++;
  while (first_current (p) < unit->number)
    pthread_cond_wait (&p->ended, &p->lock);
  p->nr_waiting--;
  pthread_mutex_unlock (&p->lock);
}

/* End the unit of thread ME with RESULT, and begin another.  False if there
 * is none.
 */
static bool
next_unit (struct parallel *p, unsigned me, struct parallel_unit *unit,
           int result)
{
  bool any;

  pthread_mutex_lock (&p->lock);
  if (result < 0 && unit->number < p->failed) {
    p->failed = unit->number;
    p->result = result;
  }
  any = p->result == 0 &&
    p->work->deal (p->work->opaque, &unit->first, &unit->nr);
  unit->number = any ? p->nr_dealt++ : NO_UNIT;
  p->current[me] = unit->number;
  if (p->nr_waiting > 0)
    pthread_cond_broadcast (&p->ended);
  pthread_mutex_unlock (&p->lock);
  return any;
}

static void
do_units (struct parallel *p, unsigned me, void *buffer)
{
  struct parallel_unit unit = {
    .parallel = p, .number = NO_UNIT, .buffer = buffer,
  };
  int r = 0;

  while (next_unit (p, me, &unit, r))
    r = p->work->run (p->work->opaque, &unit);
}

/*----- Threads -----*/

struct helper {
  struct parallel *parallel;
  unsigned me;
  pthread_t thread;
  void *buffer;
};

static void *
helper_main (void *opaque)
{
  const struct helper *h = opaque;

  do_units (h->parallel, h->me, h->buffer);
  return NULL;
}

static unsigned
wanted_threads (const struct parallel_work *work)
{
  long nr = work->nr_threads > 0 ? (long) work->nr_threads :
    sysconf (_SC_NPROCESSORS_ONLN);

  return nr < 1 ? 1 : nr > PARALLEL_MAX_THREADS ? PARALLEL_MAX_THREADS :
    (unsigned) nr;
}

/* Returns how many threads were started besides the caller's. */
static unsigned
start_helpers (struct parallel *p, struct helper *helpers)
{
  unsigned nr;

  for (nr = 0; nr + 1 < p->nr_threads; ++nr) {
    struct helper *h = &helpers[nr];

    h->parallel = p;
    h->me = nr + 1;
    h->buffer = malloc (p->work->buffer_bytes);
    if (!h->buffer)
      break;
    if (pthread_create (&h->thread, NULL, helper_main, h) != 0) {
      free (h->buffer);
      break;
    }
  }
  return nr;
}

int
parallel_run (const struct parallel_work *work)
{
  struct parallel p = {
    .work = work, .nr_threads = wanted_threads (work), .failed = NO_UNIT,
  };
  struct helper helpers[PARALLEL_MAX_THREADS - 1];
  void *buffer = malloc (work->buffer_bytes);
  unsigned nr, i;

  if (!buffer)
    return -ENOMEM;
  for (i = 0; i < PARALLEL_MAX_THREADS; ++i)
    p.current[i] = NO_UNIT;
  pthread_mutex_init (&p.lock, NULL);
  pthread_cond_init (&p.ended, NULL);
  nr = start_helpers (&p, helpers);
  do_units (&p, 0, buffer);
  for (i = 0; i < nr; ++i) {
    pthread_join (helpers[i].thread, NULL);
    free (helpers[i].buffer);
  }
  pthread_cond_destroy (&p.ended);
  pthread_mutex_destroy (&p.lock);
  free (buffer);
  return p.result;
}
