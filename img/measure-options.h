/* SPDX-License-Identifier: BSD-3-Clause */

/* The -o options of qcow2-img measure. */

#ifndef IMG_MEASURE_OPTIONS_H
#define IMG_MEASURE_OPTIONS_H

#include <stdbool.h>

#include "qcow2.h"

struct img_measure_options {
  bool is_qcow2;                /* the new image; else it is raw */
  struct qcow2_create_options create;
};

/* Set the defaults for a new image of FORMAT: "raw" or "qcow2".  Reports an
 * unknown format, and returns -1.  The caller clears OPTIONS in any case.
 */
extern int img_measure_options_init (struct img_measure_options *options,
                                     const char *format);

extern void img_measure_options_clear (struct img_measure_options *options);

/* Set what TEXT says: "name=value,...", with the options of qemu-img create;
 * a comma in a value is written twice.  Reports what is wrong, and returns
 * -1.
 */
extern int img_measure_options_parse (struct img_measure_options *options,
                                      const char *text);

/* Do those that the size depends on go together?  Reports what is wrong, and
 * returns -1.
 */
extern int img_measure_options_check (const struct img_measure_options *o);

/* What the engine is to measure. */
extern void
img_measure_options_engine (const struct img_measure_options *options,
                            struct qcow2_measure_options *engine);

#endif /* IMG_MEASURE_OPTIONS_H */
