/* SPDX-License-Identifier: BSD-3-Clause */

/* How far long work has come: on the standard output with -p, else on the
 * standard error output each time the process gets SIGUSR1.
 */

#ifndef IMG_PROGRESS_H
#define IMG_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* Begin work of TOTAL bytes (or other units). */
extern void img_progress_begin (bool shown, uint64_t total);

/* DONE more of them are done; from any thread. */
extern void img_progress_add (uint64_t done);

/* All is done that will be done: the line of progress, if there is one, is
 * ended.
 */
extern void img_progress_end (void);

#endif /* IMG_PROGRESS_H */
