/* SPDX-License-Identifier: BSD-3-Clause */

/* Hash table and clocks of the cluster cache.
 *
 * Which shard a cluster falls to is as good as random, so the clocks
 * need not be one: whoever evicts goes round the shards.  New entries
 * are put behind the hand without a mark; one that nobody asks for again
 * leaves when the hand has gone round once.
 */

#include <errno.h>
#include <stdlib.h>

#include "cluster-table.h"
#include "hash-seed.h"

#define MIN_BUCKETS 16          /* per shard, powers of 2 */
#define MAX_BUCKETS 65536

/* About one bucket for 4 KiB.  Smaller clusters make longer chains. */
static size_t
choose_nr_buckets (size_t budget_bytes)
{
  size_t n = MIN_BUCKETS;

  while (n < MAX_BUCKETS && n < budget_bytes / 4096 / CLUSTER_TABLE_SHARDS)
    n *= 2;
  return n;
}

int
cluster_table_init (struct cluster_table *table, size_t budget_bytes)
{
  struct cluster_shard *shard;
  int r = 0;

  table->hash_seed = hash_seed ();
  table->nr_buckets = choose_nr_buckets (budget_bytes);
  for (shard = table->shards;
       shard < table->shards + CLUSTER_TABLE_SHARDS; shard++) {
    pthread_mutex_init (&shard->lock, NULL);
    pthread_cond_init (&shard->changed, NULL);
    shard->buckets = calloc (table->nr_buckets, sizeof shard->buckets[0]);
    if (!shard->buckets)
      r = -ENOMEM;
  }
  return r;
}

static void
free_shard (struct cluster_shard *shard)
{
  struct cluster_entry *e;

  for (; shard->nr_kept > 0; shard->nr_kept--) {
    e = shard->hand;
    shard->hand = e->clock_next;
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
cluster_table_free (struct cluster_table *table)
{
  size_t i;

  for (i = 0; i < CLUSTER_TABLE_SHARDS; i++)
    free_shard (&table->shards[i]);
}

/*----- The hash table -----*/

struct cluster_place
cluster_table_find_place (struct cluster_table *table, unsigned layer,
                          uint64_t host_offset)
{
  uint64_t hash = hash_seeded (table->hash_seed,
                               host_offset ^ (uint64_t) layer << 56) >> 32;
  struct cluster_shard *shard = &table->shards[hash % CLUSTER_TABLE_SHARDS];
  size_t i = hash / CLUSTER_TABLE_SHARDS % table->nr_buckets;

  return (struct cluster_place) { shard, &shard->buckets[i] };
}

struct cluster_entry *
cluster_table_find (struct cluster_place place,
                    const struct compressed_cluster *c)
{
  struct cluster_entry *e;

  for (e = *place.bucket; e; e = e->next)
    if (e->host_offset == c->host_offset && e->layer == c->layer &&
        e->cluster_bytes == c->cluster_bytes &&
        e->compressed_bytes == c->compressed_bytes && e->codec == c->codec)
      break;
  return e;
}

struct cluster_entry *
cluster_table_add (struct cluster_place place,
                   const struct compressed_cluster *c)
{
  struct cluster_shard *shard = place.shard;
  struct cluster_entry *e = shard->unused;

  if (e)
    shard->unused = e->next;
  else if (!(e = malloc (sizeof *e)))
    return NULL;

  *e = (struct cluster_entry) {
    .next = *place.bucket,
    .codec = c->codec,
    .layer = c->layer,
    .host_offset = c->host_offset,
    .compressed_bytes = c->compressed_bytes,
    .cluster_bytes = c->cluster_bytes,
    .state = CLUSTER_LOADING,
    .pins = 1,
  };
  *place.bucket = e;
  return e;
}

void
cluster_table_remove (struct cluster_place place, struct cluster_entry *e)
{
  struct cluster_entry **p = place.bucket;

  while (*p != e)
    p = &(*p)->next;
  *p = e->next;
}

void
cluster_table_recycle (struct cluster_shard *shard, struct cluster_entry *e)
{
  e->next = shard->unused;
  shard->unused = e;
}

/*----- The clock -----*/

/* Behind the hand, which thus comes to it last. */
void
cluster_table_keep (struct cluster_shard *shard, struct cluster_entry *e)
{
  struct cluster_entry *hand = shard->hand;

  e->state = CLUSTER_KEPT;
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
clock_remove (struct cluster_shard *shard, struct cluster_entry *e)
{
  if (shard->hand == e)
    shard->hand = e->clock_next == e ? NULL : e->clock_next;
  e->clock_prev->clock_next = e->clock_next;
  e->clock_next->clock_prev = e->clock_prev;
  shard->nr_kept--;
}

static struct cluster_entry *
clock_advance (struct cluster_shard *shard)
{
  struct cluster_entry *e;
  size_t n;

  for (n = shard->nr_kept; n > 0; n--) {
    e = shard->hand;
    shard->hand = e->clock_next;
    /* Pairs with the reader's release: it is done with the data. */
    if (atomic_load_explicit (&e->pins, memory_order_acquire) > 0)
      continue;
    if (!e->referenced)
      return e;
    e->referenced = false;
  }
  return NULL;
}

/* Returns the data of E, which has no pins. */
static void *
take_out (struct cluster_table *table, struct cluster_shard *shard,
          struct cluster_entry *e, size_t *bytes)
{
  void *data = (void *) e->data;

  *bytes = e->cluster_bytes;
  clock_remove (shard, e);
  cluster_table_remove (cluster_table_find_place (table, e->layer,
                                                  e->host_offset), e);
  cluster_table_recycle (shard, e);
  return data;
}

void *
cluster_table_evict (struct cluster_table *table,
                     struct cluster_shard *shard, size_t *bytes)
{
  struct cluster_entry *e = clock_advance (shard);

  return e ? take_out (table, shard, e, bytes) : NULL;
}

void *
cluster_table_take (struct cluster_table *table,
                    struct cluster_shard *shard, unsigned layer,
                    uint64_t first, uint64_t end, size_t *bytes)
{
  struct cluster_entry *e = shard->hand;
  size_t n;

  for (n = shard->nr_kept; n > 0; n--, e = e->clock_next)
    if (e->layer == layer && e->host_offset < end &&
        e->host_offset + e->compressed_bytes > first &&
        atomic_load_explicit (&e->pins, memory_order_acquire) == 0)
      return take_out (table, shard, e, bytes);
  return NULL;
}
