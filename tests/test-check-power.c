/* SPDX-License-Identifier: BSD-3-Clause */

/* Power fails, or a request does, at each moment of a repair by `check -r':
 * guests see what they saw before, and the next repair makes it right.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crash-state.h"
#include "power-check.h"
#include "qcow2/format.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define IMAGE "disk.qcow2"
#define DISK_BYTES UINT64_C (393216)
#define STATES_PER_MOMENT 4
#define QEMU_EVERY 40           /* states; it is slow */

/*----- Numbers in the file -----*/

static uint64_t
get64 (uint64_t offset)
{
  uint64_t be = 0;
  int fd = open (IMAGE, O_RDONLY | O_CLOEXEC);

  if (fd == -1 || pread (fd, &be, 8, (off_t) offset) != 8)
    abort ();
  close (fd);
  return be64toh (be);
}

static void
put (uint64_t offset, unsigned width, uint64_t value)
{
  uint64_t be = htobe64 (value << (64 - 8 * width));
  int fd = open (IMAGE, O_WRONLY | O_CLOEXEC);

  if (fd == -1 || pwrite (fd, &be, width, (off_t) offset) != (int) width)
    abort ();
  close (fd);
}

/*----- Damages -----*/

struct image_place {
  uint64_t cluster_bytes, l1, table, block, l2, snapshots, nr_clusters;
};

static struct image_place at;

static void
find_places (uint64_t cluster_bytes)
{
  uint64_t bytes;

  free (file_content (IMAGE, &bytes));
  at.cluster_bytes = cluster_bytes;
  at.nr_clusters = bytes / cluster_bytes;
  at.l1 = get64 (40);
  at.table = get64 (48);
  at.block = get64 (at.table);
  at.l2 = get64 (at.l1) & ENTRY_OFFSET_MASK;
  at.snapshots = get64 (64);
}

/* Of the first block's clusters, every third. */
static void
set_refcounts (unsigned value)
{
  uint64_t i;

  for (i = 0; i < at.cluster_bytes / 2 && i < at.nr_clusters; i += 3)
    put (at.block + i * 2, 2, value);
}

static void
damage_refcounts (void)
{
  set_refcounts (0);
  put (at.block + 2, 2, 7);
  put (at.l1, 8, get64 (at.l1) ^ ENTRY_COPIED);
  put (at.l2, 8, get64 (at.l2) ^ ENTRY_COPIED);
}

static void
damage_block_is_l1 (void)
{
  put (at.table, 8, at.l1);
}

static void
damage_block_entry (void)
{
  put (at.table, 8, at.block | 0x102);
}

/* The first block lies where a second one counts it; as long as the table
 * names it, it has to be counted.
 */
static struct {
  uint64_t entry, value, count;
} moved;

static void
damage_moved_block (void)
{
  const uint64_t second = 256 * 512, to = 257 * 512;
  uint64_t i;

  if (at.cluster_bytes > 512) {
    damage_block_entry ();
    return;
  }
  if (at.nr_clusters > 256)
    abort ();
  for (i = 0; i < 512; i += 8) {
    put (to + i, 8, get64 (at.block + i));
    put (second + i, 8, 0);
  }
  put (to + at.block / 512 * 2, 2, 0);
  put (second, 4, 0x10001);
  put (at.table + 8, 8, second);
  put (at.table, 8, to | 1);
  moved.entry = at.table;
  moved.value = to | 1;
  moved.count = second + 2;
}

static bool
is_moved_block_free (const char *copy)
{
  uint64_t bytes, entry;
  uint8_t *file;
  bool is_free;

  if (moved.value == 0)
    return false;
  file = file_content (copy, &bytes);
  memcpy (&entry, file + moved.entry, 8);
  is_free = be64toh (entry) == moved.value && file[moved.count + 1] == 0;
  free (file);
  return is_free;
}

static void
damage_table_outside (void)
{
  put (48, 8, UINT64_C (1) << 40);
}

static void
damage_table_is_l2 (void)
{
  put (48, 8, at.l2);
}

static void
damage_snapshot (void)
{
  put (at.snapshots + 36, 4, 5000);
}

/* An entry that was not allocated says that it is a zero cluster, where
 * none can be.
 */
