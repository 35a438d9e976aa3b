/* SPDX-License-Identifier: BSD-3-Clause */

/* Which layer of a chain answers: beside a model that walks down the
 * chain for each byte.
 *
 * Layers differ in size and cluster size, have compressed and extended
 * ones among them, and raw files at the bottom.  What is remembered in
 * answer slices must say the same, whatever is cached, from several
 * threads; and once it is remembered, depth costs nothing.
 */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "disk-model.h"
#include "format.h"
#include "image.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define KiB ((uint64_t) 1024)
#define MiB (1024 * KiB)
#define MAX_LAYERS 12
#define NR_THREADS 4

static uint64_t seed = 99991;

struct layer_options {
  const char *options;          /* of qemu-img create; NULL: a raw file */
  uint64_t cluster_bytes;
  uint64_t size_bytes;
  unsigned kinds;               /* of random writes */
};

struct subject {
  const char *what;
  unsigned nr_layers;
  struct disk_model models[MAX_LAYERS]; /* [0] is the top */
  struct qcow2 *image;
  struct qcow2_view *view;
  uint8_t *content;             /* as QEMU reads it */
  uint64_t bytes;
};

/*----- Chains -----*/

/* Layer NR counts from the bottom: files are layer-0, layer-1 ...; only
 * the bottom may be raw.
 */
static void
make_layer (unsigned nr, bool on_raw, const struct layer_options *o,
            unsigned nr_writes)
{
  char name[30], backing[100] = "";

  snprintf (name, sizeof name, "layer-%u", nr);
  if (nr > 0)
    snprintf (backing, sizeof backing, "-b layer-%u -F %s", nr - 1,
              on_raw ? "raw" : "qcow2");
  if (o->options)
    run_command ("qemu-img create -q -f qcow2 %s -o cluster_size=%" PRIu64
                 ",%s %s %" PRIu64, backing, o->cluster_bytes, o->options,
                 name, o->size_bytes);
  else
    run_command ("qemu-img create -q -f raw %s %" PRIu64, name,
                 o->size_bytes);
  if (nr_writes > 0)
    random_writes (o->options ? "qcow2" : "raw", name, o->size_bytes,
                   o->size_bytes / 40, o->cluster_bytes, nr_writes,
                   o->kinds, &seed);
}

static bool
open_chain (struct subject *s, unsigned nr_layers, uint64_t cache_bytes)
{
  struct qcow2_options options;
  struct qcow2_error error;
  char top[30];
  unsigned k;
  int r;

  snprintf (top, sizeof top, "layer-%u", nr_layers - 1);
  qcow2_options_init (&options);
  options.cache_bytes = cache_bytes;
  r = qcow2_open (top, &options, &s->image, &error);
  if (r == 0)
    r = qcow2_view_open (s->image, QCOW2_ACTIVE, &s->view, &error);
  if (!ok (r == 0, "%s: opens%s%s", s->what, r < 0 ? ": " : "",
           r < 0 ? error.message : ""))
    return false;
  s->nr_layers = nr_layers;
  for (k = 0; k < nr_layers; ++k)
    disk_model_open (&s->models[k], s->image->chain.layers[k]->filename,
                     s->image->chain.layers[k]->is_raw);
  s->content = qemu_content (top, NULL, &s->bytes);
  return true;
}

static void
close_chain (struct subject *s)
{
  unsigned k;

  for (k = 0; k < s->nr_layers; ++k)
    disk_model_close (&s->models[k]);
  qcow2_view_close (s->view);
  qcow2_close (s->image);
  free (s->content);
}

static uint64_t
nr_loads (const struct subject *s)
{
  struct slice_cache_stats stats;

  slice_cache_get_stats (s->image->chain.slices, &stats);
  return stats.nr_loads;
}

/*----- Look-ups -----*/

static struct place
place_of_run (const struct run *run)
{
  struct place p = { .kind = PLACE_ZERO };

  if (run->kind == RUN_DATA)
    p = (struct place) { .kind = PLACE_DATA, .host = run->host_offset };
  else if (run->kind == RUN_COMPRESSED)
    p = (struct place) {
      .kind = PLACE_COMPRESSED, .host = run->host_offset,
      .compressed_bytes = run->compressed_bytes,
      .in_cluster = run->cluster_from,
    };
  if (p.kind != PLACE_ZERO)
    p.layer = run->layer->index;
  return p;
}

