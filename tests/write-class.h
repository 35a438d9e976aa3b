/* SPDX-License-Identifier: BSD-3-Clause */

/* What the requests in a write_log were for, and mutants.
 *
 * A mutant is a protocol with one step left out, or two steps in the
 * wrong order.  The engine is not changed for that: what a mutant does
 * not flush, or flushes too late, is taken from the log as not durable.
 */

#ifndef WRITE_CLASS_H
#define WRITE_CLASS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "write-log.h"

enum write_class {
  CLASS_DATA,                   /* of the guest */
  CLASS_DISCARD,
  CLASS_TRUNCATE,
  CLASS_HEADER,
  CLASS_L1,
  CLASS_L2,                     /* sectors of a table in use */
  CLASS_L2_NEW,                 /* a whole table */
  CLASS_L1_NEW,                 /* likewise */
  CLASS_REFCOUNT_TABLE,
  CLASS_REFCOUNTS,              /* sectors of a block in use */
  CLASS_REFCOUNT_AREA,          /* new blocks, or a new table */
  CLASS_DATA_FILE,

  CLASS_FLUSH_FIRST,            /* of a commit: data and refcounts */
  CLASS_FLUSH_SECOND,           /* L2 and L1 tables */
  CLASS_FLUSH_L1,               /* of a new L1 table and its refcounts */
  CLASS_FLUSH_DATA_FILE,
};

#define NR_WRITE_CLASSES 16

enum write_mutant {
  MUTANT_NONE,
  /* A flush is left out. */
  MUTANT_NO_FIRST,
  MUTANT_NO_SECOND,
  MUTANT_NO_L1,
  MUTANT_NO_DATA_FILE,
  /* The first is written after the second. */
  MUTANT_LATE_REFCOUNTS,        /* refcounts, L2 entries */
  MUTANT_LATE_DATA,             /* data, L2 entries */
  MUTANT_LATE_TABLE,            /* a new L2 table, the L1 entry */
  MUTANT_LATE_AREA,             /* refcount blocks, their table's entries */
  MUTANT_LATE_L1,               /* a new L1 table, the header */
  MUTANT_LATE_L1_REFCOUNTS,     /* its refcounts, the header */
  MUTANT_EARLY_FREE,            /* L2 entries, giving up the clusters */
  MUTANT_LATE_HEADER,           /* the dirty bit, everything else */
};

#define NR_WRITE_MUTANTS 13

struct write_classes {
  const struct write_log *log;
  uint8_t *of;                  /* enum write_class of each event */
  uint64_t *early;              /* when it begins with MUTANT_EARLY_FREE */
  size_t count[NR_WRITE_CLASSES];
};

/* The image is file 0 of the log. */
extern void write_classes_init (struct write_classes *classes,
                                const struct write_log *log);
extern void write_classes_clear (struct write_classes *classes);

extern const char *write_class_name (enum write_class class);
extern const char *write_mutant_name (enum write_mutant mutant);

/* When event I begins. */
extern uint64_t mutant_begin (const struct write_classes *classes,
                              enum write_mutant mutant, size_t i);

/* Does the flush, event F, make event I durable?  It does without a
 * mutant.
 */
extern bool mutant_covers (const struct write_classes *classes,
                           enum write_mutant mutant, size_t f, size_t i);

/* Is the durable write, event I, durable by itself? */
extern bool mutant_is_durable (const struct write_classes *classes,
                               enum write_mutant mutant, size_t i);

#endif /* WRITE_CLASS_H */
