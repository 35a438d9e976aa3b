/* SPDX-License-Identifier: BSD-3-Clause */

/* A disk that ends within a cluster, and an external data file that can't
 * grow, as a device can't: the last cluster is written as far as there is
 * room for it.
 */

#include <errno.h>
#include <stdlib.h>

#include "qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "storage.h"
#include "tap.h"

#define KiB UINT64_C (1024)
#define DISK_BYTES (200 * KiB)  /* clusters have 64 KiB */
#define LAST (192 * KiB)

static const struct qcow2_storage_ops *real_ops;

static bool
fixed_can_grow (struct qcow2_storage *s)
{
  return false;
}

static int
fixed_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
               uint64_t offset, bool durable)
{
  uint64_t end = offset;
  int i;

  for (i = 0; i < iovcnt; ++i)
    end += iov[i].iov_len;
  if (end > (uint64_t) real_ops->size (s))
    return -ENOSPC;
  return real_ops->pwritev (s, iov, iovcnt, offset, durable);
}

static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  static struct qcow2_storage_ops ops;

  if (role != QCOW2_STORAGE_DATA)
    return 0;
  real_ops = (*s)->ops;
  ops = *real_ops;
  ops.pwritev = fixed_pwritev;
  ops.can_grow = fixed_can_grow;
  (*s)->ops = &ops;
  return 0;
}

static uint8_t content[DISK_BYTES];

static struct qcow2_view *view;

static void
do_write (uint64_t offset, uint64_t count, int byte)
{
  memset (content + offset, byte, count);
  is_int (qcow2_pwrite (view, content + offset, count, offset, false), 0,
          "%" PRIu64 " bytes at %" PRIu64, count, offset);
}

static void
do_zero (uint64_t offset, uint64_t count, bool may_trim)
{
  memset (content + offset, 0, count);
  is_int (qcow2_zero (view, count, offset, may_trim, false, false), 0,
          "%" PRIu64 " zeros at %" PRIu64, count, offset);
}

static void
test_image (const char *options)
{
  static uint8_t got[DISK_BYTES];
  struct qcow2_options o;
  struct qcow2_error error;
  struct qcow2 *image;
  uint64_t bytes;
  uint8_t *other;

  run_command ("rm -f *; qemu-img create -q -f qcow2 -o data_file=data%s "
               "disk.qcow2 %" PRIu64, options, DISK_BYTES);
  /* With something in it that is not to be seen. */
  run_command ("head -c %" PRIu64 " /dev/zero | tr '\\0' x > data",
               DISK_BYTES);
  memset (content, 0, sizeof content);
  qcow2_options_init (&o);
  o.writable = true;
  o.data_file = "data";
  o.wrap = wrap;
  if (!ok (qcow2_open ("disk.qcow2", &o, &image, &error) == 0 &&
           qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) == 0,
           "an image with%s", options))
    return;
  do_write (LAST + 512, 512, 'a');
  do_write (DISK_BYTES - 512, 512, 'b');
  do_zero (LAST, DISK_BYTES - LAST, false);
  do_write (LAST + 4096, 1024, 'c');
  do_zero (LAST, DISK_BYTES - LAST, true);
  do_write (DISK_BYTES - 1024, 512, 'd');
  ok (qcow2_pread (view, got, DISK_BYTES, 0) == 0 &&
      memcmp (got, content, DISK_BYTES) == 0, "it reads as written");
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
  other = qemu_content ("disk.qcow2", NULL, &bytes);
  ok (memcmp (other, content, DISK_BYTES) == 0, "by QEMU, too");
  free (other);
  run_command ("qemu-img check -q disk.qcow2");
}

int
main (void)
{
  scratch_dir_enter ();
  test_image ("");
  test_image (",extended_l2=on");
  return tap_done ();
}
