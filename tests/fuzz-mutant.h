/* SPDX-License-Identifier: BSD-3-Clause */

/* Images whose metadata was mutated at random, and running a test on many
 * of them.  A child process does that, so that the parent can tell which
 * one killed it.  Mutant N is made from seed FUZZ_SEED + N alone:
 * FUZZ_RUNS=1 FUZZ_SEED=that runs it again.
 */

#ifndef FUZZ_MUTANT_H
#define FUZZ_MUTANT_H

#include <inttypes.h>

#include "fuzz-base.h"
#include "tap.h"

#ifdef __SANITIZE_ADDRESS__
#define MAX_MEMORY_BYTES (INT64_C (768) << 20) /* it keeps what is freed */
#else
#define MAX_MEMORY_BYTES (INT64_C (256) << 20)
#endif

/* The mutant at work. */
extern uint8_t *mutant;
extern size_t mutant_bytes;

/* Make the bases in the current directory, and room for mutants. */
extern void fuzz_begin (void);

/* Make the mutant of SEED, of which random numbers go on. */
extern const struct fuzz_base *make_mutant (uint64_t seed);

extern uint64_t fuzz_random (void);
extern uint64_t fuzz_random_below (uint64_t n);

struct fuzz_result {
  uint64_t first_seed;
  int status;                   /* as wait() gives it */
  uint64_t seed;                /* of the last mutant */
  unsigned nr_runs;
  int64_t max_bytes;            /* memory */
};

/* Call FN with the seeds of FUZZ_RUNS mutants, or as many as fit in some
 * seconds, in a child.  What FN finds it keeps in memory that is shared.
 */
extern void fuzz_run (void (*fn) (uint64_t seed), struct fuzz_result *result);

/* Two tests: the child ended well, and memory was bounded. */
static inline void
fuzz_report (const struct fuzz_result *result)
{
  if (!ok (result->status == 0, "nothing crashed, hung or leaked"))
    printf ("# status %#x, at work: FUZZ_RUNS=1 FUZZ_SEED=%" PRIu64 "\n",
            (unsigned) result->status, result->seed);
  ok (result->max_bytes < MAX_MEMORY_BYTES, "at most %" PRId64 " KiB of memory",
      result->max_bytes / 1024);
}

#endif /* FUZZ_MUTANT_H */
