/* SPDX-License-Identifier: BSD-3-Clause */

/* The cache of decompressed clusters: who decompresses, who waits, what
 * is kept, and what happens when reading fails.
 *
 * Storage and codecs are made up: at each 512th byte the storage has a
 * seed, from which the codec makes the content of a cluster.  Reading
 * can be told to fail, and decompressing to stop at a gate.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "cluster-cache.h"
#include "tap.h"

#define KiB ((size_t) 1024)
#define MiB (1024 * KiB)
#define NR_THREADS 16

/*----- Storage -----*/

struct fake_storage {
  struct qcow2_storage s;
  uint64_t salt;                /* mixed into all seeds */
  atomic_uint fail_every;       /* N-th read gives EIO; 0: none does */
  atomic_uint nr_reads;
};

/* No seed is 0: that is what a codec takes for damage. */
static uint64_t
seed_at (const struct fake_storage *f, uint64_t offset)
{
  return ((offset >> 9) + 1) * 2 + f->salt;
}

#define STORAGE_BYTES (64 * MiB)

static ssize_t
fake_pread (struct qcow2_storage *s, void *buf, size_t count,
            uint64_t offset)
{
  struct fake_storage *f = (struct fake_storage *) s;
  unsigned every = atomic_load (&f->fail_every);
  unsigned n = atomic_fetch_add (&f->nr_reads, 1) + 1;
  uint64_t seed = seed_at (f, offset);

  if (every && n % every == 0)
    return -EIO;
  if (offset >= STORAGE_BYTES)
    return 0;
  if (count > STORAGE_BYTES - offset)
    count = STORAGE_BYTES - offset;
  memset (buf, 0, count);
  memcpy (buf, &seed, count < 8 ? count : 8);
  return count;
}

static int64_t
fake_size (struct qcow2_storage *s __attribute__ ((__unused__)))
{
  return STORAGE_BYTES;
}

static const struct qcow2_storage_ops fake_ops = {
  .pread = fake_pread,
  .size = fake_size,
};

/*----- Codec -----*/

static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_changed = PTHREAD_COND_INITIALIZER;
static bool gate_closed;

static atomic_uint nr_decoders, nr_decoders_made;

static void *
fake_new_decoder (void)
{
  atomic_fetch_add (&nr_decoders, 1);
  atomic_fetch_add (&nr_decoders_made, 1);
  return malloc (1);
}

static void
fake_free_decoder (void *decoder)
{
  atomic_fetch_sub (&nr_decoders, 1);
  free (decoder);
}

#define word(seed, i) (((seed) << 32) + (i))

static int
fake_decompress (void *decoder, const void *in, size_t in_bytes,
                 void *out, size_t out_bytes)
{
  uint64_t seed, w;
  size_t i;

  *(char *) decoder = 1;        /* nobody else may be using it */
  pthread_mutex_lock (&gate_lock);
  while (gate_closed)
    pthread_cond_wait (&gate_changed, &gate_lock);
  pthread_mutex_unlock (&gate_lock);

  if (in_bytes < sizeof seed)
    return -EIO;
  memcpy (&seed, in, sizeof seed);
  if (seed == 0)
    return -EIO;
  for (i = 0; i < out_bytes / 8; i++) {
    w = word (seed, i);
    memcpy ((char *) out + i * 8, &w, 8);
  }
  return 0;
}

#define FAKE_CODEC { "fake", fake_new_decoder, fake_free_decoder, \
                     fake_decompress }
static const struct codec codecs[3] = { FAKE_CODEC, FAKE_CODEC, FAKE_CODEC };

static void
set_gate (bool closed)
{
  pthread_mutex_lock (&gate_lock);
  gate_closed = closed;
  pthread_cond_broadcast (&gate_changed);
  pthread_mutex_unlock (&gate_lock);
}

/*----- What the tests share -----*/

static struct fake_storage storage = { .s = { &fake_ops } };
static struct fake_storage other_storage = { .s = { &fake_ops }, .salt = 1 };

static struct compressed_cluster
cluster (uint64_t index, size_t cluster_bytes)
{
  return (struct compressed_cluster) {
    .file = &storage.s,
    .codec = &codecs[0],
    .layer = 0,
    .host_offset = index * 512,
    .compressed_bytes = 512,
    .cluster_bytes = cluster_bytes,
  };
}

