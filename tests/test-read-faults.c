/* SPDX-License-Identifier: BSD-3-Clause */

/* An I/O error is never read as zeros, nor as anything else.
 *
 * Each N-th read of an open image is made to fail or to come short, for
 * images of several kinds: the request gets -EIO, or exactly the data.
 * The same request then succeeds, and so does all that comes later.
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "faulty-storage.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define KiB ((uint64_t) 1024)
#define REQUEST_BYTES (48 * KiB + 321)

/* An image, and what is expected of it. */
struct subject {
  const char *filename;
  const char *snapshot;         /* or NULL */
  const char *data_file;        /* or NULL */
  unsigned nr_layers;
  uint8_t *content;
  uint64_t bytes;
  uint8_t *buf;
  uint64_t extents_end;         /* of those reported */

  uint64_t cache_bytes;
  uint64_t compressed_cache_bytes;

  struct faults faults;
  struct qcow2 *image;
  struct qcow2_view *view;
};

/* What happened to the requests of one pass. */
struct tally {
  unsigned nr_failed;
  unsigned nr_wrong;            /* data, or an errno */
  unsigned nr_silent;           /* failures without a message */
  const char *what;
};

static bool
open_subject (struct subject *s)
{
  struct qcow2_options options;
  struct qcow2_error error;
  size_t snapshot = QCOW2_ACTIVE;

  qcow2_options_init (&options);
  options.data_file = s->data_file;
  options.cache_bytes = s->cache_bytes;
  options.compressed_cache_bytes = s->compressed_cache_bytes;
  faults_init (&s->faults, &options);
  if (qcow2_open (s->filename, &options, &s->image, &error) < 0) {
    printf ("# %s\n", error.message);
    return false;
  }
  if (s->snapshot)
    snapshot = qcow2_snapshot_find (s->image, s->snapshot);
  if (qcow2_view_open (s->image, snapshot, &s->view, &error) < 0) {
    printf ("# %s\n", error.message);
    return false;
  }
  return true;
}

static void
close_subject (struct subject *s)
{
  qcow2_view_close (s->view);
  qcow2_close (s->image);
}

/*----- Requests -----*/

/* Each kind of request gets a range, and tells whether all it said about it
 * is right.
 */
typedef int request_fn (struct subject *s, uint64_t offset, size_t count,
                        bool *right);

static int
read_request (struct subject *s, uint64_t offset, size_t count, bool *right)
{
  int r;

  memset (s->buf, 0xa5, count);
  r = qcow2_pread (s->view, s->buf, count, offset);
  *right = memcmp (s->buf, s->content + offset, count) == 0;
  return r;
}

static bool
is_zero (const uint8_t *p, uint64_t count)
{
  return count == 0 || (p[0] == 0 && memcmp (p, p + 1, count - 1) == 0);
}

static int
check_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
              uint64_t count)
{
  struct subject *s = opaque;

  if (offset != s->extents_end || count > s->bytes - offset)
    return 1;
  s->extents_end += count;
  if (type != QCOW2_EXTENT_DATA && !is_zero (s->content + offset, count))
    return 1;
  return 0;
}

/* As a client asks: again from where the answer ended. */
static int
extents_request (struct subject *s, uint64_t offset, size_t count,
                 bool *right)
{
  uint64_t end = offset + count;
  int r = 0;

  for (s->extents_end = offset; r == 0 && s->extents_end < end; )
    r = qcow2_extents (s->view, end - s->extents_end, s->extents_end,
                       check_extent, s);
  *right = s->extents_end == end;
  return r;
}

static int
prefetch_request (struct subject *s, uint64_t offset, size_t count,
                  bool *right)
{
  *right = true;
  return qcow2_prefetch (s->view, count, offset);
}

/* Go over the whole disk.  A request that fails is made again, without
 * the fault.
 */
