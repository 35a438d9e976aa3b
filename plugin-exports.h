/* SPDX-License-Identifier: BSD-3-Clause */

/* The exports of an image: '' is the active layer (or what snapshot=
 * chose), then one for each internal snapshot, by name.
 *
 * Export 0 is ''.  A name that more than one snapshot has, or that no
 * NBD client could ask for, or that ends like this replacement, is
 * replaced by "NAME (id ID)".
 */

#ifndef PLUGIN_EXPORTS_H
#define PLUGIN_EXPORTS_H

#include <stddef.h>

#include "qcow2/qcow2.h"

struct exports;

/* IMAGE must outlive the exports.  NULL with errno on error. */
extern struct exports *exports_new (struct qcow2 *image);

/* EXPORTS may be NULL. */
extern void exports_free (struct exports *exports);

/* None, where EXPORTS is NULL. */
extern size_t exports_count (const struct exports *exports);
extern const char *exports_name (const struct exports *exports, size_t i);

/* One line about export I, malloced, or NULL with errno. */
extern char *exports_describe (const struct exports *exports, size_t i);

/* Returns 0 and the export's number in *I, or -ENOENT. */
extern int exports_find (const struct exports *exports, const char *name,
                         size_t *i);

/* Make '' the snapshot that qemu-img takes ID_OR_NAME for: an id goes
 * before a name.  -ENOENT if there is none; '' can't be opened then.
 */
extern int exports_set_default (struct exports *exports,
                                const char *id_or_name);

/* Can '' be opened?  As exports_open, but leaves nothing open. */
extern int exports_check_default (const struct exports *exports,
                                  struct qcow2_error *error);

extern int exports_open (const struct exports *exports, size_t i,
                         struct qcow2_view **view, struct qcow2_error *error);

#endif /* PLUGIN_EXPORTS_H */
