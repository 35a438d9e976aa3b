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
 * Locks.  The table is cut into shards by hash, each with a mutex, a
 * condition variable for its waiters, and its share of the entries.  A
 * thread holds one shard's mutex at a time, and only to look things up
 * and to link them: never while it reads, decompresses, copies or
 * allocates a buffer.  A hit takes one mutex, once: it pins the entry
 * there and unpins it afterwards by an atomic decrement.  That is sound
 * as an entry without pins can get one only under the mutex that the
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
 * memory strictly.  Who needs room evicts: clock, with a hand in each
 * shard, going round the shards.  A victim of the right size gives its
 * buffer away as it is (a buffer of 2 MiB from malloc is fresh pages to
 * be faulted in each time).  What a thread has evicted is its own until
 * it has enough, so that requests don't starve each other.  The structs
 * of former entries are kept for the next ones.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cluster-cache.h"
#include "codec-pool.h"

#define NR_SHARDS 16            /* a power of 2 */
#define MIN_BUCKETS 16          /* per shard, powers of 2 */
#define MAX_BUCKETS 65536

/* Rounds of the clock without a victim before we do without: one clears
 * the marks, and in the next all may have been set again.
 */
#define MAX_ROUNDS 3

enum entry_state {
  ENTRY_LOADING,
  ENTRY_KEPT,
  ENTRY_LENT,
  ENTRY_FAILED,
};

/* Members are under the shard's mutex, unless said. */
struct entry {
  struct entry *next;           /* in its bucket or in the shard's unused */
  struct entry *clock_prev, *clock_next; /* if KEPT */

  /* Which cluster; these don't change while the entry is in the table.
   * Two entries of a damaged L2 table may give one offset and different
   * lengths: these are then different clusters.
   */
  const struct codec *codec;
  unsigned layer;
  uint64_t host_offset;
  size_t compressed_bytes;
  size_t cluster_bytes;

  enum entry_state state;
  int error;                    /* if FAILED */
  bool referenced;              /* since the hand passed */
  const unsigned char *data;    /* from KEPT or LENT on; then constant */
  atomic_uint pins;             /* raised under the mutex only */
};

struct shard {
  pthread_mutex_t lock;
  pthread_cond_t changed;       /* a load ended, or a joiner left */
  struct entry **buckets;
  struct entry *hand;           /* the circle of those KEPT, or NULL */
  size_t nr_kept;
  struct entry *unused;
  uint64_t nr_decompressed;
} __attribute__ ((__aligned__ (64)));

struct cluster_cache {
  struct shard shards[NR_SHARDS];
  size_t nr_buckets;            /* per shard */
  size_t budget_bytes;
  struct codec_pool *pool;
  atomic_size_t used_bytes;
  atomic_uint next_shard;       /* where to look for a victim */
};

/*----- Making and freeing -----*/

/* About one bucket for 4 KiB.  Smaller clusters make longer chains. */
static size_t
choose_nr_buckets (size_t budget_bytes)
{
  size_t n = MIN_BUCKETS;

  while (n < MAX_BUCKETS && n < budget_bytes / 4096 / NR_SHARDS)
    n *= 2;
  return n;
}

struct cluster_cache *
cluster_cache_new (size_t budget_bytes)
{
  struct cluster_cache *cache;
  size_t i;

  cache = aligned_alloc (_Alignof (struct cluster_cache), sizeof *cache);
  if (!cache)
    return NULL;
  memset (cache, 0, sizeof *cache);
  cache->budget_bytes = budget_bytes;
  cache->nr_buckets = choose_nr_buckets (budget_bytes);
  for (i = 0; i < NR_SHARDS; i++) {
    pthread_mutex_init (&cache->shards[i].lock, NULL);
    pthread_cond_init (&cache->shards[i].changed, NULL);
  }

  cache->pool = codec_pool_new ();
  if (!cache->pool)
    goto no_memory;
  for (i = 0; i < NR_SHARDS; i++) {
    cache->shards[i].buckets = calloc (cache->nr_buckets,
                                       sizeof cache->shards[i].buckets[0]);
    if (!cache->shards[i].buckets)
      goto no_memory;
  }
  return cache;

 no_memory:
  cluster_cache_free (cache);
  errno = ENOMEM;
  return NULL;
}

