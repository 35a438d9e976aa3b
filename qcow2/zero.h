/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeroing and trimming. */

#ifndef QCOW2_ZERO_H
#define QCOW2_ZERO_H

#include "writer.h"

enum zero_mode {
  ZERO_TRIM,                    /* the content is not needed any more */
  ZERO_UNMAP,                   /* zeros, space may be given up */
  ZERO_KEEP,                    /* zeros, space stays allocated */
};

/* Make the range read as zeros (ZERO_TRIM: or as before).  Whole clusters
 * (subclusters) are changed by metadata alone, edges by writing.
 * *IN_PLACE as in write_guest.
 */
extern int zero_guest (struct writer *w, struct epoch_ticket ticket,
                       enum zero_mode mode, uint64_t count, uint64_t offset,
                       bool *in_place);

/* Is zero_guest done without writing as many zeros as there are bytes? */
extern bool zero_is_fast (const struct writer *w, enum zero_mode mode,
                          uint64_t count, uint64_t offset);

/* Can entries of the image's version say that a cluster is zeros?  Else
 * zero_guest writes them (and trims nothing).
 */
extern bool zero_can_mark (const struct writer *w, enum zero_mode mode);

#endif /* QCOW2_ZERO_H */
