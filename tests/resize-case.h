/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that are resized, and what must be true of them whatever happens. */

#ifndef RESIZE_CASE_H
#define RESIZE_CASE_H

#include "qcow2/qcow2.h"
#include "write-log.h"

#define RESIZE_IMAGE "disk.qcow2"

struct resize_case {
  const char *name;
  const char *make;             /* shell command that makes the image, and
                                   its data file data.raw or its backing file
                                   base.qcow2 if it has one */
  uint64_t size_bytes;          /* to be given */
  enum qcow2_preallocation preallocation;
  bool snapshot;
  bool small_cache;             /* the smallest: it commits half-way */
};

extern const struct resize_case resize_cases[];
extern const unsigned nr_resize_cases;

/* Call FN with each case, or with the one that the environment variable
 * RESIZE_CASE names.
 */
extern void resize_cases_test (void (*fn) (const struct resize_case *c));

/* What an image of the case may hold. */
struct resize_truth {
  const struct resize_case *c;
  uint8_t *content;             /* of the larger size, zeros at the end */
  uint64_t old_bytes;
  uint8_t *snapshot;            /* its content, or NULL */
  uint64_t snapshot_bytes;
  uint64_t size_bytes;          /* that was found last */
};

/* Make the image here; the caller clears TRUTH. */
extern void resize_make (const struct resize_case *c,
                         struct resize_truth *truth);
extern void resize_clear (struct resize_truth *truth);

/* Open DIR's image to be written, with LOG (may be NULL), as the case C wants
 * it (may be NULL).  NULL: an error, which is in ERROR.
 */
extern struct qcow2 *resize_open (const struct resize_case *c,
                                  const char *dir, struct write_log *log,
                                  struct qcow2_error *error);

/* Resize it as the case says, and close it.  Returns the first error. */
extern int resize_do (const struct resize_case *c, const char *dir,
                      struct write_log *log, struct qcow2_error *error);

/* Has the image in DIR the old size or the new one, and the content that
 * belongs to it?  Returns what is wrong, or NULL.
 */
extern const char *resize_judge (struct resize_truth *truth,
                                 const char *dir);

/* Let DIR's image grow: does it read as before, and zeros behind that?  Is it
 * sound then?  It is changed.
 */
extern const char *resize_judge_grown (struct resize_truth *truth,
                                       const char *dir);

#endif /* RESIZE_CASE_H */
