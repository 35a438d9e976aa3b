/* SPDX-License-Identifier: BSD-3-Clause */

/* However much is dirty, a commit takes no memory but its batch, nor more
 * flushes than it must.
 */

#include <malloc.h>
#include <stdlib.h>

#include "hooked-storage.h"
#include "image.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "storage-fault.h"
#include "tap.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)

static void
must (bool good, const char *what)
{
  if (!good) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

/* Asked for and not freed; a sanitizer's allocator says 0. */
static size_t
memory_bytes (void)
{
  struct mallinfo2 info = mallinfo2 ();

  return info.uordblks + info.hblkhd;
}

/*----- A cache -----*/

#define SLICE_BYTES 4096
#define NR_SLICES 2048
#define BATCH_SECTORS 128

static struct slice_cache *cache;
static struct sealed_slices sealed;
static unsigned times_seen[NR_SLICES * 8];

static int
fill (void *opaque, uint64_t key, uint64_t *buf)
{
  memset (buf, 0, SLICE_BYTES);
  return 0;
}

static void
make_dirty (uint64_t slice)
{
  struct slice_ref ref;
  size_t i;

  must (slice_cache_pin (cache, slice * SLICE_BYTES, fill, NULL, &ref) == 0,
        "can't pin");
  slice_begin_change (&ref);
  for (i = 0; i < SLICE_BYTES / 8; ++i)
    slice_store (&ref, i, slice * 8 + i / 64);
  slice_end_change (cache, &ref, 0, SLICE_BYTES / 8);
  slice_unpin (cache, &ref);
}

/* Each sector holds its number.  Returns how many batches there are. */
static unsigned
copy_all (unsigned nr_batches, size_t *most_sectors)
{
  unsigned n = 0;
  size_t i;

  *most_sectors = 0;
  while (n < nr_batches && slice_cache_copy (cache, &sealed)) {
    n++;
    if (sealed.nr_sectors > *most_sectors)
      *most_sectors = sealed.nr_sectors;
    for (i = 0; i < sealed.nr_sectors; ++i) {
      const struct sealed_sector *s = &sealed.sectors[i];
      uint64_t nr = (s->key + s->byte_in_slice) / 512, word;

      memcpy (&word, s->data, sizeof word);
      if (nr < NR_SLICES * 8 && be64toh (word) == nr)
        times_seen[nr]++;
    }
  }
  return n;
}

static unsigned
count_seen (unsigned times)
{
  unsigned i, n = 0;

  for (i = 0; i < NR_SLICES * 8; ++i)
    n += times_seen[i] == times;
  return n;
}

static void
test_cache (void)
{
  unsigned i, n;
  size_t most, memory, nr_dirty;

  cache = slice_cache_new (NR_SLICES * SLICE_BYTES, SLICE_BYTES);
  must (cache && sealed_slices_init (&sealed, cache,
                                     BATCH_SECTORS * 512) == 0, "no memory");
  for (i = 0; i < NR_SLICES; ++i)
    make_dirty (i);
  memory = memory_bytes ();
  slice_cache_seal (cache, &sealed);
  nr_dirty = slice_cache_nr_dirty (cache);
  n = copy_all (UINT32_MAX, &most);
  memory = memory_bytes () - memory;
  is_int (nr_dirty, 0, "a seal takes all slices");
  is_int (most, BATCH_SECTORS, "a batch is not larger than it may be");
  is_int (n, NR_SLICES * 8 / BATCH_SECTORS, "there are as many as it takes");
  is_int (count_seen (1), NR_SLICES * 8, "each sector is in one of them");
  is_int (memory, 0, "no memory was asked for");

  slice_cache_release (cache, &sealed, 16);
  slice_cache_unseal (cache, &sealed);
  is_int (slice_cache_nr_dirty (cache), NR_SLICES - 16,
          "what was not written is dirty again");
  memset (times_seen, 0, sizeof times_seen);
  slice_cache_seal (cache, &sealed);
  copy_all (2, &most);
  slice_cache_unseal (cache, &sealed);
  is_int (slice_cache_nr_dirty (cache), NR_SLICES - 16,
          "as is what was not even copied");
  memset (times_seen, 0, sizeof times_seen);
  slice_cache_seal (cache, &sealed);
  copy_all (UINT32_MAX, &most);
  slice_cache_release (cache, &sealed, sealed.nr_slots);
  slice_cache_unseal (cache, &sealed);
  ok (count_seen (1) == (NR_SLICES - 16) * 8 && count_seen (0) == 16 * 8,
      "and is there when it is copied again");
  is_int (slice_cache_nr_dirty (cache), 0, "then all is clean");
  sealed_slices_free (&sealed);
  slice_cache_free (cache);
}

/*----- Commits -----*/

#define NR_WRITES 2000
#define STRIDE (32 * MiB)       /* what a slice maps */

static struct qcow2 *image;
static struct qcow2_view *view;

static size_t most_memory;      /* at any write */

static int
noting_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
                uint64_t offset, bool durable)
{
  if (memory_bytes () > most_memory)
    most_memory = memory_bytes ();
  return real_pwritev (s, iov, iovcnt, offset, durable);
}

static void
open_image (void)
{
  open_hooked (noting_pwritev, &image, &view);
  worker_stop (image->writer);  /* only the test commits */
}

static void
write_at (uint64_t offset)
{
  uint64_t number = offset + 1;

  must (qcow2_pwrite (view, &number, sizeof number, offset, false) == 0,
        "can't write");
}

static void
test_commit (void)
{
  struct committer *c;
  unsigned i, nr_wrong = 0;
  uint64_t number;
  size_t memory;

  run_command ("qemu-img create -q -f qcow2 disk.qcow2 64G");
  open_image ();
  c = &image->writer->committer;
  no_faults ();
  for (i = 0; i < NR_WRITES; ++i)
    write_at (i * STRIDE);
  is_int (slice_cache_nr_dirty (c->slices), NR_WRITES, "many dirty slices");
  c->sealed_l2.max_sectors = 256;
  no_faults ();
  most_memory = 0;
  memory = memory_bytes ();
  is_int (qcow2_flush (view), 0, "a flush of eight batches");
  ok (calls.writes > 0 && most_memory <= memory, "takes no memory");
  is_int (calls.fdatasyncs, 2, "and two flushes, as no one else writes");
  ok (committer_is_clean (c), "all is written");

  write_at (64 * KiB);
  no_faults ();
  is_int (qcow2_flush (view), 0, "a flush of one new cluster");
  is_int (calls.fdatasyncs, 2, "takes two flushes");
  is_int (calls.writes, 2, "and two writes, of a refcount and an L2 entry");
  write_at (5);
  no_faults ();
  is_int (qcow2_flush (view), 0, "a flush of a write in place");
  ok (calls.fdatasyncs == 1 && calls.writes == 0, "takes one flush");

  qcow2_view_close (view);
  must (qcow2_close (image) == 0,
        "can't close the image");
  open_image ();
  for (i = 1; i < NR_WRITES; ++i)
    nr_wrong += qcow2_pread (view, &number, sizeof number, i * STRIDE) < 0 ||
      number != i * STRIDE + 1;
  is_int (nr_wrong, 0, "all that was written is there");
  qcow2_view_close (view);
  qcow2_close (image);
  run_command ("qemu-img check -q disk.qcow2");
}

int
main (void)
{
  scratch_dir_enter ();
  test_cache ();
  test_commit ();
  return tap_done ();
}
