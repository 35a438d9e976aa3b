/* SPDX-License-Identifier: BSD-3-Clause */

/* What the disks of a mutant hold, and whether it stays so: the active layer
 * and the first snapshots, of each the first 512 KiB.
 */

#ifndef FUZZ_CONTENT_H
#define FUZZ_CONTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/qcow2.h"

/* Learn what is there.  What can't be read is not compared later. */
extern void content_learn (struct qcow2 *image);

/* The active layer's bytes are these now; DATA may be NULL, for zeros. */
extern void content_is (uint64_t offset, uint64_t count, const uint8_t *data);

/* Or they may be anything: a request has failed, or it was a trim. */
extern void content_is_unknown (uint64_t offset, uint64_t count);

/* The active layer has another size: what is lost, or added, is zeros if it is
 * seen again.
 */
extern void content_size_is (uint64_t size_bytes);

/* Does the image hold that?  Else *WHERE says where not. */
extern bool content_is_right (struct qcow2 *image, char where[80]);

#endif /* FUZZ_CONTENT_H */
