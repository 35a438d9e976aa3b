/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hooked-storage.h"

static const struct qcow2_storage_ops *real_ops;
static struct qcow2_storage_ops hooked_ops;
_Atomic bool hooked_reads_fail;

int
real_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
              uint64_t offset, bool durable)
{
  return real_ops->pwritev (s, iov, iovcnt, offset, durable);
}

static ssize_t
hooked_pread (struct qcow2_storage *s, void *buf, size_t count,
              uint64_t offset)
{
  return hooked_reads_fail ? -EIO : real_ops->pread (s, buf, count, offset);
}

/* The same storage, but for its reads and writes; a backing file is left
 * alone.
 */
static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  pwritev_fn **pwritev = opaque;

  if (strcmp (filename, "disk.qcow2") != 0)
    return 0;
  real_ops = (*s)->ops;
  hooked_ops = *real_ops;
  hooked_ops.pread = hooked_pread;
  hooked_ops.pwritev = *pwritev;
  (*s)->ops = &hooked_ops;
  return 0;
}

void
open_hooked (pwritev_fn *pwritev, struct qcow2 **image,
             struct qcow2_view **view)
{
  struct qcow2_options options;
  struct qcow2_error error;

  qcow2_options_init (&options);
  options.writable = true;
  options.wrap = wrap;
  options.opaque = &pwritev;
  if (qcow2_open ("disk.qcow2", &options, image, &error) < 0 ||
      qcow2_view_open (*image, QCOW2_ACTIVE, view, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
}
