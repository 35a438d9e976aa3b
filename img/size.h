/* SPDX-License-Identifier: BSD-3-Clause */

/* Sizes as people write and read them. */

#ifndef IMG_SIZE_H
#define IMG_SIZE_H

#include <stddef.h>
#include <stdint.h>

/* Parse TEXT of a command line, where it is called WHAT: a number of bytes, or
 * one with a suffix (b, k, M, G, T, P, E, powers of 1024), which may have a
 * fraction then; or hexadecimal behind 0x; up to INT64_MAX.  Reports what is
 * wrong and returns -1.
 */
extern int img_size_option (const char *what, const char *text,
                            uint64_t *bytes);

/* Write BYTES for people, as "1.5 MiB". */
extern void img_size_format (char *buf, size_t size, uint64_t bytes);

#endif /* IMG_SIZE_H */
