/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that write next to each other.
 *
 * The storage is four areas.  In three of them units of 100, 512 and 4096
 * bytes belong to the threads in turn.  In the fourth each unit of 4096
 * bytes is for two of them: one always writes all of it, one only bytes in
 * its first half; the second half is what the first one wrote.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "neighbours.h"
#include "qemu-image.h"
#include "storage-place.h"

#define AREA_BYTES (NEIGHBOURS_BYTES / 4)
#define UNIT_BYTES 4096

struct town {
  const struct neighbours *n;
  uint8_t model[NEIGHBOURS_BYTES]; /* a byte is its owner's alone */
  _Atomic uint64_t end;         /* of all that was written */
  _Atomic unsigned nr_wrong;
};

struct thread {
  struct town *town;
  unsigned nr;
  uint64_t seed;
  uint8_t *buf;                 /* UNIT_BYTES and some more, aligned */
};

static void
wrong (struct thread *t, const char *what, uint64_t offset, size_t count,
       int64_t value)
{
  if (t->town->nr_wrong++ < 5)
    printf ("# %s: %zu bytes at %llu: %lld\n", what, count,
            (unsigned long long) offset, (long long) value);
}

/* Sometimes aligned, sometimes not. */
static uint8_t *
draw_buffer (struct thread *t)
{
  return t->buf + (random_below (&t->seed, 2) ? random_below (&t->seed, 600) :
                   0);
}

static void
write_bytes (struct thread *t, uint64_t offset, size_t count,
             const uint8_t *bytes)
{
  size_t cut = random_below (&t->seed, 3) ? 0 :
    random_below (&t->seed, count + 1);
  struct iovec iov[2] = {
    { (void *) bytes, cut }, { (void *) (bytes + cut), count - cut },
  };
  uint64_t end = t->town->end;
  int r = qcow2_storage_writev (t->town->n->s, iov, 2, offset,
                                random_below (&t->seed, 50) == 0);

  if (r < 0)
    wrong (t, "write", offset, count, r);
  while (offset + count > end &&
         !atomic_compare_exchange_weak (&t->town->end, &end, offset + count))
    ;
  if (qcow2_storage_size (t->town->n->s) < (int64_t) (offset + count))
    wrong (t, "size", offset, count, qcow2_storage_size (t->town->n->s));
}

static void
check_bytes (struct thread *t, uint64_t offset, size_t count)
{
  uint8_t *got = draw_buffer (t);
  int r = qcow2_storage_read_data (t->town->n->s, got, count, offset);
  size_t i;

  if (r < 0)
    wrong (t, "read", offset, count, r);
  for (i = 0; i < count && r == 0; ++i)
    if (got[i] != t->town->model[offset + i]) {
      wrong (t, "lost", offset + i, 1, got[i]);
      break;
    }
}

static void
write_random (struct thread *t, uint64_t offset, size_t count)
{
  uint8_t *bytes = draw_buffer (t);

  memset (bytes, (int) (1 + random_below (&t->seed, 255)), count);
  bytes[0] ^= 0x55;
  memcpy (t->town->model + offset, bytes, count);
  write_bytes (t, offset, count, bytes);
}

static void
zero (struct thread *t, uint64_t offset, size_t count)
{
  int r = qcow2_storage_zero (t->town->n->s, offset, count,
                              random_below (&t->seed, 2));

  memset (t->town->model + offset, 0, count);
  if (r < 0)
    wrong (t, "zero", offset, count, r);
}

/* One that owns bytes does something with them. */
static void
at_home (struct thread *t)
{
  static const unsigned units[] = { 100, 512, 4096 };
  unsigned area = (unsigned) random_below (&t->seed, 3), unit = units[area];
  unsigned nr = AREA_BYTES / unit / t->town->n->nr_threads;
  uint64_t offset = (uint64_t) area * AREA_BYTES +
    (random_below (&t->seed, nr) * t->town->n->nr_threads + t->nr) * unit;
  size_t count = unit;

  if (random_below (&t->seed, 2)) {
    size_t skip = random_below (&t->seed, unit);

    offset += skip;
    count = 1 + random_below (&t->seed, unit - skip);
  }
  switch (random_below (&t->seed, 8)) {
  case 0:
    zero (t, offset, count);
    break;
  case 1:
    qcow2_storage_discard (t->town->n->s, offset, count);
    write_random (t, offset, count);
    break;
  case 2:
    check_bytes (t, offset, count);
    break;
  default:
    write_random (t, offset, count);
  }
}

