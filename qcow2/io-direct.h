/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device, past the page cache
 * (O_DIRECT).
 */

#ifndef QCOW2_IO_DIRECT_H
#define QCOW2_IO_DIRECT_H

#include "error.h"
#include "storage.h"

/* As qcow2_io_file_new, whose FLAGS these are, but with O_DIRECT, which FD
 * need not have yet.  Takes any requests.  -EINVAL, with a message, where
 * the file system has no such thing.
 */
extern int qcow2_io_direct_new (int fd, const char *filename, unsigned flags,
                                struct qcow2_storage **s,
                                struct qcow2_error *error);

#endif /* QCOW2_IO_DIRECT_H */
