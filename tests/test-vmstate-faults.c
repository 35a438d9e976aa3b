/* SPDX-License-Identifier: BSD-3-Clause */

/* Whichever I/O fails while VM state is written and dropped: disk and
 * snapshot are as they were, the image is sound, and it goes on, but after a
 * flush that failed.
 */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "image.h"
#include "metadata-damage.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"
#include "writer.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)
#define DISK_BYTES 100352
#define STATE_BYTES (72 * KiB)
#define SNAPSHOT_STATE 9
#define CREATE "qemu-img create -q -f qcow2 "

struct faults {
  enum log_kind kind;
  long countdown;               /* 0: none */
  int err;
  bool hit;
};

struct tally {
  unsigned nr_cases, nr_failed, nr_ended;
  unsigned nr_corrupt, nr_wrong, nr_stuck;
};

static void
must (bool good, const char *what)
{
  if (!good) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  struct faults *f = opaque;

  if (event->kind != f->kind || f->countdown == 0 || --f->countdown > 0)
    return 0;
  f->hit = true;
  return -f->err;
}

static struct qcow2 *
open_image (struct write_log *log, size_t snapshot, struct qcow2_view **view)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  qcow2_options_init (&options);
  options.writable = log != NULL;
  options.cache_bytes = 64 * KiB;
  if (log)
    write_log_use (log, &options);
  must (qcow2_open ("disk.qcow2", &options, &image, &error) == 0 &&
        qcow2_view_open (image, snapshot, view, &error) == 0,
        "can't open the image");
  return image;
}

static bool
is_all (const uint8_t *buf, uint64_t count, int byte)
{
  return buf[0] == byte && memcmp (buf, buf + 1, count - 1) == 0;
}

static bool
disk_and_state_are (struct qcow2_view *view, int disk, int state)
{
  static uint8_t buf[DISK_BYTES];

  return qcow2_pread (view, buf, DISK_BYTES, 0) == 0 &&
    is_all (buf, DISK_BYTES, disk) &&
    qcow2_vmstate_pread (view, buf, STATE_BYTES, 0) == 0 &&
    is_all (buf, STATE_BYTES, state);
}

/* Written, dropped, written again. */
static int
go_on (struct qcow2_view *view)
{
  static uint8_t buf[STATE_BYTES];
  int r;

  memset (buf, 5, sizeof buf);
  r = qcow2_vmstate_pwrite (view, buf, sizeof buf, 0);
  if (r == 0)
    r = qcow2_flush (view);
  if (r == 0)
    r = qcow2_vmstate_discard (view);
  memset (buf, 6, sizeof buf);
  if (r == 0)
    r = qcow2_vmstate_pwrite (view, buf, sizeof buf, 0);
  return r == 0 ? qcow2_flush (view) : r;
}

/* With lazy refcounts the dirty bit says that a repair is due. */
static void
check_closed (bool ended, struct tally *t)
{
  struct qcow2_view *view;
  struct qcow2 *image;
  int status;

  if (ended && damage_is_dirty ("disk.qcow2"))
    run_command ("qemu-img check -r all disk.qcow2 > qemu.log 2>&1");
  image = open_image (NULL, 0, &view);
  status = qemu_check ("disk.qcow2");

  t->nr_wrong += !disk_and_state_are (view, 1, SNAPSHOT_STATE);
  qcow2_close (image);
  t->nr_corrupt += status != 0 && !(ended && status == 3);
}

static bool
one_fault (const struct faults *fault, struct tally *t)
{
  struct faults f = { .kind = fault->kind, .err = fault->err };
  struct write_log log;
  struct qcow2_view *view;
  struct qcow2 *image;
  bool ended;
  int r;

  run_command ("cp pristine.qcow2 disk.qcow2");
  write_log_init (&log);
  log.hook = maybe_fail;
  log.opaque = &f;
  image = open_image (&log, QCOW2_ACTIVE, &view);
  f.countdown = fault->countdown;
  r = go_on (view);
  f.countdown = 0;
  t->nr_failed += r < 0;
  ended = image->writer->committer.failed;
  t->nr_ended += ended;
  r = go_on (view);
  t->nr_stuck += (r < 0) != ended;
  t->nr_wrong += !ended && !disk_and_state_are (view, 1, 6);
  qcow2_view_close (view);
  t->nr_stuck += (qcow2_close (image) < 0) != ended;
  check_closed (ended, t);
  write_log_clear (&log);
  t->nr_cases++;
  return f.hit;
}

