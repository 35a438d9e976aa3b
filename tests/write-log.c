/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage that logs what is written. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu-image.h"
#include "write-log.h"

#define SECTOR 512

struct logging {
  struct qcow2_storage storage;
  struct qcow2_storage *next;
  struct write_log *log;
  unsigned file;
};

static struct logging *
logging_of (struct qcow2_storage *s)
{
  return (struct logging *) s;
}

/*----- The log -----*/

uint64_t
write_log_tick (struct write_log *log)
{
  return atomic_fetch_add (&log->now, 1) + 1;
}

/* Ask the hook. */
static int
ask (struct logging *l, enum log_kind kind, uint64_t offset, uint64_t count,
     bool durable)
{
  const struct log_event event = {
    .kind = kind, .file = l->file, .offset = offset, .count = count,
    .durable = durable,
  };

  return l->log->hook ? l->log->hook (l->log->opaque, &event) : 0;
}

static struct log_event *
begin (struct logging *l, enum log_kind kind, uint64_t offset,
       uint64_t count, bool durable)
{
  struct write_log *log = l->log;
  struct log_event *e = calloc (1, sizeof *e);

  if (e) {
    e->kind = kind;
    e->file = l->file;
    e->offset = offset;
    e->count = count;
    e->durable = durable;
    pthread_mutex_lock (&log->lock);
    e->begin = write_log_tick (log);
    if (log->nr == log->room) {
      log->room = log->room ? 2 * log->room : 1024;
      log->events = realloc (log->events, log->room * sizeof *log->events);
    }
    if (log->events)
      log->events[log->nr++] = e;
    pthread_mutex_unlock (&log->lock);
  }
  if (!e || !log->events) {
    printf ("Bail out! out of memory\n");
    exit (1);
  }
  return e;
}

/* What a failed flush was to make durable may be lost for ever: the
 * kernel calls it clean.
 */
static void
lose_locked (struct write_log *log, const struct log_event *failed)
{
  size_t i;

  for (i = 0; i < log->nr; ++i) {
    struct log_event *e = log->events[i];

    if (e->file == failed->file && e->lost_at == 0 &&
        e->kind != LOG_FLUSH && e->begin < failed->end)
      e->lost_at = failed->end;
  }
}

static void
end (struct logging *l, struct log_event *e, int r)
{
  struct write_log *log = l->log;

  pthread_mutex_lock (&log->lock);
  e->end = write_log_tick (log);
  e->failed = r < 0;
  /* A durable write that finds no room fails before it comes to flushing. */
  if (r < 0 && (e->kind == LOG_FLUSH || (e->durable && r != -ENOSPC)))
    lose_locked (log, e);
  pthread_mutex_unlock (&log->lock);
}

/*----- The storage -----*/

static ssize_t
log_pread (struct qcow2_storage *s, void *buf, size_t count, uint64_t offset)
{
  struct logging *l = logging_of (s);
  int r = ask (l, LOG_READ, offset, count, false);

  if (r < 0) {
    memset (buf, 0xee, count);
    return r;
  }
  return l->next->ops->pread (l->next, buf, count, offset);
}

static int64_t
log_size (struct qcow2_storage *s)
{
  return qcow2_storage_size (logging_of (s)->next);
}

static int
log_hole (struct qcow2_storage *s, uint64_t offset, bool *hole,
          uint64_t *length_bytes)
{
  return qcow2_storage_hole (logging_of (s)->next, offset, hole,
                             length_bytes);
}

static uint8_t *
gather (const struct iovec *iov, int iovcnt, uint64_t *count)
{
  uint8_t *data;
  int i;

  *count = 0;
  for (i = 0; i < iovcnt; ++i)
    *count += iov[i].iov_len;
  data = malloc (*count + 1);
  if (!data)
    return NULL;
  *count = 0;
  for (i = 0; i < iovcnt; ++i) {
    memcpy (data + *count, iov[i].iov_base, iov[i].iov_len);
    *count += iov[i].iov_len;
  }
  return data;
}

/* A write that fails has done half of its work. */
static int
log_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
             uint64_t offset, bool durable)
{
  struct logging *l = logging_of (s);
  struct log_event *e;
  uint64_t count;
  uint8_t *data = gather (iov, iovcnt, &count);
  int r, asked;

  if (!data)
    return -ENOMEM;
  asked = ask (l, LOG_WRITE, offset, count, durable);
  if (asked == 0 && l->log->fixed_size &&
      offset + count > (uint64_t) log_size (s))
    asked = -ENOSPC;
  if (asked < 0)
    count = count / 2 / SECTOR * SECTOR;
  e = begin (l, LOG_WRITE, offset, count, durable);
  e->data = data;
  r = count == 0 ? 0 :
    qcow2_storage_write (l->next, data, count, offset, false);
  if (asked < 0)
    r = asked;
  end (l, e, r);
  return r;
}

