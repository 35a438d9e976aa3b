/* SPDX-License-Identifier: BSD-3-Clause */

/* What is written before the header switches to a new snapshot table or L1
 * table is flushed before, also where more refcounts change than the cache
 * holds, so that some are written early.
 */

#include <stdio.h>
#include <stdlib.h>

#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "snapshot-subject.h"
#include "tap.h"
#include "write-log.h"

static void
operate (enum snapshot_operation op, struct write_log *log)
{
  struct qcow2_options options;
  struct qcow2_error error = { "" };
  struct qcow2 *image;

  snapshot_subject_options (&options);
  options.cache_bytes = 1u << 14;
  write_log_use (log, &options);
  if (qcow2_open (SNAPSHOT_IMAGE, &options, &image, &error) < 0 ||
      snapshot_operate (image, op, &error) < 0 || qcow2_close (image) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
}

/* Header writes with something before them that is not flushed. */
static unsigned
count_early (const struct write_log *log, unsigned *nr_header_writes)
{
  unsigned nr_early = 0;
  bool is_flushed = true;
  size_t i;

  *nr_header_writes = 0;
  for (i = 0; i < log->nr; ++i) {
    const struct log_event *e = log->events[i];

    if (e->kind == LOG_FLUSH)
      is_flushed = true;
    else if (e->kind == LOG_WRITE && e->durable && e->offset == 0) {
      ++*nr_header_writes;
      nr_early += !is_flushed;
    }
    else if (e->kind == LOG_WRITE)
      is_flushed = false;
  }
  return nr_early;
}

static void
test_operation (enum snapshot_operation op)
{
  struct write_log log;
  unsigned nr_header_writes;

  write_log_init (&log);
  operate (op, &log);
  is_int (count_early (&log, &nr_header_writes), 0,
          "%s: the header comes after all that was written before",
          snapshot_operation_name (op));
  ok (nr_header_writes > 0, "the header was written");
  is_int (qemu_check (SNAPSHOT_IMAGE), 0, "the check is clean");
  write_log_clear (&log);
}

int
main (void)
{
  scratch_dir_enter ();
  run_command ("qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=512,"
               "preallocation=metadata " SNAPSHOT_IMAGE " 4M");
  test_operation (SNAPSHOT_CREATE);
  run_command ("qemu-io -f qcow2 -c 'write 0 4M' " SNAPSHOT_IMAGE
               " > qemu.log");
  test_operation (SNAPSHOT_APPLY);
  test_operation (SNAPSHOT_DELETE);
  return tap_done ();
}