static void
damage_zero_cluster (void)
{
  uint64_t entry = at.l2;

  while (get64 (entry) != 0)
    entry += 8;
  put (entry, 8, at.cluster_bytes > 512 ? 0x40201 : 0x2);
}

static void
damage_hopelessly (void)
{
  uint64_t entry = at.l2;

  while (get64 (entry) != 0)
    entry += 8;
  put (entry, 8, 0x2);
  put (at.table, 8, at.l1);
  put (at.block + 2 * (at.l1 / at.cluster_bytes), 2, 3);
}

static void
damage_leaks (void)
{
  uint64_t i;

  for (i = 0; i < at.cluster_bytes / 2; i += 2)
    put (at.block + i * 2, 2, 9);
}

struct damage {
  const char *name;
  void (*fn) (void);
  enum qcow2_repair repair;
  bool hopeless;                /* something stays wrong */
  bool hopeless_512;            /* with clusters of 512 bytes */
};

static const struct damage damages[] = {
  { "refcounts and flags", damage_refcounts, QCOW2_REPAIR_ALL, false, false },
  { "a block that is the L1 table", damage_block_is_l1, QCOW2_REPAIR_ALL,
    false, false },
  { "a bad table entry", damage_block_entry, QCOW2_REPAIR_ALL, false, false },
  { "a block that another one counts", damage_moved_block, QCOW2_REPAIR_ALL,
    false, false },
  { "a table past the end", damage_table_outside, QCOW2_REPAIR_ALL,
    false, false },
  { "a table that is an L2 table", damage_table_is_l2, QCOW2_REPAIR_ALL,
    false, false },
  { "too much extra data", damage_snapshot, QCOW2_REPAIR_ALL, false, false },
  { "a bad zero cluster", damage_zero_cluster, QCOW2_REPAIR_ALL, false, true },
  { "hopeless", damage_hopelessly, QCOW2_REPAIR_ALL, true, true },
  { "leaks", damage_leaks, QCOW2_REPAIR_LEAKS, false, false },
};

#define NR_DAMAGES (sizeof damages / sizeof damages[0])

/*----- An image -----*/

struct subject {
  unsigned version;
  unsigned cluster_bytes;
  const struct damage *damage;
  uint8_t *content, *snapshot;
  uint64_t nr_wrong;            /* what a check finds, but for leaks;
                                   UINT64_MAX: it can't be checked */
};

static bool
is_hopeless (const struct subject *s)
{
  return s->cluster_bytes == 512 ? s->damage->hopeless_512 :
    s->damage->hopeless;
}

static void
make_subject (struct subject *s, uint64_t *state)
{
  uint64_t bytes;

  run_command ("rm -rf *; qemu-img create -q -f qcow2 -o compat=%s,"
               "cluster_size=%u " IMAGE " 384k",
               s->version == 2 ? "0.10" : "1.1", s->cluster_bytes);
  random_writes ("qcow2", IMAGE, DISK_BYTES, 20000, s->cluster_bytes, 6, 0,
                 state);
  run_command ("qemu-io -f qcow2 -c 'write -q -P 9 0 5000' " IMAGE " && "
               "qemu-img snapshot -c one " IMAGE);
  random_writes ("qcow2", IMAGE, DISK_BYTES, 20000, s->cluster_bytes, 3, 0,
                 state);
  run_command ("qemu-io -f qcow2 -c 'write -q -P 8 0 3000' " IMAGE);
  s->content = qemu_content (IMAGE, NULL, &bytes);
  s->snapshot = qemu_content (IMAGE, "one", &bytes);
  find_places (s->cluster_bytes);
  moved.value = 0;
  s->damage->fn ();
  run_command ("mkdir pristine && cp " IMAGE " pristine");
}

/*----- Looking -----*/

static int
open_image (const char *filename, bool check, bool writable,
            struct write_log *log, struct qcow2 **image)
{
  struct qcow2_options options;
  struct qcow2_error error;

  qcow2_options_init (&options);
  options.check = check;
  options.writable = writable;
  options.lock = false;
  if (log)
    write_log_use (log, &options);
  return qcow2_open (filename, &options, image, &error);
}

