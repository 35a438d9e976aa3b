/* SPDX-License-Identifier: BSD-3-Clause */

/* Decompression of zstd: what QEMU reads is read alike, what it would
 * not read is refused.  Without the library, the type is not built in.
 */

#include "codec-check.h"
#include "tap.h"

#ifdef HAVE_ZSTD

#include <errno.h>
#include <stdlib.h>

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

struct frame_options {
  bool checksum;
  bool no_size;                 /* a stream of unknown length */
  int window_log;
};

static struct bytes
zstd_with (struct bytes content, struct frame_options options)
{
  struct bytes b = make_bytes (ZSTD_compressBound (content.count) + 64);
  ZSTD_CCtx *c = ZSTD_createCCtx ();
  ZSTD_outBuffer out = { b.data, b.count, 0 };
  ZSTD_inBuffer in = { content.data, content.count, 0 };

  ZSTD_CCtx_setParameter (c, ZSTD_c_checksumFlag, options.checksum);
  if (options.window_log)
    ZSTD_CCtx_setParameter (c, ZSTD_c_windowLog, options.window_log);
  if (options.no_size)
    ZSTD_compressStream2 (c, &out, &in, ZSTD_e_flush);
  if (ZSTD_compressStream2 (c, &out, &in, ZSTD_e_end) != 0)
    abort ();
  ZSTD_freeCCtx (c);
  b.count = out.pos;
  return b;
}

static bool
reference_zstd (struct bytes in, struct bytes out)
{
  ZSTD_DCtx *d = ZSTD_createDCtx ();
  ZSTD_outBuffer o = { out.data, out.count, 0 };
  ZSTD_inBuffer i = { in.data, in.count, 0 };
  size_t r = 0, last_in, last_out;

  while (o.pos < o.size) {
    last_in = i.pos;
    last_out = o.pos;
    r = ZSTD_decompressStream (d, &o, &i);
    if (ZSTD_isError (r) || (i.pos == last_in && o.pos == last_out)) {
      r = 1;
      break;
    }
  }
  ZSTD_freeDCtx (d);
  return r == 0;
}

static struct bytes
concat (struct bytes a, struct bytes b)
{
  struct bytes c = make_bytes (a.count + b.count);

  memcpy (c.data, a.data, a.count);
  memcpy (c.data + a.count, b.data, b.count);
  return c;
}

static void
test_zstd_sizes (void)
{
  static const size_t sizes[] = { 512, 4096, 64 * KiB, 2 * MiB };
  size_t i;
  int content;

  for (i = 0; i < 4; i++) {
    for (content = 0; content < NR_CONTENTS; content++) {
      struct bytes want = make_content (content, sizes[i]);
      struct bytes in = zstd_with (want, (struct frame_options) { 0 });

      ok (decompresses_to (&codec_zstd, in, want), "zstd: %zu bytes of %s",
          sizes[i], content_names[content]);
      free (in.data);
      free (want.data);
    }
  }
}

static void
test_zstd_rule (void)
{
  struct bytes all = make_content (WORDS, 64 * KiB);
  struct bytes half = first_bytes (all, 32 * KiB);
  struct bytes rest = { all.data + 32 * KiB, 32 * KiB };
  struct bytes in = zstd_with (all, (struct frame_options) { 0 });
  struct bytes sum = zstd_with (all, (struct frame_options) {
      .checksum = true });
  struct bytes no_size = zstd_with (all, (struct frame_options) {
      .no_size = true });
  struct bytes half1 = zstd_with (half, (struct frame_options) {
      .no_size = true });
  struct bytes half2 = zstd_with (rest, (struct frame_options) {
      .checksum = true });
  struct bytes halves = concat (half1, half2);
  struct bytes skip = { (unsigned char *) "\x52\x2a\x4d\x18\3\0\0\0abc", 11 };
  struct bytes skipped = concat (skip, in);
  struct bytes tail = with_tail (in, 511);

  ok (decompresses_to (&codec_zstd, tail, all),
      "zstd: what follows is ignored");
  ok (decompresses_to (&codec_zstd, sum, all), "zstd: with a checksum");
  ok (decompresses_to (&codec_zstd, no_size, all), "zstd: of unknown length");
  ok (decompresses_to (&codec_zstd, halves, all), "zstd: two frames in a row");
  ok (decompresses_to (&codec_zstd, skipped, all),
      "zstd: after a skippable frame");

  is_int (decompress_error (&codec_zstd,
                            first_bytes (in, in.count - 1), all.count), -EIO,
          "zstd: one byte short");
  is_int (decompress_error (&codec_zstd,
                            first_bytes (sum, sum.count - 1), all.count), -EIO,
          "zstd: a byte of the checksum missing");
  sum.data[sum.count - 1] ^= 1;
  is_int (decompress_error (&codec_zstd, sum, all.count), -EIO,
          "zstd: a wrong checksum");
  is_int (decompress_error (&codec_zstd, in, 64 * KiB + 512), -EIO,
          "zstd: the cluster is not full");
  is_int (decompress_error (&codec_zstd, in, 64 * KiB - 512), -EIO,
          "zstd: a frame larger than the cluster");
  is_int (decompress_error (&codec_zstd, no_size, 64 * KiB - 512), -EIO,
          "zstd: the same, of unknown length");
  is_int (decompress_error (&codec_zstd, halves, 32 * KiB + 512), -EIO,
          "zstd: the second frame too large");
  is_int (decompress_error (&codec_zstd,
                            first_bytes (halves, half1.count), 64 * KiB), -EIO,
          "zstd: the second frame missing");
  is_int (decompress_error (&codec_zstd, skip, 4096), -EIO,
          "zstd: nothing but a skippable frame");
  is_int (decompress_error (&codec_zstd, first_bytes (in, 0), 4096), -EIO,
          "zstd: no input");

  free (in.data);
  free (sum.data);
  free (no_size.data);
  free (half1.data);
  free (half2.data);
  free (halves.data);
  free (skipped.data);
  free (tail.data);
  free (all.data);
}

