/* SPDX-License-Identifier: BSD-3-Clause */

/* Compression of clusters: what each algorithm has to provide.
 *
 * One file per codec (codec-deflate.c, codec-zstd.c).  A codec's
 * contexts are expensive to make and are used by one thread at a time;
 * codec-pool.h keeps those that are idle.
 */

#ifndef QCOW2_CODEC_H
#define QCOW2_CODEC_H

#include <stddef.h>
#include <stdint.h>

/* The compression type field of the header (specification: "Header",
 * byte 104).
 */
enum compression_type {
  COMPRESSION_DEFLATE = 0,
  COMPRESSION_ZSTD = 1,
};

struct codec {
  const char *name;             /* as in qemu-img: "zlib", "zstd" */

  /* A context for decompression, or NULL with errno. */
  void *(*new_decoder) (void);
  void (*free_decoder) (void *decoder);

  /* Decompress one cluster.  IN may have trailing bytes which do not
   * belong to the stream (its length is stored in sectors); OUT must be
   * filled exactly.  Returns 0; -EIO if the data is damaged or too
   * short; -ENOMEM.
   */
  int (*decompress) (void *decoder, const void *in, size_t in_bytes,
                     void *out, size_t out_bytes);
};

/* The codecs that are built in; zlib's format always is. */
extern const struct codec codec_deflate;
#ifdef HAVE_ZSTD
extern const struct codec codec_zstd;
#endif

/* The codec of a compression type, or NULL if it is not built in. */
extern const struct codec *codec_find (uint8_t compression_type);

/* The name of a compression type whether built in or not, or NULL if it
 * is unknown.
 */
extern const char *codec_type_name (uint8_t compression_type);

/* The library that inflates, with its version ("libdeflate 1.14"), and
 * the one for zstd, or "no".
 */
extern const char *codec_inflate_library (void);
extern const char *codec_zstd_library (void);

#endif /* QCOW2_CODEC_H */
