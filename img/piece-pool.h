/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that work on pieces of a disk: one thread says what there is to be
 * done, in order, others do it.
 */

#ifndef IMG_PIECE_POOL_H
#define IMG_PIECE_POOL_H

#include <stddef.h>
#include <stdint.h>

/* Memory: two buffers of this size for each thread. */
#define IMG_PIECE_BYTES (1u << 20)

struct img_piece {
  uint64_t offset;
  size_t count;                 /* at most IMG_PIECE_BYTES */
  int kind;                     /* the caller's */
};

struct img_piece_pool;

/* Called for each piece, from several threads at once, with two buffers of
 * IMG_PIECE_BYTES.
 */
typedef void img_piece_fn (void *opaque, const struct img_piece *piece,
                           uint8_t *buf_1, uint8_t *buf_2);

/* NULL if there is no memory or no thread. */
extern struct img_piece_pool *img_piece_pool_new (img_piece_fn *fn,
                                                  void *opaque);

/* Hand PIECE to a thread; waits while all have enough to do. */
extern void img_piece_pool_push (struct img_piece_pool *pool,
                                 const struct img_piece *piece);

/* Wait until everything is done, and free POOL. */
extern void img_piece_pool_finish (struct img_piece_pool *pool);

#endif /* IMG_PIECE_POOL_H */
