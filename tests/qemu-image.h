/* SPDX-License-Identifier: BSD-3-Clause */

/* Images with random content, made by qemu-img and qemu-io.
 *
 * A failure of these programs, or of the system, ends the test program.
 */

#ifndef QEMU_IMAGE_H
#define QEMU_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A pseudo-random number; *STATE is not 0. */
extern uint64_t random_next (uint64_t *state);

/* Below LIMIT, which is not 0. */
extern uint64_t random_below (uint64_t *state, uint64_t limit);

/* Run a shell command, printf-like. */
extern void run_command (const char *fs, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* The whole file; the caller frees it. */
extern uint8_t *file_content (const char *filename, uint64_t *bytes);

/* The content of a qcow2 image as QEMU reads it, of its snapshot if
 * SNAPSHOT is not NULL; the caller frees it.
 */
extern uint8_t *qemu_content (const char *image, const char *snapshot,
                              uint64_t *bytes);

/* Which requests random_writes makes, besides writes of data. */
#define WRITE_ZEROES     1      /* plain zero clusters */
#define WRITE_UNMAP      2      /* zeroes that may be deallocated */
#define WRITE_COMPRESSED 4      /* compressed clusters */

/* Write to the image (qcow2, or raw) with NR_WRITES requests at random places
 * below SIZE_BYTES.  MAX_BYTES is the longest.  Compressed clusters are
 * of CLUSTER_BYTES.
 */
extern void random_writes (const char *format, const char *image,
                           uint64_t size_bytes, uint64_t max_bytes,
                           uint64_t cluster_bytes, unsigned nr_writes,
                           unsigned kinds, uint64_t *state);

#endif /* QEMU_IMAGE_H */