static bool
check_run (const struct subject *s, uint64_t offset, uint64_t max_bytes,
           uint64_t *length_bytes)
{
  struct run run = { .kind = RUN_ZERO };
  uint64_t done, step;
  struct place p, q;

  *length_bytes = 1;
  if (chain_lookup (&s->image->chain, s->view->l1, offset, max_bytes,
                    &run) < 0 ||
      run.length_bytes < 1 || run.length_bytes > max_bytes)
    return false;
  *length_bytes = run.length_bytes;

  step = run.length_bytes / 50 | 511;
  p = place_of_run (&run);
  for (done = 0; done < run.length_bytes; done += step) {
    q = disk_model_look_down (s->models, 0, s->nr_layers, offset + done);
    if (!place_goes_on (&p, &q, done))
      return false;
  }
  done = run.length_bytes - 1;
  q = disk_model_look_down (s->models, 0, s->nr_layers, offset + done);
  return place_goes_on (&p, &q, done);
}

static bool
check_read (const struct subject *s, uint64_t offset, uint64_t count,
            uint8_t *buf)
{
  memset (buf, 0xa5, count);
  return qcow2_pread (s->view, buf, count, offset) == 0 &&
    memcmp (buf, s->content + offset, count) == 0;
}

static void
check_walk (const struct subject *s, const char *when)
{
  uint64_t offset, length;
  unsigned nr_runs = 0;

  for (offset = 0; offset < s->bytes; offset += length, ++nr_runs)
    if (!check_run (s, offset, s->bytes - offset, &length))
      break;
  is_int (offset, s->bytes, "%s: %s: runs are the model's (%u)", s->what,
          when, nr_runs);
}

struct random_checks {
  pthread_t thread;
  const struct subject *s;
  uint64_t seed;
  unsigned nr;
  unsigned nr_right;
};

static void *
check_random (void *opaque)
{
  struct random_checks *c = opaque;
  const struct subject *s = c->s;
  uint8_t *buf = malloc (s->bytes);
  unsigned i;

  for (i = 0; i < c->nr; ++i) {
    uint64_t offset = random_below (&c->seed, s->bytes), length;
    uint64_t max_bytes = 1 + random_below (&c->seed, s->bytes - offset);

    if (i % 8)
      max_bytes = 1 + max_bytes % 30000;
    if (check_run (s, offset, max_bytes, &length) &&
        check_read (s, offset, max_bytes, buf))
      c->nr_right++;
  }
  free (buf);
  return NULL;
}

static void
check_threads (const struct subject *s)
{
  struct random_checks c[NR_THREADS];
  unsigned i, nr_right = 0, nr = 80;

  for (i = 0; i < NR_THREADS; ++i) {
    c[i] = (struct random_checks) {
      .s = s, .seed = random_next (&seed), .nr = nr,
    };
    pthread_create (&c[i].thread, NULL, check_random, &c[i]);
  }
  for (i = 0; i < NR_THREADS; ++i) {
    pthread_join (c[i].thread, NULL);
    nr_right += c[i].nr_right;
  }
  is_int (nr_right, nr * NR_THREADS,
          "%s: look-ups and reads of %d threads", s->what, NR_THREADS);
}

static void
check_chain (const char *what, unsigned nr_layers)
{
  static const uint64_t cache_bytes[] = { QCOW2_DEFAULT_CACHE_BYTES, 0 };
  char name[200];
  unsigned i;

  for (i = 0; i < 2; ++i) {
    struct subject s = { .what = name };

    snprintf (name, sizeof name, "%s, cache of %" PRIu64, what,
              cache_bytes[i]);
    if (!open_chain (&s, nr_layers, cache_bytes[i]))
      continue;
    check_walk (&s, "cold");
    check_walk (&s, "warm");
    check_threads (&s);
    close_chain (&s);
  }
}

/*----- Random chains -----*/

#define ZEROES (WRITE_ZEROES | WRITE_UNMAP)

