/* SPDX-License-Identifier: BSD-3-Clause */

/* Images of all kinds for operations on internal snapshots, and all that
 * such an image holds.
 */

#ifndef SNAPSHOT_SUBJECT_H
#define SNAPSHOT_SUBJECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/qcow2.h"

#define SNAPSHOT_IMAGE "disk.qcow2"

enum snapshot_operation {
  SNAPSHOT_CREATE,
  SNAPSHOT_CREATE_VM,           /* with the state of a virtual machine */
  SNAPSHOT_APPLY,               /* the first */
  SNAPSHOT_DELETE,              /* the last */
};

#define NR_SNAPSHOT_OPERATIONS 4

struct snapshot_subject {
  const char *name;
  const char *make;             /* shell command that makes the image */
  unsigned version;
};

extern const struct snapshot_subject snapshot_subjects[];
extern const unsigned nr_snapshot_subjects;

extern const char *snapshot_operation_name (enum snapshot_operation op);

/* Make the image in the current directory. */
extern void snapshot_subject_make (const struct snapshot_subject *s);

/* Options without locks, with large caches, logging nowhere. */
extern void snapshot_subject_options (struct qcow2_options *options);

extern int snapshot_operate (struct qcow2 *image, enum snapshot_operation op,
                             struct qcow2_error *error);

/* All that an image holds: content, size and VM state of the active layer and
 * of each snapshot, and all that is known of these.
 */
struct image_content {
  uint8_t *bytes;
  size_t nr, room;
};

/* Of an open image, in C.  Returns a negative errno. */
extern int image_content_get (struct qcow2 *image, struct image_content *c);

/* Of a file. */
extern int image_content_read (const char *filename, struct image_content *c,
                               struct qcow2_error *error);
extern void image_content_clear (struct image_content *c);
extern bool image_content_same (const struct image_content *a,
                                const struct image_content *b);

/* What qcow2_check finds in a file: leaks count; so do COPIED flags that are
 * missing, if refcounts are 1; all else is BAD.
 */
struct snapshot_check {
  uint64_t nr_leaks, nr_missing_flags, nr_bad;
  char first[300];              /* that is bad */
};

extern void snapshot_check_file (const char *filename,
                                 struct snapshot_check *check);

/* Call FN with each subject and each operation, or with the subject alone that
 * the environment variable SNAPSHOT_SUBJECT names.  The image is in pristine/.
 */
typedef void snapshot_test_fn (const struct snapshot_subject *s,
                               enum snapshot_operation op);
extern void snapshot_subjects_test (snapshot_test_fn *fn);

#endif /* SNAPSHOT_SUBJECT_H */
