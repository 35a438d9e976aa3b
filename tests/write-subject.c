/* SPDX-License-Identifier: BSD-3-Clause */

/* Images of all kinds, and random requests that change them. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "qemu-image.h"
#include "write-subject.h"
#include "writer.h"

#define KiB ((uint64_t) 1024)
#define MiB (KiB * 1024)
#define QEMU "qemu-img create -q -f qcow2 "

const struct write_subject write_subjects[] = {
  { .name = "64K clusters",
    .create = QEMU "disk.qcow2 8M",
    .disk_bytes = 8 * MiB, .cluster_bytes = 64 * KiB,
    .nr_before = 20, .kinds_before = WRITE_ZEROES | WRITE_UNMAP |
      WRITE_COMPRESSED,
    .nr_threads = 3, .nr_ops = 60, .max_bytes = 200 * KiB,
    .percent_zero = 10, .percent_trim = 10, .nr_sessions = 2,
    .nr_parts = 2 },
  { .name = "version 2",
    .create = QEMU "-o compat=0.10,cluster_size=4k disk.qcow2 3000000",
    .disk_bytes = 3000000 / 512 * 512, .cluster_bytes = 4 * KiB,
    .nr_before = 20, .kinds_before = WRITE_UNMAP,
    .nr_threads = 3, .nr_ops = 80, .max_bytes = 40 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2 },
  { .name = "512-byte clusters",
    .create = QEMU "-o cluster_size=512 disk.qcow2 1M",
    .disk_bytes = 1 * MiB, .cluster_bytes = 512,
    .nr_before = 20, .kinds_before = WRITE_ZEROES,
    .nr_threads = 3, .nr_ops = 70, .max_bytes = 12 * KiB,
    .percent_zero = 10, .percent_trim = 15, .nr_sessions = 1,
    .cache_bytes = 16 * KiB },
  { .name = "small batches",
    .create = QEMU "-o cluster_size=512 disk.qcow2 2M",
    .disk_bytes = 2 * MiB, .cluster_bytes = 512,
    .nr_before = 20, .kinds_before = WRITE_ZEROES,
    .nr_threads = 4, .nr_ops = 70, .max_bytes = 60 * KiB,
    .percent_zero = 10, .percent_trim = 15, .nr_sessions = 2,
    .batch_bytes = 1 * KiB },
  { .name = "snapshots",
    .create = QEMU "-o cluster_size=4k disk.qcow2 4M",
    .disk_bytes = 4 * MiB, .cluster_bytes = 4 * KiB,
    .nr_before = 60, .kinds_before = WRITE_ZEROES | WRITE_COMPRESSED,
    .snapshot = true,
    .nr_threads = 3, .nr_ops = 80, .max_bytes = 30 * KiB,
    .percent_zero = 10, .percent_trim = 10, .nr_sessions = 2,
    .nr_parts = 2 },
  { .name = "snapshots in version 2",
    .create = QEMU "-o compat=0.10,cluster_size=1k disk.qcow2 1M",
    .disk_bytes = 1 * MiB, .cluster_bytes = 1 * KiB,
    .nr_before = 60, .snapshot = true,
    .nr_threads = 2, .nr_ops = 80, .max_bytes = 9 * KiB,
    .percent_zero = 10, .percent_trim = 10, .nr_sessions = 1 },
  { .name = "extended L2",
    .create = QEMU "-o extended_l2=on,cluster_size=32k disk.qcow2 5242368",
    .disk_bytes = 5242368, .cluster_bytes = 32 * KiB,
    .nr_before = 40, .kinds_before = WRITE_ZEROES | WRITE_UNMAP |
      WRITE_COMPRESSED,
    .nr_threads = 3, .nr_ops = 80, .max_bytes = 60 * KiB,
    .percent_zero = 20, .percent_trim = 20, .nr_sessions = 2 },
  { .name = "data file",
    .create = QEMU "-o data_file=data.raw,cluster_size=4k disk.qcow2 2M",
    .disk_bytes = 2 * MiB, .cluster_bytes = 4 * KiB,
    .nr_before = 10, .kinds_before = WRITE_UNMAP, .data_file = "data.raw",
    .nr_threads = 3, .nr_ops = 80, .max_bytes = 20 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2 },
  { .name = "raw data file",
    .create = QEMU "-o data_file=data.raw,data_file_raw=on disk.qcow2 2M",
    .disk_bytes = 2 * MiB, .cluster_bytes = 64 * KiB,
    .nr_before = 10, .data_file = "data.raw",
    .nr_threads = 2, .nr_ops = 80, .max_bytes = 80 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 1 },
  { .name = "lazy refcounts",
    .create = QEMU "-o lazy_refcounts=on,cluster_size=16k disk.qcow2 6M",
    .disk_bytes = 6 * MiB, .cluster_bytes = 16 * KiB,
    .nr_before = 10, .kinds_before = WRITE_ZEROES,
    .nr_threads = 3, .nr_ops = 80, .max_bytes = 70 * KiB,
    .percent_zero = 10, .percent_trim = 10, .nr_sessions = 2 },
  { .name = "lazy refcounts, growing",
    .create = QEMU "-o lazy_refcounts=on,cluster_size=512,refcount_bits=64 "
      "disk.qcow2 8M",
    .disk_bytes = 8 * MiB, .cluster_bytes = 512,
    .nr_threads = 2, .nr_ops = 60, .max_bytes = 150 * KiB,
    .percent_zero = 5, .percent_trim = 5, .nr_sessions = 2,
    .cache_bytes = 64 * KiB },
  { .name = "lazy refcounts, snapshots",
    .create = QEMU "-o lazy_refcounts=on,cluster_size=4k disk.qcow2 4M",
    .disk_bytes = 4 * MiB, .cluster_bytes = 4 * KiB,
    .nr_before = 60, .kinds_before = WRITE_ZEROES | WRITE_COMPRESSED,
    .snapshot = true,
    .nr_threads = 3, .nr_ops = 80, .max_bytes = 30 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2 },
  { .name = "lazy refcounts, data file",
    .create = QEMU "-o lazy_refcounts=on,data_file=data.raw,cluster_size=4k "
      "disk.qcow2 2M",
    .disk_bytes = 2 * MiB, .cluster_bytes = 4 * KiB,
    .data_file = "data.raw",
    .nr_threads = 3, .nr_ops = 60, .max_bytes = 20 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2 },
  { .name = "lazy refcounts, full device",
    .create = QEMU "-o lazy_refcounts=on,cluster_size=4k disk.qcow2 2M",
    .disk_bytes = 2 * MiB, .cluster_bytes = 4 * KiB,
    .spare_bytes = 1300 * KiB,
    .nr_threads = 3, .nr_ops = 120, .max_bytes = 40 * KiB,
    .percent_zero = 20, .percent_trim = 20, .nr_sessions = 2 },
  { .name = "growing refcount table",
    .create = QEMU "-o cluster_size=512,refcount_bits=64 disk.qcow2 8M",
    .disk_bytes = 8 * MiB, .cluster_bytes = 512,
    .nr_threads = 2, .nr_ops = 60, .max_bytes = 150 * KiB,
    .percent_zero = 3, .percent_trim = 3, .nr_sessions = 1,
    .cache_bytes = 64 * KiB },
  { .name = "growing refcounts",
    .create = QEMU "-o cluster_size=1k,refcount_bits=64 disk.qcow2 16M",
    .disk_bytes = 16 * MiB, .cluster_bytes = 1 * KiB,
    .nr_threads = 2, .nr_ops = 60, .max_bytes = 300 * KiB,
    .percent_zero = 5, .percent_trim = 5, .nr_sessions = 1 },
  { .name = "one-bit refcounts",
    .create = QEMU "-o cluster_size=1k,refcount_bits=1 disk.qcow2 4M",
    .disk_bytes = 4 * MiB, .cluster_bytes = 1 * KiB,
    .nr_threads = 3, .nr_ops = 60, .max_bytes = 50 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2 },
  { .name = "overlay",
    .create = QEMU "-o cluster_size=16k base.qcow2 2M && qemu-io -f qcow2 "
      "-c 'write -P 90 0 2M' base.qcow2 > qemu.log && "
      QEMU "-F qcow2 -b base.qcow2 disk.qcow2 4M",
    .disk_bytes = 4 * MiB, .cluster_bytes = 64 * KiB,
    .nr_before = 4, .kinds_before = WRITE_ZEROES,
    .nr_threads = 3, .nr_ops = 60, .max_bytes = 100 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2,
    .nr_parts = 2 },
  { .name = "full device",
    .create = QEMU "-o cluster_size=4k disk.qcow2 2M",
    .disk_bytes = 2 * MiB, .cluster_bytes = 4 * KiB,
    .nr_before = 10, .kinds_before = WRITE_ZEROES,
    .spare_bytes = 1300 * KiB,
    .nr_threads = 3, .nr_ops = 120, .max_bytes = 40 * KiB,
    .percent_zero = 20, .percent_trim = 20, .nr_sessions = 2,
    .nr_parts = 2 },
  { .name = "growing disk",
    .create = QEMU "-o cluster_size=512 disk.qcow2 64k",
    .disk_bytes = 4 * MiB, .start_bytes = 64 * KiB, .cluster_bytes = 512,
    .nr_before = 10, .nr_threads = 2, .nr_ops = 30, .max_bytes = 8 * KiB,
    .percent_zero = 10, .percent_trim = 10, .nr_sessions = 2, .nr_parts = 2,
    .cache_bytes = 64 * KiB },
  { .name = "growing overlay",
    .create = QEMU "base.qcow2 3M && qemu-io -f qcow2 "
      "-c 'write -P 90 0 3M' base.qcow2 > qemu.log && "
      QEMU "-o cluster_size=4k -F qcow2 -b base.qcow2 disk.qcow2 1000448",
    .disk_bytes = 4 * MiB, .start_bytes = 1000448, .cluster_bytes = 4 * KiB,
    .nr_before = 4, .kinds_before = WRITE_ZEROES,
    .nr_threads = 2, .nr_ops = 30, .max_bytes = 30 * KiB,
    .percent_zero = 10, .percent_trim = 10, .nr_sessions = 2,
    .nr_parts = 2 },
  { .name = "preallocated",
    .create = QEMU "-o preallocation=metadata,cluster_size=16k "
      "disk.qcow2 4M",
    .disk_bytes = 4 * MiB, .cluster_bytes = 16 * KiB,
    .nr_threads = 3, .nr_ops = 80, .max_bytes = 60 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2 },
  { .name = "writethrough",
    .create = QEMU "-o cluster_size=16k disk.qcow2 4M",
    .disk_bytes = 4 * MiB, .cluster_bytes = 16 * KiB,
    .nr_before = 20, .kinds_before = WRITE_ZEROES,
    .nr_threads = 3, .nr_ops = 60, .max_bytes = 60 * KiB,
    .percent_zero = 15, .percent_trim = 15, .nr_sessions = 2,
    .cache = QCOW2_CACHE_WRITETHROUGH },
  { .name = "detected zeroes",
    .create = QEMU "-o cluster_size=4k disk.qcow2 3M",
    .disk_bytes = 3 * MiB, .cluster_bytes = 4 * KiB,
    .nr_before = 30, .kinds_before = WRITE_ZEROES,
    .nr_threads = 3, .nr_ops = 60, .max_bytes = 30 * KiB,
    .percent_zero = 40, .percent_trim = 5, .nr_sessions = 2,
    .cache = QCOW2_CACHE_WRITETHROUGH,
    .detect_zeroes = QCOW2_DETECT_ZEROES_UNMAP },
};

const unsigned nr_write_subjects =
  sizeof write_subjects / sizeof write_subjects[0];

/*----- Images -----*/

