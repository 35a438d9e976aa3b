/* SPDX-License-Identifier: BSD-3-Clause */

/* L1 and L2 look-up beside a model of it.
 *
 * In images with random content, made by QEMU, each run says the same as
 * the model about each of its bytes, and ends only where it has to; what
 * is read by it is what QEMU reads.
 */

#include <errno.h>
#include <fcntl.h>
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
#define TiB (1024 * 1024 * MiB)
#define EiB (1024 * 1024 * TiB)

static uint64_t seed = 20240607;

struct subject {
  const char *what;
  struct disk_model model;
  struct qcow2 *image;
  struct qcow2_view *view;
};

static bool
open_subject (struct subject *s, const char *filename, const char *data_file,
              bool snapshot, uint64_t cache_bytes)
{
  struct qcow2_options options;
  struct qcow2_error error;
  int r;

  qcow2_options_init (&options);
  options.data_file = data_file;
  options.cache_bytes = cache_bytes;
  r = qcow2_open (filename, &options, &s->image, &error);
  if (r == 0)
    r = qcow2_view_open (s->image, snapshot ? 0 : QCOW2_ACTIVE, &s->view,
                         &error);
  if (!ok (r == 0, "%s: opens%s%s", s->what, r < 0 ? ": " : "",
           r < 0 ? error.message : ""))
    return false;
  disk_model_open (&s->model, filename, false);
  if (snapshot)
    disk_model_use_snapshot (&s->model);
  return true;
}

static void
close_subject (struct subject *s)
{
  disk_model_close (&s->model);
  qcow2_view_close (s->view);
  qcow2_close (s->image);
}

/*----- Runs -----*/

static struct place
place_of_run (const struct run *run)
{
  struct place p = { .kind = PLACE_BELOW };

  switch (run->kind) {
  case RUN_UNALLOCATED:
    break;
  case RUN_ZERO:
    p.kind = PLACE_ZERO;
    break;
  case RUN_DATA:
    p.kind = PLACE_DATA;
    p.host = run->host_offset;
    break;
  case RUN_COMPRESSED:
    p.kind = PLACE_COMPRESSED;
    p.host = run->host_offset;
    p.compressed_bytes = run->compressed_bytes;
    p.in_cluster = run->cluster_from;
    break;
  }
  return p;
}

/* A run ends only where the model changes or its L2 slice ends; one over
 * an L1 entry without a table only at the end of that.
 */
static bool
must_end (const struct subject *s, const struct run *run, uint64_t end)
{
  const struct disk_model *m = &s->model;
  uint64_t slice_bytes = UINT64_C (1) << m->cluster_bits;
  struct place p = place_of_run (run), next;

  if (slice_bytes > 4096)
    slice_bytes = 4096;
  if (end % (slice_bytes / m->entry_bytes << m->cluster_bits) == 0)
    return true;
  next = disk_model_look (m, end);
  return !place_goes_on (&p, &next, run->length_bytes);
}

/* Look up and compare.  *LENGTH_BYTES is how far it went. */
static bool
check_run (const struct subject *s, uint64_t offset, uint64_t max_bytes,
           uint64_t *length_bytes)
{
  struct layer *l = s->image->chain.layers[0];
  struct run run = { .kind = RUN_ZERO };
  struct place p, q;
  uint64_t done, step;

  *length_bytes = 1;
  if (map_lookup (l, s->view->l1, offset, max_bytes, &run) < 0 ||
      run.layer != l || run.length_bytes < 1 ||
      run.length_bytes > max_bytes)
    return false;
  *length_bytes = run.length_bytes;

  /* At most some hundred samples in a run. */
  step = run.length_bytes / 200 | 511;
  p = place_of_run (&run);
  for (done = 0; done < run.length_bytes; done += step) {
    q = disk_model_look (&s->model, offset + done);
    if (!place_goes_on (&p, &q, done))
      return false;
  }
  q = disk_model_look (&s->model, offset + run.length_bytes - 1);
  if (!place_goes_on (&p, &q, run.length_bytes - 1))
    return false;
  return run.length_bytes == max_bytes ||
    must_end (s, &run, offset + run.length_bytes);
}

static void
check_walk (const struct subject *s, uint64_t from, uint64_t to)
{
  uint64_t offset, length;
  unsigned nr_runs = 0;

  for (offset = from; offset < to; offset += length, ++nr_runs)
    if (!check_run (s, offset, to - offset, &length))
      break;
  is_int (offset, to, "%s: runs from end to end are the model's (%u)",
          s->what, nr_runs);
}

