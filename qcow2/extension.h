/* SPDX-License-Identifier: BSD-3-Clause */

/* Header extensions (specification: "Header extensions"). */

#ifndef QCOW2_EXTENSION_H
#define QCOW2_EXTENSION_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "header.h"

/* Read the extensions, which begin at h->header_bytes of the first
 * cluster CLUSTER and must end at END or before, into H.  Those we don't
 * know are kept in h->unknown_extensions.  FILE_BYTES bounds what they
 * point to.  On error H holds what the caller frees with header_clear.
 */
extern int extension_read_all (const uint8_t *cluster, size_t end,
                               uint64_t file_bytes, struct header *h,
                               struct qcow2_error *error);

/* Write the names of the feature BITS of a type (enum feature_type) to
 * BUF, separated by commas: from the image's feature name table, or
 * "bit N" where it has no name.
 */
extern void extension_feature_names (const struct header *h, uint8_t type,
                                     uint64_t bits, char *buf, size_t len);

#endif /* QCOW2_EXTENSION_H */
