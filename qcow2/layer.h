/* SPDX-License-Identifier: BSD-3-Clause */

/* One file of a backing chain: a qcow2 image, or a raw one at its end. */

#ifndef QCOW2_LAYER_H
#define QCOW2_LAYER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "codec.h"
#include "header.h"
#include "log.h"
#include "slice-cache.h"
#include "storage.h"

/* An L1 table in memory, in host order.  Entries are checked when they
 * are used, so that one that is damaged leaves the rest readable.
 */
struct l1_table {
  _Atomic uint64_t *entries;
  uint32_t nr_entries;
  bool alone;                   /* no backing file has what it leaves
                                   unallocated: for VM state */
};

struct guard;

enum layer_sparse { LAYER_SPARSE_UNKNOWN, LAYER_NOT_SPARSE, LAYER_SPARSE };

struct layer {
  unsigned index;               /* in the chain: 0 is the top image */
  char *filename;               /* as opened */
  dev_t dev;                    /* identity of the file, against loops */
  ino_t ino;
  struct log log;
  struct guard *guard;          /* of the top layer, if it is written to */

  bool is_raw;
  bool external_data;           /* guest clusters lie in DATA */
  struct qcow2_storage *file;
  struct qcow2_storage *data;   /* == FILE where there is no data file */
  char *data_filename;          /* of an external data file, as opened */
  uint64_t size_bytes;          /* virtual size; while the disk grows, not
                                   yet what HEADER and views have */

  /* Of a qcow2 image only. */
  struct header header;
  struct l1_table l1;           /* of the active layer */
  const struct codec *codec;
  struct slice_cache *slices;   /* the chain's */
  uint32_t slice_bytes;         /* min (4 KiB, cluster size) */
  unsigned unit_bits;           /* log2 of the cluster or subcluster size */
  unsigned l2_entry_bits;       /* log2 of an L2 entry's bytes */
  _Atomic enum layer_sparse sparse; /* see sparse-clusters.h */
};

/* Read the header and the active L1 table of l->file; l->filename and
 * l->log are set.  The message is prefixed with the file's
 * name.
 */
extern int layer_load_qcow2 (struct layer *l, struct qcow2_error *error);

/* The same for an image that is to be checked or repaired: its header is
 * read by header_read_damaged, and the L1 table is empty if it does not lie
 * in the file.
 */
extern int layer_load_damaged (struct layer *l, struct qcow2_error *error);

/* Warn if the image is marked dirty or corrupt, as one that is therefore
 * served read-only.
 */
extern void layer_warn_damaged (const struct layer *l);

/* The same for a raw file: just its size. */
extern int layer_load_raw (struct layer *l, struct qcow2_error *error);

/* Close and free all that L holds, and L.  L may be NULL. */
extern void layer_free (struct layer *l);

/* Read and check an L1 table of a qcow2 layer.  WHAT names it in the
 * message.  On success the caller frees table->entries.
 */
extern int l1_table_read (const struct layer *l, const char *what,
                          uint64_t offset, uint32_t nr_entries,
                          struct l1_table *table, struct qcow2_error *error);

static inline uint64_t
layer_cluster_bytes (const struct layer *l)
{
  return UINT64_C (1) << l->header.cluster_bits;
}

/* *OFFSET in the VM state behind a disk of DISK_BYTES becomes a guest offset:
 * it begins where the first L1 entry that the disk does not need does.
 * -EFBIG for what no image can hold, if there are COUNT bytes from there on.
 */
extern int layer_vm_state_offset (const struct layer *l, uint64_t disk_bytes,
                                  uint64_t count, uint64_t *offset);

/* Does guest OFFSET belong to the VM state of the active layer?  What lies
 * between it and the end of the disk is nobody's.
 */
static inline bool
layer_is_vm_state (const struct layer *l, uint64_t offset)
{
  return offset >> header_l1_entry_bits (&l->header) >=
    header_disk_l1_entries (&l->header, l->size_bytes);
}

#endif /* QCOW2_LAYER_H */