static void
make_image (const char *options)
{
  uint64_t table, word = htobe64 (STATE_BYTES);
  int fd;

  run_command ("rm -rf *; " CREATE "-o %s disk.qcow2 %d && qemu-io -f qcow2 "
               "-c 'write -q -P 1 0 %d' -c 'write -q -b -P %d 0 %d' "
               "disk.qcow2 && qemu-img snapshot -c snap disk.qcow2", options,
               DISK_BYTES, DISK_BYTES, SNAPSHOT_STATE, (int) STATE_BYTES);
  fd = open ("disk.qcow2", O_RDWR | O_CLOEXEC);
  must (pread (fd, &table, 8, 64) == 8 &&
        pwrite (fd, &word, 8, (off_t) be64toh (table) + 40) == 8, "patch");
  close (fd);
  run_command ("mv disk.qcow2 pristine.qcow2");
}

static void
test_faults (const char *options)
{
  static const struct faults kinds_of_fault[] = {
    { .kind = LOG_WRITE, .err = EIO }, { .kind = LOG_WRITE, .err = ENOSPC },
    { .kind = LOG_READ, .err = EIO }, { .kind = LOG_FLUSH, .err = EIO },
    { .kind = LOG_TRUNCATE, .err = EIO },
  };
  struct tally t = { .nr_cases = 0 };
  unsigned i;

  make_image (options);
  for (i = 0; i < sizeof kinds_of_fault / sizeof kinds_of_fault[0]; ++i) {
    struct faults f = kinds_of_fault[i];

    do
      f.countdown++;
    while (one_fault (&f, &t));
  }
  ok (t.nr_failed > 20 && t.nr_ended > 2, "%s: of %u runs with a fault %u "
      "failed, %u ended the writing", options, t.nr_cases, t.nr_failed,
      t.nr_ended);
  is_int (t.nr_wrong, 0, "disk, state and snapshot are right");
  is_int (t.nr_corrupt, 0, "the check finds nothing");
  is_int (t.nr_stuck, 0, "it goes on, but after a failed flush");
}

/* No room for the table, or for the state. */
static void
test_full (void)
{
  static uint8_t buf[4 * KiB] = { 5 };
  struct write_log log;
  struct qcow2_view *view;
  struct qcow2 *image;
  uint64_t pos = 0;
  int r = 0;

  make_image ("cluster_size=512");
  run_command ("mv pristine.qcow2 disk.qcow2 && truncate -s +64k disk.qcow2");
  write_log_init (&log);
  log.fixed_size = true;
  image = open_image (&log, QCOW2_ACTIVE, &view);
  for (; r == 0 && pos < 16 * MiB; pos += sizeof buf)
    r = qcow2_vmstate_pwrite (view, buf, sizeof buf, pos);
  is_int (r, -ENOSPC, "no room after %" PRIu64 " KiB", pos / KiB);
  is_int (qcow2_vmstate_pwrite (view, buf, sizeof buf, 30 * MiB), -ENOSPC,
          "nor for a long L1 table");
  is_int (qcow2_vmstate_discard (view), 0, "dropping needs none");
  is_int (go_on (view), -ENOSPC, "the snapshot has more than fits twice");
  memset (buf, 0, sizeof buf);
  is_int (qcow2_vmstate_discard (view), 0, "what was written goes again");
  is_int (qcow2_vmstate_pwrite (view, buf, sizeof buf, 0), 0,
          "and there is room for some");
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  write_log_clear (&log);
}

int
main (void)
{
  scratch_dir_enter_memory ();
  test_faults ("cluster_size=512");
  test_faults ("cluster_size=4k,compat=0.10");
  test_faults ("cluster_size=64k,lazy_refcounts=on");
  test_full ();
  return tap_done ();
}
