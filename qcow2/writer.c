/* SPDX-License-Identifier: BSD-3-Clause */

/* Making an image writable, and ending that cleanly. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format.h"
#include "guard.h"
#include "header-write.h"
#include "writer.h"

/* Refcount slices get this part of the metadata cache. */
#define REFCOUNT_CACHE_PART 8

/* Waits for the worker's interval must not depend on the time of day. */
static void
init_wake (pthread_cond_t *wake)
{
  pthread_condattr_t attr;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (wake, &attr);
  pthread_condattr_destroy (&attr);
}

static void
init_locks (struct writer *w)
{
  turn_init (&w->turn);
  retire_init (&w->retire);
  committer_init (&w->committer);
  inflight_init (&w->inflight);
  pthread_mutex_init (&w->begin_lock, NULL);
  pthread_mutex_init (&w->worker_lock, NULL);
  init_wake (&w->worker_wake);
  pthread_cond_init (&w->round_ended, NULL);
}

void
writer_free (struct writer *w)
{
  if (!w)
    return;
  if (w->alloc.rc)
    allocator_destroy (&w->alloc);
  guard_free (w->top);
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
refcount_pressure (void *opaque)
{
  struct writer *w = opaque;

  committer_want_refcounts (&w->committer);
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
  c->lazy = w->lazy_refcounts;
  w->alloc.committer = c;
  slice_cache_on_pressure (w->top->slices, pressure, w);
  slice_cache_on_pressure (w->rc->slices, refcount_pressure, w);
  return committer_prepare (c);
}

static bool
wants_lazy_refcounts (const struct header *h,
                      enum qcow2_lazy_refcounts option)
{
  switch (option) {
  case QCOW2_LAZY_ON: return true;
  case QCOW2_LAZY_OFF: return false;
  case QCOW2_LAZY_AS_IMAGE: break;
  }
  return h->compatible_features & COMPAT_LAZY_REFCOUNTS;
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
  w->writethrough = options->cache == QCOW2_CACHE_WRITETHROUGH ||
    options->cache == QCOW2_CACHE_DIRECTSYNC;
  w->detect_zeroes = options->detect_zeroes;
  w->data_file_raw = w->top->external_data &&
    w->top->header.autoclear_features & AUTOCLEAR_RAW_DATA;
  w->lazy_refcounts = wants_lazy_refcounts (&w->top->header,
                                            options->lazy_refcounts);
  init_locks (w);

  r = refcounts_new (w->top, options->cache_bytes / REFCOUNT_CACHE_PART,
                     &w->rc, error);
  if (r == 0)
    r = header_writer_new (w->top->file, &w->top->header, &w->header, error);
  if (r == 0 && ((r = guard_new (w->top, &image->snapshots,
                                 w->header)) < 0 ||
                 (r = refcounts_guard (w->rc)) < 0 ||
                 (r = l1_writer_init (&w->l1, w->top)) < 0 ||
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
 * data file's, which zero.c and write.c see to.  And the dirty bit, if
 * refcounts will be wrong on disk.
 */
static int
prepare_header (struct writer *w, bool dirty, bool keep_bitmaps)
{
  const struct header_features clear = {
    .autoclear = ~(AUTOCLEAR_RAW_DATA |
                   (keep_bitmaps ? AUTOCLEAR_BITMAPS : 0)),
  };
  const struct header_features set = {
    .incompatible = dirty ? INCOMPAT_DIRTY : 0,
  };
  int r;

  turn_take (&w->turn);
  r = header_writer_set_features (w->header, &set, &clear);
  turn_give (&w->turn);
  /* It may be there since before, if clearing it has failed. */
  if (r == 0 && dirty)
    w->dirty = true;
  /* The error may be about the state of a virtual machine, see write.c. */
  if (r < 0 && r != -ENOSPC && w->begun_beside)
    committer_fail (&w->committer, r);
  return r;
}

static int
begin_locked (struct writer *w, bool dirty, bool keep_bitmaps)
{
  int r = guard_check (w->top, METADATA_HEADER, 0,
                       layer_cluster_bytes (w->top), "the header");

  return r == 0 ? prepare_header (w, dirty, keep_bitmaps) : r;
}

static void
log_begin_failed (const struct writer *w, int r)
{
  if (!guard_is_corrupt (w->top))
    log_message (&w->top->log, QCOW2_LOG_ERROR,
                 "%s: can't begin to write: %s", w->top->filename,
                 strerror (-r));
}

static int
begin (struct writer *w, bool beside)
{
  _Atomic bool *begun = beside ? &w->begun_beside : &w->begun;
  int r = 0;

  pthread_mutex_lock (&w->begin_lock);
  if (!w->begun && !*begun) {
    r = begin_locked (w, w->lazy_refcounts || w->unrepaired, beside);
    if (r == 0)
      r = worker_start (w);
    if (r == 0)
      *begun = true;
    else
      log_begin_failed (w, r);
  }
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

static int
may_change (const struct writer *w)
{
  if (guard_is_corrupt (w->top))
    return -EIO;
  if (w->finished ||
      atomic_load_explicit (&w->committer.failed, memory_order_relaxed))
    return -EROFS;
  return 0;
}

int
writer_begin_change (struct writer *w)
{
  int r = may_change (w);

  if (r < 0 || atomic_load_explicit (&w->begun, memory_order_acquire))
    return r;
  return begin (w, false);
}

int
writer_begin_beside (struct writer *w)
{
  int r = may_change (w);

  if (r < 0 || atomic_load_explicit (&w->begun_beside, memory_order_acquire))
    return r;
  return begin (w, true);
}

int
writer_begin_operation (struct writer *w, bool keep_bitmaps)
{
  int r = may_change (w);

  if (r < 0)
    return r;
  pthread_mutex_lock (&w->begin_lock);
  r = begin_locked (w, w->top->header.version >= 3, keep_bitmaps);
  if (r < 0)
    log_begin_failed (w, r);
  else if (keep_bitmaps)
    w->begun_beside = true;
  else
    w->begun = true;
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/*----- Coming to rest, and closing -----*/

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
  /* An entry named what was behind the end, and a guest wrote there: that is
   * not ours, and nobody knows how far away it is.
   */
  if (clusters > alloc_used_end (&w->alloc))
    return 0;
  while (clusters > 1 && r == 0) {
    r = refcounts_get (w->rc, clusters - 1, &value);
    if (value != 0 || !alloc_is_ours (&w->alloc, clusters - 1))
      break;
    clusters--;
  }
  if (r < 0 || clusters << bits >= (uint64_t) size_bytes)
    return r;
  r = guard_check (w->top, METADATA_NONE, clusters << bits,
                   (uint64_t) size_bytes - (clusters << bits),
                   "the free end of the file");
  if (r < 0)
    return r;
  return qcow2_storage_truncate (w->top->file, clusters << bits);
}

static int
settle_entries (struct writer *w)
{
  int r;

  turn_take (&w->turn);
  r = refcount_settle_entries (&w->alloc);
  turn_give (&w->turn);
  return r;
}

/* Other programs may write to the files as long as nobody is here. */
static int
settle (struct writer *w)
{
  int r = qcow2_storage_settle (w->top->file);

  if (r == 0 && w->top->data != w->top->file)
    r = qcow2_storage_settle (w->top->data);
  return r;
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
    r = settle_entries (w);
  if (r == 0)
    r = cut_tail (w);
  if (r == 0)
    r = settle (w);
  if (r < 0)
    return r;
  /* Refcounts may have been written since the last flush; if they are lost,
   * nobody writes them again.
   */
  return committer_flush (&w->committer, w->top->file);
}

/* Everything is durable.  An image that is corrupt stays as it is. */
static int
clear_dirty_bit (struct writer *w)
{
  const struct header_features clear = { .incompatible = INCOMPAT_DIRTY };
  int r;

  if (!w->dirty || w->unrepaired)
    return 0;
  r = committer_state (&w->committer);
  if (r < 0)
    return r;
  r = header_writer_set_features (w->header, NULL, &clear);
  if (r == 0)
    w->dirty = false;
  return r;
}

int
writer_rest (struct writer *w)
{
  int r;

  if (!writer_has_begun (w))
    return clear_dirty_bit (w); /* if that has failed before */
  worker_stop (w);
  atomic_store (&w->committer.finishing, true);
  r = commit_all (w);
  if (r == 0)
    r = alloc_restart (&w->alloc);
  atomic_store (&w->committer.finishing, false);
  if (r < 0) {
    worker_start (w);           /* commits go on being tried */
    return r;
  }
  /* If this fails the bit may be there or not: the next change sets it
   * first, either way.
   */
  w->begun = w->begun_beside = false;
  return clear_dirty_bit (w);
}

/* Without locks other programs take their turn now.  To write anything after
 * that would destroy what they have done, so what could not be written is
 * given up, as in a power failure: what was flushed is in the file.
 */
static void
end_turn (struct writer *w, int r)
{
  if (committer_state (&w->committer) == 0) {
    w->given_up = true;
    committer_fail (&w->committer, r);
  }
  worker_stop (w);
  settle (w);
}

/* The gate is closed, and no view is open. */
static void
rest_without_views (struct writer *w)
{
  int r = committer_state (&w->committer);

  if (r == 0) {
    r = writer_rest (w);
    if (r < 0)
      log_message (&w->top->log, QCOW2_LOG_ERROR,
                   "%s: the image could not be brought to rest after the "
                   "last client has left: %s", w->top->filename,
                   strerror (-r));
  }
  if (r < 0 && !w->image->options.lock && !image_has_views (w->image))
    end_turn (w, r);
}

void
writer_views_closed (struct writer *w)
{
  if (!w || (!writer_has_begun (w) && (!w->dirty || w->unrepaired)))
    return;
  /* Most of the work, retiring too, so that a client that comes meanwhile
   * waits for little; and for nothing, once it is there.
   */
  worker_reclaim (w);
  if (image_has_views (w->image))
    return;
  gate_close (&w->image->gate);
  if (!w->finished && !image_has_views (w->image))
    rest_without_views (w);
  gate_open (&w->image->gate);
}

int
writer_finish (struct writer *w)
{
  int r = 0;

  if (!w || w->finished)
    return 0;
  r = writer_rest (w);
  worker_stop (w);
  w->finished = true;
  if (r < 0 && !guard_is_corrupt (w->top))
    log_message (&w->top->log, QCOW2_LOG_ERROR,
                 "%s: the image was not closed properly: %s",
                 w->top->filename, strerror (-r));
  return r;
}
