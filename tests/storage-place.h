/* SPDX-License-Identifier: BSD-3-Clause */

/* Files and block devices to test storage on. */

#ifndef STORAGE_PLACE_H
#define STORAGE_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "qcow2/storage.h"

/* "disk" or "tmpfs", for messages; and a directory there. */
extern const char *where;
extern char place_dir[200];

/* Run TESTS on a disk and in memory. */
extern void in_each_place (void (*tests) (void));

/* Run TESTS in a directory below PARENT, with NAME for messages. */
extern void in_place (const char *parent, const char *name,
                      void (*tests) (void));

/* End the program unless COND. */
extern void must (bool cond, const char *what);

/* An empty file of SIZE, opened with FLAGS; the same as storage that can
 * be written; storage of any descriptor.
 */
extern int make_file (off_t size, int flags);
extern struct qcow2_storage *file_storage (off_t size);
extern struct qcow2_storage *storage_of (int fd);

/* A loop device over FD, which goes to it. */
extern int make_loop_device (int fd, unsigned sector_bytes);

/* How many 512-byte blocks FD takes. */
extern int64_t blocks_of (int fd);

/* Write NR_BYTES (at most 1 MiB) of 'x' from the beginning on. */
extern void fill (struct qcow2_storage *s, size_t nr_bytes);

#endif /* STORAGE_PLACE_H */
