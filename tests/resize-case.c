/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that are resized. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "power-check.h"
#include "qemu-image.h"
#include "resize-case.h"

#define CREATE "qemu-img create -q -f qcow2 "
#define IO "qemu-io -f qcow2 -c "
#define DISK "disk.qcow2 "
#define QUIET "> qemu.log"
#define SNAPSHOT "qemu-img snapshot -c s disk.qcow2"
#define OFF QCOW2_PREALLOCATION_OFF

const struct resize_case resize_cases[] = {
  { "512-byte clusters, version 2", CREATE "-o compat=0.10,cluster_size=512 "
    DISK "200k && " IO "'write -P 1 0 200k' " DISK QUIET,
    66048, OFF, false, false },
  { "512-byte clusters, snapshot", CREATE "-o cluster_size=512 "
    DISK "200k && " IO "'write -P 1 0 200k' " DISK QUIET " && " SNAPSHOT
    " && " IO "'write -P 2 40k 60k' " DISK QUIET, 80384, OFF, true, false },
  { "512-byte clusters, shared tables", CREATE "-o cluster_size=512 "
    DISK "200k && " IO "'write -P 1 0 200k' " DISK QUIET " && " SNAPSHOT,
    80384, OFF, true, false },
  { "64-bit refcounts", CREATE "-o cluster_size=512,refcount_bits=64 "
    DISK "200k && " IO "'write -P 1 0 200k' " DISK QUIET,
    30208, OFF, false, false },
  { "4K clusters, version 2", CREATE "-o compat=0.10,cluster_size=4k "
    DISK "5M && " IO "'write -P 1 900k 200k' -c 'write -P 2 4M 100k' "
    DISK QUIET, 1000448, OFF, false, false },
  { "4K clusters, snapshot", CREATE "-o cluster_size=4k " DISK "400k && "
    IO "'write -P 1 0 400k' " DISK QUIET " && " SNAPSHOT,
    100864, OFF, true, false },
  { "64K clusters", CREATE DISK "1M && " IO "'write -P 1 0 1M' " DISK QUIET,
    300544, OFF, false, false },
  { "64K clusters, version 2", CREATE "-o compat=0.10 " DISK "1M && "
    IO "'write -P 1 0 1M' " DISK QUIET, 300544, OFF, false, false },
  { "64K clusters, snapshot", CREATE DISK "1M && " IO "'write -P 1 0 1M' "
    DISK QUIET " && " SNAPSHOT " && " IO "'write -P 2 200k 300k' "
    DISK QUIET, 300544, OFF, true, false },
  { "extended L2, snapshot", CREATE "-o extended_l2=on,cluster_size=16k "
    DISK "600k && " IO "'write -P 1 0 600k' " DISK QUIET " && " SNAPSHOT
    " && " IO "'write -P 2 90k 3k' " DISK QUIET, 100352, OFF, true, false },
  { "compressed clusters", CREATE "-o cluster_size=4k " DISK "200k && "
    IO "'write -c -P 1 0 100k' -c 'write -P 2 100k 100k' " DISK QUIET,
    50688, OFF, false, false },
  { "lazy refcounts", CREATE "-o lazy_refcounts=on,cluster_size=4k "
    DISK "200k && " IO "'write -P 1 0 200k' " DISK QUIET,
    50688, OFF, false, false },
  { "a data file", CREATE "-o data_file=data.raw,cluster_size=4k "
    DISK "200k && " IO "'write -P 1 0 200k' " DISK QUIET,
    50688, OFF, false, false },
  { "a raw data file", CREATE "-o data_file=data.raw,data_file_raw=on,"
    "cluster_size=4k " DISK "200k && " IO "'write -P 1 0 200k' "
    DISK QUIET, 50688, OFF, false, false },
  { "an overlay", CREATE "base.qcow2 400k && " IO "'write -P 1 0 400k' "
    "base.qcow2 " QUIET " && " CREATE "-o cluster_size=4k -F qcow2 "
    "-b base.qcow2 " DISK "200k && " IO "'write -P 2 90k 30k' "
    DISK QUIET, 100864, OFF, false, false },
  { "to nothing", CREATE "-o cluster_size=512 " DISK "50688 && "
    IO "'write -P 1 0 50688' " DISK QUIET, 0, OFF, false, false },
  { "to nothing, version 2", CREATE "-o compat=0.10 " DISK "300k && "
    IO "'write -P 1 0 300k' " DISK QUIET, 0, OFF, false, false },
  { "grown with metadata", CREATE "-o cluster_size=512 " DISK "50688 && "
    IO "'write -P 1 10k 40448' " DISK QUIET,
    150016, QCOW2_PREALLOCATION_METADATA, false, false },
  { "grown with metadata, a small cache", CREATE
    "-o lazy_refcounts=on,cluster_size=512 " DISK "50688 && "
    IO "'write -P 1 0 50688' " DISK QUIET,
    350208, QCOW2_PREALLOCATION_METADATA, false, true },
  { "grown, written, snapshot", CREATE
    "-o cluster_size=4k " DISK "50688 && " IO "'write -P 1 0 50688' "
    DISK QUIET " && " SNAPSHOT,
    150016, QCOW2_PREALLOCATION_FULL, true, false },
  { "grown, 64K clusters, reserved", CREATE DISK "100352 && "
    IO "'write -P 1 0 100352' " DISK QUIET,
    1000448, QCOW2_PREALLOCATION_FALLOC, false, false },
  { "grown, version 2, written", CREATE "-o compat=0.10,cluster_size=4k "
    DISK "50688 && " IO "'write -P 1 0 50688' " DISK QUIET,
    200192, QCOW2_PREALLOCATION_FULL, false, false },
  { "grown over a longer backing file", CREATE "base.qcow2 400k && "
    IO "'write -P 1 0 400k' base.qcow2 " QUIET " && " CREATE
    "-o cluster_size=4k -F qcow2 -b base.qcow2 " DISK "50688",
    500224, QCOW2_PREALLOCATION_METADATA, false, false },
  { "grown, extended L2, over a backing file", CREATE "base.qcow2 400k && "
    IO "'write -P 1 0 400k' base.qcow2 " QUIET " && " CREATE
    "-o extended_l2=on,cluster_size=16k -F qcow2 -b base.qcow2 "
    DISK "50688", 500224, QCOW2_PREALLOCATION_FALLOC, false, false },
  { "grown, a data file", CREATE "-o data_file=data.raw,cluster_size=4k "
    DISK "50688 && " IO "'write -P 1 0 50688' " DISK QUIET,
    150016, QCOW2_PREALLOCATION_FALLOC, false, false },
};

