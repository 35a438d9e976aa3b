/* SPDX-License-Identifier: BSD-3-Clause */

/* Which codec a compression type means, and what it is called. */

#include <stddef.h>

#include "codec.h"

const struct codec *
codec_find (uint8_t compression_type)
{
  switch (compression_type) {
  case COMPRESSION_DEFLATE:
    return &codec_deflate;
#ifdef HAVE_ZSTD
  case COMPRESSION_ZSTD:
    return &codec_zstd;
#endif
  default:
    return NULL;
  }
}

const char *
codec_type_name (uint8_t compression_type)
{
  switch (compression_type) {
  case COMPRESSION_DEFLATE:
    return "zlib";
  case COMPRESSION_ZSTD:
    return "zstd";
  default:
    return NULL;
  }
}
