/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeros in what a guest writes. */

#ifndef QCOW2_DETECT_ZEROES_H
#define QCOW2_DETECT_ZEROES_H

#include <stdint.h>

#include "writer.h"

/* As write_guest, but zeros are made as w->detect_zeroes says, if the
 * whole of BUF is zeros or where they fill whole clusters.  Where that was
 * done *IN_PLACE becomes false, also if nothing had to be changed: then
 * not all that was written is durable, even if DURABLE.
 */
extern int write_detecting_zeroes (struct writer *w,
                                   struct epoch_ticket ticket,
                                   const void *buf, uint64_t count,
                                   uint64_t offset, bool durable,
                                   bool *in_place);

#endif /* QCOW2_DETECT_ZEROES_H */
