/* SPDX-License-Identifier: BSD-3-Clause */

/* The background worker of a writable image: one thread that commits
 * what nobody flushes, and frees what commits have unlinked.
 *
 * It is started by the first change, so that an image that is only read
 * has no thread, and none is there before the server has forked.
 */

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "guard.h"
#include "writer.h"

/* How long a change may wait for its commit. */
#define INTERVAL_SECONDS 4

/*----- Freeing -----*/

struct freeing {
  struct writer *w;
  enum retired_kind kind;
};

/* One table after the other: slots are larger than a table where a backing file
 * has larger clusters.
 */
static void
drop_slices (struct writer *w, uint64_t first, uint64_t nr)
{
  unsigned bits = w->top->header.cluster_bits;
  uint64_t i;

  for (i = first; i < first + nr; ++i)
    slice_cache_drop (w->top->slices, i << bits, (i + 1) << bits);
}

/* Whatever comes to these clusters next, it is not what was cached. */
int
worker_before_free (struct writer *w, enum retired_kind kind, uint64_t first,
                    uint64_t nr)
{
  unsigned bits = w->top->header.cluster_bits;
  int r;

  r = guard_check (w->top, METADATA_NONE, first << bits, nr << bits,
                   "a cluster that is given up");
  if (r < 0)
    return r;
  if (kind == RETIRED_TABLE)
    drop_slices (w, first, nr);
  if (kind == RETIRED_COMPRESSED)
    cluster_cache_drop (w->image->clusters, w->top->index, first << bits,
                        (first + nr) << bits);
  if (w->discard)
    qcow2_storage_discard (w->top->file, first << bits, nr << bits);
  return 0;
}

static int
before_free (void *opaque, uint64_t first, uint64_t nr)
{
  const struct freeing *f = opaque;

  return worker_before_free (f->w, f->kind, first, nr);
}

static void
after_free (void *opaque, uint64_t first, uint64_t nr)
{
  const struct freeing *f = opaque;

  alloc_note_free (&f->w->alloc, first, nr);
}

/* Tables that the active layer does not use any more. */
static void
unguard_tables (struct writer *w, const struct retired *item)
{
  uint64_t i;

  for (i = 0; i < item->nr; ++i)
    guard_remove (w->top, METADATA_L2_TABLE,
                  (item->first + i) << w->top->header.cluster_bits);
}

/* After an error ITEM is what is left of it. */
static int
free_item (struct writer *w, struct retired *item)
{
  struct freeing f = { .w = w, .kind = item->kind };
  const struct refcount_observer observer = { before_free, after_free, &f };
  uint64_t done;
  int r;

  if (f.kind == RETIRED_TABLE)
    unguard_tables (w, item);
  r = refcounts_lower (w->rc, item->first, item->nr, &observer, &done);
  item->first += done;
  item->nr -= done;
  return r;
}

/* Take the first NR items away.  The next one has failed: it comes last, so
 * that the others don't wait for it again.
 */
static void
keep_rest (struct retire_list *list, size_t nr)
{
  struct retired failed = list->items[nr];

  list->nr -= nr;
  memmove (list->items, list->items + nr + 1,
           (list->nr - 1) * sizeof failed);
  list->items[list->nr - 1] = failed;
}

/* An error ends the round, lest each item that needs the same block, or slot,
 * is tried and complained of.  A later round goes on.
 */
static int
free_durable (struct writer *w)
{
  struct retire_list list;
  size_t i = 0;
  int r = 0;

  if (!retire_take (&w->retire, &list))
    return 0;
  epoch_synchronize (&w->image->epoch);
  while (i < list.nr && (r = free_item (w, &list.items[i])) == 0)
    i++;
  if (r < 0)
    keep_rest (&list, i);
  else
    list.nr = 0;
  retire_done (&w->retire, &list);
  return r;
}