static int
log_flush (struct qcow2_storage *s)
{
  struct logging *l = logging_of (s);
  int r = ask (l, LOG_FLUSH, 0, 0, false);
  struct log_event *e = begin (l, LOG_FLUSH, 0, 0, false);

  end (l, e, r);
  return r;
}

static int
log_zero (struct qcow2_storage *s, uint64_t offset, uint64_t count,
          bool may_punch)
{
  struct logging *l = logging_of (s);
  int r = ask (l, LOG_ZERO, offset, count, false);
  struct log_event *e;

  if (r < 0)
    return r;
  e = begin (l, LOG_ZERO, offset, count, false);
  r = qcow2_storage_zero (l->next, offset, count, may_punch);
  end (l, e, r);
  return r;
}

static void
log_discard (struct qcow2_storage *s, uint64_t offset, uint64_t count)
{
  struct logging *l = logging_of (s);
  struct log_event *e;

  if (ask (l, LOG_DISCARD, offset, count, false) < 0)
    return;
  e = begin (l, LOG_DISCARD, offset, count, false);
  qcow2_storage_discard (l->next, offset, count);
  end (l, e, 0);
}

static int
log_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  struct logging *l = logging_of (s);
  int r = ask (l, LOG_TRUNCATE, size_bytes, 0, false);
  struct log_event *e;

  if (r < 0)
    return r;
  e = begin (l, LOG_TRUNCATE, size_bytes, 0, false);
  r = qcow2_storage_truncate (l->next, size_bytes);
  end (l, e, r);
  return r;
}

static bool
log_can_grow (struct qcow2_storage *s)
{
  struct logging *l = logging_of (s);

  return !l->log->fixed_size && qcow2_storage_can_grow (l->next);
}

static void
log_close (struct qcow2_storage *s)
{
  qcow2_storage_close (logging_of (s)->next);
  free (s);
}

static const struct qcow2_storage_ops log_ops = {
  .pread = log_pread,
  .size = log_size,
  .hole = log_hole,
  .pwritev = log_pwritev,
  .flush = log_flush,
  .zero = log_zero,
  .discard = log_discard,
  .truncate = log_truncate,
  .can_grow = log_can_grow,
  .close = log_close,
};

/*----- Opening -----*/

/* An image that is opened again goes on in its log. */
static unsigned
find_file (struct write_log *log, const char *name)
{
  struct logged_file *f;
  unsigned i;

  for (i = 0; i < log->nr_files; ++i)
    if (strcmp (log->files[i].name, name) == 0)
      return i;
  if (i == MAX_LOGGED_FILES) {
    printf ("Bail out! too many files\n");
    exit (1);
  }
  f = &log->files[log->nr_files++];
  f->name = strdup (name);
  f->initial = file_content (name, &f->initial_bytes);
  return i;
}

/* Backing files are not written, so they are not wrapped. */
static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  struct write_log *log = opaque;
  struct logging *l;

  if (role == QCOW2_STORAGE_RAW || !(*s)->ops->pwritev)
    return 0;
  l = malloc (sizeof *l);
  if (!l)
    return -ENOMEM;
  l->storage.ops = &log_ops;
  l->next = *s;
  l->log = log;
  l->file = find_file (log, filename);
  *s = &l->storage;
  return 0;
}

static void
note_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  struct write_log *log = opaque;
  size_t len;

  pthread_mutex_lock (&log->lock);
  snprintf (log->message, sizeof log->message, "%s", text);
  len = strlen (log->said);
  snprintf (log->said + len, sizeof log->said - len, "%s\n", text);
  pthread_mutex_unlock (&log->lock);
}

bool
write_log_said (struct write_log *log, const char *text)
{
  bool r;

  pthread_mutex_lock (&log->lock);
  r = strstr (log->said, text) != NULL;
  pthread_mutex_unlock (&log->lock);
  return r;
}

void
write_log_use (struct write_log *log, struct qcow2_options *options)
{
  options->wrap = wrap;
  options->log = note_message;
  options->opaque = log;
}

void
write_log_init (struct write_log *log)
{
  memset (log, 0, sizeof *log);
  pthread_mutex_init (&log->lock, NULL);
}

void
write_log_clear (struct write_log *log)
{
  unsigned i;
  size_t j;

  for (i = 0; i < log->nr_files; ++i) {
    free (log->files[i].name);
    free (log->files[i].initial);
  }
  for (j = 0; j < log->nr; ++j) {
    free (log->events[j]->data);
    free (log->events[j]);
  }
  free (log->events);
  pthread_mutex_destroy (&log->lock);
}
