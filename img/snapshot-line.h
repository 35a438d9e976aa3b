/* SPDX-License-Identifier: BSD-3-Clause */

/* Snapshots as a table for people. */

#ifndef IMG_SNAPSHOT_LINE_H
#define IMG_SNAPSHOT_LINE_H

#include "qcow2.h"

extern void img_snapshot_print_heading (void);
extern void img_snapshot_print (const struct qcow2_snapshot_info *sn);

#endif /* IMG_SNAPSHOT_LINE_H */
