/* SPDX-License-Identifier: BSD-3-Clause */

/* The options of a new image, and how the line "Formatting ..." shows them. */

#ifndef IMG_CREATE_OPTIONS_H
#define IMG_CREATE_OPTIONS_H

#include "qcow2.h"

/* As many as img_create_options knows. */
#define IMG_NR_CREATE_OPTIONS 13

struct img_create_options {
  struct qcow2_create_options engine;
  char *texts[IMG_NR_CREATE_OPTIONS]; /* as the user gave them, or NULL */
};

extern void img_create_options_init (struct img_create_options *options);
extern void img_create_options_clear (struct img_create_options *options);

/* Set what TEXT says, "name=value,...", or one option.  Reports what is
 * wrong, naming FILENAME, and returns -1.
 */
extern int img_create_options_parse (struct img_create_options *options,
                                     const char *filename, const char *text);
extern int img_create_options_set (struct img_create_options *options,
                                   const char *filename, const char *name,
                                   const char *value);

/* Does TEXT ask which options there are? */
extern bool img_create_options_want_help (const char *text);

/* Tell which. */
extern void img_create_options_help (void);

/* Print all that are set, or have a default, as qemu-img does: in its order,
 * with a space before each.  The disk has DISK_BYTES.
 */
extern void img_create_options_print (const struct img_create_options *o,
                                      uint64_t disk_bytes);

#endif /* IMG_CREATE_OPTIONS_H */
