/* SPDX-License-Identifier: BSD-3-Clause */

/* The commit.
 *
 *     seal     what was unlinked, then which L2 slices are dirty
 *     batch    copy some of these slices, and the L1 entries; then
 *              write refcount slices       -> flush, if needed
 *              write the copies
 *     ...      more batches
 *     flush
 *     retire   what was unlinked
 *
 * Why in this order: a request raises a refcount before it links the
 * cluster, so refcounts sealed after a slice was copied cover every link
 * in the copy; a cluster is put on the list of unlinked ones after its
 * entry was changed, so the list sealed first holds nothing that a slice
 * copied later still names; a request notes that it wrote before it
 * links, so that whoever copied its link sees the note and flushes.
 *
 * A batch relies on nothing but what its own flush covers.  That flush
 * makes the batch before it durable, too: N batches take N + 1 flushes.
 * Most commits are of one batch.
 *
 * Lazy refcounts are not written each time, and nothing relies on them:
 * the dirty bit stands for their order.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "commit.h"
#include "guard.h"

/* Adjacent sectors are written by one call, of this many at most. */
#define MAX_IOV 256

/* The most that a batch of L2 slices takes, and of refcount slices, which
 * are not held until a flush; less in a small cache, down to the least.
 */
#define MAX_L2_BATCH_BYTES ((size_t) 4 << 20)
#define MAX_REFCOUNT_BATCH_BYTES ((size_t) 512 << 10)
#define MIN_BATCH_BYTES ((size_t) 64 << 10)
#define BATCH_PART 8            /* of the cache */

struct sealed {
  struct retire_list unlinked;
  struct l1_changes l1;
  bool l1_written;

  /* What was written and not flushed: by requests; refcounts; links. */
  bool data, refcounts, links;
};

void
committer_init (struct committer *c)
{
  pthread_mutex_init (&c->lock, NULL);
  pthread_cond_init (&c->ended, NULL);
}

void
committer_destroy (struct committer *c)
{
  sealed_slices_free (&c->sealed_l2);
  sealed_slices_free (&c->sealed_refcounts);
  pthread_mutex_destroy (&c->lock);
  pthread_cond_destroy (&c->ended);
}

static size_t
batch_bytes (struct slice_cache *cache, size_t slice_bytes, size_t max_bytes)
{
  size_t bytes = slice_cache_nr_slots (cache) * slice_bytes / BATCH_PART;

  if (bytes > max_bytes)
    bytes = max_bytes;
  return bytes > MIN_BATCH_BYTES ? bytes : MIN_BATCH_BYTES;
}

int
committer_prepare (struct committer *c)
{
  size_t l2_bytes = batch_bytes (c->slices, c->layer->slice_bytes,
                                 MAX_L2_BATCH_BYTES);
  size_t refcount_bytes = batch_bytes (c->rc->slices, c->rc->slice_bytes,
                                       MAX_REFCOUNT_BATCH_BYTES);
  int r = sealed_slices_init (&c->sealed_l2, c->slices, l2_bytes);

  return r < 0 ? r : sealed_slices_init (&c->sealed_refcounts, c->rc->slices,
                                         refcount_bytes);
}

/*----- Writing -----*/

/* The chain's slice keys have the layer on top: 0 for the top image, so
 * the key is the host offset.
 */
static uint64_t
sector_offset (const struct sealed_sector *s)
{
  return s->key + s->byte_in_slice;
}

static int
compare_sectors (const void *a, const void *b)
{
  uint64_t x = sector_offset (a), y = sector_offset (b);

  return x < y ? -1 : x > y;
}

static int
write_sectors (struct committer *c, struct sealed_slices *sealed,
               enum metadata_kind kind)
{
  struct iovec iov[MAX_IOV];
  size_t i = 0, n;
  int r;

