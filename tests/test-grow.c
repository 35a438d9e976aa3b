/* SPDX-License-Identifier: BSD-3-Clause */

/* Growing a disk gives what qemu-img resize gives.
 *
 * Images of many kinds, with content, are grown in several steps, while a
 * view is open and written to; a copy is resized by qemu-img, and written
 * to by qemu-io.  Both hold the same in the end, and are sound.
 */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grow-disk.h"
#include "image.h"
#include "power-check.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "write-log.h"
#include "writer.h"

#define KiB ((uint64_t) 1024)
#define MiB (KiB * 1024)
#define GiB (MiB * 1024)

struct kind {
  const char *name;
  const char *make;             /* shell command that makes disk.qcow2 */
  uint64_t sizes[6];            /* to be grown to, ends with 0 */
  bool large;                   /* too large to compare it all */
  bool flat_twin;               /* a copy of the content alone: where QEMU
                                   7.2 shows what was behind the end, or
                                   can't grow; of images with data files */
};

#define CREATE "qemu-img create -q -f qcow2 "
#define IO "qemu-io -f qcow2 -c "
#define TO "> qemu.log; "

static const struct kind kinds[] = {
  { .name = "512-byte clusters",
    .make = CREATE "-o cluster_size=512 disk.qcow2 100k && "
    IO "'write -P 1 0 100k' disk.qcow2 " TO,
    .sizes = { 100 * KiB + 512, 128 * KiB, 3 * MiB, 9 * MiB, 30 * MiB } },
  { .name = "512-byte clusters, 64-bit refcounts",
    .make = CREATE "-o cluster_size=512,refcount_bits=64 disk.qcow2 1M && "
    IO "'write -P 1 0 1M' disk.qcow2 " TO,
    .sizes = { 2 * MiB, 17 * MiB } },
  { .name = "1-bit refcounts",
    .make = CREATE "-o cluster_size=1k,refcount_bits=1 "
    "disk.qcow2 64k && " IO "'write -P 1 0 64k' disk.qcow2 " TO,
    .sizes = { 1 * MiB, 5 * MiB, 20 * MiB } },
  { .name = "4K clusters",
    .make = CREATE "-o cluster_size=4k disk.qcow2 3M && "
    IO "'write -P 1 1M 2M' disk.qcow2 " TO,
    .sizes = { 3 * MiB + 512, 4 * MiB, 200 * MiB } },
  { .name = "64K clusters",
    .make = CREATE "disk.qcow2 0",
    .sizes = { 512, 1 * MiB, 40 * MiB } },
  { .name = "version 2",
    .make = CREATE "-o compat=0.10,cluster_size=4k disk.qcow2 1M && "
    IO "'write -P 1 0 1M' disk.qcow2 " TO,
    .sizes = { 3 * MiB, 40 * MiB } },
  { .name = "extended L2",
    .make = CREATE "-o extended_l2=on,cluster_size=16k "
    "disk.qcow2 1111040 && " IO "'write -P 1 0 1111040' disk.qcow2 " TO,
    .sizes = { 1111552, 2 * MiB, 60 * MiB } },
  { .name = "snapshots",
    .make = CREATE "-o cluster_size=4k disk.qcow2 1000448 && "
    IO "'write -P 1 0 1000448' disk.qcow2 > qemu.log && "
    "qemu-img snapshot -c snap disk.qcow2",
    .sizes = { 1000960, 3 * MiB, 50 * MiB } },
  { .name = "compressed clusters",
    .make = CREATE "disk.qcow2 1000448 && "
    IO "'write -c -P 1 0 960k' -c 'write -P 2 960k 17408' disk.qcow2 " TO,
    .sizes = { 1000960, 3 * MiB } },
  { .name = "a disk that was larger",
    .make = CREATE "disk.qcow2 3M && "
    IO "'write -P 1 0 3M' disk.qcow2 > qemu.log && "
    "qemu-img resize -q --shrink disk.qcow2 1000448",
    .sizes = { 1000960, 1 * MiB, 4 * MiB },
    .flat_twin = true },
  { .name = "a VM's state behind the end",
    .make = CREATE "-o cluster_size=4k "
    "disk.qcow2 1M && " IO "'write -b -P 9 0 3M' disk.qcow2 " TO,
    .sizes = { 1 * MiB + 4096, 2 * MiB, 9 * MiB },
    .flat_twin = true },
  { .name = "a longer backing file",
    .make = CREATE "base.qcow2 5M && "
    IO "'write -P 1 0 5M' base.qcow2 > qemu.log && "
    CREATE "-o cluster_size=4k -F qcow2 -b base.qcow2 disk.qcow2 1000448",
    .sizes = { 1000960, 2 * MiB, 3 * MiB, 9 * MiB } },
  { .name = "a longer raw backing file",
    .make = "head -c 3M /dev/urandom > base.raw && "
    CREATE "-F raw -b base.raw disk.qcow2 100k",
    .sizes = { 1 * MiB, 9 * MiB } },
  { .name = "a longer backing file, version 2",
    .make = CREATE "base.qcow2 3M && "
    IO "'write -P 1 0 3M' base.qcow2 > qemu.log && "
    CREATE "-o compat=0.10 -F qcow2 -b base.qcow2 disk.qcow2 1000448",
    .sizes = { 2 * MiB, 9 * MiB },
    .flat_twin = true },
  { .name = "a longer backing file, extended L2",
    .make = CREATE "base.qcow2 3M && "
    IO "'write -P 1 0 3M' base.qcow2 > qemu.log && "
    CREATE "-o extended_l2=on -F qcow2 -b base.qcow2 disk.qcow2 1000448",
    .sizes = { 1001472, 2 * MiB, 9 * MiB } },
  { .name = "a shorter backing file",
    .make = CREATE "base.qcow2 1M && "
    IO "'write -P 1 0 1M' base.qcow2 > qemu.log && "
    CREATE "-F qcow2 -b base.qcow2 disk.qcow2 2M",
    .sizes = { 3 * MiB } },
  { .name = "a data file",
    .make = CREATE "-o data_file=data.raw,cluster_size=4k "
    "disk.qcow2 1000448 && " IO "'write -P 1 0 1000448' disk.qcow2 " TO,
    .sizes = { 1000960, 4 * MiB },
    .flat_twin = true },
  { .name = "a raw data file",
    .make = CREATE "-o data_file=data.raw,data_file_raw=on "
    "disk.qcow2 1000448 && " IO "'write -P 1 0 1000448' disk.qcow2 " TO,
    .sizes = { 1000960, 4 * MiB },
    .flat_twin = true },
  { .name = "512-byte clusters, 64-bit refcounts, a long L1 table",
    .make = CREATE "-o cluster_size=512,refcount_bits=64 disk.qcow2 1M && "
    IO "'write -P 1 0 1M' disk.qcow2 " TO,
    .sizes = { 40 * GiB, 100 * GiB }, .large = true },
  { .name = "the longest L1 table",
    .make = CREATE "-o cluster_size=4k disk.qcow2 1M",
    .sizes = { 8 * 1024 * GiB }, .large = true },
};

