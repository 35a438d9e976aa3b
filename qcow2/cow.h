/* SPDX-License-Identifier: BSD-3-Clause */

/* Copy-on-write areas: what has to be written around the guest's bytes
 * when a cluster gets a new place.
 */

#ifndef QCOW2_COW_H
#define QCOW2_COW_H

#include <stddef.h>
#include <stdint.h>

#include "writer.h"

/* Write the guest's COUNT bytes (BUF) for guest
 * OFFSET to HOST of the top layer's data storage, together with what the
 * disk now holds in the HEAD_BYTES before and the TAIL_BYTES behind
 * them.  FRESH: the host clusters read as zeros, so zeros need not be
 * written.  The caller's claim covers all of it.
 */
extern int cow_write (struct writer *w, struct epoch_ticket ticket,
                      const void *buf, size_t count, uint64_t offset,
                      uint64_t host, size_t head_bytes, size_t tail_bytes,
                      bool fresh);

#endif /* QCOW2_COW_H */
