/* SPDX-License-Identifier: BSD-3-Clause */

/* Images of all kinds, and random requests that change them. */

#ifndef WRITE_SUBJECT_H
#define WRITE_SUBJECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest-model.h"
#include "qcow2/qcow2.h"
#include "write-log.h"

#define SUBJECT_IMAGE "disk.qcow2"
#define SUBJECT_SNAPSHOT "snap"

struct write_subject {
  const char *name;
  const char *create;           /* shell command that makes the files */
  uint64_t disk_bytes;
  uint64_t start_bytes;         /* not 0: the disk has this size at first,
                                   and grows to the other */
  uint64_t cluster_bytes;
  unsigned nr_before;           /* requests of QEMU before */
  unsigned kinds_before;        /* WRITE_ZEROES... of qemu-image.h */
  bool snapshot;                /* taken after these */
  const char *data_file;
  uint64_t spare_bytes;         /* the file has this size, and keeps it */

  unsigned nr_threads;
  unsigned nr_ops;              /* of each thread */
  uint64_t max_bytes;           /* of a request */
  unsigned percent_zero;
  unsigned percent_trim;
  unsigned nr_sessions;         /* the image is closed and opened again */
  unsigned nr_parts;            /* of a session: all views are closed after
                                   each; 0 is 1 */
  uint64_t cache_bytes;
  enum qcow2_cache_mode cache;
  enum qcow2_detect_zeroes detect_zeroes; /* half of all zeroes are writes */
  uint64_t batch_bytes;         /* of a commit; 0: as usual */
};

extern const struct write_subject write_subjects[];
extern const unsigned nr_write_subjects;

/* Make the image in the current directory. */
extern void subject_make (const struct write_subject *s, uint64_t *state);

/* Options for the image in DIR, read-only; valid in this thread until the
 * next call.
 */
extern void subject_options (const struct write_subject *s, const char *dir,
                             struct qcow2_options *options);

/* Open DIR's image read-only, and read all of it (or of its snapshot) to
 * BUF; what is missing to the disk's full size reads as zeros.  Returns a
 * negative errno, with a message.
 */
extern int subject_read (const struct write_subject *s, const char *dir,
                         bool snapshot, uint8_t *buf,
                         struct qcow2_error *error);

/* The same of the image here, malloced; an error ends the test. */
extern uint8_t *subject_must_read (const struct write_subject *s,
                                   bool snapshot);

/* Open DIR's image for writing, which repairs it, and close it.  Returns
 * a negative errno; -EROFS: it could not be repaired.
 */
extern int subject_repair (const struct write_subject *s, const char *dir);

/* One round of requests from all threads, noted in GUEST.  Returns how
 * many failed.
 */
extern unsigned subject_run (const struct write_subject *s,
                             struct qcow2_view *view, struct write_log *log,
                             struct guest *guest, uint64_t seed);

#endif /* WRITE_SUBJECT_H */
