/* SPDX-License-Identifier: BSD-3-Clause */

/* What a power failure may leave of the files in a write_log.
 *
 * Each file has a base, in which all that is durable is written, and the
 * file itself, which is the base but for some sectors: those are taken
 * from the base again before the next state is made.  Requests are
 * applied in the order of the log: a sector to which two were made holds
 * what one of them left, or nothing of both.
 *
 * What is written durably takes along what was written before to the same
 * sectors, as a page cache does, and a length that ended before it, which the
 * inode has only one of.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crash-state.h"
#include "qemu-image.h"
#include "scratch-dir.h"

#define SECTOR 512
#define GARBAGE 0xdb            /* what discarded bytes read as */

struct crash_file {
  int fd;
  uint8_t *base, *map;
  uint64_t room_bytes;
  uint64_t base_bytes;          /* the size of the file */
  uint64_t bytes;               /* of the state being made */
  uint8_t *touched;             /* for each sector of the map */
  uint64_t touched_end;         /* sectors */
};

/* What is known of an event. */
struct crash_event {
  bool gone;                    /* all of it is in the base */
  uint8_t *in_base;             /* for each sector; may be NULL */
};

struct crash {
  const struct write_log *log;
  const struct write_classes *classes;
  enum write_mutant mutant;
  const char *dir;
  uint64_t time;
  struct crash_file files[MAX_LOGGED_FILES];
  struct crash_event *events;
  size_t *balance;              /* what had begun and is not durable */
  size_t nr_balance;
};

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

const char *
crash_mode_name (enum crash_mode mode)
{
  static const char *const names[NR_CRASH_MODES] = {
    "nothing", "everything", "one missing", "one present", "the oldest",
    "the newest", "some", "some sectors", "first halves", "last halves",
    "most sectors", "few sectors",
  };

  return names[mode];
}

/*----- Sectors of events -----*/

static uint64_t
first_sector (const struct log_event *e)
{
  return e->offset / SECTOR;
}

static uint64_t
end_sector (const struct log_event *e)
{
  return (e->offset + e->count + SECTOR - 1) / SECTOR;
}

/* Do to BYTES what the event does to one of its sectors. */
static void
apply_sector (const struct log_event *e, uint64_t sector, uint8_t *bytes,
              uint64_t *nr_bytes)
{
  uint64_t from = sector * SECTOR, to = from + SECTOR;

  if (from < e->offset)
    from = e->offset;
  if (to > e->offset + e->count)
    to = e->offset + e->count;
  if (e->kind == LOG_WRITE) {
    memcpy (bytes + from, e->data + (from - e->offset), to - from);
    if (*nr_bytes < to)
      *nr_bytes = to;
    return;
  }
  if (to > *nr_bytes)
    to = *nr_bytes;
  if (from < to)
    memset (bytes + from, e->kind == LOG_ZERO ? 0 : GARBAGE, to - from);
}

/* Bytes past the end are 0, always. */
static void
apply_truncate (const struct log_event *e, uint8_t *bytes, uint64_t *nr_bytes)
{
  if (e->offset < *nr_bytes)
    memset (bytes + e->offset, 0, *nr_bytes - e->offset);
  *nr_bytes = e->offset;
}

static void
touch (struct crash_file *f, uint64_t first, uint64_t end)
{
  uint64_t room = (f->room_bytes + SECTOR - 1) / SECTOR;

  if (end > room)
    end = room;
  if (first < end)
    memset (f->touched + first, 1, end - first);
  if (end > f->touched_end)
    f->touched_end = end;
}

/*----- The base -----*/

static bool
in_base (const struct crash_event *ce, uint64_t nr)
{
  return ce->in_base && ce->in_base[nr];
}

/* Sectors [FIRST, END) of event I become part of the base. */
static void
settle_sectors (struct crash *c, size_t i, uint64_t first, uint64_t end)
{
  const struct log_event *e = c->log->events[i];
  struct crash_event *ce = &c->events[i];
  struct crash_file *f = &c->files[e->file];
  uint64_t s;

  if (first < first_sector (e))
    first = first_sector (e);
  if (end > end_sector (e))
    end = end_sector (e);
  if (first >= end)
    return;
  if (!ce->in_base)
    ce->in_base = calloc (end_sector (e) - first_sector (e) + 1, 1);
  must (ce->in_base != NULL, "calloc");
  for (s = first; s < end; ++s)
    if (!ce->in_base[s - first_sector (e)]) {
      apply_sector (e, s, f->base, &f->base_bytes);
      ce->in_base[s - first_sector (e)] = 1;
    }
  touch (f, first, end);
}