int
worker_round (struct writer *w)
{
  int r = committer_state (&w->committer), r2;

  /* When writing has ended nothing is given back to the host, either.  Writes
   * in place leave all metadata clean, and need a flush.  And a commit may
   * have come between a change and what it unlinked.
   */
  if (r < 0)
    return r;
  if (!committer_is_clean (&w->committer) ||
      epoch_has_written (&w->image->epoch) ||
      retire_has_unlinked (&w->retire))
    r = commit (&w->committer);
  /* What is durable already does not depend on this commit, which may have
   * lacked nothing but the room that it takes.
   */
  if (r < 0 && committer_state (&w->committer) < 0)
    return r;
  r2 = free_durable (w);
  return r < 0 ? r : r2;
}

/*----- The thread -----*/

static bool
is_past (const struct timespec *until)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec > until->tv_sec ||
    (now.tv_sec == until->tv_sec && now.tv_nsec >= until->tv_nsec);
}

/* With what earlier sessions have left free being counted meanwhile. */
static void
wait_for_work (struct writer *w, bool *counting)
{
  struct timespec until;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec += INTERVAL_SECONDS;
  while (!w->stop && !w->hurry && !is_past (&until)) {
    if (!*counting) {
      pthread_cond_timedwait (&w->worker_wake, &w->worker_lock, &until);
      continue;
    }
    pthread_mutex_unlock (&w->worker_lock);
    *counting = alloc_count_some (&w->alloc);
    pthread_mutex_lock (&w->worker_lock);
  }
  w->hurry = false;
}

static void *
worker (void *opaque)
{
  struct writer *w = opaque;
  bool counting = true;

  pthread_mutex_lock (&w->worker_lock);
  while (!w->stop) {
    wait_for_work (w, &counting);
    w->rounds_started++;
    pthread_mutex_unlock (&w->worker_lock);
    worker_round (w);
    pthread_mutex_lock (&w->worker_lock);
    w->rounds_ended = w->rounds_started;
    pthread_cond_broadcast (&w->round_ended);
  }
  pthread_mutex_unlock (&w->worker_lock);
  return NULL;
}

/* The files' own threads live as long as this one. */
static void
storage_threads (struct writer *w, bool on)
{
  qcow2_storage_threads (w->top->file, on);
  if (w->top->data != w->top->file)
    qcow2_storage_threads (w->top->data, on);
}

/* Signals are for the server's own threads. */
static int
create_thread (struct writer *w)
{
  sigset_t all, old;
  int err;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  err = pthread_create (&w->thread, NULL, worker, w);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return -err;
}

int
worker_start (struct writer *w)
{
  int r = 0;

  pthread_mutex_lock (&w->worker_lock);
  if (!w->has_thread) {
    r = create_thread (w);
    w->has_thread = r == 0;
    storage_threads (w, w->has_thread);
  }
  pthread_mutex_unlock (&w->worker_lock);
  return r;
}

void
worker_stop (struct writer *w)
{
  bool has_thread;

  pthread_mutex_lock (&w->worker_lock);
  w->stop = true;
  has_thread = w->has_thread;
  w->has_thread = false;
  pthread_cond_signal (&w->worker_wake);
  pthread_mutex_unlock (&w->worker_lock);
  if (has_thread) {
    pthread_join (w->thread, NULL);
    storage_threads (w, false);
  }
  /* It may be started again. */
  pthread_mutex_lock (&w->worker_lock);
  w->stop = false;
  pthread_mutex_unlock (&w->worker_lock);
}

void
worker_hurry (struct writer *w)
{
  pthread_mutex_lock (&w->worker_lock);
  w->hurry = true;
  pthread_cond_signal (&w->worker_wake);
  pthread_mutex_unlock (&w->worker_lock);
}

/* A round that begins after now takes all that was unlinked before. */
int
worker_reclaim (struct writer *w)
{
  uint64_t mine;

  pthread_mutex_lock (&w->worker_lock);
  mine = w->rounds_started + 1;
  w->hurry = true;
  pthread_cond_signal (&w->worker_wake);
  while (w->rounds_ended < mine && w->has_thread)
    pthread_cond_wait (&w->round_ended, &w->worker_lock);
  pthread_mutex_unlock (&w->worker_lock);
  return committer_state (&w->committer);
}