static void
test_chain (const char *what, const struct layer_options *layers,
            unsigned nr_layers, unsigned nr_writes)
{
  unsigned i;

  for (i = 0; i < nr_layers; ++i)
    make_layer (i, i == 1 && !layers[0].options, &layers[i], nr_writes);
  check_chain (what, nr_layers);
}

static void
test_random_chains (void)
{
  static const struct layer_options on_raw[] = {
    { NULL, 512, 999 * 512, 0 },
    { "compat=1.1", 512, 700 * KiB, ZEROES },
    { "compression_type=zstd", 65536, 1234 * 512, WRITE_COMPRESSED },
    { "compat=0.10", 4096, 1111 * 512, 0 },
  };
  static const struct layer_options extended[] = {
    { "compression_type=zlib", 4096, 3 * MiB + 512, WRITE_COMPRESSED },
    { "compat=1.1", 2097152, 5 * MiB + 512, ZEROES },
    { "extended_l2=on", 16384, 4 * MiB + 1024, ZEROES },
    { "compression_type=zstd", 65536, 3 * MiB, ZEROES | WRITE_COMPRESSED },
    { "extended_l2=on", 65536, 4 * MiB + 512 * 77, ZEROES },
  };
  static const struct layer_options large[] = {
    { NULL, 512, 21 * MiB, 0 },
    { "extended_l2=on", 2097152, 27 * MiB + 512, ZEROES },
    { "compat=1.1", 2097152, 30 * MiB + 512, ZEROES },
    { "compat=1.1", 512, 26 * MiB, ZEROES },
  };
  static const struct layer_options two[] = {
    { "compression_type=zlib", 4096, 700 * KiB, ZEROES | WRITE_COMPRESSED },
    { "compat=1.1", 16384, 1 * MiB, ZEROES },
  };

  test_chain ("small clusters on raw", on_raw, 4, 12);
  test_chain ("extended L2", extended, 5, 16);
  test_chain ("large clusters", large, 4, 8);
  test_chain ("two layers", two, 2, 16);
}

/* A layer ends within a compressed cluster, whose rest is old data. */
static void
test_end_in_compressed (void)
{
  static const struct layer_options layers[] = {
    { "compat=1.1", 4096, 64 * KiB, 0 },
    { "compat=1.1", 65536, 128 * KiB, 0 },
    { "compat=1.1", 65536, 192 * KiB, 0 },
  };
  static uint8_t buf[192 * 1024];
  struct subject s = { .what = "a layer that ends in a compressed cluster" };

  make_layer (0, false, &layers[0], 0);
  make_layer (1, false, &layers[1], 0);
  run_command ("qemu-io -f qcow2 -c 'write -c -P 7 64k 64k' layer-1 "
               "> written");
  run_command ("qemu-img resize -q --shrink layer-1 %" PRIu64, 96 * KiB + 512);
  make_layer (2, false, &layers[2], 0);
  if (!open_chain (&s, 3, QCOW2_DEFAULT_CACHE_BYTES))
    return;
  ok (s.content[96 * KiB] == 7 && s.content[97 * KiB] == 0,
      "%s: QEMU reads zeros from there on", s.what);
  check_walk (&s, "cold");
  check_walk (&s, "warm");
  ok (check_read (&s, 80 * KiB, 100 * KiB, buf), "%s: reads over its end",
      s.what);
  ok (check_read (&s, 90 * KiB, 20 * KiB, buf), "%s: reads near its end",
      s.what);
  close_chain (&s);
}

/*----- Damage -----*/

/* Make the L2 entry of a guest cluster in layer-0 invalid. */
static void
damage_entry (unsigned cluster)
{
  struct disk_model m;
  uint64_t l2, entry;
  bool done;
  int fd;

  disk_model_open (&m, "layer-0", false);
  fd = open ("layer-0", O_RDWR | O_CLOEXEC);
  done = pread (fd, &l2, 8, m.l1_offset) == 8;
  l2 = be64toh (l2) & UINT64_C (0x00fffffffffffe00);
  entry = htobe64 (UINT64_C (1) << 63 | (l2 + 512));
  done &= pwrite (fd, &entry, 8, l2 + 8 * cluster) == 8;
  close (fd);
  disk_model_close (&m);
  ok (done, "one L2 entry of the lowest layer is damaged");
}

