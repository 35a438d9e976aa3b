/* SPDX-License-Identifier: BSD-3-Clause */

/* What the requests in a write_log were for.
 *
 * The image is followed through the log.  What an L1 entry or a refcount
 * table entry names is a table; what one only names later is a new one.
 * Flushes are told by what was written since the one before.
 */

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/format.h"
#include "write-class.h"

#define SECTOR 512
#define OFFSET_MASK (((UINT64_C (1) << 56) - 1) & ~UINT64_C (511))

/* The image as it is when everything is written, and its tables. */
struct follower {
  uint8_t *bytes;
  uint64_t nr_bytes;
  unsigned cluster_bits;
  uint64_t l1_offset, l1_end;
  uint64_t table_offset, table_end;     /* of refcounts */
  uint8_t *cluster_class;
};

static uint64_t
log_end (const struct write_log *log)
{
  uint64_t end = log->files[0].initial_bytes;
  size_t i;

  for (i = 0; i < log->nr; ++i) {
    const struct log_event *e = log->events[i];

    if (e->file == 0 && e->kind == LOG_WRITE && e->offset + e->count > end)
      end = e->offset + e->count;
  }
  return end;
}

/* The clusters of the table are of CLASS_L1_NEW, should they be written
 * before they are in use.
 */
static void
note_place (struct follower *f, uint64_t offset, uint64_t end)
{
  for (; offset < end && offset < f->nr_bytes;
       offset += UINT64_C (1) << f->cluster_bits)
    f->cluster_class[offset >> f->cluster_bits] = CLASS_L1_NEW;
}

/* The clusters that the table's entries name are of CLASS. */
static void
note_table (struct follower *f, uint64_t offset, uint64_t end,
            enum write_class class)
{
  uint64_t pos, entry;

  for (pos = offset; pos + 8 <= end && pos + 8 <= f->nr_bytes; pos += 8) {
    memcpy (&entry, f->bytes + pos, 8);
    entry = be64toh (entry) & OFFSET_MASK;
    if (entry != 0 && entry < f->nr_bytes)
      f->cluster_class[entry >> f->cluster_bits] = class;
  }
}

static void
note_tables (struct follower *f)
{
  const struct disk_header *h = (const struct disk_header *) f->bytes;

  f->cluster_bits = be32toh (h->cluster_bits);
  f->l1_offset = be64toh (h->l1_table_offset);
  f->l1_end = f->l1_offset + be32toh (h->l1_size) * UINT64_C (8);
  f->table_offset = be64toh (h->refcount_table_offset);
  f->table_end = f->table_offset +
    ((uint64_t) be32toh (h->refcount_table_clusters) << f->cluster_bits);
  note_place (f, f->l1_offset, f->l1_end);
  note_table (f, f->l1_offset, f->l1_end, CLASS_L2);
  note_table (f, f->table_offset, f->table_end, CLASS_REFCOUNTS);
}

static bool
overlaps (const struct log_event *e, uint64_t offset, uint64_t end)
{
  return e->offset < end && e->offset + e->count > offset;
}

/* What it is at that time. */
static enum write_class
class_of_place (const struct follower *f, const struct log_event *e)
{
  if (e->file != 0)
    return CLASS_DATA_FILE;
  if (e->offset == 0)
    return CLASS_HEADER;
  if (overlaps (e, f->l1_offset, f->l1_end))
    return CLASS_L1;
  if (overlaps (e, f->table_offset, f->table_end))
    return CLASS_REFCOUNT_TABLE;
  return f->cluster_class[e->offset >> f->cluster_bits];
}

static void
follow (struct write_classes *classes, struct follower *f)
{
  size_t i;

  note_tables (f);
  for (i = 0; i < classes->log->nr; ++i) {
    const struct log_event *e = classes->log->events[i];

    classes->of[i] = e->kind == LOG_DISCARD ? CLASS_DISCARD :
      e->kind == LOG_TRUNCATE ? CLASS_TRUNCATE : CLASS_DATA;
    if (e->kind != LOG_WRITE)
      continue;
    classes->of[i] = class_of_place (f, e);
    if (e->file == 0)
      memcpy (f->bytes + e->offset, e->data, e->count);
    if (classes->of[i] == CLASS_HEADER || classes->of[i] == CLASS_L1 ||
        classes->of[i] == CLASS_REFCOUNT_TABLE)
      note_tables (f);
  }
}

/* What only becomes a table later. */
static enum write_class
class_of_new (const struct follower *f, const struct log_event *e)
{
  uint64_t bytes = UINT64_C (1) << f->cluster_bits;
  uint8_t class = f->cluster_class[e->offset >> f->cluster_bits];
  bool whole = (e->offset & (bytes - 1)) == 0 && e->count >= bytes;

  if (class == CLASS_L1_NEW)
    return CLASS_L1_NEW;
  if (class == CLASS_L2)
    return whole ? CLASS_L2_NEW : CLASS_L2;
  return class == CLASS_REFCOUNTS ? CLASS_REFCOUNT_AREA : CLASS_DATA;
}

/* SEEN: the classes written since the last flush of the file. */
static enum write_class
class_of_flush (const struct log_event *e, unsigned seen)
{
  if (e->file != 0)
    return CLASS_FLUSH_DATA_FILE;
  if (seen & (1u << CLASS_L2 | 1u << CLASS_L1))
    return CLASS_FLUSH_SECOND;
  if (seen & 1u << CLASS_L1_NEW)
    return CLASS_FLUSH_L1;
  return CLASS_FLUSH_FIRST;
}

