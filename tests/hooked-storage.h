/* SPDX-License-Identifier: BSD-3-Clause */

/* An image whose writes go through a function of the test, and whose reads
 * fail on request.
 */

#ifndef HOOKED_STORAGE_H
#define HOOKED_STORAGE_H

#include <stdbool.h>

#include "qcow2/qcow2.h"
#include "qcow2/storage.h"

/* As storage.h has it. */
typedef int pwritev_fn (struct qcow2_storage *s, const struct iovec *iov,
                        int iovcnt, uint64_t offset, bool durable);

/* What the storage itself does. */
extern pwritev_fn real_pwritev;

/* As long as this is set reads give EIO. */
extern _Atomic bool hooked_reads_fail;

/* Open disk.qcow2 for writing, and its active layer, or end the test.  PWRITEV
 * is called instead of real_pwritev.
 */
extern void open_hooked (pwritev_fn *pwritev, struct qcow2 **image,
                         struct qcow2_view **view);

#endif /* HOOKED_STORAGE_H */
