/* SPDX-License-Identifier: BSD-3-Clause */

/* What is built in. */

#include "codec.h"
#include "qcow2.h"

#define FEATURES "read,write,snapshots,backing,data-file,extended-l2,zlib"

static const char *
features (void)
{
  return codec_find (COMPRESSION_ZSTD) ? FEATURES ",zstd" : FEATURES;
}

bool
qcow2_build_info (size_t *pos, const char **key, const char **value)
{
  switch ((*pos)++) {
  case 0:
    *key = "qcow2_features";
    *value = features ();
    return true;
  case 1:
    *key = "qcow2_inflate";
    *value = codec_inflate_library ();
    return true;
  case 2:
    *key = "qcow2_zstd";
    *value = codec_zstd_library ();
    return true;
  default:
    return false;
  }
}