/* A stream decoder would have to allocate the window that is asked for. */
static void
test_zstd_window (void)
{
  struct bytes want = make_content (WORDS, 64 * KiB);
  struct bytes in = zstd_with (want, (struct frame_options) {
      .no_size = true, .window_log = 20 });
  void *decoder = codec_zstd.new_decoder ();
  size_t before = ZSTD_sizeof_DCtx (decoder);
  struct bytes out = make_bytes (want.count);
  int r;

  /* The window descriptor follows magic and frame header descriptor; its
   * upper five bits are the logarithm less 10.
   */
  is_int (in.data[5] >> 3, 20 - 10, "zstd: a frame with a window of 1 MiB");
  in.data[5] = (31 - 10) << 3;
  r = decompress_copy (&codec_zstd, decoder, in, out);
  ok (r == 0 && memcmp (out.data, want.data, want.count) == 0,
      "zstd: now of 2 GiB: it is read");
  is_int (ZSTD_sizeof_DCtx (decoder), before,
          "zstd: and no memory is allocated for it");
  free (out.data);
  free (in.data);
  free (want.data);
  codec_zstd.free_decoder (decoder);
}

static void
test_zstd_damage (void)
{
  enum { SIZE = 16384 };
  struct bytes streams[NR_CONTENTS * 2];
  struct fuzz f;
  int i;

  for (i = 0; i < NR_CONTENTS * 2; i++) {
    struct bytes content = make_content (i / 2, SIZE);

    streams[i] = zstd_with (content, (struct frame_options) {
        .no_size = i % 2, .window_log = 14 });
    free (content.data);
  }
  f = fuzz_codec (&codec_zstd, reference_zstd, streams, NR_CONTENTS * 2,
                  SIZE);
  ok (f.nr_accepted > 0 && f.nr_refused > 0,
      "zstd: damage that shows and damage that does not");
  /* A last block that is compressed and has no bytes: the format forbids
   * it, the stream decoder lets it pass.
   */
  ok (f.nr_refused_here_alone <= f.nr_accepted / 100,
      "zstd: what QEMU reads is read, but for rare cases");
  is_int (f.nr_different, 0, "zstd: with the same content");
  /* Windows above QEMU's limit, and blocks larger than the window. */
  ok (f.nr_accepted_here_alone <= f.nr_refused / 100,
      "zstd: what QEMU refuses is refused, but for rare cases");
  for (i = 0; i < NR_CONTENTS * 2; i++)
    free (streams[i].data);
}

int
main (void)
{
  ok (codec_find (1) == &codec_zstd, "type 1 is built in");
  is_str (codec_zstd.name, "zstd", "and called as in qemu-img");
  ok (strncmp (codec_zstd_library (), "libzstd ", 8) == 0, "with %s",
      codec_zstd_library ());
  test_zstd_sizes ();
  test_zstd_rule ();
  test_zstd_window ();
  test_zstd_damage ();
  return tap_done ();
}

#else

int
main (void)
{
  ok (codec_find (1) == NULL, "type 1 is not built in");
  is_str (codec_zstd_library (), "no", "and --dump-plugin says so");
  return tap_done ();
}

#endif /* HAVE_ZSTD */
