/* SPDX-License-Identifier: BSD-3-Clause */

/* What a new image looks like: where everything lies, and the words of
 * its tables.  Pure, no I/O.
 *
 *     | header | refcount table | refcount blocks | L1 | mapped clusters |
 *
 * All clusters of the file are in use, with refcount 1.  That is the
 * order of qemu-img, too, as long as one refcount block is enough.
 *
 * How the clusters of a preallocated image lie depends on what lies well:
 *
 *     metadata        | L2 | its data | L2 | its data | ...
 *     falloc, full    | L2 | all data | L2 | L2 | ...
 *     data file       | L2 | L2 | ...       data: at the guest's offset
 */

#ifndef QCOW2_CREATE_LAYOUT_H
#define QCOW2_CREATE_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "qcow2.h"

struct create_layout {
  unsigned cluster_bits;
  unsigned refcount_order;
  bool extended_l2;
  bool external_data;
  bool data_in_one_piece;       /* falloc, full */

  uint64_t size_bytes;          /* virtual size */
  uint64_t nr_data_clusters;    /* that are mapped; 0: none */
  uint64_t nr_l2_tables;

  /* In clusters of the file. */
  uint64_t refcount_table_clusters;
  uint64_t nr_refcount_blocks;
  uint64_t l1_clusters;
  uint64_t nr_clusters;         /* all */

  uint64_t l1_entries;
  uint64_t file_bytes;
};

/* Lay an image of SIZE_BYTES, a multiple of 512, out as OPTIONS (checked)
 * say.  -EFBIG if the format can't hold it.
 */
extern int create_layout_make (const struct qcow2_create_options *options,
                               uint64_t size_bytes,
                               struct create_layout *layout,
                               struct qcow2_error *error);

static inline uint64_t
create_layout_cluster_bytes (const struct create_layout *layout)
{
  return UINT64_C (1) << layout->cluster_bits;
}

/* Where the tables begin, in bytes. */
extern uint64_t create_layout_refcount_table (const struct create_layout *l);
extern uint64_t create_layout_refcount_blocks (const struct create_layout *l);
extern uint64_t create_layout_l1_table (const struct create_layout *l);
extern uint64_t create_layout_l2_table (const struct create_layout *l,
                                        uint64_t l1_index);

/* How many words (8 bytes) of an L2 table are not zero but for those
 * between them.
 */
extern uint64_t create_layout_l2_words (const struct create_layout *l,
                                        uint64_t l1_index);

/* Words as they are on disk, but in host order: of the refcount table,
 * of the refcount blocks, taken as one array, of the L1 table, and of L2
 * table number L1_INDEX.  INDEX counts words.
 */
extern uint64_t create_layout_refcount_entry (const struct create_layout *l,
                                              uint64_t unused,
                                              uint64_t index);
extern uint64_t create_layout_refcount_word (const struct create_layout *l,
                                             uint64_t unused,
                                             uint64_t index);
extern uint64_t create_layout_l1_entry (const struct create_layout *l,
                                        uint64_t unused, uint64_t index);
extern uint64_t create_layout_l2_word (const struct create_layout *l,
                                       uint64_t l1_index, uint64_t index);

/* How many words of the refcount blocks are not zero. */
extern uint64_t create_layout_refcount_words (const struct create_layout *l);

#endif /* QCOW2_CREATE_LAYOUT_H */
