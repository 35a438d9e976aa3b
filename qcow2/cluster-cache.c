/* SPDX-License-Identifier: BSD-3-Clause */

/* The cache of decompressed clusters.
 *
 * An entry is one cluster.  It is born LOADING: whoever asks for a
 * cluster that has no entry puts one in the hash table and becomes its
 * leader; who asks meanwhile joins, that is, pins the entry and waits.
 * Where the leader decompresses to decides what becomes of the entry:
 *
 *   KEPT    to a buffer of the cache, counted in the budget.  The entry
 *           stays, for everybody, until it is evicted.
 *   LENT    to the leader's own memory: the caller's buffer where the
 *           whole cluster is wanted (so a copy of the disk neither pays
 *           for a second copy nor pushes others out), or a worker's
 *           spare one where the budget has no room.  The entry leaves
 *           the table, so nobody joins any more, and the leader returns
 *           only when the last joiner has copied.
 *   FAILED  the same, but joiners take the error only.  Who comes later
 *           tries again.
 *
 * Locks.  The table (cluster-table.h) is cut into shards by hash, each
 * with a mutex, a condition variable for waiters, and a clock.  A thread
 * holds one shard's mutex at a time, and only to look things up and to
 * link them: never while it reads, decompresses, copies or allocates a
 * buffer.  A hit takes one mutex, once: it pins the entry there and
 * unpins it afterwards by an atomic decrement.  That is sound because
 * an entry without pins can get one only under the mutex that the
 * evicting thread holds.  Pins of LENT and FAILED entries are dropped
 * under the mutex, since a leader waits for them.
 *
 * Nobody can wait in a circle: joiners wait for a leader, who waits for
 * nothing but the storage until it has woken them; it then waits for
 * joiners that have nothing left to do but copy.
 *
 * Budget.  used_bytes covers all buffers of the cache, those being
 * loaded into included.  It is raised by compare-and-swap before a
 * buffer is allocated and lowered after one was freed, so it bounds the
 * memory strictly.  Who needs room evicts, going round the shards.  A
 * victim of the right size gives its buffer away as it is (2 MiB from
 * malloc are fresh pages to be faulted in each time).  What a thread has
 * evicted is its own until it has enough, so that requests don't starve
 * each other.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cluster-cache.h"
#include "cluster-table.h"
#include "codec-pool.h"

/* Rounds of the clock without a victim before we do without: one clears
 * the marks, and in the next all may have been set again.
 */
#define MAX_ROUNDS 3

struct cluster_cache {
  struct cluster_table table;
  size_t budget_bytes;
  struct codec_pool *pool;
  atomic_size_t used_bytes;
  atomic_uint next_shard;       /* where to look for a victim */
};

struct cluster_cache *
cluster_cache_new (size_t budget_bytes)
{
  struct cluster_cache *cache;

  cache = aligned_alloc (_Alignof (struct cluster_cache), sizeof *cache);
  if (!cache)
    return NULL;
  memset (cache, 0, sizeof *cache);
  cache->budget_bytes = budget_bytes;
  cache->pool = codec_pool_new ();
  if (cluster_table_init (&cache->table, budget_bytes) < 0 || !cache->pool) {
    cluster_cache_free (cache);
    errno = ENOMEM;
    return NULL;
  }
  return cache;
}

void
cluster_cache_free (struct cluster_cache *cache)
{
  if (!cache)
    return;
  cluster_table_free (&cache->table);
  codec_pool_free (cache->pool);
  free (cache);
}

/*----- The budget: no mutex held -----*/

static bool
reserve_bytes (struct cluster_cache *cache, size_t bytes)
{
  size_t used = atomic_load (&cache->used_bytes);

  do {
    if (bytes > cache->budget_bytes - used)
      return false;
  } while (!atomic_compare_exchange_weak (&cache->used_bytes, &used,
                                          used + bytes));
  return true;
}

static void
release_bytes (struct cluster_cache *cache, size_t bytes)
{
  atomic_fetch_sub (&cache->used_bytes, bytes);
}

/* Evict a cluster of the next shard, if the clock finds one there.  The
 * caller owns the buffer and the *BYTES it has in the budget.
 */
static void *
evict_one (struct cluster_cache *cache, size_t *bytes)
{
  unsigned i = atomic_fetch_add (&cache->next_shard, 1);
  struct cluster_shard *shard =
    &cache->table.shards[i % CLUSTER_TABLE_SHARDS];
  void *data;

  pthread_mutex_lock (&shard->lock);
  data = cluster_table_evict (&cache->table, shard, bytes);
  pthread_mutex_unlock (&shard->lock);
  return data;
}

/* A buffer of BYTES within the budget, evicting others for it.  NULL if
 * the budget has no room for it, or there is no memory.
 */
