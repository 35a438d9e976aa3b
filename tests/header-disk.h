/* SPDX-License-Identifier: BSD-3-Clause */

/* The first cluster of an image in memory, for tests of the header: a
 * storage that keeps a log of its writes, and random headers to begin
 * with.  What goes wrong here ends the program.
 */

#ifndef HEADER_DISK_H
#define HEADER_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/header-write.h"
#include "qcow2/header.h"
#include "qcow2/storage.h"

#define MAX_CLUSTER 65536
#define SECTOR 512
#define MAX_WRITES 16

struct disk_write {
  uint64_t offset;
  size_t nr_bytes;
  bool done;                    /* and durable; else it has failed */
  uint8_t *data;
};

struct disk {
  struct qcow2_storage storage;
  uint8_t before[MAX_CLUSTER];  /* durable when the log began */
  uint8_t now[MAX_CLUSTER];
  size_t cluster_bytes;
  struct disk_write log[MAX_WRITES];
  unsigned nr_writes;
  unsigned nr_not_durable;
  int fail_at;                  /* this write fails; -1: none */
  bool fail_late;               /* after it has reached the disk */
};

extern const struct qcow2_storage_ops disk_ops;

/* All randomness comes from here. */
extern uint64_t disk_seed;

/* From 0 to N - 1; bytes from 1 to 255; N letters and a NUL. */
extern unsigned disk_random (unsigned n);
extern void disk_random_bytes (uint8_t *buf, size_t n);
extern void disk_random_name (char *buf, size_t n);

/* End the program unless COND. */
extern void disk_must (bool cond, const char *what);

/* Forget the log: what is there now is durable.  No write fails. */
extern void disk_begin_log (struct disk *d);

/* A header of a random version and cluster size, with any extensions; or
 * with none, in which case the result is where they would begin.
 */
extern void disk_make_random (struct disk *d);
extern size_t disk_make_plain (struct disk *d, unsigned version,
                               unsigned cluster_bits);

extern void disk_read_header (struct disk *d, struct header *h);
extern struct header_writer *disk_new_writer (struct disk *d);

extern ssize_t disk_pread (struct qcow2_storage *s, void *buf, size_t count,
                           uint64_t offset);
extern int64_t disk_size (struct qcow2_storage *s);

#endif /* HEADER_DISK_H */
