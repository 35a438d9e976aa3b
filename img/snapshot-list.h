/* SPDX-License-Identifier: BSD-3-Clause */

/* Snapshots as a table for people. */

#ifndef IMG_SNAPSHOT_LIST_H
#define IMG_SNAPSHOT_LIST_H

#include "qcow2.h"

/* Nothing, if the image has none. */
extern void img_snapshots_print (const struct qcow2_info *info);

#endif /* IMG_SNAPSHOT_LIST_H */
