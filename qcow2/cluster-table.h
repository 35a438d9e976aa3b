/* SPDX-License-Identifier: BSD-3-Clause */

/* The table of the cluster cache: a hash table cut into shards, and in
 * each shard a clock that tells what to evict.
 *
 * It keeps entries and knows nothing of loading; cluster-cache.c says
 * what the states mean and who may change them.  All functions but
 * init, free and find_place want the shard's mutex held.
 */

#ifndef QCOW2_CLUSTER_TABLE_H
#define QCOW2_CLUSTER_TABLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cluster-cache.h"

#define CLUSTER_TABLE_SHARDS 16 /* a power of 2 */

enum cluster_state {
  CLUSTER_LOADING,
  CLUSTER_KEPT,
  CLUSTER_LENT,
  CLUSTER_FAILED,
};

/* Members are under the shard's mutex, unless said. */
struct cluster_entry {
  struct cluster_entry *next;   /* in its bucket or in the shard's unused */
  struct cluster_entry *clock_prev, *clock_next; /* if KEPT */

  /* Which cluster; these don't change while the entry is in the table.
   * Two entries of a damaged L2 table may give one offset and different
   * lengths: these are then different clusters.
   */
  const struct codec *codec;
  unsigned layer;
  uint64_t host_offset;
  size_t compressed_bytes;
  size_t cluster_bytes;

  enum cluster_state state;
  int error;                    /* if FAILED */
  bool referenced;              /* since the hand passed */
  const unsigned char *data;    /* from KEPT or LENT on; then constant */
  atomic_uint pins;             /* raised under the mutex only */
};

struct cluster_shard {
  pthread_mutex_t lock;
  pthread_cond_t changed;       /* a load ended, or a joiner left */
  struct cluster_entry **buckets;
  struct cluster_entry *hand;   /* the circle of those KEPT, or NULL */
  size_t nr_kept;
  struct cluster_entry *unused; /* structs of former entries */
  uint64_t nr_decompressed, nr_joined; /* see cluster_cache_stats */
} __attribute__ ((__aligned__ (64)));

struct cluster_table {
  struct cluster_shard shards[CLUSTER_TABLE_SHARDS];
  uint64_t hash_seed;
  size_t nr_buckets;            /* per shard */
};

/* Where a cluster is in the table if it is there. */
struct cluster_place {
  struct cluster_shard *shard;
  struct cluster_entry **bucket;
};

/* Make the table, which is zeroed memory, for BUDGET_BYTES of clusters.
 * -ENOMEM on error; free has to be called then too.
 */
extern int cluster_table_init (struct cluster_table *table,
                               size_t budget_bytes);

/* Free all entries, their data included.  None is LOADING or pinned. */
extern void cluster_table_free (struct cluster_table *table);

extern struct cluster_place
cluster_table_find_place (struct cluster_table *table, unsigned layer,
                          uint64_t host_offset);

/* The entry of C at its place, or NULL. */
extern struct cluster_entry *
cluster_table_find (struct cluster_place place,
                    const struct compressed_cluster *c);

/* A new entry for C, LOADING and with one pin; there must be none yet.
 * NULL if there is no memory.
 */
extern struct cluster_entry *
cluster_table_add (struct cluster_place place,
                   const struct compressed_cluster *c);

/* Take E, which is not KEPT, out of the table.  The struct stays the
 * caller's until it is recycled.
 */
extern void cluster_table_remove (struct cluster_place place,
                                  struct cluster_entry *e);
extern void cluster_table_recycle (struct cluster_shard *shard,
                                   struct cluster_entry *e);

/* Make E, which is in the table and has its data, KEPT: from now on it
 * may be evicted when it has no pins.
 */
extern void cluster_table_keep (struct cluster_shard *shard,
                                struct cluster_entry *e);

/* Let the clock of SHARD go round, once at most, and evict the first
 * entry that is neither pinned nor was referenced since the last time.
 * Returns its data, which the caller owns, and its size in *BYTES; NULL
 * if there is none.
 */
extern void *cluster_table_evict (struct cluster_table *table,
                                  struct cluster_shard *shard, size_t *bytes);

/* Take an entry of LAYER out that is KEPT, without pins, and whose
 * compressed data lies in [FIRST, END), or a part of it.  Returns its data
 * as cluster_table_evict does; NULL if there is none.
 */
extern void *cluster_table_take (struct cluster_table *table,
                                 struct cluster_shard *shard, unsigned layer,
                                 uint64_t first, uint64_t end,
                                 size_t *bytes);

#endif /* QCOW2_CLUSTER_TABLE_H */
