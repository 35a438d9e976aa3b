/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that write next to each other: each has bytes of its own, which
 * lie between those of others, mostly in the same block of the storage.
 * Whatever the others do, a thread finds in its bytes what it wrote.
 */

#ifndef NEIGHBOURS_H
#define NEIGHBOURS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/storage.h"

/* So many bytes of the storage are used. */
#define NEIGHBOURS_BYTES (4 * 32 * 1024)

struct neighbours {
  struct qcow2_storage *s;      /* holds zeros, as far as it goes */
  unsigned nr_threads;
  unsigned nr_requests;         /* of each thread */
  uint64_t seed;
};

/* Run them.  True if nothing was lost, neither while they ran nor in the
 * end, and the size is as it should be; else it says what was wrong.
 */
extern bool neighbours_run (const struct neighbours *n);

#endif /* NEIGHBOURS_H */