  if (sealed->nr_sectors > 1)
    qsort (sealed->sectors, sealed->nr_sectors, sizeof *sealed->sectors,
           compare_sectors);
  while (i < sealed->nr_sectors) {
    uint64_t offset = sector_offset (&sealed->sectors[i]);

    for (n = 0; n < MAX_IOV && i + n < sealed->nr_sectors; ++n) {
      struct sealed_sector *s = &sealed->sectors[i + n];

      if (sector_offset (s) != offset + n * sizeof s->data)
        break;
      iov[n].iov_base = s->data;
      iov[n].iov_len = sizeof s->data;
    }
    r = guard_check (c->layer, kind, offset, n * sizeof sealed->sectors->data,
                     kind == METADATA_L2_TABLE ? "an L2 table" :
                     "a refcount block");
    if (r == 0)
      r = qcow2_storage_writev (c->layer->file, iov, (int) n, offset, false);
    if (r < 0)
      return r;
    i += n;
  }
  return 0;
}

void
committer_want_refcounts (struct committer *c)
{
  atomic_store (&c->want_refcounts, true);
}

/* May refcounts that have changed stay in memory? */
static bool
may_leave_refcounts (struct committer *c)
{
  return c->lazy && !atomic_load (&c->finishing) &&
    slice_cache_nr_dirty (c->rc->slices) <=
    slice_cache_nr_slots (c->rc->slices) / 3;
}

/* Refcounts may be written at any time. */
static int
write_refcounts (struct committer *c, struct sealed *s)
{
  struct sealed_slices *sealed = &c->sealed_refcounts;
  int r = 0;

  if (!atomic_exchange (&c->want_refcounts, false) &&
      may_leave_refcounts (c))
    return 0;
  slice_cache_seal (c->rc->slices, sealed);
  while (r == 0 && slice_cache_copy (c->rc->slices, sealed)) {
    s->refcounts |= sealed->nr_sectors > 0;
    r = write_sectors (c, sealed, METADATA_REFCOUNT_BLOCK);
    if (r == 0)
      slice_cache_release (c->rc->slices, sealed, sealed->nr_copied);
  }
  slice_cache_unseal (c->rc->slices, sealed);
  return r;
}

static int
flush (struct committer *c, struct sealed *s)
{
  int r = 0;

  if (s->data && c->layer->external_data)
    r = committer_flush (c, c->layer->data);
  if (r == 0)
    r = committer_flush (c, c->layer->file);
  if (r == 0)
    s->data = s->refcounts = s->links = false;
  return r;
}

/* Data and refcounts: what the batch relies on.  WRITTEN slices, those of
 * batches before, were written.
 */
static int
write_first (struct committer *c, struct sealed *s, bool links,
             size_t written)
{
  int r;

  /* Before refcounts are sealed: who notes a write so that refcounts are
   * flushed, which changed before, relies on it.
   */
  if (epoch_take_wrote (c->epoch))
    s->data = true;
  r = write_refcounts (c, s);
  if (r == 0 && (s->data || (links && s->refcounts && !c->lazy))) {
    r = flush (c, s);
    if (r == 0)
      slice_cache_release (c->slices, &c->sealed_l2, written);
  }
  return r;
}

static int
write_second (struct committer *c, struct sealed *s)
{
  int r = committer_state (c);  /* without a flush before, too */

  s->links = true;
  if (r == 0)
    r = write_sectors (c, &c->sealed_l2, METADATA_L2_TABLE);
  if (r == 0 && !s->l1_written) {
    r = l1_write (c->l1, &s->l1);
    s->l1_written = true;
  }
  return r;
}

/*----- Batches -----*/

static int
commit_batch (struct committer *c, struct sealed *s)
{
  size_t written = c->sealed_l2.nr_copied;
  bool links;
  int r;

  slice_cache_copy (c->slices, &c->sealed_l2);
  if (written == 0)
    l1_seal (c->l1, &s->l1);
  links = c->sealed_l2.nr_sectors > 0 || (!s->l1_written && s->l1.nr > 0);
  r = write_first (c, s, links, written);
  if (r == 0 && links)
    r = write_second (c, s);
  return r;
}

