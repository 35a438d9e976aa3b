/* SPDX-License-Identifier: BSD-3-Clause */

/* What the tests of the codecs share: contents to compress, calls that
 * guard the buffers, and a comparison with a plain reader of QEMU's rule
 * on streams damaged at random.
 */

#ifndef CODEC_CHECK_H
#define CODEC_CHECK_H

#include <stdbool.h>
#include <stddef.h>

#include "codec.h"

#define KiB ((size_t) 1024)
#define MiB (1024 * KiB)

struct bytes {
  unsigned char *data;          /* from malloc, unless said */
  size_t count;
};

extern struct bytes make_bytes (size_t count);

/* A view of the first COUNT bytes of B. */
extern struct bytes first_bytes (struct bytes b, size_t count);

/* A copy of B with COUNT bytes more that do not belong to it. */
extern struct bytes with_tail (struct bytes b, size_t count);

enum content { ZEROS, NOISE, WORDS, RECORDS, NR_CONTENTS };
extern const char *const content_names[NR_CONTENTS];

/* RECORDS repeats itself at a distance of 20000 bytes. */
extern struct bytes make_content (enum content content, size_t count);

/* Decompress a copy of IN, in a buffer of just its size, to OUT, which is
 * a buffer of just its size too: so a sanitizer sees the very first byte
 * out of bounds.
 */
extern int decompress_copy (const struct codec *codec, void *decoder,
                            struct bytes in, struct bytes out);

/* Does a new decoder make WANT of IN? */
extern bool decompresses_to (const struct codec *codec, struct bytes in,
                             struct bytes want);

/* What a new decoder returns for IN. */
extern int decompress_error (const struct codec *codec, struct bytes in,
                             size_t out_bytes);

/* QEMU's rule, told by the library that QEMU calls: is IN accepted, and
 * with what content?
 */
typedef bool reference_fn (struct bytes in, struct bytes out);

struct fuzz {
  unsigned nr_accepted, nr_refused; /* by the reference */
  unsigned nr_different;        /* accepted by both, other content */
  unsigned nr_accepted_here_alone, nr_refused_here_alone;
};

/* Damage the streams at random, for about a second, and compare CODEC
 * with REFERENCE.  One decoder sees them all, so it is also shown that a
 * damaged stream leaves nothing behind in it.
 */
extern struct fuzz fuzz_codec (const struct codec *codec,
                               reference_fn *reference,
                               const struct bytes *streams,
                               size_t nr_streams, size_t out_bytes);

#endif /* CODEC_CHECK_H */
