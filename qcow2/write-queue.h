/* SPDX-License-Identifier: BSD-3-Clause */

/* Long writes to one file come one after the other.
 *
 * Many filesystems let one thread at a time write to a file through the page
 * cache.  The others do not sleep meanwhile, they spin: with a few dozen
 * threads half of all CPU time may go into waiting.  Here they sleep: who finds
 * a long write in progress leaves its own to a thread that does nothing but
 * write.  Where nobody else writes, and where a write takes less time than two
 * threads need to take turns, each writes for itself, as if there were no
 * queue.  Which writes are long is measured all the time, for each size: what
 * takes 2 us in tmpfs takes 40 on ext4 where the page cache has large folios.
 *
 * This is about speed alone.  The filesystem would order the writes, too, and
 * nobody may count on an order of writes that are in progress at once.
 */

#ifndef QCOW2_WRITE_QUEUE_H
#define QCOW2_WRITE_QUEUE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* A write, which the caller embeds in what RUN needs to know. */
struct write_job {
  /* Make the write.  Returns 0 or a negative errno.  Called once, by any
   * thread, with no lock held.
   */
  int (*run) (struct write_job *job);
  size_t bytes;                 /* how much it writes */

  /* The queue's own. */
  int result;
  sem_t done;
  struct write_job *next;
};

/* Sizes below 4 KiB, 8 KiB, ... up to 64 KiB and more. */
#define WRITE_QUEUE_SIZES 6

struct write_queue {
  _Atomic bool on;              /* there may be a thread */
  /* What a write of each size takes lately. */
  _Atomic unsigned cost_ns[WRITE_QUEUE_SIZES];

  pthread_mutex_t lock;         /* for all that follows, and to change ON */
  struct write_job *first, **last; /* those that wait */
  bool busy;                    /* somebody makes long writes */
  bool handed_over;             /* ... and it is the thread */
  bool has_thread, stop;
  pthread_cond_t wake;          /* the thread waits for a change of these */
  pthread_t thread;
};

extern void write_queue_init (struct write_queue *q);

/* No write is in progress. */
extern void write_queue_destroy (struct write_queue *q);

/* Until it is switched on there is no thread, and each writes for itself;
 * afterwards the first who would have to wait starts it.  Switching it off
 * ends it, after those that wait already.  One caller at a time.
 */
extern void write_queue_switch (struct write_queue *q, bool on);

/* Run JOB, here or in the thread.  Returns what it returned. */
extern int write_queue_run (struct write_queue *q, struct write_job *job);

#endif /* QCOW2_WRITE_QUEUE_H */
