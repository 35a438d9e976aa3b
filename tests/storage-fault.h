/* SPDX-License-Identifier: BSD-3-Clause */

/* System calls that write, made to fail and counted.  A program that
 * uses this has them all replaced.
 */

#ifndef STORAGE_FAULT_H
#define STORAGE_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct storage_fault {
  size_t most;                  /* bytes that a write takes, 0: all */
  unsigned delay_us;            /* before a write */
  int interrupts;               /* how many calls give EINTR */
  int write_errno;
  bool write_nothing;
  int dsync_errno;              /* for writes with RWF_DSYNC */
  int fallocate_errno;
  int fdatasync_errno;
  int lost_errno;               /* told once, by sync_file_range */
  bool no_witness;              /* ... which the kernel does not know */
};

struct storage_calls {
  _Atomic unsigned writes;      /* those with RWF_DSYNC, too */
  _Atomic unsigned in_progress; /* writes, now; and at most */
  _Atomic unsigned most_at_once;
  _Atomic unsigned dsyncs;
  _Atomic unsigned fdatasyncs;
  _Atomic unsigned witnesses;   /* sync_file_range */
  _Atomic unsigned fallocates;
  _Atomic unsigned discards;    /* BLKDISCARD */
  /* Of the last two, with a range that does not consist of pages. */
  _Atomic unsigned parts_of_pages;
};

extern struct storage_fault fault;
extern struct storage_calls calls;

/* From here on nothing fails; begin to count. */
extern void no_faults (void);

#endif /* STORAGE_FAULT_H */
