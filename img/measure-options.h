/* SPDX-License-Identifier: BSD-3-Clause */

/* The -o options of qcow2-img measure. */

#ifndef IMG_MEASURE_OPTIONS_H
#define IMG_MEASURE_OPTIONS_H

#include <stdbool.h>

#include "qcow2.h"

struct img_measure_options {
  bool is_qcow2;                /* the new image; else it is raw */
  unsigned version;
  struct qcow2_measure_options engine;
  bool has_backing;
};

/* Set the defaults for a new image of FORMAT: "raw" or "qcow2".  Reports an
 * unknown format, and returns -1.
 */
extern int img_measure_options_init (struct img_measure_options *options,
                                     const char *format);

/* Set what TEXT says: "name=value,...", with the options of qemu-img create;
 * a comma in a value is written twice.  Reports what is wrong, and returns
 * -1.
 */
extern int img_measure_options_parse (struct img_measure_options *options,
                                      const char *text);

/* Do they go together?  Reports what is wrong, and returns -1. */
extern int img_measure_options_check (const struct img_measure_options *o);

#endif /* IMG_MEASURE_OPTIONS_H */