static void
pass (struct subject *s, request_fn *request, struct tally *tally)
{
  uint64_t offset, count;
  bool right;
  int r;

  for (offset = 0; offset < s->bytes; offset += count) {
    unsigned nr_messages = atomic_load (&s->faults.nr_messages);

    count = s->bytes - offset;
    if (count > REQUEST_BYTES)
      count = REQUEST_BYTES;
    r = request (s, offset, count, &right);
    if (r < 0) {
      tally->nr_failed++;
      if (atomic_load (&s->faults.nr_messages) == nr_messages)
        tally->nr_silent++;
      if (r != -EIO)
        tally->nr_wrong++;
      faults_disarm (&s->faults);
      r = request (s, offset, count, &right);
    }
    if (r != 0 || !right)
      tally->nr_wrong++;
  }
}

/*----- Every N-th read -----*/

/* A request may do with less than all that it tried to read: it then
 * answers for a part of its range, or reads ahead in a chain in vain.
 */
static void
check_tally (const struct tally *tally, enum fault fault, bool all_needed,
             long nr_reads)
{
  ok (nr_reads > 0, "%s: there are reads to fail (%ld)", tally->what,
      nr_reads);
  is_int (tally->nr_wrong, 0, "%s: %s: never wrong data", tally->what,
          fault_name (fault));
  is_int (tally->nr_silent, 0, "%s: %s: each error has a message",
          tally->what, fault_name (fault));
  if (fault_is_harmless (fault))
    is_int (tally->nr_failed, 0, "%s: %s: are read on, no request fails",
            tally->what, fault_name (fault));
  else if (fault == FAULT_EIO && all_needed)
    is_int (tally->nr_failed, nr_reads, "%s: %s: each fails its request",
            tally->what, fault_name (fault));
  else
    ok (tally->nr_failed > 0, "%s: %s: requests fail (%u)",
        tally->what, fault_name (fault), tally->nr_failed);
}

/* A pass for each N, from cold caches on, and one more when the fault is
 * over.
 */
static void
fail_each_read (struct subject *s, request_fn *request, const char *what,
                enum fault fault)
{
  struct tally tally = { .what = what };
  long n = 0;

  for (;;) {
    bool hit;

    if (!open_subject (s)) {
      ok (false, "%s: opens", what);
      return;
    }
    faults_arm (&s->faults, fault, ++n);
    pass (s, request, &tally);
    hit = atomic_load (&s->faults.nr_hit) > 0;
    faults_disarm (&s->faults);
    pass (s, read_request, &tally);
    close_subject (s);
    if (!hit || tally.nr_wrong > 0)
      break;
  }
  check_tally (&tally, fault,
               request != extents_request && s->nr_layers <= 2, n - 1);
}

static void
test_subject (struct subject *s, const char *what)
{
  char name[200];
  int fault, small;

  s->content = qemu_content (s->filename, s->snapshot, &s->bytes);
  s->buf = malloc (REQUEST_BYTES);
  for (small = 1; small >= 0; --small) {
    s->cache_bytes = small ? 0 : QCOW2_DEFAULT_CACHE_BYTES;
    s->compressed_cache_bytes =
      small ? 0 : QCOW2_DEFAULT_COMPRESSED_CACHE_BYTES;
    for (fault = 0; fault < NR_FAULTS; ++fault) {
      snprintf (name, sizeof name, "%s, %s caches", what,
                small ? "small" : "large");
      fail_each_read (s, read_request, name, fault);
    }
  }
  snprintf (name, sizeof name, "%s, extents", what);
  fail_each_read (s, extents_request, name, FAULT_EIO);
  snprintf (name, sizeof name, "%s, prefetch", what);
  fail_each_read (s, prefetch_request, name, FAULT_EIO);
  free (s->buf);
  free (s->content);
}

/*----- Images -----*/

static uint64_t seed = 4711;

static void
test_standard (void)
{
  struct subject s = { .filename = "std.qcow2", .nr_layers = 1 };

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=512 std.qcow2 "
               "307300");
  random_writes ("qcow2", "std.qcow2", 307300, 9 * KiB, 512, 40,
                 WRITE_ZEROES | WRITE_UNMAP, &seed);
  test_subject (&s, "512-byte clusters");
}

