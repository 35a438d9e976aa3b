/* SPDX-License-Identifier: BSD-3-Clause */

/* What a power failure may leave of the files in a write_log.
 *
 * At a moment T what a flush has covered is there: all that had ended
 * before a flush began that has ended before T.  So is what a durable
 * write wrote.  Of the rest that had begun before T, any part may be
 * there, sector by sector.
 *
 * The files of a state are in memory, under the names that they have in
 * the log, in a directory of links.
 */

#ifndef CRASH_STATE_H
#define CRASH_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "write-class.h"
#include "write-log.h"

/* Which part of what is not durable is there. */
enum crash_mode {
  CRASH_NOTHING,
  CRASH_EVERYTHING,
  CRASH_ONE_MISSING,
  CRASH_ONE_PRESENT,
  CRASH_OLDEST,                 /* what came before a random one */
  CRASH_NEWEST,
  CRASH_SOME,                   /* random requests */
  CRASH_SOME_SECTORS,
  CRASH_FIRST_HALVES,           /* of each request's sectors */
  CRASH_LAST_HALVES,
  CRASH_MOST_SECTORS,
  CRASH_FEW_SECTORS,
};

#define NR_CRASH_MODES 12

extern const char *crash_mode_name (enum crash_mode mode);

struct crash;

/* CLASSES and MUTANT: what to leave out of the protocol, see
 * write-class.h.  Makes the directory DIR.  All arguments live longer.
 */
extern struct crash *crash_new (const struct write_log *log,
                                const struct write_classes *classes,
                                enum write_mutant mutant, const char *dir);
extern void crash_free (struct crash *c);

/* Go to a moment, not before the present one. */
extern void crash_go (struct crash *c, uint64_t time);

/* Make the files.  Returns how many requests were in the balance. */
extern size_t crash_build (struct crash *c, enum crash_mode mode,
                           uint64_t seed);

#endif /* CRASH_STATE_H */
