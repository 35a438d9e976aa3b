/* SPDX-License-Identifier: BSD-3-Clause */

/* Compression type 1: each cluster is one zstd frame, or several.
 *
 * QEMU's reader feeds a stream decoder until the output is full, and
 * then wants the last frame to be at its end.  The same is said here
 * without streaming: frame after frame is decoded in one piece, straight
 * to its place in the cluster, until the cluster is full.  A frame that
 * does not fit or breaks off is damage; what follows is not looked at.
 * The two differ only on frames that no compressor makes: a window above
 * 128 MiB, or smaller than a block, passes here, and an empty compressed
 * block, which the format forbids, does not.
 *
 * Decoding in one piece takes the output for the window.  However large
 * a window a frame asks for, no memory is allocated for it: a decoder
 * has the same size for good and all.
 */

#include <errno.h>
#include <stdbool.h>

#include "codec.h"

#ifdef HAVE_ZSTD

#include <zstd.h>

/* The formats from before zstd 1.0, which the library may also know, are
 * not part of qcow2: don't let an image reach those decoders.
 */
static bool
is_frame (const unsigned char *in, size_t in_bytes)
{
  uint32_t magic;

  if (in_bytes < 4)
    return 0;
  magic = in[0] | in[1] << 8 | in[2] << 16 | (uint32_t) in[3] << 24;
  return magic == ZSTD_MAGICNUMBER ||
    (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

static int
zstd_decompress (void *decoder, const void *in, size_t in_bytes,
                 void *out, size_t out_bytes)
{
  const unsigned char *from = in;
  unsigned char *to = out;
  size_t frame_bytes, n;

  while (out_bytes > 0) {
    if (!is_frame (from, in_bytes))
      return -EIO;
    frame_bytes = ZSTD_findFrameCompressedSize (from, in_bytes);
    if (ZSTD_isError (frame_bytes))
      return -EIO;

    n = ZSTD_decompressDCtx (decoder, to, out_bytes, from, frame_bytes);
    if (ZSTD_isError (n))
      return -EIO;

    from += frame_bytes;
    in_bytes -= frame_bytes;
    to += n;
    out_bytes -= n;
  }
  return 0;
}

static void *
zstd_new_decoder (void)
{
  void *d = ZSTD_createDCtx ();

  if (!d)
    errno = ENOMEM;
  return d;
}

static void
zstd_free_decoder (void *decoder)
{
  ZSTD_freeDCtx (decoder);
}

const struct codec codec_zstd = {
  .name = "zstd",
  .new_decoder = zstd_new_decoder,
  .free_decoder = zstd_free_decoder,
  .decompress = zstd_decompress,
};

const char *
codec_zstd_library (void)
{
  return "libzstd " ZSTD_VERSION_STRING;
}

#else

const char *
codec_zstd_library (void)
{
  return "no";
}

#endif /* HAVE_ZSTD */
