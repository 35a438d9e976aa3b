/* SPDX-License-Identifier: BSD-3-Clause */

/* Judging L2 entries by themselves, as a check and a repair do. */

#ifndef QCOW2_L2_JUDGE_H
#define QCOW2_L2_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "layer.h"

enum l2_fault {
  L2_SOUND,
  L2_WRONG_FLAG,                /* a repair clears the COPIED flag */
  L2_MENDABLE,                  /* a repair of all writes what is told */
  L2_BAD,                       /* nobody knows what it should be */
};

struct l2_judgement {
  enum l2_fault fault;
  const char *problem;          /* unless sound */
  bool counts;                  /* what it names is referenced, as QEMU
                                   counts it */
  bool counts_mended;           /* ... still, when a repair has written: */
  uint64_t entry, bitmap;       /* this */
};

/* Judge an entry, in host order; BITMAP is 0 without extended L2 entries.
 * GUEST is the offset of its cluster, or UINT64_MAX where that is not
 * known; only with an external data file it matters.
 */
extern void l2_judge (const struct layer *l, uint64_t entry, uint64_t bitmap,
                      uint64_t guest, struct l2_judgement *j);

#endif /* QCOW2_L2_JUDGE_H */
