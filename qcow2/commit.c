/* SPDX-License-Identifier: BSD-3-Clause */

/* The commit.
 *
 *     seal     what was unlinked, then L2 slices, then L1 entries, then
 *              refcount slices; last, whether any data was written
 *     write    refcount slices            -> flush
 *     write    L2 slices and L1 entries   -> flush
 *     retire   what was unlinked
 *
 * Lazy refcounts are written along with the L2 slices, and not each
 * time: the dirty bit stands for their order.
 *
 * Why the seals come in this order: a request raises a refcount before
 * it links the cluster, so refcounts sealed last cover every link that
 * was sealed; a cluster is put on the list of unlinked ones after its
 * entry was changed, so the list sealed first holds nothing that a
 * sealed slice still names; a request notes that it wrote before it
 * links, so that whoever sealed its link sees the note and flushes.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "commit.h"
#include "guard.h"

/* Adjacent sectors are written by one call, of this many at most. */
#define MAX_IOV 256

struct sealed {
  struct retire_list unlinked;
  struct sealed_slices l2;
  struct l1_changes l1;
  struct sealed_slices refcounts;
  bool wrote;
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
  pthread_mutex_destroy (&c->lock);
  pthread_cond_destroy (&c->ended);
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

static int
flush (struct committer *c)
{
  int r = qcow2_storage_flush (c->layer->file);

  if (r < 0)
    committer_fail (c, r);
  return r;
}

/* Data and refcounts: what L2 and L1 entries will rely on. */
static int
write_first (struct committer *c, struct sealed *s)
{
  bool links = s->l2.nr_sectors > 0 || s->l1.nr > 0;
  bool relied_on = links && !c->lazy && s->refcounts.nr_sectors > 0;
  int r = c->lazy ? 0 : write_sectors (c, &s->refcounts,
                                       METADATA_REFCOUNT_BLOCK);

  if (r == 0 && s->wrote && c->layer->external_data) {
    r = qcow2_storage_flush (c->layer->data);
    if (r < 0)
      committer_fail (c, r);
  }
  if (r == 0 && (s->wrote || relied_on))
    r = flush (c);
  return r;
}

static int
write_second (struct committer *c, struct sealed *s)
{
  int r = 0;

  if (c->lazy)
    r = write_sectors (c, &s->refcounts, METADATA_REFCOUNT_BLOCK);
  if (r < 0 || (s->l2.nr_sectors == 0 && s->l1.nr == 0))
    return r;
  /* A durable write that failed meanwhile may have lost what the first
   * flush was to cover: the kernel tells only one of the two.
   */
  r = committer_state (c);
  if (r == 0)
    r = write_sectors (c, &s->l2, METADATA_L2_TABLE);
  if (r == 0)
    r = l1_write (c->l1, &s->l1);
  if (r == 0)
    r = flush (c);
  return r;
}

/*----- Sealing -----*/

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

static int
seal (struct committer *c, struct sealed *s)
{
  int r;

  retire_seal (c->retire, &s->unlinked);
  r = slice_cache_seal (c->slices, &s->l2);
  if (r < 0)
    return r;
  l1_seal (c->l1, &s->l1);
  if (atomic_exchange (&c->want_refcounts, false) ||
      !may_leave_refcounts (c))
    r = slice_cache_seal (c->rc->slices, &s->refcounts);
  s->wrote = epoch_take_wrote (c->epoch);
  return r;
}

static void
unseal (struct committer *c, struct sealed *s, bool first, bool second)
{
  slice_cache_unseal (c->rc->slices, &s->refcounts,
                      c->lazy ? second : first);
  slice_cache_unseal (c->slices, &s->l2, second);
  l1_unseal (c->l1, &s->l1, second);
  retire_unseal (c->retire, &s->unlinked, second);
  if (!first && s->wrote)
    epoch_note_write (epoch_first_ticket (c->epoch));
}

static int
run (struct committer *c)
{
  struct sealed s = { .wrote = false };
  bool first = false;
  int r;

  turn_take (c->turn);
  r = committer_state (c);      /* it may have failed meanwhile */
  if (r == 0)
    r = seal (c, &s);
  if (r == 0)
    r = write_first (c, &s);
  if (r == 0) {
    first = true;
    r = write_second (c, &s);
  }
  unseal (c, &s, first, r == 0);
  turn_give (c->turn);
  if (r < 0 && !guard_is_corrupt (c->layer))
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
  clean = !c->running && slice_cache_nr_dirty (c->slices) == 0 &&
    (may_leave_refcounts (c) ||
     slice_cache_nr_dirty (c->rc->slices) == 0) && l1_is_clean (c->l1);
  pthread_mutex_unlock (&c->lock);
  return clean;
}
