/* SPDX-License-Identifier: BSD-3-Clause */

/* A commit that fails loses nothing: what it was to free stays in use,
 * and what it was to write comes back, without memory being asked for.
 * Nor does one that succeeds free what was unlinked while it ran, and a
 * request that needs room meanwhile waits for what it is about to free.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "hooked-storage.h"
#include "image.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "storage-fault.h"
#include "tap.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define CLUSTER_BYTES (64 * KiB)

static struct qcow2 *image;
static struct qcow2_view *view;
static uint8_t buf[64 * KiB];

/* Called once, before a write of a commit. */
static void (*during_commit) (void);

static int
hooked_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
                uint64_t offset, bool durable)
{
  void (*fn) (void) = during_commit;

  during_commit = NULL;
  if (fn)
    fn ();
  return real_pwritev (s, iov, iovcnt, offset, durable);
}

static void
open_image (const char *options)
{
  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 %s disk.qcow2 "
               "64M && qemu-io -f qcow2 -c 'write -q -P 1 0 4M' disk.qcow2",
               options);
  no_faults ();
  open_hooked (hooked_pwritev, &image, &view);
  /* Only the test commits. */
  worker_stop (image->writer);
}

static void
close_image (void)
{
  no_faults ();
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
  run_command ("qemu-img check -q disk.qcow2");
}

static uint64_t
refcount (uint64_t host_cluster)
{
  uint64_t value;

  if (refcounts_get (image->writer->rc, host_cluster, &value) < 0)
    abort ();
  return value;
}

/* What lies behind guest offset 0. */
static uint64_t
first_host_cluster (void)
{
  struct layer *top = image->writer->top;
  struct run run;
  bool owned;

  if (map_lookup_owned (top, 0, 1, &run, &owned) < 0 || !owned)
    abort ();
  return run.host_offset >> top->header.cluster_bits;
}

static void
test_retire (void)
{
  struct retire *retire;
  uint64_t host;

  open_image ("");
  retire = &image->writer->retire;
  host = first_host_cluster ();
  is_int (qcow2_trim (view, CLUSTER_BYTES, 0, false), 0, "a trim");
  fault.write_errno = EIO;
  is_int (qcow2_flush (view), -EIO, "the commit after it fails");
  is_int (retire->durable.nr, 0, "what was trimmed must not be freed");
  ok (retire_has_unlinked (retire), "it still is to be freed");
  is_int (refcount (host), 1, "its refcount is as before");
  no_faults ();
  is_int (worker_round (image->writer), 0, "the next commit succeeds");
  is_int (refcount (host), 0, "then it is free");
  close_image ();
}

static void
trim_first (void)
{
  is_int (qcow2_trim (view, CLUSTER_BYTES, 0, false), 0,
          "a trim during the commit");
}

/* The commit has copied the entry as it was before. */
static void
test_unlinked_meanwhile (void)
{
  struct retire *retire;
  uint64_t host;

  open_image ("");
  retire = &image->writer->retire;
  host = first_host_cluster ();
  is_int (qcow2_trim (view, CLUSTER_BYTES, CLUSTER_BYTES, false), 0,
          "a trim");
  during_commit = trim_first;
  is_int (qcow2_flush (view), 0, "a commit");
  ok (retire->durable.nr == 1 && retire->durable.items[0].nr == 1,
      "only what was trimmed before is to be freed");
  is_int (worker_round (image->writer), 0, "another commit");
  is_int (refcount (host), 0, "then the other is free, too");
  close_image ();
}

/* What a commit before it has made durable is freed all the same: it may be
 * the room that is missing.
 */
static void
test_durable_before (void)
{
  uint64_t host;

  open_image ("");
  host = first_host_cluster ();
  is_int (qcow2_trim (view, CLUSTER_BYTES, 0, false), 0, "a trim");
  is_int (qcow2_flush (view), 0, "and a commit");
  is_int (qcow2_trim (view, CLUSTER_BYTES, CLUSTER_BYTES, false), 0,
          "another trim");
  fault.write_errno = ENOSPC;
  is_int (worker_round (image->writer), -ENOSPC, "whose commit fails");
  is_int (refcount (host), 0, "what was trimmed first is free");
  is_int (refcount (host + 1), 1, "what was trimmed then is not");
  close_image ();
}