void
subject_make (const struct write_subject *s, uint64_t *state)
{
  run_command ("rm -rf *; %s", s->create);
  if (s->nr_before > 0)
    random_writes ("qcow2", SUBJECT_IMAGE,
                   s->start_bytes ? s->start_bytes : s->disk_bytes,
                   s->max_bytes, s->cluster_bytes, s->nr_before,
                   s->kinds_before, state);
  if (s->snapshot)
    run_command ("qemu-img snapshot -c " SUBJECT_SNAPSHOT " "
                 SUBJECT_IMAGE);
  if (s->spare_bytes > 0)
    run_command ("truncate -s %" PRIu64 " " SUBJECT_IMAGE, s->spare_bytes);
}

void
subject_options (const struct write_subject *s, const char *dir,
                 struct qcow2_options *options)
{
  static const char *const anywhere[] = { "/" };
  static __thread char data_file[512];

  qcow2_options_init (options);
  options->lock = false;
  options->allow_dirs = anywhere;
  options->nr_allow_dirs = 1;
  if (s->data_file) {
    snprintf (data_file, sizeof data_file, "%s/%s", dir, s->data_file);
    options->data_file = data_file;
  }
  options->cache_bytes = s->cache_bytes ? s->cache_bytes : 1 * MiB;
  options->compressed_cache_bytes = 256 * KiB;
  options->cache = s->cache;
  options->detect_zeroes = s->detect_zeroes;
}

