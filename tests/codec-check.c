/* SPDX-License-Identifier: BSD-3-Clause */

/* What the tests of the codecs share. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "codec-check.h"

/* How long to go on damaging streams, and the least number. */
#define FUZZ_NSEC UINT64_C (1000000000)
#define FUZZ_LEAST 2000

struct bytes
make_bytes (size_t count)
{
  struct bytes b = { malloc (count ? count : 1), count };

  if (!b.data)
    abort ();
  return b;
}

struct bytes
first_bytes (struct bytes b, size_t count)
{
  return (struct bytes) { b.data, count };
}

struct bytes
with_tail (struct bytes b, size_t count)
{
  struct bytes t = make_bytes (b.count + count);

  memcpy (t.data, b.data, b.count);
  memset (t.data + b.count, 0x5a, count);
  return t;
}

const char *const content_names[NR_CONTENTS] = {
  "zeros", "noise", "words", "records",
};

struct bytes
make_content (enum content content, size_t count)
{
  static const char *const words[] = {
    "cluster ", "offset ", "table ", "guest ", "backing ", "the ", "\n",
  };
  struct bytes b = make_bytes (count);
  unsigned short seed[3] = { 7, content, 9 };
  const char *word = "";
  size_t i;

  for (i = 0; i < count; i++) {
    switch (content) {
    case NOISE:
      b.data[i] = nrand48 (seed);
      break;
    case WORDS:
      if (!*word)
        word = words[nrand48 (seed) % 7];
      b.data[i] = *word++;
      break;
    case RECORDS:               /* distances up to 32 KiB */
      b.data[i] = i < 20000 || nrand48 (seed) % 50 == 0 ?
        nrand48 (seed) : b.data[i - 20000];
      break;
    default:
      b.data[i] = 0;
    }
  }
  return b;
}

/*----- The codec under test -----*/

int
decompress_copy (const struct codec *codec, void *decoder,
                 struct bytes in, struct bytes out)
{
  struct bytes copy = make_bytes (in.count);
  int r;

  memcpy (copy.data, in.data, in.count);
  memset (out.data, 0xcc, out.count);
  r = codec->decompress (decoder, copy.data, copy.count,
                         out.data, out.count);
  free (copy.data);
  return r;
}

bool
decompresses_to (const struct codec *codec, struct bytes in,
                 struct bytes want)
{
  void *decoder = codec->new_decoder ();
  struct bytes out = make_bytes (want.count);
  bool equal = decompress_copy (codec, decoder, in, out) == 0 &&
    memcmp (out.data, want.data, want.count) == 0;

  free (out.data);
  codec->free_decoder (decoder);
  return equal;
}

int
decompress_error (const struct codec *codec, struct bytes in,
                  size_t out_bytes)
{
  void *decoder = codec->new_decoder ();
  struct bytes out = make_bytes (out_bytes);
  int r = decompress_copy (codec, decoder, in, out);

  free (out.data);
  codec->free_decoder (decoder);
  return r;
}

/*----- Damage -----*/

static uint64_t
now_nsec (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

static void
mutate (struct bytes b, unsigned short *seed)
{
  unsigned n = 1 + nrand48 (seed) % 4;
  /* Headers and tables are at the beginning: half of it goes there. */
  size_t reach = nrand48 (seed) % 2 && b.count > 64 ? 64 : b.count;

  for (; n > 0; n--) {
    size_t i = nrand48 (seed) % reach;

    switch (nrand48 (seed) % 3) {
    case 0:
      b.data[i] ^= 1 << nrand48 (seed) % 8;
      break;
    case 1:
      b.data[i] = nrand48 (seed);
      break;
    default:
      b.data[i] = b.data[nrand48 (seed) % b.count];
    }
  }
}

static void
compare_once (struct fuzz *f, reference_fn *reference,
              const struct codec *codec, void *decoder,
              struct bytes in, struct bytes out, struct bytes want)
{
  bool here = decompress_copy (codec, decoder, in, out) == 0;
  bool there = reference (in, want);

  if (there)
    f->nr_accepted++;
  else
    f->nr_refused++;
  if (there && !here)
    f->nr_refused_here_alone++;
  if (here && !there)
    f->nr_accepted_here_alone++;
  if (here && there && memcmp (out.data, want.data, out.count) != 0)
    f->nr_different++;
}

struct fuzz
fuzz_codec (const struct codec *codec, reference_fn *reference,
            const struct bytes *streams, size_t nr_streams, size_t out_bytes)
{
  struct fuzz f = { 0 };
  void *decoder = codec->new_decoder ();
  struct bytes out = make_bytes (out_bytes), want = make_bytes (out_bytes);
  unsigned short seed[3] = { 1, 2, 3 };
  uint64_t start = now_nsec ();
  unsigned i;

  for (i = 0; i < FUZZ_LEAST || now_nsec () - start < FUZZ_NSEC; i++) {
    struct bytes b = with_tail (streams[i % nr_streams], i % 5 * 9);

    mutate (b, seed);
    if (i % 7 == 0)
      b.count = nrand48 (seed) % b.count;
    compare_once (&f, reference, codec, decoder, b, out, want);
    free (b.data);
  }
  codec->free_decoder (decoder);
  free (out.data);
  free (want.data);
  printf ("# %s: %u accepted, %u refused; here alone: %u accepted,"
          " %u refused\n", codec->name, f.nr_accepted, f.nr_refused,
          f.nr_accepted_here_alone, f.nr_refused_here_alone);
  return f;
}
