/* SPDX-License-Identifier: BSD-3-Clause */

/* The one owner of the header on disk.
 *
 * Changes are serialised here, and made from a copy of what is durable,
 * so that none can lose another.  Each is durable when its function
 * returns.  When power fails in between, the header is as before or as
 * after it; after an error it may be as either, until a later change
 * succeeds: what both refer to has to stay valid.
 *
 * The functions may be called from many threads.  They wait for I/O: no
 * lock that a request needs may be held.
 */

#ifndef QCOW2_HEADER_WRITE_H
#define QCOW2_HEADER_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "format.h"
#include "header.h"
#include "storage.h"

struct header_writer;

/* For the image in S, whose header is H; S is used until
 * header_writer_free, H is not kept.  The whole message is set.
 */
extern int header_writer_new (struct qcow2_storage *s, const struct header *h,
                              struct header_writer **w,
                              struct qcow2_error *error);

/* W may be NULL. */
extern void header_writer_free (struct header_writer *w);

/*----- Fields ("Header"): one write of one sector -----*/

struct header_features {
  uint64_t incompatible;
  uint64_t compatible;
  uint64_t autoclear;
};

enum header_field {
  HEADER_SIZE = 1 << 0,
  HEADER_L1 = 1 << 1,
  HEADER_REFCOUNT_TABLE = 1 << 2,
  HEADER_SNAPSHOTS = 1 << 3,
};

/* All that one write is to change. */
struct header_change {
  struct header_features set;   /* bits */
  struct header_features clear;
  unsigned fields;              /* enum header_field: which to take */
  uint64_t size_bytes;
  uint64_t l1_offset;
  uint32_t l1_entries;
  uint64_t refcount_table_offset;
  uint32_t refcount_table_clusters;
  uint64_t snapshots_offset;
  uint32_t nr_snapshots;
};

/* Make a change; nothing is written if all is so already.  -ENOTSUP if
 * it sets a feature in an image of version 2, which has none (there are
 * none to be cleared, either: that is no error).
 */
extern int header_writer_commit (struct header_writer *w,
                                 const struct header_change *change);

/* The same for one thing each.  SET or CLEAR may be NULL. */
extern int header_writer_set_features (struct header_writer *w,
                                       const struct header_features *set,
                                       const struct header_features *clear);
extern int header_writer_set_size (struct header_writer *w,
                                   uint64_t size_bytes);
extern int header_writer_set_l1 (struct header_writer *w, uint64_t offset,
                                 uint32_t entries);
extern int header_writer_set_refcount_table (struct header_writer *w,
                                             uint64_t offset,
                                             uint32_t clusters);
extern int header_writer_set_snapshots (struct header_writer *w,
                                        uint64_t offset, uint32_t nr);

/* The features that are durable now. */
extern void header_writer_features (struct header_writer *w,
                                    struct header_features *features);

/*----- Names and extensions ("Header extensions") -----*/

enum header_part {
  HEADER_BACKING_NAME = 1 << 0,
  HEADER_BACKING_FORMAT = 1 << 1,
  HEADER_DATA_FILE = 1 << 2,
  HEADER_BITMAPS = 1 << 3,
  HEADER_FEATURE_NAMES = 1 << 4,
};

/* NULL, an empty string or no elements remove a part. */
struct header_parts {
  unsigned parts;               /* enum header_part: which to take */
  const char *backing_name;
  const char *backing_format;
  const char *data_file;
  uint32_t nr_bitmaps;
  uint64_t bitmap_directory_offset;
  uint64_t bitmap_directory_bytes;
  const struct disk_feature_name *feature_names;
  size_t nr_feature_names;
};

/* Make the changes of PARTS and, at the same moment, those of CHANGE,
 * which may be NULL.  All that is not changed stays byte for byte, but
 * the feature name table is left out where space is short.  Messages
 * don't name the file.  -EINVAL: a name is too long; -ENOSPC: no room in
 * the first cluster; -ENOTSUP as above.
 */
extern int header_writer_rewrite (struct header_writer *w,
                                  const struct header_parts *parts,
                                  const struct header_change *change,
                                  struct qcow2_error *error);

#endif /* QCOW2_HEADER_WRITE_H */
