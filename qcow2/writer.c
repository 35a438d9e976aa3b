/* SPDX-License-Identifier: BSD-3-Clause */

/* Making an image writable, and ending that cleanly. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "header-write.h"
#include "writer.h"

/* Refcount slices get this part of the metadata cache. */
#define REFCOUNT_CACHE_PART 8

static void
init_locks (struct writer *w)
{
  turn_init (&w->turn);
  retire_init (&w->retire);
  committer_init (&w->committer);
  inflight_init (&w->inflight);
  pthread_mutex_init (&w->begin_lock, NULL);
  pthread_mutex_init (&w->worker_lock, NULL);
  pthread_cond_init (&w->worker_wake, NULL);
  pthread_cond_init (&w->round_ended, NULL);
}

void
writer_free (struct writer *w)
{
  if (!w)
    return;
  if (w->alloc.rc)
    allocator_destroy (&w->alloc);
  l1_writer_destroy (&w->l1);
  refcounts_free (w->rc);
  header_writer_free (w->header);
  turn_destroy (&w->turn);
  retire_destroy (&w->retire);
  committer_destroy (&w->committer);
  inflight_destroy (&w->inflight);
  pthread_mutex_destroy (&w->begin_lock);
  pthread_mutex_destroy (&w->worker_lock);
  pthread_cond_destroy (&w->worker_wake);
  pthread_cond_destroy (&w->round_ended);
  free (w);
}

/* All slots of a cache are dirty.  The thread that needs one commits
 * itself: it may be in an epoch that the worker waits for, or the worker.
 */
static int
pressure (void *opaque)
{
  struct writer *w = opaque;

  return commit (&w->committer);
}

static int
connect_parts (struct writer *w)
{
  struct committer *c = &w->committer;

  c->layer = w->top;
  c->slices = w->top->slices;
  c->rc = w->rc;
  c->l1 = &w->l1;
  c->retire = &w->retire;
  c->epoch = &w->image->epoch;
  c->turn = &w->turn;
  w->alloc.committer = c;
  slice_cache_on_pressure (w->top->slices, pressure, w);
  slice_cache_on_pressure (w->rc->slices, pressure, w);
  return committer_prepare (c);
}

int
writer_new (struct qcow2 *image, const struct qcow2_options *options,
            struct qcow2_error *error)
{
  struct writer *w = aligned_alloc (_Alignof (struct writer), sizeof *w);
  int r;

  if (!w)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  memset (w, 0, sizeof *w);
  w->image = image;
  w->top = image->chain.layers[0];
  w->discard = options->discard;
  w->data_file_raw = w->top->external_data &&
    w->top->header.autoclear_features & AUTOCLEAR_RAW_DATA;
  init_locks (w);

  r = refcounts_new (w->top, options->cache_bytes / REFCOUNT_CACHE_PART,
                     &w->rc, error);
  if (r == 0)
    r = header_writer_new (w->top->file, &w->top->header, &w->header, error);
  if (r == 0 && ((r = l1_writer_init (&w->l1, w->top)) < 0 ||
                 (r = allocator_init (&w->alloc, w->rc, &w->turn, w->header,
                                      &w->retire)) < 0 ||
                 (r = connect_parts (w)) < 0))
    qcow2_error_set (error, -r, "%s: %s", w->top->filename, strerror (-r));
  if (r < 0) {
    writer_free (w);
    return r;
  }
  image->writer = w;
  return 0;
}

/*----- The first change -----*/

/* Autoclear features that we don't keep up to date: all but the raw
 * data file's, which zero.c and write.c see to.
 */
static int
clear_features (struct writer *w)
{
  const struct header_features clear = { .autoclear = ~AUTOCLEAR_RAW_DATA };
  int r;

  turn_take (&w->turn);
  r = header_writer_set_features (w->header, NULL, &clear);
  turn_give (&w->turn);
  return r;
}

static int
begin (struct writer *w)
{
  int r = 0;

  pthread_mutex_lock (&w->begin_lock);
  if (!w->begun) {
    r = clear_features (w);
    if (r == 0)
      r = worker_start (w);
    if (r == 0)
      w->begun = true;
    else
      log_message (&w->top->log, QCOW2_LOG_ERROR,
                   "%s: can't begin to write: %s", w->top->filename,
                   strerror (-r));
  }
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

int
writer_begin_change (struct writer *w)
{
  if (w->finished ||
      atomic_load_explicit (&w->committer.failed, memory_order_relaxed))
    return -EROFS;
  if (atomic_load_explicit (&w->begun, memory_order_acquire))
    return 0;
  return begin (w);
}

/*----- Closing -----*/

/* The free tail of the file, and what is after it.  Only what this session
 * has used: a cluster that nobody counts may hold data all the same, if
 * the image is damaged.
 */
static int
cut_tail (struct writer *w)
{
  unsigned bits = w->top->header.cluster_bits;
  int64_t size_bytes = qcow2_storage_size (w->top->file);
  uint64_t clusters, value = 0;
  int r = 0;

  if (size_bytes < 0 || !qcow2_storage_can_grow (w->top->file))
    return 0;
  clusters = ((uint64_t) size_bytes + (UINT64_C (1) << bits) - 1) >> bits;
  while (clusters > 1 && r == 0) {
    r = refcounts_get (w->rc, clusters - 1, &value);
    if (value != 0 || !alloc_is_ours (&w->alloc, clusters - 1))
      break;
    clusters--;
  }
  if (r < 0 || clusters << bits >= (uint64_t) size_bytes)
    return r;
  return qcow2_storage_truncate (w->top->file, clusters << bits);
}

static int
commit_all (struct writer *w)
{
  int r;

  /* Also what was written in place, to the data file too. */
  r = commit (&w->committer);
  if (r < 0)
    return r;
  /* Retiring makes refcounts dirty, which the next round writes. */
  do
    r = worker_round (w);
  while (r == 0 && !(retire_is_empty (&w->retire) &&
                     committer_is_clean (&w->committer)));
  if (r == 0)
    r = cut_tail (w);
  if (r == 0)
    r = qcow2_storage_flush (w->top->file);
  return r;
}

int
writer_finish (struct writer *w)
{
  int r = 0;

  if (!w || w->finished)
    return 0;
  worker_stop (w);
  w->finished = true;
  if (w->begun)
    r = commit_all (w);
  if (r < 0)
    log_message (&w->top->log, QCOW2_LOG_ERROR,
                 "%s: the image was not closed properly: %s",
                 w->top->filename, strerror (-r));
  return r;
}
