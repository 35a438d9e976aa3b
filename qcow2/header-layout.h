/* SPDX-License-Identifier: BSD-3-Clause */

/* The first cluster as bytes: which of them the header refers to, and
 * what it looks like with other extensions and names.  Pure, no I/O.
 */

#ifndef QCOW2_HEADER_LAYOUT_H
#define QCOW2_HEADER_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define SECTOR_BYTES 512

/* The part of the first cluster that is in use. */
struct header_layout {
  uint8_t *bytes;
  uint8_t *live;                /* for each byte: 1 if it means something */
  size_t nr_bytes;              /* whole sectors */
};

/* Make a layout for NR_BYTES, rounded up to sectors: zeros, none of which
 * mean anything.  The caller clears it.  -ENOMEM.
 */
extern int header_layout_new (size_t nr_bytes, struct header_layout *layout);

/* Make a layout of CLUSTER, the first cluster as on disk, whose fields
 * take HEADER_BYTES.  The caller clears it.  -EINVAL with a message if
 * the extensions are damaged; -ENOMEM.
 */
extern int header_layout_parse (const uint8_t *cluster, size_t cluster_bytes,
                                size_t header_bytes,
                                struct header_layout *layout,
                                struct qcow2_error *error);

extern void header_layout_clear (struct header_layout *layout);

/* One past the last byte that means something. */
extern size_t header_layout_end (const struct header_layout *layout);

/* Could NEW be written around OLD, that is: is no byte beyond sector 0
 * that means something in both another one in NEW?
 */
extern bool header_layout_compatible (const struct header_layout *old,
                                      const struct header_layout *new_layout);

/* What is to take the place of an extension; no bytes: it is removed. */
struct extension_change {
  uint32_t type;
  const void *data;
  size_t length_bytes;
};

/* Extensions in a row with the end marker, as on disk. */
struct extension_list {
  uint8_t *bytes;
  size_t nr_bytes;
  size_t room_bytes;
};

/* Make the list of LAYOUT's extensions with NR CHANGES applied: what is
 * not changed is kept byte for byte and in its order, what is new comes
 * last.  DROP_NAMES leaves the feature name table out.  The caller frees
 * list->bytes.  -ENOBUFS if it is longer than ROOM_BYTES; -ENOMEM.
 */
extern int header_layout_extensions (const struct header_layout *layout,
                                     size_t header_bytes,
                                     const struct extension_change *changes,
                                     size_t nr, bool drop_names,
                                     size_t room_bytes,
                                     struct extension_list *list);

/* What a layout is made of, and where it goes. */
struct header_plan {
  const uint8_t *fields;        /* HEADER_BYTES of them */
  size_t header_bytes;
  size_t cluster_bytes;
  const struct extension_list *extensions;
  size_t extensions_offset;     /* header_bytes, or behind a gap */
  const void *name;             /* of the backing file, or NULL */
  size_t name_bytes;
  size_t name_offset;           /* behind the extensions */
};

/* -ENOBUFS if it does not fit the cluster; -ENOMEM. */
extern int header_layout_build (const struct header_plan *plan,
                                struct header_layout *layout);

#endif /* QCOW2_HEADER_LAYOUT_H */