static void
check_random (const struct subject *s, uint64_t from, uint64_t to)
{
  unsigned i, nr = 500;

  for (i = 0; i < nr; ++i) {
    uint64_t offset = from + random_below (&seed, to - from);
    uint64_t max_bytes = 1 + random_below (&seed, to - offset), length;

    if (random_below (&seed, 2))
      max_bytes = 1 + max_bytes % 5000;
    if (!check_run (s, offset, max_bytes, &length)) {
      printf ("# offset %" PRIu64 ", at most %" PRIu64 "\n", offset,
              max_bytes);
      break;
    }
  }
  is_int (i, nr, "%s: random look-ups are the model's", s->what);
}

static void
check_content (const struct subject *s, const uint8_t *content,
               uint64_t bytes)
{
  unsigned i, nr = 100;
  uint8_t *buf = malloc (bytes);

  for (i = 0; i < nr; ++i) {
    uint64_t offset = random_below (&seed, bytes);
    uint64_t count = 1 + random_below (&seed, bytes - offset);

    if (i == 0) {
      offset = 0;
      count = bytes;
    }
    else if (i % 4)
      count = 1 + count % 9999;
    memset (buf, 0xa5, bytes);
    if (qcow2_pread (s->view, buf, count, offset) < 0 ||
        memcmp (buf, content + offset, count) != 0)
      break;
  }
  is_int (i, nr, "%s: reads are QEMU's", s->what);
  free (buf);
}

static void
check_image (const char *what, const char *filename, const char *data_file,
             const char *snapshot)
{
  static const uint64_t cache_bytes[] = { QCOW2_DEFAULT_CACHE_BYTES, 0 };
  uint64_t bytes;
  uint8_t *content = qemu_content (filename, snapshot, &bytes);
  char name[200];
  unsigned i;

  for (i = 0; i < 2; ++i) {
    struct subject s = { .what = name };

    snprintf (name, sizeof name, "%s, cache of %" PRIu64, what,
              cache_bytes[i]);
    if (!open_subject (&s, filename, data_file, snapshot, cache_bytes[i]))
      continue;
    is_int (s.view->size_bytes, bytes, "%s: size", name);
    check_walk (&s, 0, bytes);
    check_random (&s, 0, bytes);
    check_content (&s, content, bytes);
    close_subject (&s);
  }
  free (content);
}

/*----- Images -----*/

/* Sizes are not multiples of anything. */
static void
test_layout (const char *options, uint64_t cluster_bytes, uint64_t size_bytes,
             unsigned kinds)
{
  size_bytes += 512 + random_below (&seed, cluster_bytes);
  size_bytes |= 1;
  run_command ("qemu-img create -q -f qcow2 -o cluster_size=%" PRIu64 ",%s "
               "disk.qcow2 %" PRIu64, cluster_bytes, options, size_bytes);
  /* QEMU rounds a size up to sectors. */
  size_bytes = (size_bytes + 511) & ~UINT64_C (511);
  random_writes ("qcow2", "disk.qcow2", size_bytes,
                 size_bytes / 30 > 3 * cluster_bytes ? 3 * cluster_bytes :
                 size_bytes / 30, cluster_bytes, 120, kinds, &seed);
  check_image (options, "disk.qcow2",
               strstr (options, "data_file") ? "data.raw" : NULL, NULL);
}

static void
test_layouts (void)
{
  unsigned zeroes = WRITE_ZEROES | WRITE_UNMAP;

  test_layout ("compat=0.10", 64 * KiB, 20 * MiB, 0);
  test_layout ("compat=1.1", 512, 300 * KiB, zeroes);
  test_layout ("compat=1.1,lazy_refcounts=on", 1 * KiB, 700 * KiB, zeroes);
  test_layout ("compat=1.1,refcount_bits=1", 64 * KiB, 20 * MiB, zeroes);
  test_layout ("compat=1.1,preallocation=metadata", 2 * MiB, 90 * MiB,
               zeroes);
  test_layout ("extended_l2=on", 16 * KiB, 9 * MiB, zeroes);
  test_layout ("extended_l2=on,compression_type=zstd", 128 * KiB, 20 * MiB,
               zeroes | WRITE_COMPRESSED);
  test_layout ("extended_l2=on,cluster_size=2M", 2 * MiB, 70 * MiB, zeroes);
  test_layout ("compression_type=zlib", 512, 200 * KiB,
               zeroes | WRITE_COMPRESSED);
  test_layout ("compression_type=zlib,compat=1.1", 4 * KiB, 5 * MiB,
               zeroes | WRITE_COMPRESSED);
  test_layout ("compression_type=zstd", 64 * KiB, 20 * MiB,
               zeroes | WRITE_COMPRESSED);
  test_layout ("data_file=data.raw", 4 * KiB, 5 * MiB, zeroes);
  test_layout ("data_file=data.raw,data_file_raw=on", 64 * KiB, 9 * MiB,
               zeroes);
}

