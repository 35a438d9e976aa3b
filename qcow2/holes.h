/* SPDX-License-Identifier: BSD-3-Clause */

/* A list of free ranges of host clusters, of bounded size.
 *
 * Ranges don't overlap, and neighbours are one.  When there are too many
 * the highest one is forgotten, so that the list holds the lowest part of
 * all that was added.  The caller's lock protects it.
 */

#ifndef QCOW2_HOLES_H
#define QCOW2_HOLES_H

#include <stdbool.h>
#include <stdint.h>

/* 64 KiB. */
#define MAX_HOLES 4096

struct hole {
  uint64_t first;               /* cluster */
  uint64_t nr : 63;
  uint64_t ours : 1;            /* was in use in this session */
};

struct holes {
  unsigned nr;
  uint64_t clusters;            /* in all of them */
  struct hole list[MAX_HOLES];  /* the highest first */
};

/* What was forgotten: NR clusters, none of them below FIRST. */
struct forgotten {
  uint64_t first;
  uint64_t nr;
};

/* Add HOLE; what the list holds of it already stays as it is.  Returns
 * how many clusters are new, those counted that are forgotten at once.
 */
extern uint64_t holes_add (struct holes *h, struct hole hole,
                           struct forgotten *forgotten);

/* Take at most NR clusters out of the lowest hole.  False if there is
 * none.
 */
extern bool holes_take (struct holes *h, uint64_t nr, struct hole *out);

/* Drop what lies at END or above. */
extern void holes_cut (struct holes *h, uint64_t end);

/* Is the cluster in a hole that is ours? */
extern bool holes_have_ours (const struct holes *h, uint64_t cluster);

#endif /* QCOW2_HOLES_H */
