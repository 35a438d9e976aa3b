/* SPDX-License-Identifier: BSD-3-Clause */

/* Creating an image: the parts of which qcow2_create is made. */

#ifndef QCOW2_CREATE_H
#define QCOW2_CREATE_H

#include "create-layout.h"
#include "error.h"
#include "header-layout.h"
#include "qcow2.h"

/* Do the options go together?  -EINVAL if not, -ENOTSUP for what is not
 * built in; the message does not name the file.
 */
extern int create_options_check (const struct qcow2_create_options *options,
                                 struct qcow2_error *error);

/* Make the first cluster: fields, extensions, the name of the backing
 * file whose format is BACKING_FORMAT (NULL if there is none).  The caller
 * clears HEADER.  -EINVAL if the names don't fit; -ENOMEM.
 */
extern int create_header (const struct qcow2_create_options *options,
                          const char *backing_format,
                          const struct create_layout *layout,
                          struct header_layout *header,
                          struct qcow2_error *error);

/* Give FILE and DATA (NULL: there is no data file), which are new, their
 * sizes, and the space that PREALLOCATION asks for.  Both read as zeros.
 */
extern int preallocate_space (struct qcow2_storage *file,
                              struct qcow2_storage *data,
                              const struct create_layout *layout,
                              enum qcow2_preallocation preallocation);

/* Take the space of BYTES at OFFSET, which read as zeros: reserve it, or where
 * that is not possible, or all is to be written, write zeros.
 */
extern int preallocate_range (struct qcow2_storage *s, uint64_t offset,
                              uint64_t bytes,
                              enum qcow2_preallocation preallocation);

/* Write all tables of LAYOUT to FILE, which reads as zeros, in pieces of
 * bounded size.
 */
extern int preallocate_tables (struct qcow2_storage *file,
                               const struct create_layout *layout);

#endif /* QCOW2_CREATE_H */
