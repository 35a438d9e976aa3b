/* SPDX-License-Identifier: BSD-3-Clause */

/* The LUKS1 header of an encrypted image (specification: "Full disk
 * encryption header pointer", and the LUKS1 on-disk format).
 */

#ifndef QCOW2_LUKS_HEADER_H
#define QCOW2_LUKS_HEADER_H

#include "error.h"
#include "header.h"
#include "qcow2.h"
#include "storage.h"

/* Read what the LUKS header of the image in S with header H says, without
 * any key.  -EINVAL if there is none, or it is damaged.
 */
extern int luks_header_read (struct qcow2_storage *s, const struct header *h,
                             struct qcow2_luks_info *info,
                             struct qcow2_error *error);

#endif /* QCOW2_LUKS_HEADER_H */
