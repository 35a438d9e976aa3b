/* SPDX-License-Identifier: BSD-3-Clause */

/* Random requests of all kinds from many threads at once. */

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "qemu-image.h"
#include "write-load.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define MAX_DATA_BYTES (2048 * KiB)

struct worker {
  struct write_load *load;
  struct qcow2_view *view;
  pthread_t thread;
  uint64_t seed;
  uint8_t *buf;
};

struct range {
  uint64_t offset, count;
};

/*----- Where -----*/

static bool
one_in (unsigned n, uint64_t *seed)
{
  return random_below (seed, n) == 0;
}

static uint64_t
min64 (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

static uint64_t
draw_offset (const struct write_load *load, uint64_t *seed)
{
  uint64_t hot = load->hot[random_below (seed, 8)];

  if (one_in (3, seed))
    return hot + random_below (seed, min64 (load->cluster_bytes,
                                            load->disk_bytes - hot));
  return random_below (seed, load->disk_bytes);
}

/* Whole clusters, a few subclusters, or any bytes. */
static struct range
draw_range (const struct write_load *load, uint64_t *seed)
{
  uint64_t cluster = load->cluster_bytes, unit = 1;
  uint64_t offset = draw_offset (load, seed), count;

  switch (random_below (seed, 8)) {
  case 0: case 1:
    count = 1 + random_below (seed, 600);
    break;
  case 2: case 3:
    count = 1 + random_below (seed, min64 (cluster, 64 * KiB));
    break;
  case 4:
    count = 1 + random_below (seed, min64 (3 * cluster, 200 * KiB));
    break;
  case 5:
    unit = cluster / 32;
    count = unit * (1 + random_below (seed, 40));
    break;
  default:
    unit = cluster;
    count = cluster * (1 + random_below (seed, cluster > 65536 ? 2 : 4));
  }
  offset -= offset % unit;
  if (one_in (40, seed))
    offset = load->disk_bytes - min64 (count, load->disk_bytes);
  return (struct range) { offset, min64 (count, load->disk_bytes - offset) };
}

/* Data costs time, metadata does not. */
static struct range
draw_data_range (const struct write_load *load, uint64_t *seed)
{
  struct range range = draw_range (load, seed);

  if (range.count > 256 * KiB && !one_in (8, seed))
    range.count = 1 + random_below (seed, 64 * KiB);
  range.count = min64 (range.count, MAX_DATA_BYTES);
  return range;
}

static struct range
draw_metadata_range (const struct write_load *load, uint64_t *seed)
{
  struct range range = draw_range (load, seed);

  if (one_in (60, seed))
    range.count = min64 (range.count + load->disk_bytes / 8,
                         load->disk_bytes - range.offset);
  return range;
}

/*----- What -----*/

static void
failed (struct write_load *load, const char *what, struct range range, int r)
{
  if (atomic_fetch_add (&load->nr_failed, 1) < 10)
    printf ("# %s of %" PRIu64 " bytes at %" PRIu64 ": %s\n", what,
            range.count, range.offset, strerror (-r));
}

static void
do_write (struct worker *worker)
{
  struct write_load *load = worker->load;
  struct range range = draw_data_range (load, &worker->seed);
  bool fua = one_in (20, &worker->seed);
  size_t number;
  int r;

  census_count (load->census, load->image, CENSUS_WRITE, range.offset,
                range.count);
  number = model_begin (load->model, MODEL_WRITE, range.offset, range.count,
                        worker->buf);
  r = qcow2_pwrite (worker->view, worker->buf, range.count, range.offset,
                    fua);
  model_end (load->model, number, true);
  if (r < 0)
    failed (load, "write", range, r);
}

/* Data and then zeros, in one write; at times just zeros. */
static void
do_write_zeros (struct worker *worker)
{
  struct write_load *load = worker->load;
  struct range range = draw_data_range (load, &worker->seed);
  uint64_t cut = one_in (2, &worker->seed) ? 0 :
    random_below (&worker->seed, range.count + 1);
  bool fua = one_in (20, &worker->seed);
  size_t data, zeros;
  int r;

  data = model_begin (load->model, MODEL_WRITE, range.offset, cut,
                      worker->buf);
  zeros = model_begin (load->model, MODEL_ZERO, range.offset + cut,
                       range.count - cut, NULL);
  memset (worker->buf + cut, 0, range.count - cut);
  r = qcow2_pwrite (worker->view, worker->buf, range.count, range.offset,
                    fua);
  model_end (load->model, data, true);
  model_end (load->model, zeros, true);
  if (r < 0)
    failed (load, "write of zeros", range, r);
}

static void
do_zero (struct worker *worker)
{
  struct write_load *load = worker->load;
  struct range range = draw_metadata_range (load, &worker->seed);
  bool may_trim = one_in (2, &worker->seed);
  bool fast = one_in (4, &worker->seed), fua = one_in (20, &worker->seed);
  size_t number;
  int r;

  census_count (load->census, load->image,
                may_trim ? CENSUS_ZERO_UNMAP : CENSUS_ZERO_KEEP,
                range.offset, range.count);
  number = model_begin (load->model, MODEL_ZERO, range.offset, range.count,
                        NULL);
  r = qcow2_zero (worker->view, range.count, range.offset, may_trim, fast,
                  fua);
  model_end (load->model, number, r != -EOPNOTSUPP);
  if (r < 0 && !(fast && r == -EOPNOTSUPP))
    failed (load, "zero", range, r);
}

static void
do_trim (struct worker *worker)
{
  struct write_load *load = worker->load;
  struct range range = draw_metadata_range (load, &worker->seed);
  size_t number;
  int r;

  census_count (load->census, load->image, CENSUS_TRIM, range.offset,
                range.count);
  number = model_begin (load->model, MODEL_TRIM, range.offset, range.count,
                        NULL);
  r = qcow2_trim (worker->view, range.count, range.offset,
                  one_in (20, &worker->seed));
  model_end (load->model, number, true);
  if (r < 0)
    failed (load, "trim", range, r);
}

static void
do_read (struct worker *worker)
{
  struct write_load *load = worker->load;
  struct range range = draw_data_range (load, &worker->seed);
  uint64_t began = model_clock (load->model);
  int r;

  memset (worker->buf, 0xa5, range.count);
  r = qcow2_pread (worker->view, worker->buf, range.count, range.offset);
  if (r < 0)
    failed (load, "read", range, r);
  else if (!model_check (load->model, worker->buf, range.offset, range.count,
                         began))
    atomic_fetch_add (&load->nr_wrong, 1);
}

static int
count_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
              uint64_t count)
{
  uint64_t *end = opaque;

  if (offset != *end || count == 0)
    return -EPROTO;
  *end += count;
  return 0;
}

