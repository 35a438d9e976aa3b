/* SPDX-License-Identifier: BSD-3-Clause */

/* Where the randomness of hash tables comes from. */

#include <sys/random.h>
#include <time.h>

#include "hash-seed.h"

/* Early at boot there may be nothing random yet; nobody waits for that. */
uint64_t
hash_seed (void)
{
  struct timespec now;
  uint64_t seed;

  if (getrandom (&seed, sizeof seed, GRND_NONBLOCK) != sizeof seed) {
    clock_gettime (CLOCK_REALTIME, &now);
    seed = ((uint64_t) now.tv_nsec << 32 ^ (uint64_t) now.tv_sec ^
            (uint64_t) (uintptr_t) &seed) * UINT64_C (0x9e3779b97f4a7c15);
  }
  return seed | 1;
}