static bool
is_right (const struct compressed_cluster *c, size_t from,
          const unsigned char *buf, size_t count)
{
  uint64_t seed = seed_at ((struct fake_storage *) c->file, c->host_offset);
  uint64_t w;
  size_t i;

  for (i = from; i < from + count; i++) {
    w = word (seed, i / 8);
    if (buf[i - from] != ((unsigned char *) &w)[i % 8])
      return false;
  }
  return true;
}

/* Read and compare.  Returns 0, the error, or 1 for wrong data. */
static int
read_part (struct cluster_cache *cache, const struct compressed_cluster *c,
           size_t from, size_t count)
{
  unsigned char *buf = malloc (count);
  int r = cluster_cache_read (cache, c, from, buf, count);

  if (r == 0 && !is_right (c, from, buf, count))
    r = 1;
  free (buf);
  return r;
}

#define reads_right(...) (read_part (__VA_ARGS__) == 0)

static struct cluster_cache_stats
stats_of (struct cluster_cache *cache)
{
  struct cluster_cache_stats stats;

  cluster_cache_get_stats (cache, &stats);
  return stats;
}

#define nr_decompressed(cache) (stats_of (cache).nr_decompressed)
#define memory_bytes(cache) (stats_of (cache).memory_bytes)

/*----- One thread -----*/

static void
test_hits (void)
{
  struct cluster_cache *cache = cluster_cache_new (1 * MiB);
  struct compressed_cluster c = cluster (5, 64 * KiB);

  ok (reads_right (cache, &c, 0, 4096), "first bytes of a cluster");
  ok (reads_right (cache, &c, 12345, 7), "a few bytes within");
  ok (reads_right (cache, &c, 64 * KiB - 1, 1), "the last byte");
  ok (reads_right (cache, &c, 0, 64 * KiB), "all of it");
  is_int (nr_decompressed (cache), 1, "one cluster is decompressed once");
  is_int (memory_bytes (cache), 64 * KiB, "and kept");
  cluster_cache_free (cache);
}

static void
test_identity (void)
{
  struct cluster_cache *cache = cluster_cache_new (1 * MiB);
  struct compressed_cluster a = cluster (5, 4096), b = a, c = a;

  b.layer = 1;
  b.file = &other_storage.s;
  c.compressed_bytes = 4;       /* too short for this codec */
  ok (reads_right (cache, &a, 8, 100), "a cluster");
  ok (reads_right (cache, &b, 8, 100), "at the same offset of another layer");
  is_int (read_part (cache, &c, 8, 100), -EIO,
          "a length that is too short fails though the offset is cached");
  ok (reads_right (cache, &a, 8, 100), "which changes nothing for the other");
  cluster_cache_free (cache);
}

static void
test_whole_clusters_pass_by (void)
{
  struct cluster_cache *cache = cluster_cache_new (4 * 64 * KiB);
  struct compressed_cluster c;
  bool right = true;
  unsigned i;

  for (i = 0; i < 4; i++) {
    c = cluster (i, 64 * KiB);
    right &= reads_right (cache, &c, 0, 512);
  }
  for (i = 100; i < 200; i++) {
    c = cluster (i, 64 * KiB);
    right &= reads_right (cache, &c, 0, 64 * KiB);
  }
  is_int (nr_decompressed (cache), 104, "4 partial, 100 whole reads");
  for (i = 0; i < 4; i++) {
    c = cluster (i, 64 * KiB);
    right &= reads_right (cache, &c, 1000, 512);
  }
  is_int (nr_decompressed (cache), 104,
          "reads of whole clusters push none out");
  is_int (memory_bytes (cache), 4 * 64 * KiB, "nor are they kept");
  ok (right, "all was read right");
  cluster_cache_free (cache);
}

static void
test_hot_cluster_stays (void)
{
  struct cluster_cache *cache = cluster_cache_new (8 * 4096);
  struct compressed_cluster hot = cluster (0, 4096), cold;
  bool right = true;
  unsigned i;

  for (i = 1; i <= 1000; i++) {
    cold = cluster (i, 4096);
    right &= reads_right (cache, &hot, 0, 8);
    right &= reads_right (cache, &cold, 0, 8);
  }
  ok (right, "a scan with one cluster asked for again and again");
  is_int (nr_decompressed (cache), 1001, "that one is never evicted");
  is_int (memory_bytes (cache), 8 * 4096, "the budget is used up");
  cluster_cache_free (cache);
}

