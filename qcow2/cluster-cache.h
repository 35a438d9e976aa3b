/* SPDX-License-Identifier: BSD-3-Clause */

/* The cache of decompressed clusters, shared by all layers of a chain.
 *
 * Concurrent readers of one compressed cluster decompress it once: the
 * first one loads, the others wait for it.  No lock is held while the
 * compressed data is read or decompressed.
 */

#ifndef QCOW2_CLUSTER_CACHE_H
#define QCOW2_CLUSTER_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "codec.h"
#include "storage.h"

struct cluster_cache;

/* Where the compressed data of one cluster lies. */
struct compressed_cluster {
  struct qcow2_storage *file;
  const struct codec *codec;
  unsigned layer;               /* 0 to 255, tells files apart */
  uint64_t host_offset;         /* of the compressed data, any byte */
  size_t compressed_bytes;      /* at most cluster size + 1024 or so */
  size_t cluster_bytes;         /* decompressed */
};

/* BUDGET_BYTES is what the decompressed clusters may take altogether;
 * 0 means that nothing is kept.  Clusters may differ in size from layer
 * to layer.  Memory is taken when it is needed.  NULL with errno on
 * error.
 */
extern struct cluster_cache *cluster_cache_new (size_t budget_bytes);

/* No call may be in progress.  CACHE may be NULL. */
extern void cluster_cache_free (struct cluster_cache *cache);

/* Copy COUNT bytes from byte FROM of the decompressed cluster C to BUF;
 * the range lies within the cluster.  A whole cluster that is not in the
 * cache is decompressed straight to BUF, and does not push others out.
 * -EIO if the data is damaged, or the storage's error, or -ENOMEM; then
 * nothing is kept, the content of BUF is undefined, and a later call
 * tries again.
 */
extern int cluster_cache_read (struct cluster_cache *cache,
                               const struct compressed_cluster *c,
                               size_t from, void *buf, size_t count);

/* Bring C into the cache, if there is room for it at all.  Does not wait
 * for others who load it.  Errors are those of cluster_cache_read.
 */
extern int cluster_cache_prefetch (struct cluster_cache *cache,
                                   const struct compressed_cluster *c);

/* Forget the clusters of LAYER with compressed data in [FIRST, END) of
 * its file, which nobody reads any more.
 */
extern void cluster_cache_drop (struct cluster_cache *cache, unsigned layer,
                                uint64_t first, uint64_t end);

struct cluster_cache_stats {
  uint64_t nr_decompressed;     /* clusters decompressed well so far */
  uint64_t nr_joined;           /* reads that waited for another's load */
  size_t memory_bytes;          /* decompressed clusters kept or loading */
};

extern void cluster_cache_get_stats (struct cluster_cache *cache,
                                     struct cluster_cache_stats *stats);

#endif /* QCOW2_CLUSTER_CACHE_H */
