/* SPDX-License-Identifier: BSD-3-Clause */

/* A model of how qcow2 maps guest offsets, made to be obvious, not fast:
 * it looks at one guest offset at a time, and reads what it needs from
 * the file each time.  It shares no code with the engine, keeps nothing,
 * and takes the image to be right.
 */

#ifndef DISK_MODEL_H
#define DISK_MODEL_H

#include <stdbool.h>
#include <stdint.h>

/* What serves a guest byte. */
enum place_kind {
  PLACE_BELOW,                  /* look in the backing file */
  PLACE_ZERO,
  PLACE_DATA,
  PLACE_COMPRESSED,
};

struct place {
  enum place_kind kind;
  unsigned layer;
  uint64_t host;                /* of the byte, or of the compressed data */
  uint64_t compressed_bytes;
  uint64_t in_cluster;          /* PLACE_COMPRESSED: the byte in the cluster */
};

struct disk_model {
  int fd;
  bool is_raw;
  uint64_t size_bytes;
  unsigned cluster_bits;
  unsigned entry_bytes;         /* of an L2 entry */
  bool external_data;
  uint64_t l1_offset;
  uint64_t l1_entries;
};

/* Open the file; a failure of the system ends the program. */
extern void disk_model_open (struct disk_model *m, const char *filename,
                             bool is_raw);
extern void disk_model_close (struct disk_model *m);

/* See the first snapshot instead of the active layer. */
extern void disk_model_use_snapshot (struct disk_model *m);

/* What serves the guest byte at OFFSET in this one image. */
extern struct place disk_model_look (const struct disk_model *m,
                                     uint64_t offset);

/* The same along a chain of NR images from FIRST on; PLACE_ZERO if in none. */
extern struct place disk_model_look_down (const struct disk_model *models,
                                          unsigned first, unsigned nr,
                                          uint64_t offset);

/* Do both places belong to one run, the second DISTANCE bytes behind the
 * first?
 */
extern bool place_goes_on (const struct place *a, const struct place *b,
                           uint64_t distance);

#endif /* DISK_MODEL_H */