static void
settle (struct crash *c, size_t i)
{
  const struct log_event *e = c->log->events[i];
  struct crash_file *f = &c->files[e->file];

  if (e->kind == LOG_TRUNCATE) {
    touch (f, e->offset / SECTOR, f->base_bytes / SECTOR + 1);
    apply_truncate (e, f->base, &f->base_bytes);
  }
  else
    settle_sectors (c, i, first_sector (e), end_sector (e));
  c->events[i].gone = true;
  free (c->events[i].in_base);
  c->events[i].in_base = NULL;
}

static bool
is_pending (const struct crash *c, size_t i, unsigned file)
{
  const struct log_event *e = c->log->events[i];

  return !c->events[i].gone && e->file == file && e->kind != LOG_FLUSH;
}

/* Event I with what was made before to its sectors.  A truncation has all
 * behind the new end.
 */
static void
settle_with_older (struct crash *c, size_t i)
{
  const struct log_event *e = c->log->events[i];
  bool is_truncate = e->kind == LOG_TRUNCATE;
  uint64_t first = is_truncate ? (e->offset + SECTOR - 1) / SECTOR :
    first_sector (e);
  size_t j;

  for (j = 0; j < i; ++j)
    if (is_pending (c, j, e->file) &&
        c->log->events[j]->kind != LOG_TRUNCATE)
      settle_sectors (c, j, first, is_truncate ? UINT64_MAX : end_sector (e));
  settle (c, i);
}

static void
settle_durable_write (struct crash *c, size_t i)
{
  const struct log_event *e = c->log->events[i];
  size_t j;

  for (j = 0; j < i; ++j) {
    const struct log_event *older = c->log->events[j];

    if (is_pending (c, j, e->file) && older->kind == LOG_TRUNCATE &&
        older->offset < e->offset + e->count &&
        older->end != 0 && older->end < e->begin && !older->failed)
      settle_with_older (c, j);
  }
  settle_with_older (c, i);
}

static void
settle_flush (struct crash *c, size_t f)
{
  const struct log_event *flush = c->log->events[f];
  size_t i;

  for (i = 0; i < c->log->nr; ++i) {
    const struct log_event *e = c->log->events[i];

    if (!c->events[i].gone && e->file == flush->file &&
        e->kind != LOG_FLUSH && e->end != 0 && e->end < flush->begin &&
        (e->lost_at == 0 || e->lost_at > flush->end) &&
        mutant_covers (c->classes, c->mutant, f, i))
      settle (c, i);
  }
  c->events[f].gone = true;
}

void
crash_go (struct crash *c, uint64_t time)
{
  size_t i;

  /* In the order in which they ended: what is durable at a moment does
   * not depend on what comes after it.
   */
  for (i = 0; i < c->log->nr; ++i) {
    const struct log_event *e = c->log->events[i];

    if (c->events[i].gone || e->end == 0 || e->end >= time || e->failed)
      continue;
    if (e->kind == LOG_FLUSH)
      settle_flush (c, i);
    else if (e->durable && mutant_is_durable (c->classes, c->mutant, i))
      settle_durable_write (c, i);
  }

  c->time = time;
  c->nr_balance = 0;
  for (i = 0; i < c->log->nr; ++i)
    if (!c->events[i].gone && c->log->events[i]->kind != LOG_FLUSH &&
        mutant_begin (c->classes, c->mutant, i) < time)
      c->balance[c->nr_balance++] = i;
}

/*----- A state -----*/

struct choice {
  enum crash_mode mode;
  uint64_t state;
  size_t one;                   /* in the balance */
};

/* Is sector NR (of COUNT) of event number I of the balance there? */
static bool
choose_sector (struct choice *ch, bool event, size_t i, uint64_t nr,
               uint64_t count)
{
  switch (ch->mode) {
  case CRASH_NOTHING: return false;
  case CRASH_EVERYTHING: return true;
  case CRASH_ONE_MISSING: return i != ch->one;
  case CRASH_ONE_PRESENT: return i == ch->one;
  case CRASH_OLDEST: return i < ch->one;
  case CRASH_NEWEST: return i >= ch->one;
  case CRASH_SOME: return event;
  case CRASH_SOME_SECTORS: return random_below (&ch->state, 2) == 0;
  case CRASH_FIRST_HALVES: return nr < (count + 1) / 2;
  case CRASH_LAST_HALVES: return nr >= count / 2;
  case CRASH_MOST_SECTORS: return random_below (&ch->state, 10) != 0;
  case CRASH_FEW_SECTORS: return random_below (&ch->state, 10) == 0;
  }
  return false;
}

