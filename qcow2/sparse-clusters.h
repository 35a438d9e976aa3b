/* SPDX-License-Identifier: BSD-3-Clause */

/* Were data clusters allocated beforehand, so that the file has holes where
 * clusters are in use?
 */

#ifndef QCOW2_SPARSE_CLUSTERS_H
#define QCOW2_SPARSE_CLUSTERS_H

#include <stdbool.h>

#include "layer.h"

/* Are so many clusters of the image in use that its file must have holes?
 * The measure is QEMU's: a ninth more than the space of the file holds, and
 * two at least.  Reads refcount blocks until that is clear; false where they
 * or the space of the file can't be read.  Found out once, and remembered in L.
 */
extern bool sparse_clusters (struct layer *l);

#endif /* QCOW2_SPARSE_CLUSTERS_H */
