/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage that fails on request. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "faulty-storage.h"

struct faulty {
  struct qcow2_storage storage;
  struct qcow2_storage *next;
  struct faults *faults;
};

static struct faulty *
faulty_of (struct qcow2_storage *s)
{
  return (struct faulty *) s;
}

static bool
is_lasting (enum fault fault)
{
  return fault == FAULT_STUCK || fault == FAULT_HALF_STUCK ||
    fault == FAULT_TRICKLE;
}

/* Is it this read's turn? */
static bool
count_down (struct faults *f)
{
  long n = atomic_load (&f->countdown);

  while (n > 0)
    if (atomic_compare_exchange_weak (&f->countdown, &n, n - 1))
      return n == 1;
  return false;
}

/* How many of COUNT bytes a faulty read gives, or an error. */
static ssize_t
faulty_count (struct faults *f, bool first, size_t count)
{
  switch (f->fault) {
  case FAULT_EIO: return -EIO;
  case FAULT_NOTHING: return 0;
  case FAULT_HALF: return count / 2;
  case FAULT_STUCK: return 0;
  case FAULT_HALF_STUCK: return first ? count / 2 : 0;
  case FAULT_TRICKLE: return count < 100 ? count : 100;
  }
  return -EINVAL;
}

/* Whatever a read does not give, it spoils. */
static ssize_t
faulty_pread (struct qcow2_storage *s, void *buf, size_t count,
              uint64_t offset)
{
  struct faulty *faulty = faulty_of (s);
  struct faults *f = faulty->faults;
  unsigned delay_usec = atomic_load (&f->delay_usec);
  bool first = count_down (f);
  ssize_t r = count;

  atomic_fetch_add (&f->nr_reads, 1);
  if (delay_usec > 0)
    usleep (delay_usec);
  if (first && is_lasting (f->fault))
    atomic_store (&f->lasting, true);
  if (first || atomic_load (&f->lasting)) {
    atomic_fetch_add (&f->nr_hit, 1);
    memset (buf, 0xee, count);
    r = faulty_count (f, first, count);
  }
  if (r <= 0)
    return r;
  return faulty->next->ops->pread (faulty->next, buf, r, offset);
}

static int64_t
faulty_size (struct qcow2_storage *s)
{
  return qcow2_storage_size (faulty_of (s)->next);
}

static int
faulty_hole (struct qcow2_storage *s, uint64_t offset, bool *hole,
             uint64_t *length_bytes)
{
  return qcow2_storage_hole (faulty_of (s)->next, offset, hole, length_bytes);
}

static void
faulty_prefetch (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  qcow2_storage_prefetch (faulty_of (s)->next, offset, count);
}

static void
faulty_close (struct qcow2_storage *s)
{
  struct faulty *faulty = faulty_of (s);

  atomic_fetch_sub (&faulty->faults->nr_open, 1);
  qcow2_storage_close (faulty->next);
  free (faulty);
}

static const struct qcow2_storage_ops faulty_ops = {
  .pread = faulty_pread,
  .size = faulty_size,
  .hole = faulty_hole,
  .prefetch = faulty_prefetch,
  .close = faulty_close,
};

int
faults_wrap (void *opaque, enum qcow2_storage_role role,
             const char *filename, struct qcow2_storage **s)
{
  struct faulty *faulty = malloc (sizeof *faulty);

  if (!faulty)
    return -ENOMEM;
  faulty->storage.ops = &faulty_ops;
  faulty->next = *s;
  faulty->faults = opaque;
  atomic_fetch_add (&faulty->faults->nr_open, 1);
  *s = &faulty->storage;
  return 0;
}

static void
count_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  struct faults *faults = opaque;

  atomic_fetch_add (&faults->nr_messages, 1);
}

const char *
fault_name (enum fault fault)
{
  static const char *const names[NR_FAULTS] = {
    "a failing read", "an empty read", "a short read", "empty reads",
    "a short read, then empty ones", "small reads",
  };

  return names[fault];
}

bool
fault_is_harmless (enum fault fault)
{
  return fault == FAULT_NOTHING || fault == FAULT_HALF ||
    fault == FAULT_TRICKLE;
}

void
faults_init (struct faults *faults, struct qcow2_options *options)
{
  memset (faults, 0, sizeof *faults);
  options->wrap = faults_wrap;
  options->log = count_message;
  options->opaque = faults;
}

void
faults_arm (struct faults *faults, enum fault fault, long n)
{
  faults->fault = fault;
  atomic_store (&faults->nr_hit, 0);
  atomic_store (&faults->lasting, false);
  atomic_store (&faults->countdown, n);
}

void
faults_disarm (struct faults *faults)
{
  atomic_store (&faults->countdown, 0);
  atomic_store (&faults->lasting, false);
}