/* Of what was trimmed, one refcount can be read and others can't. */
static void
test_refcounts_unread (void)
{
  struct retire *retire;
  uint64_t host, i, sum = 0;

  open_image ("-o cluster_size=512,refcount_bits=64");
  retire = &image->writer->retire;
  host = first_host_cluster ();
  /* The first change starts the worker, which reads all refcounts. */
  is_int (qcow2_trim (view, 512, 4095 * KiB, false), 0, "a first change");
  worker_stop (image->writer);
  is_int (qcow2_trim (view, 1024 * KiB, 0, false), 0, "a trim");
  is_int (qcow2_flush (view), 0, "and a commit");
  slice_cache_drop (image->writer->rc->slices, 0, 16384 * KiB);
  is_int (refcount (host), 1, "a refcount is read");
  hooked_reads_fail = true;
  is_int (worker_round (image->writer), -EIO, "other refcounts are not read");
  ok (!retire_is_empty (retire), "what is left is still to be freed");
  is_int (worker_round (image->writer), -EIO, "and again");
  hooked_reads_fail = false;
  is_int (worker_round (image->writer), 0, "then they are");
  ok (retire_is_empty (retire), "all is free");
  for (i = 0; i < 2048; ++i)
    sum += refcount (host + i);
  ok (sum < 200, "but tables");
  close_image ();
}

/*----- A request that finds no room during the commit -----*/

static pthread_t writing;
static atomic_int write_result;

static void *
write_new (void *opaque)
{
  atomic_store (&write_result,
                qcow2_pwrite (view, buf, CLUSTER_BYTES, 8192 * KiB, false));
  return NULL;
}

static bool
reclaim_waits (struct writer *w)
{
  bool waits;

  pthread_mutex_lock (&w->worker_lock);
  waits = w->hurry || w->rounds_started != w->rounds_ended;
  pthread_mutex_unlock (&w->worker_lock);
  return waits;
}

/* The commit goes on when the request has ended, or waits for the worker. */
static void
write_during_commit (void)
{
  unsigned i;

  atomic_store (&write_result, 1);
  pthread_create (&writing, NULL, write_new, NULL);
  for (i = 0; i < 5000 && atomic_load (&write_result) == 1 &&
       !reclaim_waits (image->writer); ++i)
    usleep (1000);
}

static void
test_no_room_meanwhile (void)
{
  struct writer *w;

  open_image ("");
  w = image->writer;
  is_int (qcow2_trim (view, 4096 * KiB, 0, false), 0, "a trim of all");
  w->alloc.end = w->alloc.append; /* as on a device that is full */
  is_int (worker_start (w), 0, "the worker runs");
  during_commit = write_during_commit;
  is_int (qcow2_flush (view), 0, "a commit");
  pthread_join (writing, NULL);
  is_int (atomic_load (&write_result), 0,
          "a write meanwhile gets what was trimmed");
  close_image ();
}

/* With clusters of 512 bytes, an L1 entry covers this much. */
#define L1_BYTES (32 * KiB)

static void
test_l1 (void)
{
  struct l1_writer *l1;
  struct l1_changes sealed;
  const struct l1_change *items;
  unsigned i;

  open_image ("-o cluster_size=512,refcount_bits=64");
  l1 = &image->writer->l1;
  for (i = 0; i < 40; ++i)
    if (qcow2_pwrite (view, buf, 1, (200 + i) * L1_BYTES, false) < 0)
      abort ();
  ok (l1->changed.nr >= 30, "a few L1 entries were changed");
  l1_seal (l1, &sealed);
  for (i = 300; i < 310; ++i)
    if (qcow2_pwrite (view, buf, 1, i * L1_BYTES, false) < 0)
      abort ();
  items = l1->changed.items;
  ok (l1->changed.room >= l1->changed.nr + sealed.nr,
      "there is room for those that are about to be written");
  l1_unseal (l1, &sealed, false);
  ok (l1->changed.nr >= 40, "they are back");
  ok (l1->changed.items == items, "no memory was asked for");
  close_image ();
}

int
main (void)
{
  scratch_dir_enter ();
  test_retire ();
  test_unlinked_meanwhile ();
  test_durable_before ();
  test_refcounts_unread ();
  test_no_room_meanwhile ();
  test_l1 ();
  return tap_done ();
}
