/* SPDX-License-Identifier: BSD-3-Clause */

/* Refcounts within the 64-bit words of a refcount block (specification:
 * "Refcount block entry").  Words are in host order here; ORDER is log2
 * of the bits of a refcount, INDEX counts refcounts from the word's
 * first, or from any multiple of the refcounts in a word before it.
 */

#ifndef QCOW2_REFCOUNT_WORD_H
#define QCOW2_REFCOUNT_WORD_H

#include <stdint.h>

/* Widths of 8 bits and more are big-endian numbers in a row; narrower
 * ones fill each byte from its low bits on.
 */
static inline unsigned
refcount_shift (unsigned order, uint64_t index)
{
  unsigned bits = 1u << order;
  unsigned in_word = index & ((64u >> order) - 1);
  unsigned per_byte = 8 / (bits < 8 ? bits : 8);
  unsigned byte;

  if (bits >= 8)
    return 64 - bits - in_word * bits;
  byte = in_word / per_byte;
  return 56 - 8 * byte + (in_word % per_byte) * bits;
}

static inline uint64_t
refcount_max (unsigned order)
{
  return order == 6 ? UINT64_MAX : (UINT64_C (1) << (1u << order)) - 1;
}

static inline uint64_t
refcount_word_get (unsigned order, uint64_t word, uint64_t index)
{
  return word >> refcount_shift (order, index) & refcount_max (order);
}

static inline uint64_t
refcount_word_set (unsigned order, uint64_t word, uint64_t index,
                   uint64_t value)
{
  unsigned shift = refcount_shift (order, index);

  return (word & ~(refcount_max (order) << shift)) | value << shift;
}

#endif /* QCOW2_REFCOUNT_WORD_H */
