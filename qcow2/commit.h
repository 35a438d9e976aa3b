/* SPDX-License-Identifier: BSD-3-Clause */

/* The commit: making what is in memory durable, in an order that is
 * right after a power failure at any moment.  See README.md.
 */

#ifndef QCOW2_COMMIT_H
#define QCOW2_COMMIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "epoch.h"
#include "l1-write.h"
#include "log.h"
#include "refcount.h"
#include "retire.h"
#include "turn.h"

struct committer {
  struct layer *layer;
  struct slice_cache *slices;   /* of L2 tables */
  struct refcounts *rc;
  struct l1_writer *l1;
  struct retire *retire;
  struct epoch *epoch;
  struct turn *turn;
  bool lazy;                    /* lazy refcounts: the dirty bit is set */

  /* With lazy refcounts: write them, too. */
  _Atomic bool want_refcounts;  /* in the next commit */
  _Atomic bool finishing;       /* in each from now on */

  struct sealed_slices sealed_l2; /* whose turn it is works with these */
  struct sealed_slices sealed_refcounts;

  pthread_mutex_t lock;
  pthread_cond_t ended;
  bool running;
  uint64_t started;             /* commits, the running one included */
  uint64_t completed;
  int results[2];               /* of the last two, by number */
  struct log_limit failures;    /* of commits */
  _Atomic int failed;           /* negative errno: nothing is written
                                   any more */
};

extern void committer_init (struct committer *c);
extern void committer_destroy (struct committer *c);

/* The caches are set: get the memory for commits, which take none later.
 * -ENOMEM on error.
 */
extern int committer_prepare (struct committer *c);

/* Make everything durable that was done before this call.  Callers that
 * arrive while a commit runs share the next one.  No lock may be held;
 * claims and epochs may be, since a commit waits for neither.
 */
extern int commit (struct committer *c);

/* With lazy refcounts, commits leave them in memory until there are many,
 * or this was called, or c->finishing is set.
 */
extern void committer_want_refcounts (struct committer *c);

/* A flush or durable write failed: from now on nothing is written, and
 * commits fail with this errno.
 */
extern void committer_fail (struct committer *c, int err);

/* Flush a file of the image.  Of what is lost the kernel tells only one of
 * those who flush or write durably at a time: so this fails, too, if another
 * one has failed meanwhile.
 */
extern int committer_flush (struct committer *c, struct qcow2_storage *s);

/* Write durably to a file of the image.  Fails for the same reasons, and for
 * lack of room, which does not end writing.
 */
extern int committer_write (struct committer *c, struct qcow2_storage *s,
                            const struct iovec *iov, int iovcnt,
                            uint64_t offset);

/* Is all metadata on disk, with no commit running, and has no flush or
 * durable write failed?  What was looked up before this call is then durable,
 * and so is what was written durably: had it been lost while another one
 * flushed, that one would have been told, and would have failed.  What is
 * looked up after the call need not be durable.  Lazy refcounts don't count,
 * as long as they may stay in memory.
 */
extern bool committer_is_clean (struct committer *c);

/* 0, or why nothing is written any more. */
extern int committer_state (struct committer *c);

#endif /* QCOW2_COMMIT_H */
