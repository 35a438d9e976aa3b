/* SPDX-License-Identifier: BSD-3-Clause */

/* An open image: the state behind struct qcow2 and struct qcow2_view. */

#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include <pthread.h>
#include <stdint.h>

#include "chain.h"
#include "cluster-cache.h"
#include "epoch.h"
#include "gate.h"
#include "log.h"
#include "qcow2.h"
#include "snapshot-table.h"

struct writer;

struct qcow2 {
  struct chain chain;
  struct epoch epoch;           /* of all requests */
  struct gate gate;             /* requests enter EPOCH through it */
  struct writer *writer;        /* NULL: read-only */
  struct cluster_cache *clusters;
  uint64_t compressed_cache_bytes;
  struct snapshot_table snapshots; /* of the top image */
  struct log log;

  /* For reading the image again, see reopen.c. */
  struct qcow2_options options; /* but for strings, which are NULL */
  bool writable;                /* the top image's file is */
  bool data_file_given;         /* by the operator */
  bool finished;                /* by qcow2_finish; gate closed */
  int broken;                   /* negative errno, and why: reading it again
                                   has failed */
  struct qcow2_error why;

  pthread_mutex_t views_lock;
  struct qcow2_view *views;     /* open ones; under views_lock */
};

/* All members but SNAPSHOT, SIZE_BYTES, NR_REFS and NEXT are constant while a
 * view is open.
 */
struct qcow2_view {
  struct qcow2 *image;
  _Atomic size_t snapshot;      /* index, or QCOW2_ACTIVE; an index changes
                                   under views_lock */
  const struct l1_table *l1;    /* the top layer's, or &own_l1 */
  struct l1_table own_l1;       /* of a snapshot */
  _Atomic uint64_t size_bytes;  /* written under views_lock */
  uint64_t vm_state_bytes;      /* of a snapshot */

  unsigned nr_refs;             /* under views_lock */
  struct qcow2_view *next;      /* under views_lock */
};

static inline int
view_lookup (const struct qcow2_view *view, uint64_t offset,
             uint64_t max_bytes, struct run *run)
{
  return chain_lookup (&view->image->chain, view->l1, offset, max_bytes, run);
}

/* Read COUNT bytes at guest OFFSET of the disk that the table L1 maps, as
 * qcow2_pread does.  Within the request's epoch.
 */
extern int image_read (const struct qcow2 *image, const struct l1_table *l1,
                       void *buf, size_t count, uint64_t offset);

/* Write to the VM state of the active layer, as qcow2_vmstate_pwrite does.
 * *TOO_SHORT: the L1 table is too short for that, and nothing was done.
 */
extern int request_write_vm_state (struct qcow2_view *view, const void *buf,
                                   size_t count, uint64_t offset,
                                   bool *too_short);

/* Read what depends on the layers, which are loaded, and make caches and a
 * writer (where that is wanted) for them: there are none yet.  What is
 * there after an error is freed as after success.
 */
extern int image_prepare (struct qcow2 *image, struct qcow2_error *error);

/* The disk has another size now, for views that are open, too.  The gate
 * is closed.
 */
extern void image_set_size (struct qcow2 *image, uint64_t size_bytes);

/* Is a view of this snapshot open? */
extern bool image_has_view_of (struct qcow2 *image, size_t snapshot);

/* The snapshot with this index is gone: those behind it have moved up.  It
 * has no view.  The gate is closed.
 */
extern void image_remove_snapshot (struct qcow2 *image, size_t snapshot);

/* Is any view open? */
extern bool image_has_views (struct qcow2 *image);

struct backing_name;

/* Is qcow2_options.format raw?  -ENOTSUP for others than raw and qcow2. */
extern int image_format (const char *format, bool *is_raw,
                         struct qcow2_error *error);

/* The format of the backing file NAME of the image FILENAME: the header
 * knows it, or a json: name, or the operator.  -EINVAL if nobody does,
 * -ENOTSUP for others than raw and qcow2.
 */
extern int image_backing_format (const struct qcow2_options *options,
                                 const char *filename,
                                 const struct header *header,
                                 const struct backing_name *name,
                                 bool *is_raw, struct qcow2_error *error);

/* Free the views that are still open. */
extern void view_free_all (struct qcow2 *image);

/* Describe the compressed cluster of a RUN_COMPRESSED. */
static inline void
run_compressed_cluster (const struct run *run, struct compressed_cluster *c)
{
  c->file = run->layer->file;
  c->codec = run->layer->codec;
  c->layer = run->layer->index;
  c->host_offset = run->host_offset;
  c->compressed_bytes = run->compressed_bytes;
  c->cluster_bytes = layer_cluster_bytes (run->layer);
}

#endif /* QCOW2_IMAGE_H */
