/* SPDX-License-Identifier: BSD-3-Clause */

/* The files of a new image: made, or taken over from what was there. */

#ifndef QCOW2_CREATE_FILE_H
#define QCOW2_CREATE_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "error.h"
#include "qcow2.h"

/* A file that is being made.  The caller sets NAME, closes STORAGE and frees
 * both.
 */
struct new_file {
  char *name;
  struct qcow2_storage *storage; /* NULL: not open */
  bool is_device;
  bool is_ours;                 /* made here: to be removed on error */
  bool overwrites;              /* what was there before */
  bool has_begun;               /* ... and is gone now */
  struct stat st;
};

/* Make a storage of FD, which is taken over, and let the hook of OPTIONS have
 * it.
 */
extern int new_file_storage (const struct qcow2_create_options *options,
                             int fd, const char *name,
                             enum qcow2_storage_role role, bool writable,
                             struct qcow2_storage **s,
                             struct qcow2_error *error);

/* Make FILE, or open what is there: a device, or with options->overwrite a
 * regular file that isn't BACKING (may be NULL).  Nothing in it is changed
 * yet.  Errors of qcow2_create.
 */
extern int new_file_open (struct new_file *file, enum qcow2_storage_role role,
                          const struct qcow2_create_options *options,
                          const struct stat *backing,
                          struct qcow2_error *error);

/* From now on FILE is new, durably: a file is empty, and of a device that is
 * overwritten the first HEADER_BYTES are zeros.
 */
extern int new_file_begin (struct new_file *file, size_t header_bytes);

/* Make the name of a file durable: it was made, perhaps through a link.  Does
 * nothing for a device.
 */
extern int new_file_sync_directory (const struct new_file *file,
                                    struct qcow2_error *error);

/* It can't be completed: remove FILE if it was made here, and give its space
 * back if it was there before.
 */
extern void new_file_undo (struct new_file *file);

#endif /* QCOW2_CREATE_FILE_H */
