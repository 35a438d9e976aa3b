/* SPDX-License-Identifier: BSD-3-Clause */

/* Images of all kinds for operations on internal snapshots. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "qemu-image.h"
#include "snapshot-subject.h"

#define VM_STATE_BYTES (100u << 10)

#define CREATE "qemu-img create -q -f qcow2 -o "
#define IO " && qemu-io -f qcow2 "
#define TO " disk.qcow2 > qemu.log"
#define SNAPSHOT " && qemu-img snapshot -c "
#define RESIZE " && qemu-img resize -q --shrink -f qcow2 disk.qcow2 "

/* Data, zero clusters of both kinds, and two snapshots that have some of it in
 * common with each other and with the active layer.
 */
#define HISTORY(a, b, c) \
  IO "-c 'write -P 1 0 " a "' -c 'write -P 2 " c " " b "'" \
  " -c 'write -z 0 " b "' -c 'write -z -u " b " " b "'" TO \
  SNAPSHOT "one disk.qcow2" \
  IO "-c 'write -P 3 0 " b "' -c 'write -z " c " " b "'" TO \
  SNAPSHOT "two disk.qcow2" \
  IO "-c 'write -P 4 " b " " b "' -c 'discard " c " " b "'" TO

#define SMALL HISTORY ("50k", "10k", "70k")
#define MIDDLE HISTORY ("200k", "40k", "300k")
#define LARGE HISTORY ("1M", "192k", "1280k")

const struct snapshot_subject snapshot_subjects[] = {
  { .name = "512-byte clusters", .version = 3,
    .make = CREATE "cluster_size=512 disk.qcow2 100k" SMALL },
  { .name = "512-byte clusters, version 2", .version = 2,
    .make = CREATE "compat=0.10,cluster_size=512 disk.qcow2 100k" SMALL },
  { .name = "4K clusters", .version = 3,
    .make = CREATE "cluster_size=4k disk.qcow2 500k" MIDDLE },
  { .name = "4K clusters, version 2", .version = 2,
    .make = CREATE "compat=0.10,cluster_size=4k disk.qcow2 500k" MIDDLE },
  { .name = "64K clusters", .version = 3,
    .make = CREATE "cluster_size=64k disk.qcow2 2M" LARGE },
  { .name = "64K clusters, version 2", .version = 2,
    .make = CREATE "compat=0.10 disk.qcow2 2M" LARGE },
  { .name = "lazy refcounts", .version = 3,
    .make = CREATE "lazy_refcounts=on,cluster_size=4k disk.qcow2 500k"
    MIDDLE },
  { .name = "2-bit refcounts", .version = 3,
    .make = CREATE "refcount_bits=2,cluster_size=1k disk.qcow2 100k"
    IO "-c 'write -P 1 0 50k' -c 'write -z 10k 5k'" TO
    SNAPSHOT "one disk.qcow2" IO "-c 'write -P 2 0 20k'" TO },
  { .name = "4-bit refcounts", .version = 3,
    .make = CREATE "refcount_bits=4,cluster_size=1k disk.qcow2 100k" SMALL },
  { .name = "64-bit refcounts", .version = 3,
    .make = CREATE "refcount_bits=64,cluster_size=512 disk.qcow2 100k"
    SMALL },
  { .name = "compressed clusters", .version = 3,
    .make = CREATE "cluster_size=4k disk.qcow2 500k"
    IO "-c 'write -c -P 5 64k 4k' -c 'write -c -P 6 68k 4k'"
    " -c 'write -c -P 7 72k 4k'" TO SNAPSHOT "zero disk.qcow2"
    IO "-c 'write -c -P 8 80k 4k' -c 'write -P 6 68k 1k'" TO
    SNAPSHOT "one disk.qcow2" IO "-c 'write -c -P 9 84k 4k'" TO },
  { .name = "compressed clusters, version 2", .version = 2,
    .make = CREATE "compat=0.10 disk.qcow2 2M"
    IO "-c 'write -c -P 5 64k 64k' -c 'write -c -P 6 128k 64k'" TO
    SNAPSHOT "one disk.qcow2"
    IO "-c 'write -c -P 7 192k 64k' -c 'write -P 6 64k 64k'" TO },
  { .name = "extended L2 entries", .version = 3,
    .make = CREATE "extended_l2=on,cluster_size=16k disk.qcow2 1M"
    HISTORY ("100k", "20k", "200k") },
  { .name = "a disk that has grown", .version = 3,
    .make = CREATE "cluster_size=512 disk.qcow2 60k"
    IO "-c 'write -P 1 0 60k'" TO SNAPSHOT "one disk.qcow2" RESIZE "150k"
    IO "-c 'write -P 2 50k 100k'" TO SNAPSHOT "two disk.qcow2"
    IO "-c 'write -P 3 10k 50k'" TO },
  { .name = "a disk that has shrunk", .version = 3,
    .make = CREATE "cluster_size=512 disk.qcow2 150k"
    IO "-c 'write -P 1 0 150k'" TO SNAPSHOT "one disk.qcow2" RESIZE "50k"
    IO "-c 'write -P 2 0 30k'" TO },
  { .name = "the state of a virtual machine", .version = 3,
    .make = CREATE "cluster_size=512 disk.qcow2 60k"
    IO "-c 'write -P 1 0 60k' -c 'write -b -P 9 0 100k'" TO
    SNAPSHOT "one disk.qcow2"
    IO "-c 'write -P 2 0 30k' -c 'write -b -P 10 0 50k'" TO },
  { .name = "the state of a virtual machine, version 2", .version = 2,
    .make = CREATE "compat=0.10,cluster_size=4k disk.qcow2 60k"
    IO "-c 'write -P 1 0 60k' -c 'write -b -P 9 0 100k'" TO
    SNAPSHOT "one disk.qcow2"
    IO "-c 'write -P 2 0 30k' -c 'write -b -P 10 0 50k'" TO },
};

