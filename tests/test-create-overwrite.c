/* SPDX-License-Identifier: BSD-3-Clause */

/* A new image over an old one.  When power fails, there is the old image with
 * all its content, or the new one, or nothing that anybody takes for an image.
 * When I/O fails, too, and the message says so.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "crash-state.h"
#include "qcow2/qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"

#define SIZE_BYTES (UINT64_C (1) << 20)
#define MODES_PER_MOMENT 4

static const char *const kinds[] = {
  "compat=v3",
  "preallocation=metadata,cluster_size=4k",
  "preallocation=full,cluster_size=512,compat=0.10",
  "data_file=data.raw,data_file_raw=on",
};

#define NR_KINDS (sizeof kinds / sizeof kinds[0])

static void
make_old (void)
{
  run_command ("rm -rf *; qemu-img create -q -f qcow2 disk.qcow2 1M && "
               "qemu-io -f qcow2 -c 'write -q -P 7 0 1M' disk.qcow2 && "
               "cp disk.qcow2 data.raw");
}

static int
create (const char *text, struct write_log *log, struct qcow2_error *error)
{
  struct qcow2_create_options options;
  struct qcow2_options hooks;
  int r;

  write_log_use (log, &hooks);
  qcow2_create_options_init (&options);
  options.overwrite = true;
  options.wrap = hooks.wrap;
  options.opaque = hooks.opaque;
  r = qcow2_create_option_parse (&options, text, error);
  if (r == 0)
    r = qcow2_create ("disk.qcow2", SIZE_BYTES, &options, error);
  qcow2_create_options_clear (&options);
  return r;
}

/*----- Power failures -----*/

struct tally {
  unsigned nr_old, nr_none, nr_new, nr_bad;
};

struct content {
  uint8_t *bytes;
  uint64_t nr_bytes;
};

static bool
is_same (const uint8_t *bytes, uint64_t nr_bytes, const struct content *c)
{
  return nr_bytes == c->nr_bytes && memcmp (bytes, c->bytes, nr_bytes) == 0;
}

static void
judge (const struct content *old, const struct content *new,
       struct tally *t)
{
  struct content now;

  now.bytes = file_content ("crash/disk.qcow2", &now.nr_bytes);
  if (is_same (now.bytes, now.nr_bytes, old))
    t->nr_old++;
  else if (is_same (now.bytes, now.nr_bytes, new))
    t->nr_new++;
  else if (now.nr_bytes < 4 || memcmp (now.bytes, "QFI\xfb", 4) != 0)
    t->nr_none++;
  else
    t->nr_bad++;
  free (now.bytes);
}

static void
test_power (const char *text)
{
  struct content old, new;
  struct write_classes classes;
  struct qcow2_error error = { "" };
  struct tally t = { .nr_old = 0 };
  struct write_log log;
  struct crash *crash;
  uint64_t time, state = 3;
  unsigned i;

  make_old ();
  old.bytes = file_content ("disk.qcow2", &old.nr_bytes);
  write_log_init (&log);
  is_int (create (text, &log, &error), 0, "%s: made %s", text, error.message);
  new.bytes = file_content ("disk.qcow2", &new.nr_bytes);
  write_classes_init (&classes, &log);
  crash = crash_new (&log, &classes, MUTANT_NONE, "crash");
  for (time = 1; time <= log.now + 1; ++time) {
    crash_go (crash, time);
    for (i = 0; i < MODES_PER_MOMENT; ++i) {
      enum crash_mode mode = random_below (&state, NR_CRASH_MODES);

      crash_build (crash, mode, random_next (&state));
      judge (&old, &new, &t);
    }
  }
  is_int (t.nr_bad, 0, "%s: no state is half an image", text);
  ok (t.nr_old > 2 && t.nr_none > 2 && t.nr_new > 2, "%s: %u states are the "
      "old image, %u none, %u the new one", text, t.nr_old, t.nr_none,
      t.nr_new);
  crash_free (crash);
  write_classes_clear (&classes);
  write_log_clear (&log);
  free (old.bytes);
  free (new.bytes);
}

/*----- Faults -----*/

struct countdown {
  unsigned n;                   /* 0: none */
  unsigned nr;                  /* requests so far */
};

static int
fail_nth (void *opaque, const struct log_event *event)
{
  struct countdown *c = opaque;

  return ++c->nr == c->n ? -EIO : 0;
}

/* The old file, whole, or an empty one; it is still the same file. */
static bool
is_sound (ino_t inode)
{
  struct stat st;

  if (stat ("disk.qcow2", &st) == -1 || st.st_ino != inode)
    return false;
  return st.st_size == 0 ||
    system ("qemu-io -r -f qcow2 -c 'read -q -P 7 0 1M' disk.qcow2 > log && "
            "test ! -s log") == 0;
}

static void
test_faults (const char *text)
{
  unsigned n, nr_bad = 0;

  for (n = 1;; ++n) {
    struct countdown countdown = { .n = n };
    struct qcow2_error error = { "" };
    struct write_log log;
    struct stat st;
    int r;

    make_old ();
    if (stat ("disk.qcow2", &st) == -1)
      nr_bad++;
    write_log_init (&log);
    log.hook = fail_nth;
    log.opaque = &countdown;
    r = create (text, &log, &error);
    write_log_clear (&log);
    if (r == 0)
      break;
    if (r != -EIO || !error.message[0] || !is_sound (st.st_ino)) {
      printf ("# request %u: %d, %s\n", n, r, error.message);
      nr_bad++;
    }
  }
  is_int (nr_bad, 0, "%s: a fault at each of %u requests leaves the old file, "
          "or an empty one", text, n - 1);
  is_int (system ("qemu-img check -q -f qcow2 disk.qcow2"), 0,
          "%s: with none the check is clean", text);
}

/*----- Through a link -----*/

static ino_t synced;            /* by the last fsync */

int
fsync (int fd)
{
  struct stat st;

  synced = fstat (fd, &st) == 0 ? st.st_ino : 0;
  return (int) syscall (SYS_fsync, fd);
}

/* The link is there, and what it names is not: that is made. */
static void
test_dangling_link (void)
{
  struct qcow2_error error;
  struct write_log log;
  struct stat st;

  run_command ("rm -rf *; mkdir there && ln -s there/x.qcow2 disk.qcow2");
  write_log_init (&log);
  is_int (create ("compat=v3", &log, &error), 0, "made where a link leads");
  ok (stat ("there", &st) == 0 && st.st_ino == synced,
      "the directory that it is in is made durable");
  write_log_clear (&log);
}

int
main (void)
{
  unsigned i;

  scratch_dir_enter ();
  for (i = 0; i < NR_KINDS; ++i) {
    test_power (kinds[i]);
    test_faults (kinds[i]);
  }
  test_dangling_link ();
  return tap_done ();
}