static void *
get_buffer (struct cluster_cache *cache, size_t bytes)
{
  size_t held = 0, victim_bytes;
  unsigned in_vain = 0;
  void *data = NULL, *victim;

  if (bytes > cache->budget_bytes)
    return NULL;

  while (held < bytes && !reserve_bytes (cache, bytes - held)) {
    victim = evict_one (cache, &victim_bytes);
    if (victim) {
      in_vain = 0;
      held += victim_bytes;
      if (victim_bytes == bytes)
        data = victim;
      else
        free (victim);
    }
    else if (++in_vain == MAX_ROUNDS * CLUSTER_TABLE_SHARDS) {
      release_bytes (cache, held);
      return NULL;
    }
  }
  if (held > bytes)
    release_bytes (cache, held - bytes);

  if (!data)
    data = malloc (bytes);
  if (!data)
    release_bytes (cache, bytes);
  return data;
}

static void
put_buffer (struct cluster_cache *cache, void *data, size_t bytes)
{
  free (data);
  release_bytes (cache, bytes);
}

/*----- Loading -----*/

static int
decompress (struct codec_worker *worker, const struct compressed_cluster *c,
            void *out)
{
  void *decoder, *in;
  size_t in_bytes = c->compressed_bytes;
  int r;

  /* Lengths vary from cluster to cluster: have room for most of them. */
  if (in_bytes < c->cluster_bytes)
    in_bytes = c->cluster_bytes;
  decoder = codec_worker_decoder (worker, c->codec);
  in = codec_worker_input (worker, in_bytes);
  if (!decoder || !in)
    return -ENOMEM;

  r = qcow2_storage_read_data (c->file, in, c->compressed_bytes,
                               c->host_offset);
  if (r < 0)
    return r;
  return c->codec->decompress (decoder, in, c->compressed_bytes,
                               out, c->cluster_bytes);
}

/* What a leader works with. */
struct load {
  struct cluster_cache *cache;
  struct cluster_place place;
  struct cluster_entry *entry;
  const struct compressed_cluster *c;
};

/* The load ended well, in a buffer of the cache. */
static void
keep_entry (struct load *load, const void *data)
{
  struct cluster_shard *shard = load->place.shard;
  struct cluster_entry *e = load->entry;

  pthread_mutex_lock (&shard->lock);
  shard->nr_decompressed++;
  e->data = data;
  cluster_table_keep (shard, e);
  if (atomic_load (&e->pins) > 1)
    pthread_cond_broadcast (&shard->changed);
  pthread_mutex_unlock (&shard->lock);
}

static void
unpin_kept (struct cluster_entry *e)
{
  atomic_fetch_sub_explicit (&e->pins, 1, memory_order_release);
}

/* The load ended, well or with ERROR, and DATA will not stay.  Returns
 * when no joiner needs it any more.
 */
static void
lend_entry (struct load *load, const void *data, int error)
{
  struct cluster_shard *shard = load->place.shard;
  struct cluster_entry *e = load->entry;

  pthread_mutex_lock (&shard->lock);
  cluster_table_remove (load->place, e);
  e->data = data;
  e->error = error;
  e->state = error ? CLUSTER_FAILED : CLUSTER_LENT;
  if (!error)
    shard->nr_decompressed++;
  if (atomic_load (&e->pins) > 1) {
    pthread_cond_broadcast (&shard->changed);
    while (atomic_load (&e->pins) > 1)
      pthread_cond_wait (&shard->changed, &shard->lock);
  }
  cluster_table_recycle (shard, e);
  pthread_mutex_unlock (&shard->lock);
}

/* Load the cluster and copy COUNT bytes from byte FROM of it to BUF.  KEPT
 * is a buffer of the cache for it, or NULL: then the data goes to BUF
 * where all of it is wanted, else to the worker's spare buffer.
 */
static int
lead (struct load *load, void *kept, size_t from, void *buf, size_t count)
{
  struct cluster_cache *cache = load->cache;
  size_t cluster_bytes = load->c->cluster_bytes;
  struct codec_worker *worker = codec_pool_get (cache->pool);
  unsigned char *data = kept;
  int r = -ENOMEM;

  if (worker && !data)
    data = count == cluster_bytes ? buf :
      codec_worker_output (worker, cluster_bytes);
  if (worker && data)
    r = decompress (worker, load->c, data);

  if (r == 0 && kept) {
    keep_entry (load, kept);
    if (count > 0)
      memcpy (buf, data + from, count);
    unpin_kept (load->entry);
  }
  else {
    if (r == 0 && data != buf)
      memcpy (buf, data + from, count);
    lend_entry (load, data, r);
    if (kept)
      put_buffer (cache, kept, cluster_bytes);
  }
  if (worker)
    codec_pool_put (cache->pool, worker);
  return r;
}

