/* SPDX-License-Identifier: BSD-3-Clause */

/* Was nbdkit started so that no client can write? */

#ifndef PLUGIN_READONLY_H
#define PLUGIN_READONLY_H

#include <stdbool.h>

/* True if nbdkit's command line has -r, or the cow filter, which never
 * writes to what is below it.  False if there is neither, or if the
 * command line can't be read.  An estimate, see plugin-readonly.c; to be
 * called before nbdkit forks, by one thread.
 */
extern bool started_read_only (void);

#endif /* PLUGIN_READONLY_H */
