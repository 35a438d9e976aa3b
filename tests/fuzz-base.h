/* SPDX-License-Identifier: BSD-3-Clause */

/* The pristine images that test-fuzz mutates. */

#ifndef FUZZ_BASE_H
#define FUZZ_BASE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUZZ_MAX_RANGES 64
#define FUZZ_NR_BASES 9

struct fuzz_range {
  uint64_t offset, bytes;
};

struct fuzz_base {
  const char *path;
  uint8_t *bytes;
  size_t nr_bytes;
  struct fuzz_range ranges[FUZZ_MAX_RANGES]; /* metadata */
  unsigned nr_ranges;
};

extern struct fuzz_base fuzz_bases[FUZZ_NR_BASES];

/* Make all images in the current directory, with QEMU, and load them. */
extern void fuzz_bases_make (void);

/* The number of WIDTH bytes at OFFSET; 0 beyond the end. */
extern uint64_t fuzz_base_number (const struct fuzz_base *b, uint64_t offset,
                                  unsigned width);

/* End the test if COND is false: nothing can be tested. */
static inline void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

#endif /* FUZZ_BASE_H */
