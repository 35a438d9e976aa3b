/* SPDX-License-Identifier: BSD-3-Clause */

/* Creating an image when the storage fails: each request in turn.  What
 * was made is gone afterwards, and nothing else.  And the order in which
 * an image is written: nobody takes it for one too early.
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2/qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"

#define SIZE_BYTES (UINT64_C (2) << 20)

/* A header of two sectors. */
#define HERE_10 "././././././././././"
#define HERE_50 HERE_10 HERE_10 HERE_10 HERE_10 HERE_10
#define LONG_NAME HERE_50 HERE_50 HERE_50 HERE_50 HERE_50 "base.raw"

static const char *const kinds[] = {
  "compat=v3",
  "preallocation=metadata,cluster_size=4k",
  "preallocation=falloc,cluster_size=512",
  "preallocation=full",
  "data_file=x.raw",
  "data_file=x.raw,preallocation=full,cluster_size=4k",
  "backing_file=base.raw,backing_fmt=raw",
  "backing_file=" LONG_NAME ",backing_fmt=raw",
};

#define NR_KINDS (sizeof kinds / sizeof kinds[0])

/* Lets the N-th request fail. */
struct countdown {
  unsigned n;                   /* 0: none */
  unsigned nr;                  /* requests so far */
  int err;
  bool replace;                 /* put another file in the image's place */
};

static int
fail_nth (void *opaque, const struct log_event *event)
{
  struct countdown *c = opaque;

  if (++c->nr != c->n)
    return 0;
  if (c->replace)
    run_command ("rm x.qcow2 && echo precious > x.qcow2");
  return -c->err;
}

static int
create (const char *text, struct write_log *log, struct countdown *countdown,
        struct qcow2_error *error)
{
  struct qcow2_create_options options;
  struct qcow2_options hooks;
  int r;

  write_log_init (log);
  log->hook = fail_nth;
  log->opaque = countdown;
  write_log_use (log, &hooks);
  qcow2_create_options_init (&options);
  options.wrap = hooks.wrap;
  options.opaque = hooks.opaque;
  r = qcow2_create_option_parse (&options, text, error);
  if (r == 0)
    r = qcow2_create ("x.qcow2", SIZE_BYTES, &options, error);
  qcow2_create_options_clear (&options);
  return r;
}

/*----- Each request fails -----*/

static bool
all_gone (void)
{
  return access ("x.qcow2", F_OK) == -1 && access ("x.raw", F_OK) == -1 &&
    access ("base.raw", F_OK) == 0;
}

/* Returns how many requests there were to fail. */
static unsigned
fail_each (const char *text, int err)
{
  struct qcow2_error error;
  unsigned n, nr_bad = 0;
  int r;

  for (n = 1;; ++n) {
    struct countdown countdown = { .n = n, .err = err };
    struct write_log log;

    error.message[0] = '\0';
    r = create (text, &log, &countdown, &error);
    write_log_clear (&log);
    if (r == 0)
      break;
    if (r != -err || !all_gone () || error.message[0] == '\0') {
      printf ("# request %u: %d, %s\n", n, r, error.message);
      nr_bad++;
    }
    run_command ("rm -f x.*");
  }
  is_int (nr_bad, 0, "%s: %s at each of %u requests: all is gone", text,
          strerror (err), n - 1);
  ok (system ("qemu-img check -q -f qcow2 x.qcow2") == 0,
      "... with none the check is clean");
  run_command ("rm x.*");
  return n - 1;
}

static void
test_faults (void)
{
  unsigned nr = 0;
  size_t i;

  for (i = 0; i < NR_KINDS; ++i) {
    nr += fail_each (kinds[i], EIO);
    nr += fail_each (kinds[i], ENOSPC);
  }
  ok (nr > 100, "%u faults in all", nr);
}

/* Somebody else's file, of the same name. */
static void
test_replaced (void)
{
  struct countdown countdown = { .n = 3, .err = EIO, .replace = true };
  struct qcow2_error error;
  struct write_log log;

  is_int (create ("compat=v3", &log, &countdown, &error), -EIO,
          "creation fails when another file has taken the place");
  write_log_clear (&log);
  ok (system ("test \"$(cat x.qcow2)\" = precious") == 0,
      "... which is not removed");
  run_command ("rm x.qcow2");
}

/*----- Order -----*/

static bool
is_header (const struct log_event *e, unsigned image)
{
  return e->kind == LOG_WRITE && e->file == image && e->offset == 0 &&
    e->count >= 4 && memcmp (e->data, "QFI\xfb", 4) == 0;
}

/* The last flush of each file, before END, comes after its last change. */
static bool
is_durable (const struct write_log *log, size_t end)
{
  bool dirty[MAX_LOGGED_FILES] = { false };
  bool any = false;
  size_t i;

  for (i = 0; i < end; ++i)
    dirty[log->events[i]->file] = log->events[i]->kind != LOG_FLUSH;
  for (i = 0; i < MAX_LOGGED_FILES; ++i)
    any = any || dirty[i];
  return !any;
}

static void
test_order (const char *text)
{
  struct countdown countdown = { .n = 0 };
  struct qcow2_error error;
  struct write_log log;
  unsigned image = 0, nr_headers = 0;
  size_t i, header = 0;

  is_int (create (text, &log, &countdown, &error), 0, "%s: made", text);
  while (image < log.nr_files && strcmp (log.files[image].name, "x.qcow2"))
    image++;
  for (i = 0; i < log.nr; ++i)
    if (is_header (log.events[i], image)) {
      header = i;
      nr_headers++;
    }
  is_int (nr_headers, 1, "... the header is written once");
  ok (is_durable (&log, header), "... when all else is durable");
  ok (log.events[header]->count <= 512, "... and by one sector");
  is_int ((int64_t) (log.nr - header), 2,
          "... and nothing comes after it but one request");
  ok (is_durable (&log, log.nr), "... which makes it durable");
  write_log_clear (&log);
  run_command ("rm x.*");
}

int
main (void)
{
  size_t i;

  scratch_dir_enter ();
  run_command ("truncate -s 1M base.raw");
  test_faults ();
  test_replaced ();
  for (i = 0; i < NR_KINDS; ++i)
    test_order (kinds[i]);
  return tap_done ();
}
