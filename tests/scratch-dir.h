/* SPDX-License-Identifier: BSD-3-Clause */

/* A directory of its own for a test program. */

#ifndef SCRATCH_DIR_H
#define SCRATCH_DIR_H

/* Make an empty directory in $TMPDIR and change to it.  It is removed
 * with all that is in it when the program exits.  Returns its path.
 */
extern const char *scratch_dir_enter (void);

/* The same, in memory if $TMPDIR is not set: for tests that look at what the
 * engine does, not the kernel, and would wait for a disk most of the time.
 */
extern const char *scratch_dir_enter_memory (void);

/* Remove DIR with all that is in it. */
extern void remove_tree (const char *dir);

#endif /* SCRATCH_DIR_H */
