/* SPDX-License-Identifier: BSD-3-Clause */

/* What a disk may hold: a model of what a guest wrote, in sectors.
 *
 * All requests are noted with the moments at which they began and
 * ended.  No two requests to one sector are in progress at the same time.
 */

#ifndef GUEST_MODEL_H
#define GUEST_MODEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_SECTOR 512

enum guest_kind {
  GUEST_WRITE,
  GUEST_ZERO,
  GUEST_TRIM,                   /* zeros, or what was there before */
};

struct guest_op {
  enum guest_kind kind;
  uint64_t first, nr;           /* sectors */
  uint64_t begin, end;
  uint64_t durable_at;          /* UINT64_MAX: never */
};

struct guest_flush {
  uint64_t begin, end;
};

struct guest {
  uint64_t nr_sectors;
  uint8_t *initial;
  pthread_mutex_t lock;
  struct guest_op *ops;
  size_t nr_ops, ops_room;
  struct guest_flush *flushes;  /* successful ones */
  size_t nr_flushes, flushes_room;

  /* Made by guest_index: the ops of sector S are LISTS[STARTS[S]] up to
   * STARTS[S + 1], in their order.
   */
  size_t *starts, *lists;
};

/* INITIAL is what the disk holds; consumed. */
extern void guest_init (struct guest *g, uint8_t *initial,
                        uint64_t nr_sectors);
extern void guest_clear (struct guest *g);

/* A request begins; fills BUF if it is a write.  Returns its number. */
extern size_t guest_begin (struct guest *g, enum guest_kind kind,
                           uint64_t first, uint64_t nr, uint64_t now,
                           uint8_t *buf);

/* It was answered; DURABLE: with success, and it had FUA. */
extern void guest_end (struct guest *g, size_t op, bool success,
                       bool durable, uint64_t now);

/* A flush was answered with success. */
extern void guest_flushed (struct guest *g, uint64_t begin, uint64_t now);

/* After the last request: prepare for guest_check. */
extern void guest_index (struct guest *g);

/* Does CONTENT hold, at TIME, all that was durable then, and else nothing
 * that wasn't written by then?  Returns the number of sectors that are
 * wrong; *FIRST is the first of them.
 */
extern uint64_t guest_check (const struct guest *g, uint64_t time,
                             const uint8_t *content, uint64_t *first);

/* Does it hold exactly what it should with no power failure: of each
 * sector, the last request that succeeded, or a later one that failed?
 */
extern uint64_t guest_check_live (const struct guest *g,
                                  const uint8_t *content, uint64_t *first);

#endif /* GUEST_MODEL_H */
