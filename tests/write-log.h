/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage that logs what is written.
 *
 * A struct write_log stands behind the wrap function of qcow2_options.
 * It logs, in the order in which they begin, all changes and flushes of
 * the top image and its data file, with their data and with the times at
 * which they began and ended.  Time is a counter, which the test reads
 * too, so that its requests and the storage's have one order.
 *
 * A hook sees each request before it is made, and can let it fail, or
 * hold it up.
 */

#ifndef WRITE_LOG_H
#define WRITE_LOG_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/qcow2.h"

enum log_kind {
  LOG_READ,                     /* for the hook, not in the log */
  LOG_WRITE,
  LOG_ZERO,
  LOG_DISCARD,
  LOG_TRUNCATE,                 /* OFFSET is the size */
  LOG_FLUSH,
};

#define NR_LOG_KINDS 6

struct log_event {
  enum log_kind kind;
  unsigned file;                /* index in FILES */
  uint64_t offset, count;
  bool durable;                 /* a durable write */
  uint64_t begin, end;          /* end 0: it had not ended yet */
  bool failed;                  /* it may have been done all the same */
  uint64_t lost_at;             /* a flush that covers it failed then */
  uint8_t *data;                /* of a write */
};

struct logged_file {
  char *name;
  uint8_t *initial;             /* its content before */
  uint64_t initial_bytes;
};

#define MAX_LOGGED_FILES 2

struct write_log {
  pthread_mutex_t lock;
  _Atomic uint64_t now;
  struct log_event **events;
  size_t nr, room;
  struct logged_file files[MAX_LOGGED_FILES];
  unsigned nr_files;

  /* Set by the test before the image is opened. */
  bool fixed_size;              /* the files can't grow, as devices */
  int (*hook) (void *opaque, const struct log_event *event);
  void *opaque;                 /* of the hook */
  char message[512];            /* the engine's last error */
  char said[4096];              /* the first ones, a line each */
};

extern void write_log_init (struct write_log *log);
extern void write_log_clear (struct write_log *log);

/* Set wrap, log and opaque of OPTIONS. */
extern void write_log_use (struct write_log *log,
                           struct qcow2_options *options);

/* The next moment. */
extern uint64_t write_log_tick (struct write_log *log);

/* Has the engine said something with TEXT in it? */
extern bool write_log_said (struct write_log *log, const char *text);

#endif /* WRITE_LOG_H */
