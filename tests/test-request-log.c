/* SPDX-License-Identifier: BSD-3-Clause */

/* What the log tells of requests that fail, and what clients that come after
 * writing has ended are told.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "active-view.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"

#define KiB UINT64_C (1024)

static atomic_int write_errno, flush_errno;

static int
fail (void *opaque, const struct log_event *event)
{
  return event->kind == LOG_WRITE ? -atomic_load (&write_errno) :
    event->kind == LOG_FLUSH ? -atomic_load (&flush_errno) : 0;
}

static struct write_log storage_log;
static struct qcow2 *image;

static struct qcow2_view *
open_image (void)
{
  struct qcow2_options options;
  struct qcow2_error error;

  run_command ("rm -f disk.qcow2; qemu-img create -q -f qcow2 disk.qcow2 64M");
  write_log_init (&storage_log);
  storage_log.hook = fail;
  qcow2_options_init (&options);
  options.writable = true;
  write_log_use (&storage_log, &options);
  if (qcow2_open ("disk.qcow2", &options, &image, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return must_open_view (image);
}

static unsigned
nr_lines (void)
{
  const char *p;
  unsigned nr = 0;

  for (p = storage_log.said; *p; ++p)
    nr += *p == '\n';
  return nr;
}

static void
test_failures (void)
{
  struct qcow2_view *view = open_image ();
  struct timespec now;
  time_t begin;
  unsigned i, nr_failed = 0;

  is_int (qcow2_pwrite (view, "data", 4, 0, true), 0, "a write");
  atomic_store (&write_errno, ENOSPC);
  clock_gettime (CLOCK_MONOTONIC, &now);
  begin = now.tv_sec;
  is_int (qcow2_pwrite (view, "data", 4, 70 * KiB, false), -ENOSPC,
          "a write that finds no space");
  ok (write_log_said (&storage_log, "disk.qcow2: can't write 4 bytes at "
                      "guest offset 0x11800: No space left on device"),
      "the log tells which, and why: %s", storage_log.said);
  for (i = 0; i < 1000; ++i)
    nr_failed += qcow2_pwrite (view, "data", 4, (2 + i % 500) * 64 * KiB,
                               false) == -ENOSPC;
  is_int (nr_failed, 1000, "1000 more");
  clock_gettime (CLOCK_MONOTONIC, &now);
  ok (nr_lines () <= 2 * (1 + (unsigned) (now.tv_sec - begin)),
      "are not told each");
  usleep (1100000);
  qcow2_pwrite (view, "data", 4, 4096 * KiB, false);
  ok (write_log_said (&storage_log, " requests before that)"),
      "but are counted when the next one fails");
  is_int (qcow2_zero (view, 64 * KiB, 0, false, true, false), 0,
          "a fast zero");
  atomic_store (&write_errno, 0);
  qcow2_view_close (view);
  qcow2_close (image);
  write_log_clear (&storage_log);
}

static void
test_ended (void)
{
  struct qcow2_view *view = open_image (), *second;

  ok (qcow2_view_can_write (view), "a client can write");
  is_int (qcow2_pwrite (view, "data", 4, 0, false), 0, "it does");
  atomic_store (&flush_errno, EIO);
  is_int (qcow2_flush (view), -EIO, "its flush fails");
  atomic_store (&flush_errno, 0);
  storage_log.said[0] = '\0';
  is_int (qcow2_pwrite (view, "data", 4, 0, false), -EROFS,
          "then it can't write any more");
  is_str (storage_log.said, "", "the log does not tell that again");
  second = must_open_view (image);
  ok (!qcow2_view_can_write (second), "the next one is told so");
  qcow2_view_close (second);
  qcow2_view_close (view);
  qcow2_close (image);
  write_log_clear (&storage_log);
}

int
main (void)
{
  scratch_dir_enter ();
  test_failures ();
  test_ended ();
  return tap_done ();
}
