/* SPDX-License-Identifier: BSD-3-Clause */

/* The parameters create= and create-options=: an image that is made
 * before it is served.
 */

#ifndef PLUGIN_CREATE_H
#define PLUGIN_CREATE_H

#include <stdbool.h>

extern void create_load (void);
extern void create_unload (void);

/* Take a parameter; 1 if it is one of these, 0 if not, or -1 with a
 * message printed.
 */
extern int create_config (const char *key, const char *value);

/* Is an image to be made? */
extern bool create_wanted (void);

/* To be called when all parameters are known: do they go together?  Looks at
 * CONFIG, too.  -1 with a message printed.
 */
extern int create_config_complete (void);

/* Make the image, under QEMU's locks if CONFIG has them.  If it has a data
 * file, CONFIG gets its name, which lives until create_unload.  -1 with errno and a
 * message printed.
 */
extern int create_image (void);

#endif /* PLUGIN_CREATE_H */
