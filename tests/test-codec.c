/* SPDX-License-Identifier: BSD-3-Clause */

/* Codecs by compression type; and decompression of deflate: what QEMU
 * reads is read alike, what it would not read is refused.
 */

#include <errno.h>
#include <stdlib.h>

#include <zlib.h>

#include "codec-check.h"
#include "tap.h"

static struct bytes
deflate_with (struct bytes content, int window_bits, int flush)
{
  struct bytes b = make_bytes (content.count * 2 + 1000);
  z_stream z = { 0 };

  if (deflateInit2 (&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, window_bits, 9,
                    Z_DEFAULT_STRATEGY) != Z_OK)
    abort ();
  z.next_in = content.data;
  z.avail_in = content.count;
  z.next_out = b.data;
  z.avail_out = b.count;
  deflate (&z, flush);
  b.count -= z.avail_out;
  deflateEnd (&z);
  return b;
}

static bool
reference_deflate (struct bytes in, struct bytes out)
{
  z_stream z = { 0 };
  int r;

  z.next_in = in.data;
  z.avail_in = in.count;
  z.next_out = out.data;
  z.avail_out = out.count;
  if (inflateInit2 (&z, -12) != Z_OK)
    abort ();
  r = inflate (&z, Z_FINISH);
  inflateEnd (&z);
  return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0;
}

static void
test_deflate_sizes (void)
{
  static const size_t sizes[] = { 512, 4096, 64 * KiB, 2 * MiB };
  size_t i;
  int content;

  for (i = 0; i < 4; i++) {
    for (content = 0; content < NR_CONTENTS; content++) {
      struct bytes want = make_content (content, sizes[i]);
      struct bytes in = deflate_with (want, -12, Z_FINISH);

      ok (decompresses_to (&codec_deflate, in, want), "zlib: %zu bytes of %s",
          sizes[i], content_names[content]);
      free (in.data);
      free (want.data);
    }
  }
}

static void
test_deflate_rule (void)
{
  struct bytes two = make_content (WORDS, 128 * KiB);
  struct bytes one = first_bytes (two, 64 * KiB);
  struct bytes far = make_content (RECORDS, 64 * KiB);
  struct bytes in = deflate_with (one, -12, Z_FINISH);
  struct bytes tail = with_tail (in, 511);
  struct bytes no_end = deflate_with (one, -12, Z_SYNC_FLUSH);
  struct bytes longer = deflate_with (two, -12, Z_FINISH);
  struct bytes wide = deflate_with (far, -15, Z_FINISH);
  size_t cut = in.count - 1;

  ok (decompresses_to (&codec_deflate, tail, one),
      "zlib: what follows is ignored");
  ok (decompresses_to (&codec_deflate, no_end, one), "zlib: no end marker");
  ok (decompresses_to (&codec_deflate, longer, one),
      "zlib: a stream that would go on");
  ok (decompresses_to (&codec_deflate, wide, far),
      "zlib: distances above 4 KiB");

  while (cut > 0 && reference_deflate (first_bytes (in, cut), one))
    cut--;
  is_int (decompress_error (&codec_deflate,
                            first_bytes (in, cut), one.count), -EIO,
          "zlib: one byte less than fills the cluster");
  ok (decompresses_to (&codec_deflate, first_bytes (in, cut + 1), one),
      "zlib: the end cut off, the cluster full");
  is_int (decompress_error (&codec_deflate, in, 64 * KiB + 1), -EIO,
          "zlib: the stream ends before the cluster is full");
  is_int (decompress_error (&codec_deflate, first_bytes (in, 0), 4096), -EIO,
          "zlib: no input");

  free (in.data);
  free (tail.data);
  free (no_end.data);
  free (longer.data);
  free (wide.data);
  free (far.data);
  free (two.data);
}

static void
test_deflate_damage (void)
{
  enum { SIZE = 16384 };
  struct bytes streams[NR_CONTENTS];
  struct fuzz f;
  int i;

  for (i = 0; i < NR_CONTENTS; i++) {
    struct bytes content = make_content (i, SIZE);

    streams[i] = deflate_with (content, -12, Z_FINISH);
    free (content.data);
  }
  f = fuzz_codec (&codec_deflate, reference_deflate, streams, NR_CONTENTS,
                  SIZE);
  ok (f.nr_accepted > 0 && f.nr_refused > 0,
      "zlib: damage that shows and damage that does not");
  is_int (f.nr_refused_here_alone, 0, "zlib: what QEMU reads is read");
  is_int (f.nr_different, 0, "zlib: with the same content");
  /* The fast libraries take a code that has no meaning for one. */
  ok (f.nr_accepted_here_alone <= f.nr_refused / 100,
      "zlib: what QEMU refuses is refused, but for rare cases");
  for (i = 0; i < NR_CONTENTS; i++)
    free (streams[i].data);
}

static void
test_find (void)
{
  ok (codec_find (0) == &codec_deflate, "type 0 is built in");
  is_str (codec_find (0)->name, "zlib", "and called as in qemu-img");
  ok (codec_find (2) == NULL && codec_find (255) == NULL,
      "unknown types are not");
  is_str (codec_type_name (0), "zlib", "name of type 0");
  is_str (codec_type_name (1), "zstd", "name of type 1, built in or not");
  ok (codec_type_name (2) == NULL, "no name for an unknown type");
  ok (codec_inflate_library ()[0] != 0, "inflates with %s",
      codec_inflate_library ());
}

int
main (void)
{
  test_find ();
  test_deflate_sizes ();
  test_deflate_rule ();
  test_deflate_damage ();
  return tap_done ();
}