/*----- Images and twins -----*/

static void
print_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  printf ("# log: %s\n", text);
}

/* With a LOG, the cache has room for all. */
static struct qcow2 *
open_image (struct write_log *log)
{
  static const char *const anywhere[] = { "/" };
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  qcow2_options_init (&options);
  options.writable = true;
  options.allow_dirs = anywhere;
  options.nr_allow_dirs = 1;
  options.log = print_message;
  options.cache_bytes = log ? 4 * MiB : 64 * KiB;
  if (log)
    write_log_use (log, &options);
  if (qcow2_open ("disk.qcow2", &options, &image, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return image;
}

static void
make_twins (const struct kind *kind)
{
  run_command ("rm -rf *; mkdir twin; %s", kind->make);
  if (kind->flat_twin)
    run_command ("qemu-img convert -O qcow2 disk.qcow2 twin/disk.qcow2");
  else
    run_command ("cp --sparse=always *.* twin/");
}

static bool
same_content (void)
{
  uint64_t bytes, twin_bytes;
  uint8_t *content = qemu_content ("disk.qcow2", NULL, &bytes);
  uint8_t *twin = qemu_content ("twin/disk.qcow2", NULL, &twin_bytes);
  bool same = bytes == twin_bytes && memcmp (content, twin, bytes) == 0;

  free (content);
  free (twin);
  return same;
}

/*----- Growing in steps -----*/

/* At the end, and across the end that was; a snapshot's clusters, too. */
static int
write_after (struct qcow2_view *view, uint64_t was, unsigned step,
             bool twin)
{
  uint64_t size = qcow2_view_size (view), offset = was > 700 ? was - 700 : 0;
  uint64_t count = size - offset < 300 ? size - offset : 300;
  uint8_t buf[2048];
  int r;

  memset (buf, (int) (0x40 + step), sizeof buf);
  r = qcow2_pwrite (view, buf, count, offset, false);
  if (r == 0 && size > sizeof buf)
    r = qcow2_pwrite (view, buf, sizeof buf, size - sizeof buf, false);
  if (!twin)
    return r;
  run_command (IO "'write -q -P 0x%x %" PRIu64 " %" PRIu64 "' "
               "twin/disk.qcow2", 0x40 + step, offset, count);
  if (size > sizeof buf)
    run_command (IO "'write -q -P 0x%x %" PRIu64 " %zu' twin/disk.qcow2",
                 0x40 + step, size - sizeof buf, sizeof buf);
  return r;
}

static int
grow_in_steps (struct qcow2 *image, const struct kind *kind, bool with_view)
{
  struct qcow2_view *view = NULL;
  struct qcow2_error error = { "" };
  unsigned i;
  int r = 0;

  if (with_view)
    r = qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
  for (i = 0; r == 0 && i < 6 && kind->sizes[i] != 0; ++i) {
    uint64_t was = with_view ? qcow2_view_size (view) : 0;

    r = grow_disk (image, kind->sizes[i], &error);
    if (!kind->large)
      run_command ("qemu-img resize -q -f qcow2 twin/disk.qcow2 %" PRIu64,
                   kind->sizes[i]);
    if (r == 0 && with_view && qcow2_view_size (view) != kind->sizes[i])
      r = -EPROTO;
    if (r == 0 && with_view)
      r = write_after (view, was, i, !kind->large);
  }
  if (error.message[0])
    printf ("# %s\n", error.message);
  qcow2_view_close (view);
  return r;
}

static uint64_t
last_size (const struct kind *kind)
{
  unsigned i;

  for (i = 0; i < 5 && kind->sizes[i + 1] != 0; ++i)
    ;
  return kind->sizes[i];
}

static void
test_kind (const struct kind *kind, bool with_view)
{
  struct qcow2 *image;

  make_twins (kind);
  image = open_image (NULL);
  is_int (grow_in_steps (image, kind, with_view), 0, "%s%s", kind->name,
          with_view ? ", in use" : "");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean meanwhile");
  is_int (qcow2_close (image), 0, "it can be closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  if (kind->large)
    run_command ("qemu-img info disk.qcow2 | grep -q '^virtual size.*(%"
                 PRIu64 " bytes'", last_size (kind));
  else
    ok (same_content (), "size and content are those of the twin");
  if (access ("data.raw", F_OK) == 0 && strstr (kind->name, "raw"))
    is_int (system ("qemu-img convert -O raw twin/disk.qcow2 twin/raw && "
                    "cmp data.raw twin/raw"), 0,
            "the data file reads like the disk");
}

/*----- Sizes that are no multiple of anything -----*/

static void
test_odd_sizes (void)
{
  struct qcow2_error error;
  struct qcow2_view *view = NULL;
  struct qcow2 *image;
  uint64_t size = 0, state = 11, i;
  uint8_t *model = calloc (1, 2 * MiB), *buf = malloc (2 * MiB);
  int r;

  run_command ("rm -rf *; " CREATE "-o cluster_size=512 disk.qcow2 0");
  image = open_image (NULL);
  r = qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
  for (i = 0; r == 0 && i < 60; ++i) {
    uint64_t from = size, n;

    size += 1 + random_below (&state, 20000);
    r = grow_disk (image, size, &error);
    from = from > 100 ? from - random_below (&state, 100) : from;
    n = 1 + random_below (&state, size - from);
    memset (model + from, (int) i + 1, n);
    if (r == 0)
      r = qcow2_pwrite (view, model + from, n, from, false);
    if (r == 0)
      r = qcow2_pread (view, buf, size, 0);
    if (r == 0 && memcmp (model, buf, size) != 0)
      r = -EILSEQ;
  }
  is_int (r, 0, "60 odd sizes, from 0 to %" PRIu64, size);
  ok (image->chain.layers[0]->header.l1_entries <= size / 32768 * 3 / 2 + 3,
      "there is no more to spare than half of the L1 table");
  qcow2_view_close (view);
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  qcow2_close (image);
  free (model);
  free (buf);
}

/* Moves of the L1 table. */
static void
test_spare (void)
{
  struct write_log log;
  struct qcow2_error error;
  struct qcow2 *image;
  unsigned i, moves = 0;
  uint64_t last;
  int r = 0;

  run_command ("rm -rf *; " CREATE "-o cluster_size=512 disk.qcow2 1M");
  write_log_init (&log);
  image = open_image (&log);
  last = image->chain.layers[0]->header.l1_offset;
  for (i = 1; i <= 200 && r == 0; ++i) {
    r = grow_disk (image, MiB + i * 32 * KiB, &error);
    moves += image->chain.layers[0]->header.l1_offset != last;
    last = image->chain.layers[0]->header.l1_offset;
    if (i == 1)
      is_int (image->chain.layers[0]->header.l1_entries, 33,
              "the first growth is exact");
  }
  is_int (r, 0, "200 growths");
  ok (moves > 3 && moves < 12, "the L1 table has moved %u times", moves);
  qcow2_close (image);
  write_log_clear (&log);
}

/*----- What is refused -----*/

static void
refused (const char *make, uint64_t size, int err, const char *what)
{
  struct qcow2_error error;
  struct qcow2 *image;

  run_command ("rm -rf *; %s; cp disk.qcow2 before.qcow2", make);
  image = open_image (NULL);
  is_int (grow_disk (image, size, &error), -err, "%s: %s", what,
          error.message);
  qcow2_close (image);
  is_int (system ("cmp disk.qcow2 before.qcow2"), 0, "nothing has changed");
}

static void
test_refused (void)
{
  refused (CREATE "disk.qcow2 1M", MiB - 1, ENOTSUP, "a smaller disk");
  refused (CREATE "-o compat=0.10 disk.qcow2 1M && qemu-img snapshot -c s "
           "disk.qcow2", 2 * MiB, ENOTSUP, "version 2 with a snapshot");
  refused (CREATE "disk.qcow2 1M && qemu-img snapshot -c s disk.qcow2 && "
           "at=$(od -An -j64 -N8 -tu8 --endian=big disk.qcow2) && "
           "printf '\\0\\0\\0\\0' | dd of=disk.qcow2 bs=1 conv=notrunc "
           "status=none seek=$((at + 36))", 2 * MiB, ENOTSUP,
           "a snapshot that doesn't tell its size");
  refused (CREATE "disk.qcow2 1M && qemu-img bitmap --add disk.qcow2 b",
           2 * MiB, ENOTSUP, "dirty bitmaps");
  refused (CREATE "-o cluster_size=512 disk.qcow2 1M", 128 * GiB + 1, EFBIG,
           "L1 table");
  refused (CREATE "-o cluster_size=2M disk.qcow2 1M", UINT64_MAX, EFBIG,
           "more than any file");
  refused (CREATE "disk.qcow2 1M && chmod a-w disk.qcow2", MiB, 0,
           "the size it has");
}

/* A client may have a request on the way behind the new end. */
static void
test_shrink_in_use (void)
{
  struct qcow2_view *view = NULL;
  struct qcow2_error error;
  struct qcow2 *image;

  run_command ("rm -rf *; " CREATE "disk.qcow2 1M");
  image = open_image (NULL);
  is_int (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error), 0, "in use");
  is_int (qcow2_resize (image, MiB / 2, QCOW2_PREALLOCATION_OFF, true, &error),
          -EBUSY, "not made smaller: %s", error.message);
  qcow2_view_close (view);
  is_int (qcow2_resize (image, MiB / 2, QCOW2_PREALLOCATION_FULL, true,
                        &error), -EINVAL, "nor: %s", error.message);
  is_int (qcow2_resize (image, MiB / 2, QCOW2_PREALLOCATION_OFF, true, &error),
          0, "in use no more, it is");
  qcow2_close (image);
}

/*----- Storage of fixed size, and faults -----*/

#define OLD_BYTES 1000448

struct faults {
  enum log_kind kind;
  long countdown;               /* 0: none */
  int err;
  bool hit;
  const struct qcow2_view *view; /* whose size is looked at */
  pthread_t grower;
  bool told;                    /* it had changed before GROWER was done */
};

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  struct faults *f = opaque;

  /* The worker may be reading refcounts when all is done. */
  if (pthread_equal (pthread_self (), f->grower) && f->view &&
      qcow2_view_size (f->view) != OLD_BYTES)
    f->told = true;
  if (event->kind != f->kind || f->countdown == 0 || --f->countdown > 0)
    return 0;
  f->hit = true;
  return -f->err;
}

static void
test_device (void)
{
  struct write_log log;
  struct qcow2_error error;
  struct qcow2 *image;

  run_command ("rm -rf *; " CREATE "-o cluster_size=512 disk.qcow2 1M && "
               "truncate -s 40k disk.qcow2");
  write_log_init (&log);
  log.fixed_size = true;
  image = open_image (&log);
  is_int (grow_disk (image, 9 * MiB, &error), 0, "on a device, in a hole");
  is_int (grow_disk (image, 900 * MiB, &error), -ENOSPC, "no room: %s",
          error.message);
  is_int (grow_disk (image, 10 * MiB, &error), 0, "then with less");
  is_int (qcow2_close (image), 0, "it can be closed");
  is_int (qemu_check ("disk.qcow2"), 0, "the check is clean");
  run_command ("qemu-img info disk.qcow2 | grep -q '(10485760 bytes)'");
  write_log_clear (&log);
}

struct tally {
  unsigned nr_cases, nr_failed, nr_ended;
  unsigned nr_corrupt, nr_wrong_live, nr_wrong_closed, nr_stuck;
  unsigned nr_told;
};

#define WRITTEN_BYTES 100000

/* FROM: what comes before need not be there. */
static bool
is_right (const uint8_t *content, uint64_t size, uint64_t from)
{
  uint64_t i;

  for (i = from; i < size; ++i)
    if (content[i] != (i < WRITTEN_BYTES ? 5 : i < OLD_BYTES ? 1 : 0))
      return false;
  return true;
}

static void
check_closed (bool ended, struct tally *t)
{
  uint64_t size;
  uint8_t *content = qemu_content ("disk.qcow2", NULL, &size);
  int status = qemu_check ("disk.qcow2");

  if (status != 0 && !(ended && status == 3))
    t->nr_corrupt++;
  if (!is_right (content, size, ended ? WRITTEN_BYTES : 0))
    t->nr_wrong_closed++;
  free (content);
}

/* One fault while the disk grows over a longer backing file. */
static bool
one_fault (const struct faults *fault, struct tally *t)
{
  static uint8_t buf[4 * MiB];
  struct faults f = { .kind = fault->kind, .err = fault->err };
  struct write_log log;
  struct qcow2_error error;
  struct qcow2_view *view = NULL;
  struct qcow2 *image;
  bool ended;
  int r;

  run_command ("cp --sparse=always pristine/* .");
  write_log_init (&log);
  log.hook = maybe_fail;
  log.opaque = &f;
  image = open_image (&log);
  memset (buf, 5, WRITTEN_BYTES);
  if (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0 ||
      qcow2_pwrite (view, buf, WRITTEN_BYTES, 0, false) < 0)
    t->nr_wrong_live++;

  f.grower = pthread_self ();
  f.view = view;
  f.countdown = fault->countdown;
  r = grow_disk (image, 3 * MiB, &error);
  f.countdown = 0;
  f.view = NULL;
  t->nr_told += f.told;
  t->nr_failed += r < 0;
  ended = image->writer->committer.failed;
  t->nr_ended += ended;
  if (qcow2_view_size (view) != (r == 0 ? 3 * MiB : OLD_BYTES) ||
      qcow2_pread (view, buf, qcow2_view_size (view), 0) < 0 ||
      !is_right (buf, qcow2_view_size (view), 0))
    t->nr_wrong_live++;
  /* It goes on, but after a failed flush. */
  r = grow_disk (image, 4 * MiB, &error);
  if ((r < 0) != ended)
    t->nr_stuck++;
  qcow2_view_close (view);
  r = qcow2_close (image);
  if ((r < 0) != ended)
    t->nr_stuck++;
  check_closed (ended, t);
  write_log_clear (&log);
  t->nr_cases++;
  return f.hit;
}

static void
test_faults (const char *name, const char *make)
{
  static const struct faults kinds_of_fault[] = {
    { .kind = LOG_WRITE, .err = EIO }, { .kind = LOG_WRITE, .err = ENOSPC },
    { .kind = LOG_READ, .err = EIO }, { .kind = LOG_FLUSH, .err = EIO },
    { .kind = LOG_TRUNCATE, .err = EIO },
  };
  struct tally t = { .nr_cases = 0 };
  unsigned i;

  run_command ("rm -rf *; %s && mkdir pristine && mv *.* pristine/", make);
  for (i = 0; i < sizeof kinds_of_fault / sizeof kinds_of_fault[0]; ++i) {
    struct faults f = kinds_of_fault[i];

    do
      f.countdown++;
    while (one_fault (&f, &t));
  }
  ok (t.nr_failed > 7 && t.nr_ended > 2, "%s: of %u growths with a fault %u "
      "failed, %u ended the writing", name, t.nr_cases, t.nr_failed,
      t.nr_ended);
  is_int (t.nr_wrong_live, 0, "content is right");
  is_int (t.nr_wrong_closed, 0, "after closing, too");
  is_int (t.nr_corrupt, 0, "the check finds nothing");
  is_int (t.nr_told, 0, "no view has the new size before it is durable");
  is_int (t.nr_stuck, 0, "growing goes on, but after a failed flush");
}

int
main (void)
{
  const char *only = getenv ("GROW_KIND");
  unsigned i;

  scratch_dir_enter ();
  for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i)
    if (!only || strcmp (only, kinds[i].name) == 0) {
      test_kind (&kinds[i], true);
      test_kind (&kinds[i], false);
    }
  test_odd_sizes ();
  test_spare ();
  test_refused ();
  test_shrink_in_use ();
  test_device ();
  test_faults ("a longer backing file", CREATE "base.qcow2 5M && "
               IO "'write -P 1 0 5M' base.qcow2 > qemu.log && " CREATE
               "-o cluster_size=1k -F qcow2 -b base.qcow2 disk.qcow2 1000448");
  test_faults ("64-bit refcounts", CREATE "-o cluster_size=512,"
               "refcount_bits=64 disk.qcow2 1000448 && "
               IO "'write -P 1 0 1000448' disk.qcow2 > qemu.log");
  return tap_done ();
}