static void
shard_free (struct shard *shard)
{
  struct entry *e;

  while (shard->nr_kept > 0) {
    e = shard->hand;
    shard->hand = e->clock_next;
    shard->nr_kept--;
    free ((void *) e->data);
    free (e);
  }
  while ((e = shard->unused) != NULL) {
    shard->unused = e->next;
    free (e);
  }
  free (shard->buckets);
  pthread_cond_destroy (&shard->changed);
  pthread_mutex_destroy (&shard->lock);
}

void
cluster_cache_free (struct cluster_cache *cache)
{
  size_t i;

  if (!cache)
    return;
  for (i = 0; i < NR_SHARDS; i++)
    shard_free (&cache->shards[i]);
  codec_pool_free (cache->pool);
  free (cache);
}

/*----- The table: all with the shard's mutex held -----*/

static uint64_t
hash_cluster (unsigned layer, uint64_t host_offset)
{
  uint64_t h = host_offset ^ (uint64_t) layer << 56;

  h *= UINT64_C (0x9e3779b97f4a7c15);
  h ^= h >> 32;
  h *= UINT64_C (0xd6e8feb86659fd93);
  return h ^ h >> 32;
}

static struct entry **
bucket_of (struct cluster_cache *cache, struct shard *shard, uint64_t hash)
{
  return &shard->buckets[hash / NR_SHARDS & (cache->nr_buckets - 1)];
}

static struct entry *
find_entry (struct entry *e, const struct compressed_cluster *c)
{
  for (; e; e = e->next)
    if (e->host_offset == c->host_offset && e->layer == c->layer &&
        e->cluster_bytes == c->cluster_bytes &&
        e->compressed_bytes == c->compressed_bytes && e->codec == c->codec)
      break;
  return e;
}

/* A new entry for C at the head of BUCKET, LOADING and pinned. */
static struct entry *
add_entry (struct shard *shard, struct entry **bucket,
           const struct compressed_cluster *c)
{
  struct entry *e = shard->unused;

  if (e)
    shard->unused = e->next;
  else if (!(e = malloc (sizeof *e)))
    return NULL;

  *e = (struct entry) {
    .next = *bucket,
    .codec = c->codec,
    .layer = c->layer,
    .host_offset = c->host_offset,
    .compressed_bytes = c->compressed_bytes,
    .cluster_bytes = c->cluster_bytes,
    .state = ENTRY_LOADING,
    .pins = 1,
  };
  *bucket = e;
  return e;
}

static void
remove_entry (struct entry **bucket, struct entry *e)
{
  while (*bucket != e)
    bucket = &(*bucket)->next;
  *bucket = e->next;
}

/* Recycle the struct of an entry that is nowhere any more. */
static void
drop_entry (struct shard *shard, struct entry *e)
{
  e->next = shard->unused;
  shard->unused = e;
}

/* Behind the hand, which thus comes to it last. */
static void
clock_insert (struct shard *shard, struct entry *e)
{
  struct entry *hand = shard->hand;

  if (hand) {
    e->clock_next = hand;
    e->clock_prev = hand->clock_prev;
    e->clock_prev->clock_next = e;
    hand->clock_prev = e;
  }
  else
    shard->hand = e->clock_prev = e->clock_next = e;
  shard->nr_kept++;
}

static void
clock_remove (struct shard *shard, struct entry *e)
{
  if (shard->hand == e)
    shard->hand = e->clock_next == e ? NULL : e->clock_next;
  e->clock_prev->clock_next = e->clock_next;
  e->clock_next->clock_prev = e->clock_prev;
  shard->nr_kept--;
}

/* At most once round the clock, to an entry that is neither pinned nor
 * referenced since the hand last came by.  NULL if there is none.
 */
