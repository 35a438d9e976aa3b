/* SPDX-License-Identifier: BSD-3-Clause */

/* Hashing of offsets that come from an image: whoever made it must not know
 * which ones meet in a hash table.
 */

#ifndef QCOW2_HASH_SEED_H
#define QCOW2_HASH_SEED_H

#include <stdint.h>

/* A random odd number, for one table. */
extern uint64_t hash_seed (void);

/* The upper bits are good ones. */
static inline uint64_t
hash_seeded (uint64_t seed, uint64_t key)
{
  key *= seed;
  key ^= key >> 32;
  return key * seed;
}

#endif /* QCOW2_HASH_SEED_H */