const unsigned nr_resize_cases = sizeof resize_cases / sizeof resize_cases[0];

void
resize_cases_test (void (*fn) (const struct resize_case *c))
{
  const char *only = getenv ("RESIZE_CASE");
  unsigned i;

  for (i = 0; i < nr_resize_cases; ++i)
    if (!only || strcmp (only, resize_cases[i].name) == 0)
      fn (&resize_cases[i]);
}

static const char *const anywhere[] = { "/" };

static void
set_options (struct qcow2_options *options)
{
  qcow2_options_init (options);
  options->lock = false;
  options->allow_dirs = anywhere;
  options->nr_allow_dirs = 1;
}

static struct qcow2 *
open_image (const char *dir, const struct qcow2_options *options,
            struct qcow2_error *error)
{
  struct qcow2_options here = *options;
  struct qcow2 *image = NULL;
  char name[200], data_file[200];

  snprintf (name, sizeof name, "%s/" RESIZE_IMAGE, dir);
  snprintf (data_file, sizeof data_file, "%s/data.raw", dir);
  if (access (data_file, F_OK) == 0)
    here.data_file = data_file;
  if (qcow2_open (name, &here, &image, error) < 0)
    return NULL;
  return image;
}

struct qcow2 *
resize_open (const struct resize_case *c, const char *dir,
             struct write_log *log, struct qcow2_error *error)
{
  struct qcow2_options options;

  set_options (&options);
  options.writable = true;
  if (c && c->small_cache)
    options.cache_bytes = 1;
  if (log)
    write_log_use (log, &options);
  return open_image (dir, &options, error);
}

/* Malloced; NULL on error. */
static uint8_t *
read_view (struct qcow2 *image, size_t snapshot, uint64_t *bytes,
           struct qcow2_error *error)
{
  struct qcow2_view *view;
  uint8_t *buf = NULL;