int
subject_read (const struct write_subject *s, const char *dir, bool snapshot,
              uint8_t *buf, struct qcow2_error *error)
{
  struct qcow2_options options;
  struct qcow2 *image;
  struct qcow2_view *view;
  char name[512];
  uint64_t size;
  int index = -1, r;

  subject_options (s, dir, &options);
  snprintf (name, sizeof name, "%s/" SUBJECT_IMAGE, dir);
  r = qcow2_open (name, &options, &image, error);
  if (r < 0)
    return r;
  if (snapshot)
    index = qcow2_snapshot_find (image, SUBJECT_SNAPSHOT);
  r = snapshot && index < 0 ? index :
    qcow2_view_open (image, snapshot ? (size_t) index : QCOW2_ACTIVE, &view,
                     error);
  if (r == 0) {
    snprintf (error->message, sizeof error->message, "reading fails");
    size = qcow2_view_size (view);
    if (size > s->disk_bytes)
      size = s->disk_bytes;
    memset (buf + size, 0, s->disk_bytes - size);
    r = qcow2_pread (view, buf, size, 0);
    qcow2_view_close (view);
  }
  qcow2_close (image);
  return r;
}

uint8_t *
subject_must_read (const struct write_subject *s, bool snapshot)
{
  uint8_t *buf = malloc (s->disk_bytes);
  struct qcow2_error error = { "out of memory" };

  if (!buf || subject_read (s, ".", snapshot, buf, &error) < 0) {
    printf ("Bail out! %s: %s\n", s->name, error.message);
    exit (1);
  }
  return buf;
}