static struct entry *
clock_advance (struct shard *shard)
{
  struct entry *e;
  size_t n;

  for (n = shard->nr_kept; n > 0; n--) {
    e = shard->hand;
    shard->hand = e->clock_next;
    /* Pairs with unpin: the reader is done with the buffer. */
    if (atomic_load_explicit (&e->pins, memory_order_acquire) > 0)
      continue;
    if (!e->referenced)
      return e;
    e->referenced = false;
  }
  return NULL;
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
  struct shard *shard = &cache->shards[i % NR_SHARDS];
  void *data = NULL;
  struct entry *e;

  pthread_mutex_lock (&shard->lock);
  e = clock_advance (shard);
  if (e) {
    clock_remove (shard, e);
    remove_entry (bucket_of (cache, shard,
                             hash_cluster (e->layer, e->host_offset)), e);
    data = (void *) e->data;
    *bytes = e->cluster_bytes;
    drop_entry (shard, e);
  }
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
    else if (++in_vain == MAX_ROUNDS * NR_SHARDS) {
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

/* A cluster and its place in the table; what a leader works with. */
struct load {
  struct cluster_cache *cache;
  struct shard *shard;
  struct entry **bucket;
  struct entry *entry;
  const struct compressed_cluster *c;
};

/* The load ended well, in a buffer of the cache. */
static void
keep_entry (struct load *load, const void *data)
{
  struct shard *shard = load->shard;
  struct entry *e = load->entry;

  pthread_mutex_lock (&shard->lock);
  shard->nr_decompressed++;
  e->data = data;
  e->state = ENTRY_KEPT;
  clock_insert (shard, e);
  if (atomic_load (&e->pins) > 1)
    pthread_cond_broadcast (&shard->changed);
  pthread_mutex_unlock (&shard->lock);
}

static void
unpin_kept (struct entry *e)
{
  atomic_fetch_sub_explicit (&e->pins, 1, memory_order_release);
}

/* The load ended, well or with ERROR, and DATA will not stay.  Returns
 * when no joiner needs it any more.
 */
static void
lend_entry (struct load *load, const void *data, int error)
{
  struct shard *shard = load->shard;
  struct entry *e = load->entry;

  pthread_mutex_lock (&shard->lock);
  remove_entry (load->bucket, e);
  e->data = data;
  e->error = error;
  e->state = error ? ENTRY_FAILED : ENTRY_LENT;
  if (!error)
    shard->nr_decompressed++;
  if (atomic_load (&e->pins) > 1) {
    pthread_cond_broadcast (&shard->changed);
    while (atomic_load (&e->pins) > 1)
      pthread_cond_wait (&shard->changed, &shard->lock);
  }
  drop_entry (shard, e);
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
read_entry (struct shard *shard, struct entry *e,
            size_t from, void *buf, size_t count)
{
  enum entry_state state;
  int error;

  while (e->state == ENTRY_LOADING)
    pthread_cond_wait (&shard->changed, &shard->lock);
  state = e->state;
  error = e->error;

  if (state != ENTRY_FAILED) {
    pthread_mutex_unlock (&shard->lock);
    memcpy (buf, e->data + from, count);
    if (state == ENTRY_KEPT) {
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

/* Where C belongs. */
static struct load
find_place (struct cluster_cache *cache, const struct compressed_cluster *c)
{
  uint64_t hash = hash_cluster (c->layer, c->host_offset);
  struct shard *shard = &cache->shards[hash % NR_SHARDS];

  return (struct load) {
    .cache = cache,
    .shard = shard,
    .bucket = bucket_of (cache, shard, hash),
    .c = c,
  };
}

int
cluster_cache_read (struct cluster_cache *cache,
                    const struct compressed_cluster *c,
                    size_t from, void *buf, size_t count)
{
  struct load load = find_place (cache, c);
  struct shard *shard = load.shard;
  struct entry *e;
  void *kept = NULL;

  pthread_mutex_lock (&shard->lock);
  e = find_entry (*load.bucket, c);
  if (e) {
    e->referenced = true;
    atomic_fetch_add_explicit (&e->pins, 1, memory_order_relaxed);
    return read_entry (shard, e, from, buf, count);
  }
  load.entry = add_entry (shard, load.bucket, c);
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
  struct load load = find_place (cache, c);
  struct shard *shard = load.shard;
  void *kept;
  bool known;

  pthread_mutex_lock (&shard->lock);
  known = find_entry (*load.bucket, c) != NULL;
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
  if (!find_entry (*load.bucket, c))
    load.entry = add_entry (shard, load.bucket, c);
  pthread_mutex_unlock (&shard->lock);
  if (!load.entry) {
    put_buffer (cache, kept, c->cluster_bytes);
    return 0;
  }
  return lead (&load, kept, 0, NULL, 0);
}

void
cluster_cache_get_stats (struct cluster_cache *cache,
                         struct cluster_cache_stats *stats)
{
  struct shard *shard;
  size_t i;

  stats->nr_decompressed = 0;
  for (i = 0; i < NR_SHARDS; i++) {
    shard = &cache->shards[i];
    pthread_mutex_lock (&shard->lock);
    stats->nr_decompressed += shard->nr_decompressed;
    pthread_mutex_unlock (&shard->lock);
  }
  stats->memory_bytes = atomic_load (&cache->used_bytes);
}