/* The background worker has its turn every few seconds; here more often,
 * so that what was unlinked becomes free while requests are in flight.
 */
static void
do_other (struct worker *worker)
{
  struct write_load *load = worker->load;
  struct range range = draw_range (load, &worker->seed);
  uint64_t end = range.offset;
  int r;

  switch (random_below (&worker->seed, 4)) {
  case 0:
    r = qcow2_prefetch (worker->view, range.count, range.offset);
    break;
  case 1:
    r = qcow2_extents (worker->view, range.count, range.offset, count_extent,
                       &end);
    break;
  case 2:
    worker_hurry (load->image->writer);
    return;
  default:
    r = qcow2_flush (worker->view);
  }
  if (r < 0)
    failed (load, "flush, prefetch or extents", range, r);
}

/*----- Threads -----*/

static void *
work (void *opaque)
{
  struct worker *worker = opaque;
  struct write_load *load = worker->load;

  while (atomic_fetch_add (&load->started, 1) < load->nr_requests &&
         atomic_load (&load->nr_wrong) + atomic_load (&load->nr_failed) == 0)
    switch (random_below (&worker->seed, 20)) {
    case 0: case 1: case 2: case 3:
      do_read (worker);
      break;
    case 4: case 5: case 6: case 7: case 8:
      do_zero (worker);
      break;
    case 9: case 10:
      do_trim (worker);
      break;
    case 11:
      do_other (worker);
      break;
    case 12:
      do_write_zeros (worker);
      break;
    default:
      do_write (worker);
    }
  return NULL;
}

static void
open_views (struct write_load *load)
{
  struct qcow2_error error;
  unsigned i;

  for (i = 0; i < LOAD_CONNECTIONS; ++i)
    if (qcow2_view_open (load->image, QCOW2_ACTIVE, &load->views[i],
                         &error) < 0) {
      printf ("Bail out! %s\n", error.message);
      exit (1);
    }
}

bool
write_load_run (struct write_load *load)
{
  struct worker *workers = calloc (load->nr_threads, sizeof *workers);
  uint64_t seed = load->seed;
  unsigned i;

  open_views (load);
  load->cluster_bytes = qcow2_cluster_size (load->image);
  load->disk_bytes = qcow2_view_size (load->views[0]);
  for (i = 0; i < 8; ++i) {
    load->hot[i] = random_below (&seed, load->disk_bytes);
    load->hot[i] -= load->hot[i] % load->cluster_bytes;
  }
  for (i = 0; i < load->nr_threads; ++i) {
    workers[i].load = load;
    workers[i].view = load->views[i % LOAD_CONNECTIONS];
    workers[i].seed = random_next (&seed) | 1;
    workers[i].buf = malloc (MAX_DATA_BYTES);
    pthread_create (&workers[i].thread, NULL, work, &workers[i]);
  }
  for (i = 0; i < load->nr_threads; ++i) {
    pthread_join (workers[i].thread, NULL);
    free (workers[i].buf);
  }
  for (i = 0; i < LOAD_CONNECTIONS; ++i)
    qcow2_view_close (load->views[i]);
  free (workers);
  return load->nr_wrong + load->nr_failed == 0;
}
