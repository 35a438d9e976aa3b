/* SPDX-License-Identifier: BSD-3-Clause */

/* What a disk may hold after many requests at once.
 *
 * Each request is noted when it begins and when it ends.  A byte may hold
 * what any request gave it, unless another one began later than that
 * one's end and has ended, too: so where requests overlap neither in
 * place nor in time, there is one answer.  A trim leaves a byte as it was
 * or makes it zero.
 *
 * Each write has bytes of its own, made from its number and the place.
 */

#ifndef CONTENT_MODEL_H
#define CONTENT_MODEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum model_kind {
  MODEL_WRITE,
  MODEL_ZERO,
  MODEL_TRIM,
  MODEL_NOTHING,                /* turned out not to be done */
};

struct model_request {
  enum model_kind kind;
  uint64_t offset;
  uint64_t count;
  uint64_t began;               /* in ticks of the model's clock */
  uint64_t ended;
  uint64_t data;                /* what its bytes are made from */
};

struct model {
  uint64_t bytes;
  uint8_t *first;               /* the content before all requests */
  pthread_mutex_t lock;
  struct model_request *requests;
  size_t nr, room;
  uint64_t clock;
};

/* A disk with this content, which M owns from now on. */
extern void model_init (struct model *m, uint8_t *content, uint64_t bytes);
extern void model_destroy (struct model *m);

/* A request begins.  BUF, of COUNT bytes, is filled for a MODEL_WRITE.
 * Returns its number.
 */
extern size_t model_begin (struct model *m, enum model_kind kind,
                           uint64_t offset, uint64_t count, void *buf);

/* It has been answered.  Not DONE: it was refused and changed nothing. */
extern void model_end (struct model *m, size_t number, bool done);

/* The time, for model_check. */
extern uint64_t model_clock (struct model *m);

/* May BUF be what a read of the range gave that began at BEGAN and has
 * just ended?  Says on stdout, as a TAP comment, why not.
 */
extern bool model_check (struct model *m, const void *buf, uint64_t offset,
                         uint64_t count, uint64_t began);

#endif /* CONTENT_MODEL_H */
