/* SPDX-License-Identifier: BSD-3-Clause */

/* What a writable image has beyond a read-only one. */

#ifndef QCOW2_WRITER_H
#define QCOW2_WRITER_H

#include <pthread.h>
#include <stdbool.h>

#include "alloc.h"
#include "commit.h"
#include "image.h"
#include "inflight.h"
#include "l1-write.h"
#include "qcow2.h"

struct writer {
  struct qcow2 *image;
  struct layer *top;
  bool discard;                 /* give freed space back to the host */
  bool data_file_raw;
  bool lazy_refcounts;
  bool writethrough;            /* each request is durable when answered */
  enum qcow2_detect_zeroes detect_zeroes;
  _Atomic bool kept_places;     /* data became zeros, and its host cluster
                                   stayed or may be used again at once */

  struct turn turn;
  struct header_writer *header;
  struct refcounts *rc;
  struct retire retire;
  struct allocator alloc;
  struct l1_writer l1;
  struct committer committer;
  struct inflight inflight;

  pthread_mutex_t begin_lock;
  unsigned nr_growths;          /* of the disk; gate closed */
  _Atomic bool begun;           /* the header is ready for changes; cleared
                                   with the gate closed */
  _Atomic bool begun_beside;    /* ... of what is no part of the disk: bitmaps
                                   may still be valid; cleared likewise */
  _Atomic bool dirty;           /* it has the dirty bit: changed likewise */
  bool unrepaired;              /* and keeps it, for the next that opens the
                                   image: gate closed */

  /* The background worker, see worker.c. */
  pthread_t thread;
  bool has_thread;
  bool finished;                /* by writer_finish, with the gate closed */
  pthread_mutex_t worker_lock;
  pthread_cond_t worker_wake;
  pthread_cond_t round_ended;
  bool stop;
  bool hurry;                   /* do a round now */
  uint64_t rounds_started;
  uint64_t rounds_ended;
};

/* Prepare to write the top image of IMAGE, which is complete but for its
 * writer.
 */
extern int writer_new (struct qcow2 *image,
                       const struct qcow2_options *options,
                       struct qcow2_error *error);

/* Bring the image to rest: commit and retire until nothing is left, and
 * cut the free tail, so that the file is as a clean close leaves it.  The
 * next change begins again.  The gate is closed.  On error, which is not
 * logged, the image goes on as before.
 */
extern int writer_rest (struct writer *w);

/* The last view was closed: the same, unless one was opened meanwhile.
 * Errors are logged.  W may be NULL.
 */
extern void writer_views_closed (struct writer *w);

/* The same for ever: requests that come later fail.  The gate is closed.
 * Errors are logged.  W may be NULL.
 */
extern int writer_finish (struct writer *w);

/* W may be NULL. */
extern void writer_free (struct writer *w);

/* To be called by each request that is about to change the image, within
 * its epoch: on the first call (since the image was at rest) the header
 * says so on disk.  Also refuses when writing has failed.
 */
extern int writer_begin_change (struct writer *w);

/* The same for changes of what is no part of the disk (VM state): bitmaps stay
 * as valid as they are.
 */
extern int writer_begin_beside (struct writer *w);

/* The same for an operation that closes the gate, with the image at rest:
 * it needs no worker, and the header gets the dirty bit (not in version 2,
 * which has none), so that who opens the image after a crash repairs it.  The
 * bit is cleared when the image comes to rest again, unless w->unrepaired is
 * set meanwhile.  KEEP_BITMAPS: the disk's content does not change, so bitmaps
 * stay as valid as they are.
 */
extern int writer_begin_operation (struct writer *w, bool keep_bitmaps);

/*----- Background (worker.c) -----*/

/* NR clusters from FIRST on are about to have no reference any more: forget
 * what is cached of them, and give them back to the host if that is wanted.
 * -EIO: they hold metadata, and the image is marked corrupt.
 */
extern int worker_before_free (struct writer *w, enum retired_kind kind,
                               uint64_t first, uint64_t nr);

/* Start the worker, if it does not run yet.  worker_stop lets it do a last
 * round; the gate is closed.
 */
extern int worker_start (struct writer *w);
extern void worker_stop (struct writer *w);

/* Ask for a commit soon. */
extern void worker_hurry (struct writer *w);

/* Commit, and free what can be freed then: one round of the worker's, or
 * after it has stopped.  If the commit fails, what earlier ones have made
 * durable is freed all the same, unless writing has ended.
 */
extern int worker_round (struct writer *w);

/* Commit, and wait until what was unlinked before is free.  Not within a
 * request's epoch.
 */
extern int worker_reclaim (struct writer *w);

#endif /* QCOW2_WRITER_H */