/* Two that share a unit. */
static void
at_the_fence (struct thread *t)
{
  unsigned nr = AREA_BYTES / UNIT_BYTES;
  uint64_t unit = random_below (&t->seed, nr / (t->town->n->nr_threads / 2)) *
    (t->town->n->nr_threads / 2) + t->nr / 2;
  uint64_t offset = 3 * AREA_BYTES + unit * UNIT_BYTES;
  uint8_t *bytes = draw_buffer (t);
  unsigned half = UNIT_BYTES / 2;

  if (t->nr % 2 == 1) {
    size_t count = 1 + random_below (&t->seed, half - 1);

    memset (bytes, 1, count);
    write_bytes (t, offset + half - 1 - count, count, bytes);
    return;
  }
  memset (bytes, (int) (2 + random_below (&t->seed, 250)), UNIT_BYTES);
  if (random_below (&t->seed, 5) == 0) {
    memset (bytes, 0, UNIT_BYTES);
    if (qcow2_storage_zero (t->town->n->s, offset, UNIT_BYTES, true) < 0)
      wrong (t, "zero", offset, UNIT_BYTES, 0);
  }
  else
    write_bytes (t, offset, UNIT_BYTES, bytes);
  memcpy (t->town->model + offset + half, bytes + half, half);
  check_bytes (t, offset + half, half);
}

static void *
live (void *opaque)
{
  struct thread *t = opaque;
  unsigned i;

  for (i = 0; i < t->town->n->nr_requests; ++i)
    if (random_below (&t->seed, 4) == 0)
      at_the_fence (t);
    else
      at_home (t);
  return NULL;
}

static bool
check_town (struct town *town, int64_t size_before)
{
  static uint8_t got[NEIGHBOURS_BYTES];
  uint64_t fence = 3 * AREA_BYTES, size = (uint64_t) size_before, i;
  bool good = town->nr_wrong == 0;

  if (town->end > size)
    size = town->end;
  if (qcow2_storage_size (town->n->s) != (int64_t) size) {
    printf ("# the size is %lld, not %llu\n",
            (long long) qcow2_storage_size (town->n->s),
            (unsigned long long) size);
    good = false;
  }
  if (qcow2_storage_read_data (town->n->s, got, sizeof got, 0) < 0)
    return false;
  for (i = 0; i < sizeof got; ++i)
    if (got[i] != town->model[i] &&
        (i < fence || i % UNIT_BYTES >= UNIT_BYTES / 2)) {
      printf ("# byte %llu is %u, not %u\n", (unsigned long long) i, got[i],
              town->model[i]);
      return false;
    }
  return good;
}

bool
neighbours_run (const struct neighbours *n)
{
  struct town *town = calloc (1, sizeof *town);
  struct thread threads[16];
  pthread_t ids[16];
  int64_t size_before = qcow2_storage_size (n->s);
  unsigned i;
  bool good;

  must (town && n->nr_threads % 2 == 0 && n->nr_threads <= 16, "threads");
  town->n = n;
  for (i = 0; i < n->nr_threads; ++i) {
    void *buf = NULL;

    must (posix_memalign (&buf, 4096, UNIT_BYTES + 600) == 0, "memory");
    threads[i] = (struct thread) {
      .town = town, .nr = i, .seed = n->seed * 16 + i + 1, .buf = buf,
    };
    must (pthread_create (&ids[i], NULL, live, &threads[i]) == 0, "thread");
  }
  for (i = 0; i < n->nr_threads; ++i) {
    pthread_join (ids[i], NULL);
    free (threads[i].buf);
  }
  good = check_town (town, size_before);
  free (town);
  return good;
}
