/* SPDX-License-Identifier: BSD-3-Clause */

/* Header extensions (specification: "Header extensions"). */

#ifndef QCOW2_EXTENSION_H
#define QCOW2_EXTENSION_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "header.h"

/* An extension where it lies in the first cluster. */
struct extension {
  uint32_t type;
  uint32_t length_bytes;
  const uint8_t *data;
};

/* Where the extensions of the first cluster CLUSTER must end, at the
 * latest: at the backing file's name, or with the cluster.
 */
extern size_t extension_bound (const uint8_t *cluster, size_t cluster_bytes);

/* Walk over the extensions, which end at END or before.  *OFFSET is
 * h->header_bytes for the first.  Returns 1, with *X and *OFFSET behind
 * it and its padding, which may lie past END; 0 after the last, with *OFFSET
 * behind the end marker, if there is one; -EINVAL if it is too long.
 */
extern int extension_next (const uint8_t *cluster, size_t end,
                           size_t *offset, struct extension *x,
                           struct qcow2_error *error);

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