const unsigned nr_snapshot_subjects =
  sizeof snapshot_subjects / sizeof snapshot_subjects[0];

const char *
snapshot_operation_name (enum snapshot_operation op)
{
  static const char *const names[] = {
    "create", "create with VM state", "apply", "delete",
  };

  return names[op];
}

void
snapshot_subject_make (const struct snapshot_subject *s)
{
  run_command ("%s", s->make);
}

void
snapshot_subject_options (struct qcow2_options *options)
{
  qcow2_options_init (options);
  options->lock = false;
  options->writable = true;
  options->no_backing = true;
  options->cache_bytes = 1u << 20;
}

int
snapshot_operate (struct qcow2 *image, enum snapshot_operation op,
                  struct qcow2_error *error)
{
  const struct qcow2_snapshot_params params = {
    .name = "new", .date_sec = 1700000000, .date_nsec = 5000,
    .vm_clock_nsec = op == SNAPSHOT_CREATE_VM ? 123456789 : 0,
    .vm_state_bytes = op == SNAPSHOT_CREATE_VM ? VM_STATE_BYTES : 0,
    .icount = QCOW2_NO_ICOUNT,
  };

  switch (op) {
  case SNAPSHOT_CREATE:
  case SNAPSHOT_CREATE_VM:
    return qcow2_snapshot_create (image, &params, error);
  case SNAPSHOT_APPLY:
    return qcow2_snapshot_apply (image, 0, error);
  case SNAPSHOT_DELETE:
    return qcow2_snapshot_delete (image, qcow2_nr_snapshots (image) - 1,
                                  error);
  }
  return -EINVAL;
}

/*----- All that it holds -----*/

static uint8_t *
make_room (struct image_content *c, size_t nr)
{
  uint8_t *p;

  if (c->nr + nr > c->room) {
    c->room = c->nr + nr + (c->nr + nr) / 2;
    c->bytes = realloc (c->bytes, c->room);
    if (!c->bytes) {
      printf ("Bail out! out of memory\n");
      exit (1);
    }
  }
  p = c->bytes + c->nr;
  c->nr += nr;
  return p;
}

static void
add (struct image_content *c, const void *data, size_t nr)
{
  memcpy (make_room (c, nr), data, nr);
}

/* What lies behind the end of the disk. */
static int
add_vm_state (struct image_content *c, struct qcow2_view *view)
{
  struct qcow2 *image = view->image;
  unsigned bits = header_l1_entry_bits (&image->chain.layers[0]->header);
  uint64_t offset = ((view->size_bytes - 1) >> bits) + 1;
  uint8_t *p = make_room (c, VM_STATE_BYTES);
  struct epoch_ticket ticket = gate_enter (&image->gate);
  int r = image_read (image, view->l1, p, VM_STATE_BYTES, offset << bits);

  epoch_leave (ticket);
  return r;
}