/* One bad entry costs what it maps, and nothing else. */
static void
test_damage (void)
{
  static const struct layer_options o = { "compat=1.1", 4096, 256 * KiB, 0 };
  struct subject s = { .what = "damage below" };
  uint8_t buf[4096];
  unsigned i, round, nr_right = 0;

  for (i = 0; i < 4; ++i)
    make_layer (i, false, &o, 0);
  run_command ("qemu-io -f qcow2 -c 'write -P 5 0 256k' layer-0 > written");
  run_command ("qemu-io -f qcow2 -c 'write -P 6 80k 4k' layer-1 > written");
  if (!open_chain (&s, 4, QCOW2_DEFAULT_CACHE_BYTES))
    return;
  damage_entry (10);
  damage_entry (20);            /* hidden by layer-1 */

  for (round = 0; round < 3; ++round)
    for (i = 0; i < 64; ++i)
      if (i != 10)
        nr_right += check_read (&s, i * 4096, 4096, buf);
      else
        nr_right += qcow2_pread (s.view, buf, 4096, i * 4096) == -EIO;
  is_int (nr_right, 3 * 64, "an error where it is needed, data elsewhere");
  close_chain (&s);
}

/*----- Cost -----*/

static unsigned
read_all (const struct subject *s)
{
  uint64_t offset;
  unsigned nr_wrong = 0;
  uint8_t byte;

  for (offset = 0; offset < s->bytes; offset += 1999)
    if (qcow2_pread (s->view, &byte, 1, offset) < 0 ||
        byte != s->content[offset])
      nr_wrong++;
  return nr_wrong;
}

/* Make the cached slices of layer K invalid, in the cache.  Returns how
 * many there are.
 */
static unsigned
spoil_slices (const struct subject *s, unsigned k)
{
  const struct layer *l = s->image->chain.layers[k];
  struct slice_ref ref;
  unsigned i, n = 0;
  size_t word;

  for (i = 0; i < l->l1.nr_entries; ++i)
    if (slice_cache_find (l->slices, (uint64_t) k << 56 |
                          (l->l1.entries[i] & ENTRY_OFFSET_MASK), &ref)) {
      for (word = 0; word < l->slice_bytes / 8; ++word)
        atomic_store ((_Atomic uint64_t *) &ref.words[word],
                      htobe64 (ENTRY_COPIED | 512));
      n++;
    }
  return n;
}

/* Once it is known who answers, nobody below is asked again: what is
 * cached of the layers there is made invalid to show it.
 */
static void
test_cost (void)
{
  static const struct layer_options o = { "compat=1.1", 4096, 4 * MiB, 0 };
  struct subject s = { .what = "12 layers" };
  unsigned i, nr_spoilt = 0;
  uint64_t before;
  struct layer *bottom;
  struct run run;

  for (i = 0; i < MAX_LAYERS; ++i)
    make_layer (i, false, &o, i == 0 ? 100 : 4);
  if (!open_chain (&s, MAX_LAYERS, QCOW2_DEFAULT_CACHE_BYTES))
    return;
  is_int (read_all (&s), 0, "%s: all is read", s.what);
  before = nr_loads (&s);
  ok (before > MAX_LAYERS, "%s: slices were loaded (%" PRIu64 ")", s.what,
      before);
  is_int (read_all (&s), 0, "%s: all is read again", s.what);
  is_int (nr_loads (&s), before, "%s: no slice is loaded", s.what);

  for (i = 1; i < MAX_LAYERS; ++i)
    nr_spoilt += spoil_slices (&s, i);
  bottom = s.image->chain.layers[MAX_LAYERS - 1];
  ok (nr_spoilt >= MAX_LAYERS - 1 &&
      map_lookup (bottom, &bottom->l1, 0, 1, &run) == -EIO,
      "%s: slices below the top are made invalid (%u)", s.what, nr_spoilt);
  is_int (read_all (&s), 0, "%s: nothing below the top is looked up", s.what);
  close_chain (&s);
}

int
main (void)
{
  alarm (280);
  scratch_dir_enter ();
  test_random_chains ();
  test_end_in_compressed ();
  test_damage ();
  test_cost ();
  return tap_done ();
}