static int
commit_batches (struct committer *c, struct sealed *s)
{
  int r;

  retire_seal (c->retire, &s->unlinked);
  slice_cache_seal (c->slices, &c->sealed_l2);
  do
    r = commit_batch (c, s);
  while (r == 0 && c->sealed_l2.nr_copied < c->sealed_l2.nr_slots);
  if (r == 0 && s->links)
    r = flush (c, s);
  if (r == 0)
    slice_cache_release (c->slices, &c->sealed_l2, c->sealed_l2.nr_slots);

  slice_cache_unseal (c->slices, &c->sealed_l2);
  l1_unseal (c->l1, &s->l1, r == 0);
  retire_unseal (c->retire, &s->unlinked, r == 0);
  /* The next commit has to flush these before it writes links. */
  if (r < 0 && (s->data || s->refcounts))
    epoch_note_write (epoch_first_ticket (c->epoch));
  return r;
}

static int
run (struct committer *c)
{
  struct sealed s = { .l1_written = false };
  unsigned nr_left_out;
  int r;

  turn_take (c->turn);
  r = committer_state (c);      /* it may have failed meanwhile */
  if (r == 0)
    r = commit_batches (c, &s);
  turn_give (c->turn);
  if (r < 0 && !guard_is_corrupt (c->layer) &&
      log_limit_passes (&c->failures, &nr_left_out))
    log_message (&c->layer->log, QCOW2_LOG_ERROR,
                 "%s: can't write metadata: %s", c->layer->filename,
                 strerror (-r));
  return r;
}

/*----- Sharing -----*/

/* 0, or why nothing is written any more.  Under c->lock. */
static int
state_locked (const struct committer *c)
{
  return guard_is_corrupt (c->layer) ? -EIO : c->failed;
}

int
commit (struct committer *c)
{
  uint64_t mine;
  int r;

  pthread_mutex_lock (&c->lock);
  mine = c->started + 1;        /* the first that begins after now */
  while (c->completed < mine && state_locked (c) == 0) {
    if (c->running) {
      pthread_cond_wait (&c->ended, &c->lock);
      continue;
    }
    c->running = true;
    c->started++;
    pthread_mutex_unlock (&c->lock);
    r = run (c);
    pthread_mutex_lock (&c->lock);
    c->results[c->started & 1] = r;
    c->completed = c->started;
    c->running = false;
    pthread_cond_broadcast (&c->ended);
  }
  r = state_locked (c);
  if (r == 0)
    r = c->results[mine & 1];
  pthread_mutex_unlock (&c->lock);
  return r;
}

void
committer_fail (struct committer *c, int err)
{
  pthread_mutex_lock (&c->lock);
  if (!c->failed) {
    c->failed = err;
    log_message (&c->layer->log, QCOW2_LOG_ERROR,
                 "%s: data could not be made durable: %s; the image is "
                 "read-only from now on, until it is opened again",
                 c->layer->filename, strerror (-err));
  }
  pthread_mutex_unlock (&c->lock);
}

int
committer_flush (struct committer *c, struct qcow2_storage *s)
{
  int r = qcow2_storage_flush (s);

  if (r < 0)
    committer_fail (c, r);
  return r < 0 ? r : committer_state (c);
}

/* A durable write that failed may have taken with it what others wrote
 * before and count on the next flush for; not for lack of room (storage.h).
 */
int
committer_write (struct committer *c, struct qcow2_storage *s,
                 const struct iovec *iov, int iovcnt, uint64_t offset)
{
  int r = qcow2_storage_writev (s, iov, iovcnt, offset, true);

  if (r < 0 && r != -ENOSPC)
    committer_fail (c, r);
  return r < 0 ? r : committer_state (c);
}

int
committer_state (struct committer *c)
{
  int r;

  pthread_mutex_lock (&c->lock);
  r = state_locked (c);
  pthread_mutex_unlock (&c->lock);
  return r;
}

bool
committer_is_clean (struct committer *c)
{
  bool clean;

  pthread_mutex_lock (&c->lock);
  clean = !c->running && state_locked (c) == 0 &&
    slice_cache_nr_dirty (c->slices) == 0 &&
    (may_leave_refcounts (c) ||
     slice_cache_nr_dirty (c->rc->slices) == 0) && l1_is_clean (c->l1);
  pthread_mutex_unlock (&c->lock);
  return clean;
}