static int
add_view (struct image_content *c, struct qcow2 *image, size_t snapshot)
{
  struct qcow2_error error;
  struct qcow2_view *view;
  uint64_t size;
  int r = qcow2_view_open (image, snapshot, &view, &error);

  if (r < 0)
    return r;
  size = qcow2_view_size (view);
  add (c, &size, sizeof size);
  r = qcow2_pread (view, make_room (c, size), size, 0);
  if (r == 0)
    r = add_vm_state (c, view);
  qcow2_view_close (view);
  return r;
}

int
image_content_get (struct qcow2 *image, struct image_content *c)
{
  size_t nr = qcow2_nr_snapshots (image), i;
  int r;

  c->nr = 0;
  r = add_view (c, image, QCOW2_ACTIVE);
  for (i = 0; i < nr && r == 0; ++i) {
    struct qcow2_snapshot_info info;

    qcow2_snapshot_get (image, i, &info);
    add (c, info.id, strlen (info.id) + 1);
    add (c, info.name, strlen (info.name) + 1);
    add (c, &info.disk_size_bytes, sizeof info.disk_size_bytes);
    add (c, &info.vm_state_bytes, sizeof info.vm_state_bytes);
    add (c, &info.date_sec, sizeof info.date_sec);
    add (c, &info.date_nsec, sizeof info.date_nsec);
    add (c, &info.vm_clock_nsec, sizeof info.vm_clock_nsec);
    add (c, &info.icount, sizeof info.icount);
    r = add_view (c, image, i);
  }
  return r;
}

int
image_content_read (const char *filename, struct image_content *c,
                    struct qcow2_error *error)
{
  struct qcow2_options options;
  struct qcow2 *image;
  int r;

  snapshot_subject_options (&options);
  options.writable = false;
  r = qcow2_open (filename, &options, &image, error);
  if (r < 0)
    return r;
  r = image_content_get (image, c);
  if (r < 0)
    qcow2_error_set (error, -r, "can't read: %s", strerror (-r));
  qcow2_close (image);
  return r;
}

void
image_content_clear (struct image_content *c)
{
  free (c->bytes);
  memset (c, 0, sizeof *c);
}

bool
image_content_same (const struct image_content *a,
                    const struct image_content *b)
{
  return a->nr == b->nr && memcmp (a->bytes, b->bytes, a->nr) == 0;
}

/*----- Is it sound? -----*/

static void
found (void *opaque, const char *text)
{
  struct snapshot_check *check = opaque;

  if (strstr (text, "OFLAG_COPIED") && strstr (text, "refcount is 1"))
    check->nr_missing_flags++;
  else if (!strstr (text, "Leaked")) {
    if (check->nr_bad++ == 0)
      snprintf (check->first, sizeof check->first, "%s", text);
  }
}

void
snapshot_check_file (const char *filename, struct snapshot_check *check)
{
  const struct qcow2_check_options check_options = {
    .found = found, .opaque = check,
  };
  struct qcow2_options options;
  struct qcow2_check_result result;
  struct qcow2_error error;
  struct qcow2 *image;

  memset (check, 0, sizeof *check);
  snapshot_subject_options (&options);
  options.writable = false;
  if (qcow2_open (filename, &options, &image, &error) < 0 ||
      qcow2_check (image, &check_options, &result, &error) < 0) {
    check->nr_bad++;
    snprintf (check->first, sizeof check->first, "%.299s", error.message);
    qcow2_close (image);
    return;
  }
  check->nr_leaks = result.leaks;
  if (result.corruptions + result.check_errors !=
      check->nr_missing_flags + check->nr_bad)
    check->nr_bad++;
  qcow2_close (image);
}

/*----- All of them -----*/

void
snapshot_subjects_test (snapshot_test_fn *fn)
{
  const char *only = getenv ("SNAPSHOT_SUBJECT");
  unsigned i, op;

  for (i = 0; i < nr_snapshot_subjects; ++i) {
    const struct snapshot_subject *s = &snapshot_subjects[i];

    if (only && strcmp (only, s->name) != 0)
      continue;
    run_command ("rm -rf *; mkdir pristine");
    snapshot_subject_make (s);
    run_command ("mv disk.qcow2 pristine/");
    for (op = 0; op < NR_SNAPSHOT_OPERATIONS; ++op)
      fn (s, op);
  }
}
