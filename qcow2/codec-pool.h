/* SPDX-License-Identifier: BSD-3-Clause */

/* What it takes to decompress a cluster, kept for the next one: a
 * decoder of each codec, a buffer for the compressed bytes, and one for
 * a cluster that has no other place to go.
 *
 * A worker belongs to one request from get to put.
 */

#ifndef QCOW2_CODEC_POOL_H
#define QCOW2_CODEC_POOL_H

#include <stddef.h>

#include "codec.h"

struct codec_pool;
struct codec_worker;

/* NULL with errno on error. */
extern struct codec_pool *codec_pool_new (void);

/* All workers must have been put back.  POOL may be NULL. */
extern void codec_pool_free (struct codec_pool *pool);

/* Take the worker that was put back last, or make one.  NULL if there
 * is no memory for it.  Never waits for another request.
 */
extern struct codec_worker *codec_pool_get (struct codec_pool *pool);
extern void codec_pool_put (struct codec_pool *pool,
                            struct codec_worker *worker);

/* The worker's decoder for CODEC, made when it is first needed.  NULL
 * if there is no memory for it.
 */
extern void *codec_worker_decoder (struct codec_worker *worker,
                                   const struct codec *codec);

/* The worker's buffers, at least BYTES large, content undefined; valid
 * until they are asked for again or the worker is put back.  NULL if
 * there is no memory.
 */
extern void *codec_worker_input (struct codec_worker *worker, size_t bytes);
extern void *codec_worker_output (struct codec_worker *worker, size_t bytes);

#endif /* QCOW2_CODEC_POOL_H */
