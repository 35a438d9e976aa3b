/* SPDX-License-Identifier: BSD-3-Clause */

/* What the engine says of an image, and what QEMU says.
 *
 * QEMU is the judge of the format.  For each image that was tampered
 * with, a test says what it expects here, and QEMU is asked too: what it
 * refuses or can't read, and what reads the same there, needs no words.
 * Where the engine is stricter, the test gives the reason; where QEMU is
 * stricter, also.  Either must be true: an image about which both agree
 * must not come with a reason.
 */

#ifndef VERDICT_H
#define VERDICT_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/qcow2.h"
#include "tap.h"

/* How much of a disk is looked at. */
#define VERDICT_MAX_BYTES (UINT64_C (1) << 20)

struct verdict {
  int err;                      /* 0, or a negative errno */
  bool opened;                  /* then ERR is of reading */
  char message[2048];           /* why not: of opening, or the last error */
  char warning[2048];           /* the last one */
  uint64_t size_bytes;          /* the disk's */
  uint8_t *content;             /* its first bytes, read in one go */
  size_t content_bytes;
  bool extents_lie;             /* a hole or zero extent has data */
};

/* Fill in options that log into V: small caches, and V's messages. */
extern void verdict_options (struct verdict *v,
                             struct qcow2_options *options);

/* Open PATH (its SNAPSHOT, or the active layer if NULL), read it, list
 * its extents, prefetch it, close it.  OPTIONS as verdict_options made
 * them, for the same V.
 */
extern void verdict_ours (struct verdict *v, const char *path,
                          const char *snapshot,
                          const struct qcow2_options *options);

/* What QEMU reads; ERR is -EIO for whatever error. */
extern void verdict_qemu (struct verdict *v, const char *path,
                          const char *snapshot);

/* Free what V points to. */
extern void verdict_clear (struct verdict *v);

/* Whether the common part of what both have read is equal. */
extern bool verdict_same (const struct verdict *a, const struct verdict *b);

/* What a test expects of an image. */
struct expectation {
  const char *what;             /* tells the tests apart */
  const char *path;
  const char *snapshot;         /* or NULL */
  int err;                      /* positive errno, or 0 */
  const char *message;          /* part of the message, with ERR */
  const char *named;            /* file that it names; NULL: PATH */
  const char *warning;          /* part of a warning, or NULL for none */
  const char *stricter;         /* why QEMU reads it and we don't */
  const char *looser;           /* why we read it and QEMU doesn't */
};

static inline void
expect_ours (const struct expectation *e, const struct verdict *ours)
{
  is_int (-ours->err, e->err, "%s: errno", e->what);
  if (ours->err < 0) {
    ok (e->message && strstr (ours->message, e->message),
        "%s: message has \"%s\"", e->what, e->message ? e->message : "?");
    ok (strstr (ours->message, e->named ? e->named : e->path) != NULL,
        "%s: message names the file", e->what);
  }
  if (e->warning)
    ok (strstr (ours->warning, e->warning) != NULL,
        "%s: warning has \"%s\"", e->what, e->warning);
  else
    is_str (ours->warning, "", "%s: no warning", e->what);
  ok (!ours->extents_lie, "%s: extents tell the truth", e->what);
  if (tap_failed)
    printf ("# %s\n", ours->message);
}

static inline void
expect_qemu (const struct expectation *e, const struct verdict *ours,
             const struct verdict *qemu)
{
  bool refused = ours->err < 0, refused_there = qemu->err < 0;

  if (e->stricter)
    ok (refused && !refused_there, "%s: stricter than QEMU: %s", e->what,
        e->stricter);
  else if (e->looser)
    ok (!refused && refused_there, "%s: QEMU is stricter: %s", e->what,
        e->looser);
  else
    ok (refused == refused_there && verdict_same (ours, qemu),
        "%s: %s by QEMU, too", e->what, refused ? "refused" : "read");
}

/* Judge an image with OPTIONS (NULL: the usual ones). */
static inline void
expect_with (const struct expectation *e, struct verdict *ours,
             const struct qcow2_options *options)
{
  struct verdict qemu;

  verdict_ours (ours, e->path, e->snapshot, options);
  expect_ours (e, ours);
  verdict_qemu (&qemu, e->path, e->snapshot);
  expect_qemu (e, ours, &qemu);
  verdict_clear (&qemu);
  verdict_clear (ours);
}

static inline void
expect (const struct expectation *e)
{
  struct qcow2_options options;
  struct verdict ours;

  verdict_options (&ours, &options);
  expect_with (e, &ours, &options);
}

#endif /* VERDICT_H */
