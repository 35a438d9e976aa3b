/* SPDX-License-Identifier: BSD-3-Clause */

/* Growing a disk, without preallocation: what most tests want. */

#ifndef GROW_DISK_H
#define GROW_DISK_H

#include "qcow2/qcow2.h"

static inline int
grow_disk (struct qcow2 *image, uint64_t size_bytes,
           struct qcow2_error *error)
{
  return qcow2_resize (image, size_bytes, QCOW2_PREALLOCATION_OFF, false,
                       error);
}

#endif /* GROW_DISK_H */