int
subject_repair (const struct write_subject *s, const char *dir)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;
  struct qcow2_view *view;
  char name[512];
  int r, r2;

  subject_options (s, dir, &options);
  options.writable = true;
  snprintf (name, sizeof name, "%s/" SUBJECT_IMAGE, dir);
  r = qcow2_open (name, &options, &image, &error);
  if (r < 0)
    return r;
  r = qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
  if (r == 0 && !qcow2_view_can_write (view))
    r = -EROFS;
  qcow2_view_close (view);
  r2 = qcow2_close (image);
  return r < 0 ? r : r2;
}

/*----- Requests -----*/

#define STRIPE_SECTORS 3

struct runner {
  const struct write_subject *s;
  struct qcow2_view *view;
  struct write_log *log;
  struct guest *guest;
  unsigned nr;                  /* of the thread */
  uint64_t state;
  uint8_t *buf;
  unsigned nr_failed;
};

/* The first quarter of the disk is shared: stripes go round among the
 * threads, so that they meet in clusters.  Of the rest each has a part of
 * its own.
 */
static void
choose_range (struct runner *r, uint64_t *first, uint64_t *nr)
{
  const struct write_subject *s = r->s;
  uint64_t sectors = s->disk_bytes / GUEST_SECTOR;
  uint64_t shared = sectors / 4, part = (sectors - shared) / s->nr_threads;
  uint64_t cluster = s->cluster_bytes / GUEST_SECTOR;
  uint64_t stripes = shared / STRIPE_SECTORS / s->nr_threads, end;

  if (random_below (&r->state, 4) == 0) {
    *first = (random_below (&r->state, stripes) * s->nr_threads + r->nr) *
      STRIPE_SECTORS;
    *nr = 1 + random_below (&r->state, STRIPE_SECTORS);
    return;
  }
  *first = shared + r->nr * part;
  end = r->nr + 1 == s->nr_threads ? sectors : *first + part;
  *first += random_below (&r->state, end - *first);
  *nr = 1 + random_below (&r->state, s->max_bytes / GUEST_SECTOR);
  if (*nr > end - *first)
    *nr = end - *first;
  /* Half of the requests are of whole clusters. */
  if (random_below (&r->state, 2) == 0) {
    uint64_t up = (*first + cluster - 1) / cluster * cluster;

    if (up < *first + *nr) {
      *nr -= up - *first;
      *first = up;
      if (*nr >= cluster && *first + *nr != sectors)
        *nr -= *nr % cluster;
    }
  }
}