static void
restore (struct crash_file *f)
{
  uint64_t s;

  must (ftruncate (f->fd, (off_t) f->room_bytes) == 0, "ftruncate");
  for (s = 0; s < f->touched_end; ++s)
    if (f->touched[s]) {
      memcpy (f->map + s * SECTOR, f->base + s * SECTOR, SECTOR);
      f->touched[s] = 0;
    }
  f->touched_end = 0;
  f->bytes = f->base_bytes;
}

static void
apply_chosen (struct crash *c, struct choice *ch, size_t nr)
{
  size_t i = c->balance[nr];
  const struct log_event *e = c->log->events[i];
  struct crash_file *f = &c->files[e->file];
  uint64_t first = first_sector (e), count = end_sector (e) - first, s;
  bool event = random_below (&ch->state, 2) == 0;

  if (e->kind == LOG_TRUNCATE) {
    if (choose_sector (ch, event, nr, 0, 1)) {
      touch (f, e->offset / SECTOR, f->bytes / SECTOR + 1);
      apply_truncate (e, f->map, &f->bytes);
    }
    return;
  }
  for (s = 0; s < count; ++s)
    if (choose_sector (ch, event, nr, s, count) &&
        !in_base (&c->events[i], s)) {
      apply_sector (e, first + s, f->map, &f->bytes);
      touch (f, first + s, first + s + 1);
    }
}

size_t
crash_build (struct crash *c, enum crash_mode mode, uint64_t seed)
{
  struct choice ch = { .mode = mode, .state = seed | 1 };
  size_t i;

  random_next (&ch.state);
  ch.one = c->nr_balance ? random_below (&ch.state, c->nr_balance) : 0;
  for (i = 0; i < c->log->nr_files; ++i)
    restore (&c->files[i]);
  for (i = 0; i < c->nr_balance; ++i)
    apply_chosen (c, &ch, i);
  for (i = 0; i < c->log->nr_files; ++i)
    must (ftruncate (c->files[i].fd, (off_t) c->files[i].bytes) == 0,
          "ftruncate");
  return c->nr_balance;
}

/*----- Begin and end -----*/

static void
make_file (struct crash *c, unsigned nr)
{
  struct crash_file *f = &c->files[nr];
  const struct logged_file *from = &c->log->files[nr];
  const char *base_name = strrchr (from->name, '/');
  char target[64], name[512];
  size_t i;

  base_name = base_name ? base_name + 1 : from->name;
  f->room_bytes = from->initial_bytes;
  for (i = 0; i < c->log->nr; ++i) {
    const struct log_event *e = c->log->events[i];

    if (e->file == nr && e->offset + e->count > f->room_bytes)
      f->room_bytes = e->offset + e->count;
  }
  f->room_bytes = (f->room_bytes + 4 * SECTOR) / SECTOR * SECTOR;
  f->fd = memfd_create (base_name, MFD_CLOEXEC);
  must (f->fd >= 0 && ftruncate (f->fd, (off_t) f->room_bytes) == 0, "memfd");
  f->map = mmap (NULL, f->room_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                 f->fd, 0);
  must (f->map != MAP_FAILED, "mmap");
  f->base = calloc (1, f->room_bytes);
  f->touched = calloc (1, f->room_bytes / SECTOR);
  must (f->base && f->touched, "calloc");
  memcpy (f->base, from->initial, from->initial_bytes);
  f->base_bytes = from->initial_bytes;
  touch (f, 0, f->room_bytes / SECTOR);

  snprintf (target, sizeof target, "/proc/%d/fd/%d", (int) getpid (), f->fd);
  snprintf (name, sizeof name, "%s/%s", c->dir, base_name);
  must (symlink (target, name) == 0, name);
}

struct crash *
crash_new (const struct write_log *log, const struct write_classes *classes,
           enum write_mutant mutant, const char *dir)
{
  struct crash *c = calloc (1, sizeof *c);
  unsigned i;

  must (c != NULL, "calloc");
  c->log = log;
  c->classes = classes;
  c->mutant = mutant;
  c->dir = dir;
  c->events = calloc (log->nr + 1, sizeof *c->events);
  c->balance = calloc (log->nr + 1, sizeof *c->balance);
  must (c->events && c->balance, "calloc");
  must (mkdir (dir, 0777) == 0, dir);
  for (i = 0; i < log->nr_files; ++i)
    make_file (c, i);
  return c;
}

void
crash_free (struct crash *c)
{
  size_t i;

  for (i = 0; i < c->log->nr_files; ++i) {
    munmap (c->files[i].map, c->files[i].room_bytes);
    close (c->files[i].fd);
    free (c->files[i].base);
    free (c->files[i].touched);
  }
  for (i = 0; i < c->log->nr; ++i)
    free (c->events[i].in_base);
  free (c->events);
  free (c->balance);
  remove_tree (c->dir);
  free (c);
}
