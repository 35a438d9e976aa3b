/* SPDX-License-Identifier: BSD-3-Clause */

/* Images of all kinds for writers, made by qemu-img and qemu-io in the
 * current directory, and what must not change while they are written.
 */

#ifndef RANDOM_IMAGE_H
#define RANDOM_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

/* What makes an image special; the rest of it is drawn at random. */
enum image_trait {
  TRAIT_PLAIN,
  TRAIT_VERSION_2,
  TRAIT_SMALL_CLUSTERS,         /* of 512 bytes */
  TRAIT_PREALLOCATED,
  TRAIT_ZLIB,
  TRAIT_ZSTD,
  TRAIT_SNAPSHOTS,
  TRAIT_BACKING,
  TRAIT_DATA_FILE,
  TRAIT_DATA_FILE_RAW,
  TRAIT_EXTENDED,
  TRAIT_EXTENDED_BACKING,
  TRAIT_EXTENDED_COMPRESSED,
  TRAIT_EXTENDED_SNAPSHOTS,
  TRAIT_EXTENDED_DATA_FILE,
  TRAIT_LARGE_CLUSTERS,         /* of 2 MiB */
  TRAIT_LAZY_REFCOUNTS,
  NR_TRAITS,
};

#define MAX_KEPT 9

/* Content that has to stay as it is. */
struct kept {
  char file[16];
  char snapshot[16];            /* of the image FILE; empty: FILE's bytes */
  uint8_t *content;
  uint64_t bytes;
};

struct random_image {
  const char *filename;
  const char *data_file;        /* or NULL */
  bool data_file_raw;
  unsigned version;
  bool extended;
  unsigned refcount_bits;
  bool lazy_refcounts;
  const char *compression;      /* or NULL */
  const char *preallocation;
  unsigned nr_snapshots;
  unsigned depth;               /* of backing files */
  uint64_t cluster_bytes;
  uint64_t size_bytes;          /* virtual size */

  uint8_t *content;             /* of the disk; the caller may take it */
  struct kept kept[MAX_KEPT];
  unsigned nr_kept;
  char description[200];
};

/* Make one with that trait. */
extern void random_image_make (struct random_image *image,
                               enum image_trait trait, uint64_t *seed);

/* Take an internal snapshot, which is kept, too. */
extern void random_image_take_snapshot (struct random_image *image);

/* Are snapshots and backing files what they were?  Says on stdout, as a
 * TAP comment, which is not.
 */
extern bool random_image_kept (const struct random_image *image);

/* Free memory and files. */
extern void random_image_remove (struct random_image *image);

#endif /* RANDOM_IMAGE_H */
