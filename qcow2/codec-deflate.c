/* SPDX-License-Identifier: BSD-3-Clause */

/* Compression type 0: each cluster is one raw deflate stream.
 *
 * Writers keep to a window of 4 KiB, but a reader has the whole cluster
 * before it anyway, and zlib itself, told of 4 KiB, follows distances as
 * far back as the output reaches: so the window limits nothing here.
 *
 * What counts as sound is what QEMU accepts, whose reader is one call
 * of zlib's inflate: the output must come out full.  Whether the stream
 * ends there, would go on, or breaks off before its end marker does not
 * matter, nor what follows it.  The faster libraries want a stream that
 * ends by its end marker after exactly one cluster.  All known writers
 * make only such streams, so the fast library goes first, and where it
 * fails zlib gives the verdict.
 *
 * The choice of the library was made by bench/inflate.c: libdeflate, else
 * ISA-L, else zlib alone.  One of them is linked, besides zlib.
 */

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include <zlib.h>

#if defined HAVE_LIBDEFLATE
#include <libdeflate.h>
#elif defined HAVE_ISAL
#include <isa-l.h>
#endif

#include "codec.h"

/* Raw deflate, 4 KiB window. */
#define DEFLATE_WINDOW_BITS (-12)

#if defined HAVE_LIBDEFLATE

#define INFLATE_LIBRARY "libdeflate " LIBDEFLATE_VERSION_STRING

struct fast_inflate {
  struct libdeflate_decompressor *d;
};

static bool
fast_init (struct fast_inflate *f)
{
  f->d = libdeflate_alloc_decompressor ();
  return f->d != NULL;
}

static void
fast_free (struct fast_inflate *f)
{
  libdeflate_free_decompressor (f->d);
}

static bool
fast_inflate (struct fast_inflate *f, const void *in, size_t in_bytes,
              void *out, size_t out_bytes)
{
  /* Without a place for the length, it has to be OUT_BYTES. */
  return libdeflate_deflate_decompress (f->d, in, in_bytes, out, out_bytes,
                                        NULL) == LIBDEFLATE_SUCCESS;
}

#elif defined HAVE_ISAL

#define STRINGIZE_(x) #x
#define STRINGIZE(x) STRINGIZE_ (x)
#define INFLATE_LIBRARY \
  "ISA-L " STRINGIZE (ISAL_MAJOR_VERSION) "." STRINGIZE (ISAL_MINOR_VERSION)

struct fast_inflate {
  struct inflate_state *state;
};

static bool
fast_init (struct fast_inflate *f)
{
  f->state = malloc (sizeof *f->state);
  return f->state != NULL;
}

static void
fast_free (struct fast_inflate *f)
{
  free (f->state);
}

static bool
fast_inflate (struct fast_inflate *f, const void *in, size_t in_bytes,
              void *out, size_t out_bytes)
{
  struct inflate_state *state = f->state;

  isal_inflate_init (state);
  state->crc_flag = ISAL_DEFLATE;
  state->next_in = (uint8_t *) in;
  state->avail_in = in_bytes;
  state->next_out = out;
  state->avail_out = out_bytes;
  return isal_inflate_stateless (state) == ISAL_DECOMP_OK &&
    state->total_out == out_bytes;
}

#else

#define INFLATE_LIBRARY "zlib " ZLIB_VERSION

struct fast_inflate { };

static bool
fast_init (struct fast_inflate *f __attribute__ ((__unused__)))
{
  return true;
}

static void
fast_free (struct fast_inflate *f __attribute__ ((__unused__)))
{
}

/* There is none: leave it to zlib. */
#define fast_inflate(f, in, in_bytes, out, out_bytes) ((void) (f), false)

#endif

struct decoder {
  struct fast_inflate fast;
  z_stream zlib;
  bool zlib_ready;              /* made when it is first needed */
};

static void *
deflate_new_decoder (void)
{
  struct decoder *d = calloc (1, sizeof *d);

  if (!d)
    return NULL;
  if (!fast_init (&d->fast)) {
    free (d);
    errno = ENOMEM;
    return NULL;
  }
  return d;
}

static void
deflate_free_decoder (void *decoder)
{
  struct decoder *d = decoder;

  if (!d)
    return;
  if (d->zlib_ready)
    inflateEnd (&d->zlib);
  fast_free (&d->fast);
  free (d);
}

/* Have the stream at its beginning.  The reset can't fail on a stream
 * that was made well.
 */
static int
zlib_begin (struct decoder *d)
{
  if (d->zlib_ready)
    return inflateReset (&d->zlib) == Z_OK ? 0 : -EIO;

  if (inflateInit2 (&d->zlib, DEFLATE_WINDOW_BITS) != Z_OK)
    return -ENOMEM;
  d->zlib_ready = true;
  return 0;
}

static int
zlib_inflate (struct decoder *d, const void *in, size_t in_bytes,
              void *out, size_t out_bytes)
{
  int r = zlib_begin (d);

  if (r < 0)
    return r;

  d->zlib.next_in = (Bytef *) in;
  d->zlib.avail_in = in_bytes;
  d->zlib.next_out = out;
  d->zlib.avail_out = out_bytes;

  r = inflate (&d->zlib, Z_FINISH);
  if (r == Z_MEM_ERROR)
    return -ENOMEM;
  if (r != Z_STREAM_END && r != Z_BUF_ERROR)
    return -EIO;
  return d->zlib.avail_out == 0 ? 0 : -EIO;
}

static int
deflate_decompress (void *decoder, const void *in, size_t in_bytes,
                    void *out, size_t out_bytes)
{
  struct decoder *d = decoder;

  if (fast_inflate (&d->fast, in, in_bytes, out, out_bytes))
    return 0;
  return zlib_inflate (d, in, in_bytes, out, out_bytes);
}

const struct codec codec_deflate = {
  .name = "zlib",
  .new_decoder = deflate_new_decoder,
  .free_decoder = deflate_free_decoder,
  .decompress = deflate_decompress,
};

const char *
codec_inflate_library (void)
{
  return INFLATE_LIBRARY;
}
