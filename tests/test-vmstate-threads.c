/* SPDX-License-Identifier: BSD-3-Clause */

/* VM state is written by many threads, which moves the L1 table again and
 * again, while others write the disk, read both, flush, and drop what is
 * there: each has what it wrote.
 */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "image.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define KiB UINT64_C (1024)
#define DISK_BYTES (512 * KiB)
#define STATE_BYTES (768 * KiB)
#define NR_WRITERS 4            /* of each: state, disk */
#define BLOCK 3000              /* no multiple of anything */

static struct qcow2 *image;
static struct qcow2_view *view;
static atomic_bool stop;

struct writer_thread {
  pthread_t thread;
  unsigned nr;
  bool to_disk;
  uint64_t end;
  int r;
};

/* What a thread writes where; in the second round, something else. */
static uint8_t
byte_at (const struct writer_thread *t, uint64_t pos, unsigned round)
{
  return (uint8_t) (1 + t->nr * 50 + pos / BLOCK % 23 + 23 * round);
}

static int
transfer (const struct writer_thread *t, bool write, uint8_t *buf, size_t n,
          uint64_t pos)
{
  if (write)
    return t->to_disk ? qcow2_pwrite (view, buf, n, pos, false) :
      qcow2_vmstate_pwrite (view, buf, n, pos);
  return t->to_disk ? qcow2_pread (view, buf, n, pos) :
    qcow2_vmstate_pread (view, buf, n, pos);
}

static bool
is_all (const uint8_t *buf, size_t n, uint8_t byte)
{
  return buf[0] == byte && memcmp (buf, buf + 1, n - 1) == 0;
}

/* Every NR_WRITERS-th block is this thread's. */
static int
one_round (const struct writer_thread *t, unsigned round, bool write)
{
  uint8_t buf[BLOCK];
  uint64_t pos;
  int r = 0;

  for (pos = t->nr * BLOCK; pos < t->end && r == 0;
       pos += NR_WRITERS * BLOCK) {
    size_t n = t->end - pos < BLOCK ? t->end - pos : BLOCK;

    memset (buf, byte_at (t, pos, round), n);
    if (write)
      r = transfer (t, true, buf, n, pos);
    if (r == 0)
      r = transfer (t, false, buf, n, pos);
    if (r == 0 && !is_all (buf, n, byte_at (t, pos, round)))
      r = -EILSEQ;
  }
  return r;
}

static void *
write_rounds (void *opaque)
{
  struct writer_thread *t = opaque;
  unsigned round;

  for (round = 0; round < 2 && t->r == 0; ++round)
    t->r = one_round (t, round, true);
  if (t->r == 0)
    t->r = one_round (t, 1, false);
  return NULL;
}

static void *
flush (void *opaque)
{
  int *r = opaque;

  while (!stop && *r == 0)
    *r = qcow2_flush (view);
  return NULL;
}

static void
run_threads (struct writer_thread *threads)
{
  pthread_t flusher;
  int r = 0;
  unsigned i;

  stop = false;
  pthread_create (&flusher, NULL, flush, &r);
  for (i = 0; i < 2 * NR_WRITERS; ++i) {
    struct writer_thread *t = &threads[i];

    *t = (struct writer_thread) { .nr = i / 2, .to_disk = i % 2 };
    t->end = t->to_disk ? DISK_BYTES : STATE_BYTES;
    pthread_create (&t->thread, NULL, write_rounds, t);
  }
  for (i = 0; i < 2 * NR_WRITERS; ++i) {
    pthread_join (threads[i].thread, NULL);
    is_int (threads[i].r, 0, "thread %u has what it wrote to the %s", i,
            threads[i].to_disk ? "disk" : "state");
  }
  stop = true;
  pthread_join (flusher, NULL);
  is_int (r, 0, "flushed meanwhile");
}

/* All of the state is there, or nothing. */
static void *
write_and_drop (void *opaque)
{
  int *r = opaque;
  uint8_t buf[BLOCK];
  unsigned i;

  for (i = 0; i < 60 && *r == 0; ++i) {
    memset (buf, 7, sizeof buf);
    *r = qcow2_vmstate_pwrite (view, buf, sizeof buf, i * 20 * KiB);
    if (*r == 0 && i % 3 == 2)
      *r = qcow2_vmstate_discard (view);
    if (*r == 0)
      *r = qcow2_vmstate_pread (view, buf, sizeof buf, i * 20 * KiB);
    if (*r == 0 && !is_all (buf, sizeof buf, i % 3 == 2 ? 0 : 7))
      *r = -EILSEQ;
  }
  return NULL;
}

static void
test_dropping (struct writer_thread *threads)
{
  pthread_t dropper;
  int dropped = 0;
  unsigned i;

  pthread_create (&dropper, NULL, write_and_drop, &dropped);
  for (i = 1; i < 2 * NR_WRITERS; i += 2)
    pthread_create (&threads[i].thread, NULL, write_rounds, &threads[i]);
  for (i = 1; i < 2 * NR_WRITERS; i += 2)
    pthread_join (threads[i].thread, NULL);
  pthread_join (dropper, NULL);
  is_int (dropped, 0, "written and dropped, beside writes to the disk");
  for (i = 1; i < 2 * NR_WRITERS; i += 2)
    is_int (threads[i].r, 0, "thread %u has what it wrote to the disk", i);
}

static void
test_image (const char *options)
{
  struct writer_thread threads[2 * NR_WRITERS];
  struct qcow2_options o;
  struct qcow2_error error = { "" };
  unsigned i;

  run_command ("rm -f *; qemu-img create -q -f qcow2 -o %s disk.qcow2 %d && "
               "qemu-io -f qcow2 -c 'write -q -P 1 0 %d' "
               "-c 'write -q -b -P 9 0 40k' disk.qcow2 && "
               "qemu-img snapshot -c snap disk.qcow2", options,
               (int) DISK_BYTES, (int) DISK_BYTES);
  qcow2_options_init (&o);
  o.writable = true;
  o.cache_bytes = 64 * KiB;
  if (qcow2_open ("disk.qcow2", &o, &image, &error) < 0 ||
      qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  printf ("# %s\n", options);
  run_threads (threads);
  for (i = 0; i < 2 * NR_WRITERS; ++i)
    is_int (one_round (&threads[i], 1, false), 0, "it is there at the end");
  test_dropping (threads);
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
}

int
main (void)
{
  scratch_dir_enter ();
  test_image ("cluster_size=512");
  test_image ("cluster_size=4k");
  test_image ("cluster_size=16k,extended_l2=on");
  return tap_done ();
}
