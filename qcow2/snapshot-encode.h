/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a snapshot table that is to replace another. */

#ifndef QCOW2_SNAPSHOT_ENCODE_H
#define QCOW2_SNAPSHOT_ENCODE_H

#include "snapshot-table.h"

/* As it will be in memory and on disk.  Strings belong to the old table, but
 * for those of an entry that was added.
 */
struct next_snapshots {
  struct snapshot_table table;
  uint8_t *bytes;               /* table.table_bytes of them */
  struct snapshot *added;       /* in TABLE, or NULL */
};

#define NO_SNAPSHOT SIZE_MAX

/* OLD, the table of the image in S with header H, without entry SKIP (which
 * may be NO_SNAPSHOT), and with a copy of ADD (which may be NULL) behind it.
 * What is kept of it stays byte for byte, with extra data that is not known
 * here.  -EFBIG: more entries or bytes than the format has; -ENOMEM, errors of
 * reading.  On success the caller calls one of those below.
 */
extern int next_snapshots_init (struct next_snapshots *next,
                                struct qcow2_storage *s,
                                const struct header *h,
                                const struct snapshot_table *old,
                                size_t skip, const struct snapshot *add);

/* It did not come to that. */
extern void next_snapshots_clear (struct next_snapshots *next);

/* It has replaced OLD on disk: now in memory. */
extern void next_snapshots_replace (struct next_snapshots *next,
                                    struct snapshot_table *old, size_t skip);

#endif /* QCOW2_SNAPSHOT_ENCODE_H */