static void
classify (struct write_classes *classes, const struct follower *f)
{
  uint64_t previous = 0, second = 0;    /* second: what came before one */
  unsigned seen = 0;
  size_t i;

  for (i = 0; i < classes->log->nr; ++i) {
    const struct log_event *e = classes->log->events[i];

    if (e->kind == LOG_FLUSH)
      classes->of[i] = class_of_flush (e, seen);
    else if (e->kind == LOG_WRITE && classes->of[i] == CLASS_DATA)
      classes->of[i] = class_of_new (f, e);
    classes->early[i] = e->kind == LOG_DISCARD && second ? second : e->begin;
    if (classes->of[i] == CLASS_FLUSH_SECOND)
      second = previous;
    if (e->kind == LOG_FLUSH && e->file == 0) {
      previous = e->begin;
      seen = 0;
    }
    seen |= 1u << classes->of[i];
    classes->count[classes->of[i]]++;
  }
}

void
write_classes_init (struct write_classes *classes,
                    const struct write_log *log)
{
  struct follower f = { .nr_bytes = log_end (log) };

  memset (classes, 0, sizeof *classes);
  classes->log = log;
  classes->of = calloc (log->nr + 1, 1);
  classes->early = calloc (log->nr + 1, sizeof *classes->early);
  f.bytes = calloc (1, f.nr_bytes + 1);
  f.cluster_class = calloc (f.nr_bytes / SECTOR + 1, 1);
  if (!classes->of || !classes->early || !f.bytes || !f.cluster_class) {
    printf ("Bail out! out of memory\n");
    exit (1);
  }
  memcpy (f.bytes, log->files[0].initial, log->files[0].initial_bytes);
  follow (classes, &f);
  classify (classes, &f);
  free (f.bytes);
  free (f.cluster_class);
}

void
write_classes_clear (struct write_classes *classes)
{
  free (classes->of);
  free (classes->early);
}

const char *
write_class_name (enum write_class class)
{
  static const char *const names[NR_WRITE_CLASSES] = {
    "data", "discard", "truncate", "header", "L1", "L2", "new L2", "new L1",
    "refcount table", "refcounts", "refcount area", "data file",
    "first flush", "second flush", "L1 flush", "data file flush",
  };

  return names[class];
}

/*----- Mutants -----*/

const char *
write_mutant_name (enum write_mutant mutant)
{
  static const char *const names[NR_WRITE_MUTANTS] = {
    "none", "no first flush of a commit", "no second flush of a commit",
    "no flush of a new L1 table", "no flush of the data file",
    "refcounts after L2 entries", "data after L2 entries",
    "new L2 tables after L1 entries",
    "refcount blocks after their table entries",
    "a new L1 table after the header", "its refcounts after the header",
    "clusters freed before they are unlinked",
    "the header after everything else",
  };

  return names[mutant];
}

uint64_t
mutant_begin (const struct write_classes *classes, enum write_mutant mutant,
              size_t i)
{
  return mutant == MUTANT_EARLY_FREE ? classes->early[i] :
    classes->log->events[i]->begin;
}

/* Is flush F the first of a commit that has a second one? */
static bool
is_first_of_two (const struct write_classes *classes, size_t f)
{
  size_t i;

  if (classes->of[f] != CLASS_FLUSH_FIRST)
    return false;
  for (i = f + 1; i < classes->log->nr; ++i)
    if (classes->log->events[i]->kind == LOG_FLUSH)
      return classes->of[i] == CLASS_FLUSH_SECOND;
  return false;
}

bool
mutant_covers (const struct write_classes *classes, enum write_mutant mutant,
               size_t f, size_t i)
{
  enum write_class flush = classes->of[f], class = classes->of[i];

  switch (mutant) {
  case MUTANT_NO_FIRST: return flush != CLASS_FLUSH_FIRST;
  case MUTANT_NO_SECOND: return flush != CLASS_FLUSH_SECOND;
  case MUTANT_NO_L1: return flush != CLASS_FLUSH_L1;
  case MUTANT_NO_DATA_FILE: return flush != CLASS_FLUSH_DATA_FILE;
  case MUTANT_LATE_REFCOUNTS:
    return class != CLASS_REFCOUNTS || !is_first_of_two (classes, f);
  case MUTANT_LATE_DATA:
    return class != CLASS_DATA || !is_first_of_two (classes, f);
  case MUTANT_LATE_TABLE:
    return class != CLASS_L2_NEW || !is_first_of_two (classes, f);
  case MUTANT_LATE_HEADER: return class != CLASS_HEADER;
  case MUTANT_LATE_L1:
    return class != CLASS_L1_NEW || flush != CLASS_FLUSH_L1;
  case MUTANT_LATE_L1_REFCOUNTS:
    return class != CLASS_REFCOUNTS || flush != CLASS_FLUSH_L1;
  case MUTANT_NONE:
  case MUTANT_EARLY_FREE:
  case MUTANT_LATE_AREA:
    break;
  }
  return true;
}

bool
mutant_is_durable (const struct write_classes *classes,
                   enum write_mutant mutant, size_t i)
{
  enum write_class class = classes->of[i];

  return !(mutant == MUTANT_LATE_HEADER && class == CLASS_HEADER) &&
    !(mutant == MUTANT_LATE_AREA && class == CLASS_REFCOUNT_AREA);
}
