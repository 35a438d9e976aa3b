/* SPDX-License-Identifier: BSD-3-Clause */

/* Idle workers lie on a stack, so that the one used last, whose memory
 * is still in the processor's caches, is used first.  Its buffers have
 * the size of the largest cluster that it has seen: after a while
 * nothing is allocated any more.  There are never more workers than
 * requests that decompress at the same time; what lies idle is bounded in
 * number and in bytes, and a worker beyond that is freed when it is put
 * back.
 */

#include <pthread.h>
#include <stdlib.h>

#include "codec-pool.h"

#define MAX_IDLE_WORKERS 16
#define MAX_IDLE_BYTES ((size_t) 16 << 20)

/* One for each compression type; with more, the last place is shared. */
#define MAX_CODECS 2

struct buffer {
  void *data;
  size_t bytes;
};

struct codec_worker {
  struct codec_worker *next;
  struct {
    const struct codec *codec;
    void *decoder;
  } decoders[MAX_CODECS];
  struct buffer input, output;
};

struct codec_pool {
  pthread_mutex_t lock;         /* for what follows */
  struct codec_worker *idle;
  unsigned nr_idle;
  size_t idle_bytes;            /* buffers of the idle workers */
};

struct codec_pool *
codec_pool_new (void)
{
  struct codec_pool *pool = calloc (1, sizeof *pool);

  if (!pool)
    return NULL;
  pthread_mutex_init (&pool->lock, NULL);
  return pool;
}

static void
worker_free (struct codec_worker *w)
{
  size_t i;

  for (i = 0; i < MAX_CODECS; i++)
    if (w->decoders[i].codec)
      w->decoders[i].codec->free_decoder (w->decoders[i].decoder);
  free (w->input.data);
  free (w->output.data);
  free (w);
}

void
codec_pool_free (struct codec_pool *pool)
{
  struct codec_worker *w;

  if (!pool)
    return;
  while ((w = pool->idle) != NULL) {
    pool->idle = w->next;
    worker_free (w);
  }
  pthread_mutex_destroy (&pool->lock);
  free (pool);
}

static size_t
worker_bytes (const struct codec_worker *w)
{
  return w->input.bytes + w->output.bytes;
}

struct codec_worker *
codec_pool_get (struct codec_pool *pool)
{
  struct codec_worker *w;

  pthread_mutex_lock (&pool->lock);
  w = pool->idle;
  if (w) {
    pool->idle = w->next;
    pool->nr_idle--;
    pool->idle_bytes -= worker_bytes (w);
  }
  pthread_mutex_unlock (&pool->lock);

  return w ? w : calloc (1, sizeof *w);
}

void
codec_pool_put (struct codec_pool *pool, struct codec_worker *w)
{
  size_t bytes = worker_bytes (w);

  pthread_mutex_lock (&pool->lock);
  if (pool->nr_idle < MAX_IDLE_WORKERS &&
      bytes <= MAX_IDLE_BYTES - pool->idle_bytes) {
    w->next = pool->idle;
    pool->idle = w;
    pool->nr_idle++;
    pool->idle_bytes += bytes;
    w = NULL;
  }
  pthread_mutex_unlock (&pool->lock);

  if (w)
    worker_free (w);
}

void *
codec_worker_decoder (struct codec_worker *w, const struct codec *codec)
{
  size_t i;
  void *decoder;

  for (i = 0; i < MAX_CODECS && w->decoders[i].codec; i++)
    if (w->decoders[i].codec == codec)
      return w->decoders[i].decoder;

  decoder = codec->new_decoder ();
  if (!decoder)
    return NULL;
  if (i == MAX_CODECS) {
    i--;
    w->decoders[i].codec->free_decoder (w->decoders[i].decoder);
  }
  w->decoders[i].codec = codec;
  w->decoders[i].decoder = decoder;
  return decoder;
}

static void *
buffer_get (struct buffer *buffer, size_t bytes)
{
  if (buffer->bytes < bytes) {
    /* The old content is of no use: don't have it copied. */
    free (buffer->data);
    buffer->bytes = 0;
    buffer->data = malloc (bytes);
    if (!buffer->data)
      return NULL;
    buffer->bytes = bytes;
  }
  return buffer->data;
}

void *
codec_worker_input (struct codec_worker *w, size_t bytes)
{
  return buffer_get (&w->input, bytes);
}

void *
codec_worker_output (struct codec_worker *w, size_t bytes)
{
  return buffer_get (&w->output, bytes);
}
