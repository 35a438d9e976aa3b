/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing guest data. */

#ifndef QCOW2_WRITE_H
#define QCOW2_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "writer.h"

/* Write COUNT bytes at guest OFFSET, from BUF, or zeros if BUF is NULL.
 * *IN_PLACE becomes false if metadata was changed.  Within the request's
 * epoch.  DURABLE: what is written in place is durable on return.
 */
extern int write_guest (struct writer *w, struct epoch_ticket ticket,
                        const void *buf, uint64_t count, uint64_t offset,
                        bool durable, bool *in_place);

#endif /* QCOW2_WRITE_H */