static void
test_no_room (void)
{
  struct cluster_cache *none = cluster_cache_new (0);
  struct cluster_cache *small = cluster_cache_new (64 * KiB - 1);
  struct compressed_cluster c = cluster (3, 64 * KiB);

  ok (reads_right (none, &c, 10, 1000), "a budget of 0 reads");
  ok (reads_right (none, &c, 10, 1000), "and reads again");
  is_int (nr_decompressed (none), 2, "but keeps nothing");
  ok (reads_right (small, &c, 10, 1000),
      "a cluster one byte larger than the budget");
  is_int (memory_bytes (small), 0, "is not kept");
  is_int (cluster_cache_prefetch (small, &c), 0, "prefetching it is no error");
  is_int (nr_decompressed (small), 1, "and no work");
  cluster_cache_free (none);
  cluster_cache_free (small);
}

static void
test_prefetch (void)
{
  struct cluster_cache *cache = cluster_cache_new (1 * MiB);
  struct compressed_cluster c = cluster (3, 64 * KiB);

  is_int (cluster_cache_prefetch (cache, &c), 0, "prefetch");
  is_int (cluster_cache_prefetch (cache, &c), 0, "prefetch again");
  ok (reads_right (cache, &c, 10, 1000), "read");
  is_int (nr_decompressed (cache), 1, "decompressed once in all");

  c = cluster (STORAGE_BYTES / 512, 64 * KiB);
  is_int (cluster_cache_prefetch (cache, &c), -EIO, "prefetch of damage");
  is_int (memory_bytes (cache), 64 * KiB, "keeps nothing");
  cluster_cache_free (cache);
}

static void
test_errors (void)
{
  struct cluster_cache *cache = cluster_cache_new (1 * MiB);
  struct compressed_cluster c = cluster (3, 64 * KiB);
  struct compressed_cluster past_end = cluster (STORAGE_BYTES / 512, 4096);

  atomic_store (&storage.fail_every, 1);
  is_int (read_part (cache, &c, 0, 512), -EIO, "failing storage, a part");
  is_int (read_part (cache, &c, 0, 64 * KiB), -EIO, "a whole cluster");
  is_int (cluster_cache_prefetch (cache, &c), -EIO, "prefetch");
  atomic_store (&storage.fail_every, 0);
  is_int (memory_bytes (cache), 0, "nothing is kept");
  is_int (nr_decompressed (cache), 0, "nothing was decompressed");

  is_int (read_part (cache, &past_end, 0, 512), -EIO, "damaged, a part");
  is_int (read_part (cache, &past_end, 0, 4096), -EIO, "a whole cluster");
  is_int (memory_bytes (cache), 0, "nothing is kept");
  ok (reads_right (cache, &c, 0, 512), "the storage works again: a part");
  ok (reads_right (cache, &c, 0, 64 * KiB), "and a whole cluster");
  cluster_cache_free (cache);
}

static void
test_mixed_sizes (void)
{
  static const size_t sizes[] = { 512, 4096, 64 * KiB, 2 * MiB };
  struct cluster_cache *cache = cluster_cache_new (2 * MiB);
  struct compressed_cluster c;
  bool right = true, bounded = true;
  unsigned i;

  for (i = 0; i < 400; i++) {
    c = cluster (i, sizes[i * 7 % 31 % 4]);
    c.layer = i % 4;
    right &= reads_right (cache, &c, 100, 300);
    bounded &= memory_bytes (cache) <= 2 * MiB;
  }
  ok (right, "clusters of all sizes in one cache");
  ok (bounded, "never take more than the budget");
  is_int (nr_decompressed (cache), 400, "each was decompressed once");

  c = cluster (1000, 2 * MiB);
  ok (reads_right (cache, &c, 0, 8), "one that takes all of it");
  c = cluster (1001, 512);
  ok (reads_right (cache, &c, 0, 8), "a small one takes its place");
  is_int (memory_bytes (cache), 512, "the rest of the place is free again");
  cluster_cache_free (cache);
}