/* Clusters that can't be read were made so by the test. */
static bool
reads_as (struct qcow2 *image, size_t snapshot, const uint8_t *content,
          bool all)
{
  static uint8_t buf[4096];
  struct qcow2_view *view;
  struct qcow2_error error;
  uint64_t offset;
  unsigned nr_bad = 0;
  bool same = true;

  if (qcow2_view_open (image, snapshot, &view, &error) < 0)
    return false;
  for (offset = 0; offset < DISK_BYTES; offset += sizeof buf)
    if (qcow2_pread (view, buf, sizeof buf, offset) < 0)
      nr_bad++;
    else
      same = same && memcmp (buf, content + offset, sizeof buf) == 0;
  qcow2_view_close (view);
  return same && !(all && nr_bad > 0);
}

static int
repair (struct qcow2 *image, enum qcow2_repair how,
        struct qcow2_check_result *result)
{
  const struct qcow2_check_options options = { .repair = how };
  struct qcow2_error error;

  return qcow2_check (image, &options, result, &error);
}

static uint64_t
count_wrong (struct qcow2 *image)
{
  struct qcow2_check_result result;

  return repair (image, QCOW2_REPAIR_NONE, &result) < 0 ? UINT64_MAX :
    result.corruptions + result.check_errors;
}

static void
look_before (struct subject *s)
{
  struct qcow2 *image;

  if (open_image (IMAGE, true, false, NULL, &image) < 0)
    abort ();
  s->nr_wrong = count_wrong (image);
  qcow2_close (image);
  ok (s->nr_wrong > 0 || s->damage->repair == QCOW2_REPAIR_LEAKS,
      "version %u, %u, %s: something is wrong", s->version, s->cluster_bytes,
      s->damage->name);
}

/* Repair COPY, which is what was left, and judge it: what is wrong, or
 * NULL.
 */
static const char *
judge (const struct subject *s, const char *copy, bool ask_qemu)
{
  const struct damage *d = s->damage;
  bool hopeless = is_hopeless (s);
  struct qcow2_check_result result;
  struct qcow2 *image;
  const char *wrong = NULL;

  if (is_moved_block_free (copy))
    return "a block that is in use is free";
  if (open_image (copy, true, true, NULL, &image) < 0)
    return "it can't be opened to be checked";
  if (!reads_as (image, QCOW2_ACTIVE, s->content, false))
    wrong = "the disk has changed";
  else if (count_wrong (image) > s->nr_wrong)
    wrong = "more is wrong than before";
  else if (repair (image, d->repair, &result) < 0)
    wrong = "it can't be repaired";
  else if (repair (image, QCOW2_REPAIR_NONE, &result) < 0)
    wrong = "it can't be checked";
  else if (result.corruptions != (hopeless ? 1 : 0) || result.check_errors)
    wrong = "it is not right after its repair";
  else if (result.leaks > 0 && !hopeless)
    wrong = "it has leaks after its repair";
  qcow2_close (image);
  if (wrong)
    return wrong;
  if (open_image (copy, false, false, NULL, &image) < 0)
    return "it can't be opened after its repair";
  if (!reads_as (image, QCOW2_ACTIVE, s->content, !hopeless))
    wrong = "the disk has changed after its repair";
  else if (!reads_as (image, 0, s->snapshot, !hopeless))
    wrong = "the snapshot has changed after its repair";
  qcow2_close (image);
  if (!wrong && ask_qemu && qemu_check (copy) != (hopeless ? 2 : 0))
    wrong = "QEMU finds something after its repair";
  return wrong;
}

/*----- Power failures -----*/