static void
one_request (struct runner *r)
{
  uint64_t percent = random_below (&r->state, 100), first, nr;
  bool fua = r->s->cache != QCOW2_CACHE_WRITETHROUGH &&
    random_below (&r->state, 12) == 0;
  bool may_trim = random_below (&r->state, 2) == 0;
  enum guest_kind kind = GUEST_WRITE;
  size_t op;
  int res;

  choose_range (r, &first, &nr);
  if (percent < r->s->percent_zero)
    kind = GUEST_ZERO;
  else if (percent < r->s->percent_zero + r->s->percent_trim)
    kind = GUEST_TRIM;
  op = guest_begin (r->guest, kind, first, nr, write_log_tick (r->log),
                    r->buf);
  first *= GUEST_SECTOR;
  nr *= GUEST_SECTOR;
  if (kind == GUEST_ZERO && r->s->detect_zeroes && may_trim) {
    memset (r->buf, 0, nr);
    kind = GUEST_WRITE;
  }
  if (kind == GUEST_WRITE)
    res = qcow2_pwrite (r->view, r->buf, nr, first, fua);
  else if (kind == GUEST_ZERO)
    res = qcow2_zero (r->view, nr, first, may_trim, false, fua);
  else
    res = qcow2_trim (r->view, nr, first, fua);
  guest_end (r->guest, op, res == 0,
             fua || r->s->cache == QCOW2_CACHE_WRITETHROUGH,
             write_log_tick (r->log));
  if (res < 0)
    r->nr_failed++;
}

static void
one_flush (struct runner *r)
{
  uint64_t begin = write_log_tick (r->log);

  if (qcow2_flush (r->view) == 0)
    guest_flushed (r->guest, begin, write_log_tick (r->log));
  else
    r->nr_failed++;
}

static void *
runner (void *opaque)
{
  struct runner *r = opaque;
  unsigned i;

  for (i = 0; i < r->s->nr_ops; ++i)
    if (random_below (&r->state, 10) == 0)
      one_flush (r);
    else
      one_request (r);
  return NULL;
}

unsigned
subject_run (const struct write_subject *s, struct qcow2_view *view,
             struct write_log *log, struct guest *guest, uint64_t seed)
{
  struct runner runners[8];
  pthread_t threads[8];
  unsigned i, nr_failed = 0;

  if (s->batch_bytes)
    view->image->writer->committer.sealed_l2.max_sectors =
      s->batch_bytes / 512;
  for (i = 0; i < s->nr_threads; ++i) {
    runners[i] = (struct runner) {
      .s = s, .view = view, .log = log, .guest = guest, .nr = i,
      .state = seed * 8 + i + 1, .buf = malloc (s->max_bytes + GUEST_SECTOR),
    };
    if (!runners[i].buf ||
        pthread_create (&threads[i], NULL, runner, &runners[i]) != 0) {
      printf ("Bail out! can't start threads\n");
      exit (1);
    }
  }
  for (i = 0; i < s->nr_threads; ++i) {
    pthread_join (threads[i], NULL);
    free (runners[i].buf);
    nr_failed += runners[i].nr_failed;
  }
  return nr_failed;
}
