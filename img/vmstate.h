/* SPDX-License-Identifier: BSD-3-Clause */

/* Moving the state of virtual machines between snapshots and files. */

#ifndef IMG_VMSTATE_H
#define IMG_VMSTATE_H

#include "qcow2.h"

/* Write the VM state of the snapshot with this id or name to FILENAME ("-": the
 * standard output); all of it is durable on return.  The image has IMAGE_NAME.
 * Returns 0 or a negative errno, with a message.
 */
extern int img_vmstate_save (struct qcow2 *image, const char *image_name,
                             const char *snapshot, const char *filename,
                             struct qcow2_error *error);

/* Create a snapshot as PARAMS say, but with the VM state that FILENAME ("-":
 * the standard input) holds.  What the active layer has of one is lost.
 * Returns 0 or a negative errno, with a message; no VM state is left then.
 */
extern int img_vmstate_create (struct qcow2 *image, const char *image_name,
                               const struct qcow2_snapshot_params *params,
                               const char *filename,
                               struct qcow2_error *error);

#endif /* IMG_VMSTATE_H */