static void
test_many_codecs (void)
{
  struct cluster_cache *cache = cluster_cache_new (0);
  struct compressed_cluster c = cluster (1, 4096);
  unsigned i, before = atomic_load (&nr_decoders_made);
  bool right = true;

  for (i = 0; i < 100; i++) {
    c.codec = &codecs[i % 2];
    right &= reads_right (cache, &c, 0, 512);
  }
  is_int (atomic_load (&nr_decoders_made) - before, 2,
          "two codecs in turn: a decoder each");
  for (i = 0; i < 12; i++) {
    c.codec = &codecs[i % 3];
    right &= reads_right (cache, &c, 0, 512);
  }
  ok (right, "three codecs in turn");
  cluster_cache_free (cache);
}

/*----- Many threads -----*/

struct reader {
  pthread_t thread;
  struct cluster_cache *cache;
  struct compressed_cluster c;
  size_t from, count;
  int r;
};

static void *
read_once (void *arg)
{
  struct reader *reader = arg;

  reader->r = read_part (reader->cache, &reader->c, reader->from,
                         reader->count);
  return NULL;
}

/* All threads read one cluster while the first of them is decompressing
 * it: the gate is opened when all others have joined.  The first reads
 * all of it if WHOLE, the others all or a part of it.
 */
static void
storm (struct reader *readers, struct cluster_cache *cache,
       const struct compressed_cluster *c, bool whole)
{
  uint64_t joined = stats_of (cache).nr_joined;
  unsigned i;

  set_gate (true);
  for (i = 0; i < NR_THREADS; i++) {
    readers[i] = (struct reader) { .cache = cache, .c = *c };
    readers[i].from = i * 999;
    readers[i].count = 4096;
    if (i == 0 ? whole : i % 3 == 0) {
      readers[i].from = 0;
      readers[i].count = c->cluster_bytes;
    }
    pthread_create (&readers[i].thread, NULL, read_once, &readers[i]);
    while (i == 0 && atomic_load (&storage.nr_reads) == 0)
      usleep (100);
  }
  while (stats_of (cache).nr_joined < joined + NR_THREADS - 1)
    usleep (1000);
  set_gate (false);
  for (i = 0; i < NR_THREADS; i++)
    pthread_join (readers[i].thread, NULL);
}

static void
test_storm (size_t budget_bytes, bool whole, size_t kept_bytes,
            const char *what)
{
  struct cluster_cache *cache = cluster_cache_new (budget_bytes);
  struct compressed_cluster c = cluster (9, 64 * KiB);
  struct compressed_cluster bad = cluster (STORAGE_BYTES / 512, 64 * KiB);
  struct reader readers[NR_THREADS];
  unsigned i, right = 0, failed = 0;

  atomic_store (&storage.nr_reads, 0);
  storm (readers, cache, &c, whole);
  for (i = 0; i < NR_THREADS; i++)
    right += readers[i].r == 0;
  is_int (right, NR_THREADS, "%s: all readers get the data", what);
  is_int (nr_decompressed (cache), 1, "%s: decompressed once", what);
  is_int (memory_bytes (cache), kept_bytes, "%s: what is kept", what);

  atomic_store (&storage.nr_reads, 0);
  storm (readers, cache, &bad, whole);
  for (i = 0; i < NR_THREADS; i++)
    failed += readers[i].r == -EIO;
  is_int (failed, NR_THREADS, "%s: all readers get the error", what);
  is_int (memory_bytes (cache), kept_bytes, "%s: damage is not kept", what);
  ok (reads_right (cache, &c, 1, 2), "%s: reads go on", what);
  cluster_cache_free (cache);
}

/* A pinned or loading cluster can't be evicted for another. */
static void
test_room_taken_by_load (void)
{
  struct cluster_cache *cache = cluster_cache_new (64 * KiB);
  struct reader readers[2];
  unsigned i;

  atomic_store (&storage.nr_reads, 0);
  set_gate (true);
  for (i = 0; i < 2; i++) {
    readers[i] = (struct reader) {
      .cache = cache, .c = cluster (i, 64 * KiB), .count = 100 };
    pthread_create (&readers[i].thread, NULL, read_once, &readers[i]);
  }
  while (atomic_load (&storage.nr_reads) < 2)
    usleep (100);
  is_int (memory_bytes (cache), 64 * KiB,
          "two loads, room for one: the budget holds");
  set_gate (false);
  pthread_join (readers[0].thread, NULL);
  pthread_join (readers[1].thread, NULL);
  ok (readers[0].r == 0 && readers[1].r == 0, "both get their data");
  is_int (memory_bytes (cache), 64 * KiB, "one is kept");
  cluster_cache_free (cache);
}