static void
test_extended (void)
{
  struct subject s = { .filename = "ext.qcow2", .nr_layers = 1 };

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=16k,"
               "extended_l2=on ext.qcow2 6M");
  random_writes ("qcow2", "ext.qcow2", 6144 * KiB, 100 * KiB, 16 * KiB, 40,
                 WRITE_ZEROES | WRITE_UNMAP, &seed);
  test_subject (&s, "extended L2");
}

static void
test_compressed (const char *type)
{
  struct subject s = { .filename = "comp.qcow2", .nr_layers = 1 };

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=4k,"
               "compression_type=%s comp.qcow2 400k", type);
  random_writes ("qcow2", "comp.qcow2", 400 * KiB, 20 * KiB, 4 * KiB, 50,
                 WRITE_COMPRESSED, &seed);
  test_subject (&s, type);
}

static void
test_data_file (void)
{
  struct subject s = {
    .filename = "outside.qcow2", .data_file = "data.raw", .nr_layers = 1,
  };

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=4k,"
               "data_file=data.raw outside.qcow2 3M");
  random_writes ("qcow2", "outside.qcow2", 3072 * KiB, 40 * KiB, 4 * KiB, 40,
                 WRITE_ZEROES | WRITE_UNMAP, &seed);
  test_subject (&s, "external data file");
}

static void
test_snapshot (void)
{
  struct subject s = {
    .filename = "snap.qcow2", .snapshot = "old", .nr_layers = 1,
  };

  run_command ("qemu-img create -q -f qcow2 -o cluster_size=512 snap.qcow2 "
               "200k");
  random_writes ("qcow2", "snap.qcow2", 200 * KiB, 9 * KiB, 512, 20,
                 WRITE_ZEROES, &seed);
  run_command ("qemu-img snapshot -c old snap.qcow2");
  random_writes ("qcow2", "snap.qcow2", 200 * KiB, 9 * KiB, 512, 20,
                 WRITE_ZEROES, &seed);
  test_subject (&s, "internal snapshot");
}

/* Clusters differ in size, and each file is longer than the one below. */
static void
test_chain (void)
{
  struct subject s = { .filename = "top.qcow2", .nr_layers = 3 };

  run_command ("qemu-img create -q -f raw base.raw 250k");
  random_writes ("raw", "base.raw", 250 * KiB, 30 * KiB, 512, 10, 0, &seed);
  run_command ("qemu-img create -q -f qcow2 -F raw -b base.raw "
               "-o cluster_size=4k mid.qcow2 333k");
  random_writes ("qcow2", "mid.qcow2", 333 * KiB, 10 * KiB, 4 * KiB, 25,
                 WRITE_ZEROES | WRITE_COMPRESSED, &seed);
  run_command ("qemu-img create -q -f qcow2 -F qcow2 -b mid.qcow2 "
               "-o cluster_size=512 top.qcow2 400k");
  random_writes ("qcow2", "top.qcow2", 400 * KiB, 5 * KiB, 512, 20,
                 WRITE_ZEROES | WRITE_UNMAP, &seed);
  test_subject (&s, "chain of 3");
}

static void
test_raw_backing (void)
{
  struct subject s = { .filename = "over.qcow2", .nr_layers = 2 };

  run_command ("qemu-img create -q -f raw below.raw 250k");
  random_writes ("raw", "below.raw", 250 * KiB, 30 * KiB, 512, 10, 0, &seed);
  run_command ("qemu-img create -q -f qcow2 -F raw -b below.raw "
               "-o cluster_size=512 over.qcow2 300k");
  random_writes ("qcow2", "over.qcow2", 300 * KiB, 5 * KiB, 512, 20,
                 WRITE_ZEROES | WRITE_UNMAP, &seed);
  test_subject (&s, "raw backing file");
}

int
main (void)
{
  alarm (280);
  scratch_dir_enter_memory ();
  test_standard ();
  test_extended ();
  test_compressed ("zlib");
  test_compressed ("zstd");
  test_data_file ();
  test_snapshot ();
  test_chain ();
  test_raw_backing ();
  return tap_done ();
}
