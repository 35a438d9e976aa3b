/* SPDX-License-Identifier: BSD-3-Clause */

/* What a writable image has beyond a read-only one. */

#ifndef QCOW2_WRITER_H
#define QCOW2_WRITER_H

#include <pthread.h>
#include <stdbool.h>

#include "alloc.h"
#include "chain.h"
#include "commit.h"
#include "inflight.h"
#include "l1-write.h"
#include "qcow2.h"

struct writer {
  struct layer *top;
  const struct chain *chain;
  struct epoch *epoch;          /* the image's; reads count in it, too */
  bool discard;                 /* give freed space back to the host */
  bool data_file_raw;

  struct turn turn;
  struct header_writer *header;
  struct refcounts *rc;
  struct retire retire;
  struct allocator alloc;
  struct l1_writer l1;
  struct committer committer;
  struct inflight inflight;

  pthread_once_t marked;
  pthread_mutex_t start_lock;
  bool started;                 /* autoclear bits are cleared on disk */

  /* The background worker, see worker.c. */
  pthread_t thread;
  bool has_thread;
  pthread_mutex_t worker_lock;
  pthread_cond_t worker_wake;
  pthread_cond_t worker_idle;
  bool stop;
  bool hurry;                   /* commit now */
  uint64_t rounds;              /* of retiring that have ended */
};

/* Prepare to write the top image of CHAIN. */
extern int writer_new (const struct chain *chain, struct epoch *epoch,
                       const struct qcow2_options *options,
                       struct writer **w, struct qcow2_error *error);

/* Commit and retire until nothing is left, cut the free tail, free W.
 * No request is in progress.  W may be NULL.  Returns the first error.
 */
extern int writer_close (struct writer *w);

/* To be called by each request that is about to change the image: on
 * the first call the header says so on disk.  Also refuses when writing
 * has failed.
 */
extern int writer_begin_change (struct writer *w);

/*----- Background (worker.c) -----*/

/* Start the worker, if it does not run yet. */
extern int worker_start (struct writer *w);
extern void worker_stop (struct writer *w);

/* Ask for a commit soon. */
extern void worker_hurry (struct writer *w);

/* Free what can be freed now; for the worker, and after it has stopped. */
extern int worker_retire (struct writer *w);

/* Commit, and wait until what was unlinked before is free.  Not within a
 * request's epoch.
 */
extern int worker_reclaim (struct writer *w);

#endif /* QCOW2_WRITER_H */