/* Called with the mutex held and E, which is in the table, pinned;
 * releases both.
 */
static int
read_entry (struct cluster_shard *shard, struct cluster_entry *e,
            size_t from, void *buf, size_t count)
{
  enum cluster_state state;
  int error;

  if (e->state == CLUSTER_LOADING)
    shard->nr_joined++;
  while (e->state == CLUSTER_LOADING)
    pthread_cond_wait (&shard->changed, &shard->lock);
  state = e->state;
  error = e->error;

  if (state != CLUSTER_FAILED) {
    pthread_mutex_unlock (&shard->lock);
    memcpy (buf, e->data + from, count);
    if (state == CLUSTER_KEPT) {
      unpin_kept (e);
      return 0;
    }
    pthread_mutex_lock (&shard->lock);
  }
  /* Two are the leader's pin and ours. */
  if (atomic_fetch_sub (&e->pins, 1) == 2)
    pthread_cond_broadcast (&shard->changed);
  pthread_mutex_unlock (&shard->lock);
  return error;
}

/*----- What others call -----*/

static struct load
start_load (struct cluster_cache *cache, const struct compressed_cluster *c)
{
  return (struct load) {
    .cache = cache,
    .place = cluster_table_find_place (&cache->table, c->layer,
                                       c->host_offset),
    .c = c,
  };
}

int
cluster_cache_read (struct cluster_cache *cache,
                    const struct compressed_cluster *c,
                    size_t from, void *buf, size_t count)
{
  struct load load = start_load (cache, c);
  struct cluster_shard *shard = load.place.shard;
  struct cluster_entry *e;
  void *kept = NULL;

  pthread_mutex_lock (&shard->lock);
  e = cluster_table_find (load.place, c);
  if (e) {
    e->referenced = true;
    atomic_fetch_add_explicit (&e->pins, 1, memory_order_relaxed);
    return read_entry (shard, e, from, buf, count);
  }
  load.entry = cluster_table_add (load.place, c);
  pthread_mutex_unlock (&shard->lock);
  if (!load.entry)
    return -ENOMEM;

  if (count < c->cluster_bytes)
    kept = get_buffer (cache, c->cluster_bytes);
  return lead (&load, kept, from, buf, count);
}

int
cluster_cache_prefetch (struct cluster_cache *cache,
                        const struct compressed_cluster *c)
{
  struct load load = start_load (cache, c);
  struct cluster_shard *shard = load.place.shard;
  void *kept;
  bool known;

  pthread_mutex_lock (&shard->lock);
  known = cluster_table_find (load.place, c) != NULL;
  pthread_mutex_unlock (&shard->lock);
  if (known)
    return 0;

  /* Before there is an entry: without a buffer there is nothing to load,
   * but whoever joins wants the data.
   */
  kept = get_buffer (cache, c->cluster_bytes);
  if (!kept)
    return 0;

  pthread_mutex_lock (&shard->lock);
  if (!cluster_table_find (load.place, c))
    load.entry = cluster_table_add (load.place, c);
  pthread_mutex_unlock (&shard->lock);
  if (!load.entry) {
    put_buffer (cache, kept, c->cluster_bytes);
    return 0;
  }
  return lead (&load, kept, 0, NULL, 0);
}

/* Who decompresses a cluster is reading it: so there is nothing in the
 * table but what is kept.
 */
void
cluster_cache_drop (struct cluster_cache *cache, unsigned layer,
                    uint64_t first, uint64_t end)
{
  size_t bytes;
  void *data;
  unsigned i;

  if (atomic_load (&cache->used_bytes) == 0)
    return;
  for (i = 0; i < CLUSTER_TABLE_SHARDS; ++i)
    do {
      struct cluster_shard *shard = &cache->table.shards[i];

      pthread_mutex_lock (&shard->lock);
      data = cluster_table_take (&cache->table, shard, layer, first, end,
                                 &bytes);
      pthread_mutex_unlock (&shard->lock);
      if (data)
        put_buffer (cache, data, bytes);
    } while (data);
}

void
cluster_cache_get_stats (struct cluster_cache *cache,
                         struct cluster_cache_stats *stats)
{
  struct cluster_shard *shard;
  size_t i;

  *stats = (struct cluster_cache_stats) { 0 };
  for (i = 0; i < CLUSTER_TABLE_SHARDS; i++) {
    shard = &cache->table.shards[i];
    pthread_mutex_lock (&shard->lock);
    stats->nr_decompressed += shard->nr_decompressed;
    stats->nr_joined += shard->nr_joined;
    pthread_mutex_unlock (&shard->lock);
  }
  stats->memory_bytes = atomic_load (&cache->used_bytes);
}
