/* SPDX-License-Identifier: BSD-3-Clause */

/* JSON for the standard output, laid out as QEMU's programs do. */

#ifndef IMG_JSON_H
#define IMG_JSON_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

/* Build objects: KEY gets a value.  Out of memory ends the program.  Strings
 * may hold any bytes.
 */
extern json_t *img_json_object (void);
extern json_t *img_json_array (void);
extern void img_json_set (json_t *object, const char *key, json_t *value);
extern void img_json_set_string (json_t *object, const char *key,
                                 const char *value);
extern void img_json_set_int (json_t *object, const char *key,
                              uint64_t value);
extern void img_json_set_bool (json_t *object, const char *key, bool value);
extern void img_json_append (json_t *array, json_t *value);

/* Print VALUE and a newline.  Keys come in the order in which they were set;
 * what is not ASCII is escaped, and what is not UTF-8 is shown as U+FFFD.
 */
extern void img_json_print (const json_t *value);

/* Print the members of OBJECT for people, one on a line, DEPTH levels
 * indented; dashes in keys become spaces.
 */
extern void img_json_print_human (const json_t *object, int depth);

#endif /* IMG_JSON_H */
