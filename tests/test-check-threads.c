/* SPDX-License-Identifier: BSD-3-Clause */

/* Many threads find what one finds, and tell it in the same order. */

#include <stdlib.h>
#include <string.h>

#include "metadata-damage.h"
#include "qcow2/qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define MAX_TEXT (4u << 20)

struct run {
  char *text;                   /* all findings */
  size_t nr_bytes;
  uint64_t done, total;
  bool goes_back;
  struct qcow2_check_result result;
};

static void
note_finding (void *opaque, const char *text)
{
  struct run *run = opaque;

  run->nr_bytes += (size_t) snprintf (run->text + run->nr_bytes,
                                      MAX_TEXT - run->nr_bytes, "%.150s\n",
                                      text);
  if (run->nr_bytes > MAX_TEXT - 200)
    abort ();
}

static void
note_progress (void *opaque, uint64_t done, uint64_t total)
{
  struct run *run = opaque;

  run->goes_back = run->goes_back || done < run->done;
  run->done = done;
  run->total = total;
}

static void
check (struct run *run, unsigned nr_threads, enum qcow2_repair repair)
{
  const struct qcow2_check_options how = {
    .repair = repair, .nr_threads = nr_threads, .found = note_finding,
    .progress = note_progress, .opaque = run,
  };
  struct qcow2_options options;
  struct qcow2_error error = { "" };
  struct qcow2 *image;
  int r;

  memset (run, 0, sizeof *run);
  run->text = calloc (1, MAX_TEXT);
  qcow2_options_init (&options);
  options.check = true;
  options.writable = repair != QCOW2_REPAIR_NONE;
  r = qcow2_open ("disk.qcow2", &options, &image, &error);
  if (r == 0) {
    r = qcow2_check (image, &how, &run->result, &error);
    qcow2_close (image);
  }
  is_int (r, 0, "%u threads: %s", nr_threads, error.message);
}

static void
test_same (const char *name, enum qcow2_repair repair)
{
  static const unsigned numbers[] = { 2, 5, 16, 99 };
  struct run one, many;
  unsigned i;

  run_command ("cp damaged.qcow2 disk.qcow2");
  check (&one, 1, repair);
  ok (one.result.corruptions + one.result.corruptions_fixed > 0,
      "%s: something is wrong", name);
  ok (one.done == one.total || repair != QCOW2_REPAIR_NONE,
      "%s: progress comes to its end", name);
  for (i = 0; i < sizeof numbers / sizeof numbers[0]; ++i) {
    run_command ("cp damaged.qcow2 disk.qcow2");
    check (&many, numbers[i], repair);
    ok (memcmp (&many.result, &one.result, sizeof one.result) == 0,
        "%s: %u threads count the same", name, numbers[i]);
    ok (strcmp (many.text, one.text) == 0, "%s: %u threads tell the same",
        name, numbers[i]);
    ok (!many.goes_back, "%s: progress goes on", name);
    free (many.text);
  }
  free (one.text);
}

int
main (void)
{
  struct metadata_damage damage;
  uint64_t state = 7;

  scratch_dir_enter ();
  run_command ("qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 "
               "8M && qemu-io -f qcow2 -c 'write -q 0 3M' disk.qcow2 && "
               "qemu-img snapshot -c one disk.qcow2 && "
               "qemu-io -f qcow2 -c 'write -q 1M 3M' disk.qcow2");
  damage_metadata ("disk.qcow2", &state, &damage);
  run_command ("cp disk.qcow2 damaged.qcow2");
  test_same ("check", QCOW2_REPAIR_NONE);
  test_same ("repair", QCOW2_REPAIR_ALL);
  return tap_done ();
}