static void
copy_state (const char *to)
{
  uint64_t bytes;
  uint8_t *content = file_content ("state/" IMAGE, &bytes);
  int fd = open (to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

  if (fd == -1 || write (fd, content, bytes) != (ssize_t) bytes)
    abort ();
  close (fd);
  free (content);
}

static void
run_logged (const struct subject *s, struct write_log *log)
{
  struct qcow2_check_result result;
  struct qcow2 *image;

  write_log_init (log);
  run_command ("cp pristine/" IMAGE " .");
  if (open_image (IMAGE, true, true, log, &image) < 0)
    abort ();
  if (repair (image, s->damage->repair, &result) < 0)
    ok (false, "%s: it can be repaired", s->damage->name);
  qcow2_close (image);
}

static void
test_power (const struct subject *s, const char *name, uint64_t *state)
{
  struct write_log log;
  struct write_classes classes;
  struct crash *crash;
  const char *wrong = NULL, *first = NULL;
  unsigned nr = 0, nr_bad = 0, i;
  uint64_t time;

  run_logged (s, &log);
  write_classes_init (&classes, &log);
  run_command ("mkdir -p copy");
  crash = crash_new (&log, &classes, MUTANT_NONE, "state");
  for (time = 0; time <= log.now; ++time) {
    crash_go (crash, time);
    for (i = 0; i < STATES_PER_MOMENT; ++i) {
      crash_build (crash, i < 2 ? (enum crash_mode) i :
                   (enum crash_mode) random_below (state, NR_CRASH_MODES),
                   random_next (state));
      copy_state ("copy/" IMAGE);
      wrong = judge (s, "copy/" IMAGE, nr++ % QEMU_EVERY == 0);
      nr_bad += wrong != NULL;
      first = first ? first : wrong;
    }
  }
  ok (nr_bad == 0, "%s: %u states after a power failure%s%s", name, nr,
      first ? ": " : "", first ? first : "");
  is_int (qemu_check (IMAGE), is_hopeless (s) ? 2 : 0,
          "%s: QEMU agrees that it is repaired", name);
  crash_free (crash);
  write_classes_clear (&classes);
  write_log_clear (&log);
}

/*----- Requests that fail -----*/

struct faulty {
  enum log_kind kind;
  bool lasting;
  atomic_long count, nth;
};

static int
maybe_fail (void *opaque, const struct log_event *event)
{
  struct faulty *f = opaque;
  long n;

  if (event->kind != f->kind)
    return 0;
  n = atomic_fetch_add (&f->count, 1) + 1;
  return n == f->nth || (f->lasting && n > f->nth) ? -EIO : 0;
}

/* Returns how many requests of the kind there were; *FAILED: it did. */
static long
repair_with_fault (const struct subject *s, struct faulty *f, bool *failed)
{
  struct qcow2_check_result result;
  struct write_log log;
  struct qcow2 *image;

  write_log_init (&log);
  log.hook = maybe_fail;
  log.opaque = f;
  run_command ("cp pristine/" IMAGE " .");
  *failed = open_image (IMAGE, true, true, &log, &image) < 0;
  if (!*failed) {
    *failed = repair (image, s->damage->repair, &result) < 0;
    qcow2_close (image);
  }
  write_log_clear (&log);
  return f->count;
}

static void
test_faults (const struct subject *s, const char *name)
{
  static const enum log_kind kinds[] = { LOG_READ, LOG_WRITE, LOG_FLUSH };
  const char *wrong, *first = NULL;
  unsigned nr = 0, nr_bad = 0, nr_silent = 0, i;
  long nth, total;
  bool failed;

  for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i) {
    struct faulty none = { .kind = kinds[i] };

    total = repair_with_fault (s, &none, &failed);
    for (nth = 1; nth <= total; nth += 1 + total / 12) {
      struct faulty f = { .kind = kinds[i], .lasting = nth % 2, .nth = nth };

      repair_with_fault (s, &f, &failed);
      wrong = judge (s, IMAGE, nr++ % QEMU_EVERY == 0);
      nr_bad += wrong != NULL;
      first = first ? first : wrong;
      nr_silent += !failed && kinds[i] != LOG_READ;
    }
  }
  ok (nr_bad == 0, "%s: %u requests that fail%s%s", name, nr,
      first ? ": " : "", first ? first : "");
  is_int (nr_silent, 0, "%s: none is passed over in silence", name);
}

int
main (void)
{
  static const unsigned sizes[] = { 512, 4096, 65536 };
  uint64_t state = 20;
  unsigned version, i, j;
  char name[100];

  scratch_dir_enter_memory ();
  for (version = 2; version <= 3; ++version)
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; ++i)
      for (j = 0; j < NR_DAMAGES; ++j) {
        struct subject s = {
          .version = version, .cluster_bytes = sizes[i],
          .damage = &damages[j],
        };

        snprintf (name, sizeof name, "version %u, %u, %s", version,
                  sizes[i], damages[j].name);
        make_subject (&s, &state);
        look_before (&s);
        test_power (&s, name, &state);
        test_faults (&s, name);
        free (s.content);
        free (s.snapshot);
      }
  return tap_done ();
}
