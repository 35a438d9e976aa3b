/* SPDX-License-Identifier: BSD-3-Clause */

/* The table of internal snapshots (specification: "Snapshots"). */

#ifndef QCOW2_SNAPSHOT_TABLE_H
#define QCOW2_SNAPSHOT_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "header.h"
#include "qcow2.h"
#include "storage.h"

struct snapshot {
  char *id;
  char *name;
  uint64_t l1_offset;
  uint32_t l1_entries;
  uint32_t date_sec;
  uint32_t date_nsec;
  uint64_t vm_clock_nsec;
  uint64_t vm_state_bytes;
  uint64_t disk_size_bytes;     /* the image's own where none is stored */
  bool has_disk_size;           /* one is stored */
  uint64_t icount;              /* QCOW2_NO_ICOUNT where none is stored */

  /* Where the entry lies in the table on disk; without padding. */
  uint64_t entry_offset;
  uint64_t entry_bytes;
};

struct snapshot_table {
  struct snapshot *snapshots;
  size_t nr_snapshots;
  uint64_t table_bytes;         /* on disk */
};

/* Read and check the table of the image in S with header H.  What the
 * entries point to is checked when it is used.  On success the caller
 * calls snapshot_table_clear later.  Memory is bounded by what the file
 * really holds.
 */
extern int snapshot_table_read (struct qcow2_storage *s,
                                const struct header *h,
                                struct snapshot_table *table,
                                struct qcow2_error *error);

/* Describe entry INDEX.  Strings live as long as the table. */
extern void snapshot_table_describe (const struct snapshot_table *table,
                                     size_t index,
                                     struct qcow2_snapshot_info *info);

/* Free the entries, not TABLE. */
extern void snapshot_table_clear (struct snapshot_table *table);

/* The snapshot with this id, else with this name, as qemu-img takes
 * them.  Returns its index or -ENOENT.
 */
extern int snapshot_table_find (const struct snapshot_table *table,
                                const char *id_or_name);

/* The first with this name, or this id.  -ENOENT. */
extern int snapshot_table_find_name (const struct snapshot_table *table,
                                     const char *name);
extern int snapshot_table_find_id (const struct snapshot_table *table,
                                   const char *id);

#endif /* QCOW2_SNAPSHOT_TABLE_H */
