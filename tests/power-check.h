/* SPDX-License-Identifier: BSD-3-Clause */

/* Judging what power failures leave of a run of requests. */

#ifndef POWER_CHECK_H
#define POWER_CHECK_H

#include <stdint.h>

#include "guest-model.h"
#include "write-class.h"
#include "write-log.h"
#include "write-subject.h"

/* A run of requests that has ended. */
struct power_run {
  const struct write_subject *subject;
  struct write_log log;
  struct guest guest;
  struct write_classes classes;
  uint8_t *snapshot;            /* its content, or NULL */
};

struct power_result {
  unsigned nr_states;
  unsigned nr_bad;
  unsigned nr_leaks;
  unsigned nr_repaired;         /* they had the dirty bit */
  uint64_t nr_balance;          /* sum of requests in the balance */
  char first[400];              /* what is wrong with a bad one */
};

/* Check NR_STATES states, drawn by SEED, on two threads; each is read
 * by the engine, and by `qemu-img check'.  What has the dirty bit is
 * repaired before that, by the engine or by QEMU, and then read once
 * more.  ONLY_FIRST: end at the first bad one.
 */
extern void power_check (const struct power_run *run,
                         enum write_mutant mutant, unsigned nr_states,
                         uint64_t seed, bool only_first,
                         struct power_result *result);

/* The exit status of `qemu-img check': 0 good, 3 leaks. */
extern int qemu_check (const char *image);

#endif /* POWER_CHECK_H */
