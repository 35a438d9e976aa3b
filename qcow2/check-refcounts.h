/* SPDX-License-Identifier: BSD-3-Clause */

/* Comparing the refcounts on disk with a ref_map, and remembering what
 * later parts of a check want to know of them.
 */

#ifndef QCOW2_CHECK_REFCOUNTS_H
#define QCOW2_CHECK_REFCOUNTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "layer.h"
#include "qcow2.h"
#include "ref-map.h"

/* A check in progress.  ONCE and ACTIVE have a bit for each cluster. */
struct check {
  struct layer *layer;
  struct ref_map *map;
  uint8_t *once;                /* the refcount on disk is 1 */
  uint8_t *active;              /* L2 tables of the active layer */
  bool unknown_refcounts;       /* some can't be read */
  bool has_lost_refcounts;      /* a cluster with references has refcount 0 */

  const struct qcow2_check_options *options;
  unsigned nr_threads;
  uint64_t done, total;         /* progress */
  pthread_mutex_t lock;         /* of RESULT, while there are threads */
  struct qcow2_check_result *result;
  struct qcow2_error *error;
};

/* Tell of a finding (printf-like).  The caller counts it, and has its turn
 * where there are threads.
 */
extern void check_found (const struct check *c, const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* So many clusters are passed by one of the parts; by one thread at a
 * time.
 */
extern void check_progress (void *check, uint64_t nr_clusters);

/* Add what a thread has counted, PART, to the result. */
extern void check_add_result (struct check *c,
                              const struct qcow2_check_result *part);

/* Compare; fills in c->once and the result's corruptions, leaks, check
 * errors and end of the image.  A refcount block that is not aligned or
 * can't be read is a check error for each of its clusters.  Takes memory
 * of two clusters for each thread.  Returns 0, or -ENOMEM with the error
 * set.
 */
extern int check_refcounts (struct check *c);

static inline bool
check_bit (const uint8_t *bits, uint64_t i)
{
  return bits[i / 8] >> (i % 8) & 1;
}

static inline void
check_set_bit (uint8_t *bits, uint64_t i)
{
  bits[i / 8] |= (uint8_t) (1u << (i % 8));
}

#endif /* QCOW2_CHECK_REFCOUNTS_H */