  if (qcow2_view_open (image, snapshot, &view, error) < 0)
    return NULL;
  *bytes = qcow2_view_size (view);
  buf = malloc (*bytes + 1);
  if (buf && qcow2_pread (view, buf, *bytes, 0) < 0) {
    free (buf);
    buf = NULL;
    qcow2_error_set (error, EIO, "it can't be read");
  }
  qcow2_view_close (view);
  return buf;
}

void
resize_make (const struct resize_case *c, struct resize_truth *truth)
{
  uint8_t *content;
  uint64_t bytes;

  memset (truth, 0, sizeof *truth);
  truth->c = c;
  run_command ("rm -rf *; %s", c->make);
  content = qemu_content (RESIZE_IMAGE, NULL, &truth->old_bytes);
  bytes = truth->old_bytes > c->size_bytes ? truth->old_bytes :
    c->size_bytes;
  truth->content = calloc (1, bytes);
  memcpy (truth->content, content, truth->old_bytes);
  free (content);
  if (c->snapshot)
    truth->snapshot = qemu_content (RESIZE_IMAGE, "s",
                                    &truth->snapshot_bytes);
}

void
resize_clear (struct resize_truth *truth)
{
  free (truth->content);
  free (truth->snapshot);
}

int
resize_do (const struct resize_case *c, const char *dir,
           struct write_log *log, struct qcow2_error *error)
{
  struct qcow2 *image = resize_open (c, dir, log, error);
  int r, r2;

  if (!image)
    return -EIO;
  r = qcow2_resize (image, c->size_bytes, c->preallocation, true, error);
  r2 = qcow2_close (image);
  return r < 0 ? r : r2;
}

/*----- Judging -----*/

static const char *
judge_content (struct resize_truth *truth, struct qcow2 *image)
{
  static char text[300];
  struct qcow2_error error;
  uint64_t bytes;
  uint8_t *buf = read_view (image, QCOW2_ACTIVE, &bytes, &error);
  const char *wrong = NULL;

  if (!buf) {
    snprintf (text, sizeof text, "%.200s", error.message);
    return text;
  }
  truth->size_bytes = bytes;
  if (bytes != truth->old_bytes && bytes != truth->c->size_bytes)
    wrong = "the size is neither the old nor the new one";
  else if (memcmp (buf, truth->content, bytes) != 0)
    wrong = "the content has changed";
  free (buf);
  if (wrong || !truth->snapshot)
    return wrong;
  buf = read_view (image, 0, &bytes, &error);
  if (!buf || bytes != truth->snapshot_bytes ||
      memcmp (buf, truth->snapshot, bytes) != 0)
    wrong = "the snapshot has changed";
  free (buf);
  return wrong;
}

const char *
resize_judge (struct resize_truth *truth, const char *dir)
{
  static struct qcow2_error error;
  struct qcow2_options options;
  struct qcow2 *image;
  const char *wrong;

  set_options (&options);
  image = open_image (dir, &options, &error);
  if (!image)
    return error.message;
  wrong = judge_content (truth, image);
  qcow2_close (image);
  return wrong;
}

static const char *
judge_behind (const struct resize_truth *truth, struct qcow2 *image)
{
  struct qcow2_error error;
  uint64_t bytes, i;
  uint8_t *buf = read_view (image, QCOW2_ACTIVE, &bytes, &error);
  const char *wrong = NULL;

  if (!buf || memcmp (buf, truth->content, truth->size_bytes) != 0)
    wrong = "the content has changed in growing";
  for (i = truth->size_bytes; !wrong && i < bytes; ++i)
    if (buf[i] != 0)
      wrong = "old content comes to light in growing";
  free (buf);
  return wrong;
}

const char *
resize_judge_grown (struct resize_truth *truth, const char *dir)
{
  static struct qcow2_error error;
  struct qcow2 *image = resize_open (NULL, dir, NULL, &error);
  const char *wrong = NULL;
  char name[200];

  if (!image)
    return error.message;
  if (qcow2_resize (image, 2 * truth->old_bytes + truth->c->size_bytes,
                    QCOW2_PREALLOCATION_OFF, false, &error) < 0)
    wrong = error.message;
  if (!wrong)
    wrong = judge_behind (truth, image);
  if (qcow2_close (image) < 0 && !wrong)
    wrong = "it can't be closed";
  snprintf (name, sizeof name, "%s/" RESIZE_IMAGE, dir);
  if (!wrong && qemu_check (name) & ~3)
    wrong = "the check finds something after growing";
  return wrong;
}
