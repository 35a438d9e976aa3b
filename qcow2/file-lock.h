/* SPDX-License-Identifier: BSD-3-Clause */

/* QEMU's byte-range locks on image files.
 *
 * A process holds a shared lock on one byte for each permission that it
 * uses (from byte 100) and for each that it denies to others (from byte
 * 200), and then looks whether another holds the opposite byte.  These
 * are OFD locks: they belong to the open file description, so they
 * survive fork, and end with the last close.
 */

#ifndef QCOW2_FILE_LOCK_H
#define QCOW2_FILE_LOCK_H

#include <stdbool.h>

#include "error.h"

/* Are there locks on the filesystem of FD?  Some network and FUSE
 * filesystems have none.
 */
extern bool qcow2_file_has_locks (int fd);

/* Lock FD as a reader of a consistent image: others may read, none may
 * write or resize.  -EAGAIN, with a message that names FILENAME, if it
 * is open for writing elsewhere.  A filesystem that has no locks is no
 * error, nor is one that can't be asked about them (ENOLCK); that a lock
 * can't be had is one.  The locks go away when FD is closed.
 */
extern int qcow2_file_lock_read (int fd, const char *filename,
                                 struct qcow2_error *error);

/* Lock FD, which is open for reading, as a writer: others may neither
 * write nor resize, nor read an image that must not change meanwhile.
 * -EAGAIN as above, if the file is open for either elsewhere.  -ENOLCK where
 * locks can't be asked about: others may have theirs.
 */
extern int qcow2_file_lock_write (int fd, const char *filename,
                                  struct qcow2_error *error);

#endif /* QCOW2_FILE_LOCK_H */