/*----- Eviction under load -----*/

#define STORM_READS 600         /* for each thread */
struct worker {
  pthread_t thread;
  struct cluster_cache *cache;
  size_t budget_bytes;
  unsigned number;
  unsigned nr_right, nr_failed, nr_above_budget;
};

static void
random_read (struct worker *w, unsigned short *seed)
{
  static const size_t sizes[] = { 4096, 64 * KiB, 16 * KiB, 4096 };
  unsigned index = nrand48 (seed) % 24;
  unsigned char buf[64 * KiB];
  struct compressed_cluster c = cluster (index, sizes[index % 4]);
  size_t from = 0, count = c.cluster_bytes;
  int r;

  c.layer = index % 4;
  c.codec = &codecs[index % 2];
  if (nrand48 (seed) % 4) {
    from = nrand48 (seed) % c.cluster_bytes;
    count = 1 + nrand48 (seed) % (c.cluster_bytes - from);
  }
  if (nrand48 (seed) % 16 == 0)
    cluster_cache_prefetch (w->cache, &c);
  r = cluster_cache_read (w->cache, &c, from, buf, count);
  if (r == -EIO)
    w->nr_failed++;
  else if (r == 0 && is_right (&c, from, buf, count))
    w->nr_right++;
  if (memory_bytes (w->cache) > w->budget_bytes)
    w->nr_above_budget++;
}

static void *
read_at_random (void *arg)
{
  struct worker *w = arg;
  unsigned short seed[3] = { w->number, 5, 6 };
  unsigned i;

  for (i = 0; i < STORM_READS; i++)
    random_read (w, seed);
  return NULL;
}

static void
test_eviction_storm (size_t budget_bytes, unsigned fail_every,
                     const char *what)
{
  struct cluster_cache *cache = cluster_cache_new (budget_bytes);
  struct worker workers[NR_THREADS];
  unsigned i, right = 0, failed = 0, above = 0;
  unsigned made = atomic_load (&nr_decoders_made);

  atomic_store (&storage.fail_every, fail_every);
  for (i = 0; i < NR_THREADS; i++) {
    workers[i] = (struct worker) {
      .cache = cache, .budget_bytes = budget_bytes, .number = i,
    };
    pthread_create (&workers[i].thread, NULL, read_at_random, &workers[i]);
  }
  for (i = 0; i < NR_THREADS; i++) {
    pthread_join (workers[i].thread, NULL);
    right += workers[i].nr_right;
    failed += workers[i].nr_failed;
    above += workers[i].nr_above_budget;
  }
  atomic_store (&storage.fail_every, 0);

  is_int (right + failed, NR_THREADS * STORM_READS,
          "%s: each read gives right data or EIO", what);
  ok (fail_every ? failed > 0 : failed == 0,
      "%s: EIO comes from the storage alone", what);
  is_int (above, 0, "%s: the budget always holds", what);
  ok (atomic_load (&nr_decoders_made) - made <= 2 * NR_THREADS,
      "%s: no more decoders than threads, for each codec", what);
  cluster_cache_free (cache);
}

int
main (void)
{
  test_hits ();
  test_identity ();
  test_whole_clusters_pass_by ();
  test_hot_cluster_stays ();
  test_no_room ();
  test_prefetch ();
  test_errors ();
  test_mixed_sizes ();
  test_many_codecs ();
  test_storm (1 * MiB, false, 64 * KiB, "storm of parts");
  test_storm (1 * MiB, true, 0, "storm on a whole read");
  test_storm (0, false, 0, "storm without room");
  test_room_taken_by_load ();
  test_eviction_storm (4 * 64 * KiB, 0, "eviction storm");
  test_eviction_storm (4 * 64 * KiB, 7, "eviction storm, failing reads");
  test_eviction_storm (8 * KiB, 5, "hardly any room, failing reads");
  test_eviction_storm (0, 0, "no room at all");
  is_int (atomic_load (&nr_decoders), 0, "all decoders are freed");
  return tap_done ();
}