static void
test_snapshot (void)
{
  run_command ("qemu-img create -q -f qcow2 -o cluster_size=4k snap.qcow2 "
               "5000000");
  random_writes ("qcow2", "snap.qcow2", 5000000, 20 * KiB, 4 * KiB, 60,
                 WRITE_ZEROES | WRITE_COMPRESSED, &seed);
  run_command ("qemu-img snapshot -c old snap.qcow2");
  random_writes ("qcow2", "snap.qcow2", 5000000, 20 * KiB, 4 * KiB, 60,
                 WRITE_ZEROES | WRITE_UNMAP, &seed);
  check_image ("active layer", "snap.qcow2", NULL, NULL);
  check_image ("snapshot", "snap.qcow2", NULL, "old");
}

/*----- Far away -----*/

/* 2 EiB is what an L1 table of 32 MiB can map at most. */
static void
test_largest (void)
{
  static const uint64_t far[] = {
    2 * EiB - 4 * MiB, EiB - 3 * MiB, 8191 * TiB,
  };
  struct subject s = { .what = "2 EiB" };
  uint8_t byte = 0;
  unsigned i;

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=2M far.qcow2 "
               "%" PRIu64, 2 * EiB);
  for (i = 0; i < 3; ++i)
    run_command ("qemu-io -f qcow2 -c 'write -P %u %" PRIu64 " 3M' far.qcow2 "
                 "> written", i + 1, far[i]);
  if (!open_subject (&s, "far.qcow2", NULL, false, 0))
    return;
  for (i = 0; i < 3; ++i) {
    check_random (&s, far[i] - 2 * MiB, far[i] + 4 * MiB);
    ok (qcow2_pread (s.view, &byte, 1, far[i] + 3 * MiB - 1) == 0 &&
        byte == i + 1, "%s: data at 0x%" PRIx64 " is read", s.what, far[i]);
  }
  check_walk (&s, 2 * EiB - TiB, 2 * EiB);
  close_subject (&s);
}

/* Host offsets up to the last that an entry can hold. */
static void
test_far_host (void)
{
  struct subject s = { .what = "far host offsets" };
  uint64_t l2, entry;
  uint8_t buf[512], zeros[512] = { 0 };
  unsigned i;
  int fd;

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=512 host.qcow2 "
               "32k");
  run_command ("qemu-io -f qcow2 -c 'write -P 1 0 32k' host.qcow2 > written");
  disk_model_open (&s.model, "host.qcow2", false);
  fd = open ("host.qcow2", O_RDWR | O_CLOEXEC);
  pread (fd, &l2, 8, s.model.l1_offset);
  l2 = be64toh (l2) & ENTRY_OFFSET_MASK;
  for (i = 0; i < 47; ++i) {
    entry = htobe64 (ENTRY_COPIED | UINT64_C (1) << (i + 9));
    pwrite (fd, &entry, 8, l2 + 8 * i);
  }
  for (; i < 64; ++i) {
    entry = htobe64 (ENTRY_COPIED |
                     (ENTRY_OFFSET_MASK - (63 - i) * UINT64_C (512)));
    pwrite (fd, &entry, 8, l2 + 8 * i);
  }
  close (fd);
  disk_model_close (&s.model);

  if (!open_subject (&s, "host.qcow2", NULL, false, 0))
    return;
  check_walk (&s, 0, 32 * KiB);
  check_random (&s, 0, 32 * KiB);
  memset (buf, 0xa5, sizeof buf);
  ok (qcow2_pread (s.view, buf, 512, 32 * KiB - 512) == 0 &&
      memcmp (buf, zeros, 512) == 0, "%s: past the end of file are zeros",
      s.what);
  close_subject (&s);
}

int
main (void)
{
  alarm (280);
  scratch_dir_enter ();
  test_layouts ();
  test_snapshot ();
  test_largest ();
  test_far_host ();
  return tap_done ();
}
