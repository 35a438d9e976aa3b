/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that work on pieces of a disk. */

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "piece-pool.h"

#define QUEUE_LENGTH 32
#define MIN_THREADS 2           /* one computes while the other reads */
#define MAX_THREADS 8

struct worker {
  struct img_piece_pool *pool;
  pthread_t thread;
  uint8_t *buffers;
};

struct img_piece_pool {
  img_piece_fn *fn;
  void *opaque;
  struct worker workers[MAX_THREADS];
  unsigned nr_workers;

  pthread_mutex_t lock;         /* for what follows */
  pthread_cond_t changed;
  struct img_piece queue[QUEUE_LENGTH];
  unsigned first, nr_queued;
  bool finished;
};

/* False: there will be no more. */
static bool
take (struct img_piece_pool *pool, struct img_piece *piece)
{
  bool taken;

  pthread_mutex_lock (&pool->lock);
  while (pool->nr_queued == 0 && !pool->finished)
    pthread_cond_wait (&pool->changed, &pool->lock);
  taken = pool->nr_queued > 0;
  if (taken) {
    *piece = pool->queue[pool->first];
    pool->first = (pool->first + 1) % QUEUE_LENGTH;
    pool->nr_queued--;
    pthread_cond_broadcast (&pool->changed);
  }
  pthread_mutex_unlock (&pool->lock);
  return taken;
}

static void *
work (void *arg)
{
  struct worker *w = arg;
  struct img_piece piece;

  while (take (w->pool, &piece))
    w->pool->fn (w->pool->opaque, &piece, w->buffers,
                 w->buffers + IMG_PIECE_BYTES);
  return NULL;
}

static int
start_worker (struct img_piece_pool *pool)
{
  struct worker *w = &pool->workers[pool->nr_workers];

  w->pool = pool;
  if (posix_memalign ((void **) &w->buffers, 4096, 2 * IMG_PIECE_BYTES) != 0)
    return -1;
  if (pthread_create (&w->thread, NULL, work, w) != 0) {
    free (w->buffers);
    return -1;
  }
  pool->nr_workers++;
  return 0;
}

struct img_piece_pool *
img_piece_pool_new (img_piece_fn *fn, void *opaque)
{
  long wanted = sysconf (_SC_NPROCESSORS_ONLN);
  struct img_piece_pool *pool = calloc (1, sizeof *pool);

  if (!pool)
    return NULL;
  pool->fn = fn;
  pool->opaque = opaque;
  pthread_mutex_init (&pool->lock, NULL);
  pthread_cond_init (&pool->changed, NULL);

  if (wanted < MIN_THREADS)
    wanted = MIN_THREADS;
  if (wanted > MAX_THREADS)
    wanted = MAX_THREADS;
  while (pool->nr_workers < (unsigned) wanted && start_worker (pool) == 0)
    ;
  if (pool->nr_workers == 0) {
    img_piece_pool_finish (pool);
    return NULL;
  }
  return pool;
}

void
img_piece_pool_push (struct img_piece_pool *pool,
                     const struct img_piece *piece)
{
  pthread_mutex_lock (&pool->lock);
  while (pool->nr_queued == QUEUE_LENGTH)
    pthread_cond_wait (&pool->changed, &pool->lock);
  pool->queue[(pool->first + pool->nr_queued) % QUEUE_LENGTH] = *piece;
  pool->nr_queued++;
  pthread_cond_broadcast (&pool->changed);
  pthread_mutex_unlock (&pool->lock);
}

void
img_piece_pool_finish (struct img_piece_pool *pool)
{
  unsigned i;

  pthread_mutex_lock (&pool->lock);
  pool->finished = true;
  pthread_cond_broadcast (&pool->changed);
  pthread_mutex_unlock (&pool->lock);
  for (i = 0; i < pool->nr_workers; ++i) {
    pthread_join (pool->workers[i].thread, NULL);
    free (pool->workers[i].buffers);
  }
  pthread_cond_destroy (&pool->changed);
  pthread_mutex_destroy (&pool->lock);
  free (pool);
}
