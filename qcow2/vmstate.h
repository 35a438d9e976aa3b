/* SPDX-License-Identifier: BSD-3-Clause */

/* The state of a virtual machine, in the active layer. */

#ifndef QCOW2_VMSTATE_H
#define QCOW2_VMSTATE_H

#include "writer.h"

/* Give up all VM state of the active layer: its references, so what a snapshot
 * has, too, that keeps.  The gate is closed, writer_begin_beside was called,
 * and the caller commits.  After an error some of it may be there.
 */
extern int vmstate_drop (struct writer *w);

#endif /* QCOW2_VMSTATE_H */
