/* SPDX-License-Identifier: BSD-3-Clause */

/* Writes, zeroes and discards of any range, beside a model of what they
 * should do: nothing beside them changes, and zeros are zeros wherever
 * they come from.  On files, and on block devices with sectors of both
 * sizes.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "qcow2/io-file.h"
#include "qcow2/storage.h"
#include "storage-fault.h"
#include "storage-place.h"
#include "tap.h"

/*----- A storage beside a model of it -----*/

#define MODEL_BYTES (300 * 1024)

static uint64_t seed = 1;

static unsigned
random_below (unsigned n)
{
  seed = seed * UINT64_C (6364136223846793005) + 1442695040888963407;
  return (unsigned) (seed >> 33) % n;
}

struct model {
  struct qcow2_storage *s;
  uint8_t bytes[MODEL_BYTES];
  bool unknown[MODEL_BYTES];    /* were discarded */
  size_t nr_bytes;
};

static bool
same_as_model (const struct model *m)
{
  static uint8_t got[MODEL_BYTES];
  size_t i;

  if (qcow2_storage_size (m->s) != (int64_t) m->nr_bytes ||
      qcow2_storage_read_meta (m->s, got, m->nr_bytes, 0) < 0)
    return false;
  for (i = 0; i < m->nr_bytes; ++i)
    if (got[i] != m->bytes[i] && !m->unknown[i]) {
      printf ("# byte %zu is %u, not %u\n", i, got[i], m->bytes[i]);
      return false;
    }
  return true;
}

static int
random_write (struct model *m, size_t offset, size_t count)
{
  struct iovec iov[40], copy[40];
  size_t i, pos = 0;
  int n = 0, r;

  for (i = 0; i < count; ++i)
    m->bytes[offset + i] = (uint8_t) (1 + random_below (255));
  memset (m->unknown + offset, 0, count);
  for (; n < 39 && random_below (20); ++n) {
    iov[n].iov_len = random_below ((unsigned) (count - pos) + 1);
    if (random_below (2))
      iov[n].iov_len %= 20;
    iov[n].iov_base = m->bytes + offset + pos;
    pos += iov[n].iov_len;
  }
  iov[n].iov_base = m->bytes + offset + pos;
  iov[n++].iov_len = count - pos;
  memcpy (copy, iov, sizeof copy);
  r = qcow2_storage_writev (m->s, iov, n, offset, random_below (8) == 0);
  return memcmp (copy, iov, (size_t) n * sizeof *iov) == 0 ? r : -EFAULT;
}

/* Any offset and length, but also where blocks begin and end. */
static void
random_range (const struct model *m, size_t *offset, size_t *count)
{
  static const unsigned units[] = { 1, 512, 4096 };
  unsigned unit = units[random_below (3)];

  *offset = random_below ((unsigned) m->nr_bytes) / unit * unit;
  *count = random_below (random_below (2) ? 70000 : 6000) / unit * unit;
  if (*count > m->nr_bytes - *offset)
    *count = m->nr_bytes - *offset;
}

static int
random_operation (struct model *m)
{
  size_t offset, count;
  int r;

  fault.most = random_below (4) ? 0 : 1 + random_below (9000);
  fault.interrupts = random_below (4) ? 0 : (int) random_below (4);
  fault.dsync_errno = random_below (500) ? 0 : EOPNOTSUPP;
  random_range (m, &offset, &count);
  switch (random_below (5)) {
  case 0:
    memset (m->bytes + offset, 0, count);
    memset (m->unknown + offset, 0, count);
    if (offset + count == m->nr_bytes && random_below (2))
      count += random_below (10000);
    return qcow2_storage_zero (m->s, offset, count, random_below (2));
  case 1:
    memset (m->unknown + offset, 1, count);
    qcow2_storage_discard (m->s, offset, count);
    return 0;
  case 2:                       /* changes nothing that is read */
    r = qcow2_storage_allocate (m->s, offset, count);
    return r == -EOPNOTSUPP ? 0 : r;
  default:
    return random_write (m, offset, count);
  }
}

/* With ERR, that is what the kernel says to fallocate. */
static void
beside_a_model (struct qcow2_storage *s, size_t nr_bytes, int err)
{
  static struct model m;
  unsigned i;
  int r = 0;

  memset (&m, 0, sizeof m);
  m.s = s;
  m.nr_bytes = nr_bytes;
  must (qcow2_storage_write (s, m.bytes, nr_bytes, 0, false) == 0, "write");
  no_faults ();
  fault.fallocate_errno = err;
  for (i = 0; i < 400 && r == 0; ++i) {
    r = random_operation (&m);
    if (i % 20 == 19)
      r = r == 0 && same_as_model (&m) ? 0 : r == 0 ? -EILSEQ : r;
  }
  is_int (r, 0, "%s: %u writes, zeroes and discards%s%s do what they should",
          where, i, err ? " with " : "", err ? strerror (err) : "");
  no_faults ();
  qcow2_storage_close (s);
}

/*----- Block devices -----*/

static void
on_a_device (unsigned sector_bytes)
{
  const size_t size = 256 * 1024;
  int file = make_file ((off_t) size, O_RDWR);
  struct qcow2_storage *s;

  s = storage_of (make_loop_device (dup (file), sector_bytes));
  no_faults ();
  fill (s, size);
  is_int (qcow2_storage_zero (s, 512, size - 1024, true), 0,
          "%s: a device with sectors of %u bytes is zeroed", where,
          sector_bytes);
  ok (calls.discards == 0 && calls.fallocates > 0,
      "... by other means than discarding");
  is_int (calls.parts_of_pages, 0, "... which are for whole pages");
  must (qcow2_storage_flush (s) == 0, "flush");
  ok (blocks_of (file) < (int64_t) size / 512, "... which gives space back");
  is_int (qcow2_storage_zero (s, 512, size - 1024, false), 0,
          "it is zeroed so that it keeps space");
  ok (blocks_of (file) >= (int64_t) size / 512, "... which it does");
  qcow2_storage_discard (s, 1, size - 2);
  is_int (calls.discards, 1, "it is discarded");
  is_int (calls.parts_of_pages, 0, "... in whole pages");
  ok (blocks_of (file) < (int64_t) size / 512, "... which gives space back");
  is_int (qcow2_storage_truncate (s, size / 2), -EOPNOTSUPP,
          "it is not cut");
  ok (!qcow2_storage_can_grow (s), "... and can't grow");
  is_int (qcow2_storage_write (s, "abcd", 4, size - 2, false), -ENOSPC,
          "there is no space past its end");
  is_int (qcow2_storage_zero (s, size - 512, 4096, true), 0,
          "... but zeros");
  close (file);
  beside_a_model (s, size, 0);
}

static void
devices (void)
{
  for (unsigned sector_bytes = 512; sector_bytes <= 4096; sector_bytes *= 8)
    on_a_device (sector_bytes);
  for (int i = 0; i < 2; ++i) {
    int file = make_file (256 * 1024, O_RDWR);

    beside_a_model (storage_of (make_loop_device (file, 512)), 256 * 1024,
                    i == 0 ? EOPNOTSUPP : EBUSY);
  }
}

static void
tests (void)
{
  beside_a_model (file_storage (MODEL_BYTES - 77), MODEL_BYTES - 77, 0);
  beside_a_model (file_storage (MODEL_BYTES), MODEL_BYTES, EOPNOTSUPP);
  devices ();
}

int
main (void)
{
  in_each_place (tests);
  return tap_done ();
}
