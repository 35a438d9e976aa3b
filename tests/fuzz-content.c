/* SPDX-License-Identifier: BSD-3-Clause */

/* What the disks of a mutant hold. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "fuzz-content.h"

#define DISK_BYTES (512u << 10)
#define NR_DISKS 4

/* The active layer is the first. */
struct disk {
  bool known;
  uint64_t size_bytes;
  uint8_t content[DISK_BYTES];
  bool unknown[DISK_BYTES];     /* bytes */
};

static struct disk disks[NR_DISKS];
static uint8_t buf[DISK_BYTES];

static size_t
compared_bytes (const struct disk *d)
{
  return d->size_bytes < DISK_BYTES ? (size_t) d->size_bytes : DISK_BYTES;
}

static struct qcow2_view *
open_disk (struct qcow2 *image, size_t i)
{
  struct qcow2_view *view;
  struct qcow2_error error;

  if (i > qcow2_nr_snapshots (image) ||
      qcow2_view_open (image, i == 0 ? QCOW2_ACTIVE : i - 1, &view,
                       &error) < 0)
    return NULL;
  return view;
}

static void
learn_disk (struct disk *d, struct qcow2_view *view)
{
  memset (d, 0, sizeof *d);
  if (!view)
    return;
  d->size_bytes = qcow2_view_size (view);
  d->known = compared_bytes (d) == 0 ||
    qcow2_pread (view, d->content, compared_bytes (d), 0) == 0;
}

void
content_learn (struct qcow2 *image)
{
  size_t i;

  for (i = 0; i < NR_DISKS; ++i) {
    struct qcow2_view *view = open_disk (image, i);

    learn_disk (&disks[i], view);
    qcow2_view_close (view);
  }
}

static void
set (uint64_t offset, uint64_t count, const uint8_t *data, bool unknown)
{
  uint64_t i;

  for (i = offset; i < offset + count && i < DISK_BYTES; ++i) {
    disks[0].content[i] = data ? data[i - offset] : 0;
    disks[0].unknown[i] = unknown;
  }
}

void
content_is (uint64_t offset, uint64_t count, const uint8_t *data)
{
  set (offset, count, data, false);
}

void
content_is_unknown (uint64_t offset, uint64_t count)
{
  set (offset, count, NULL, true);
}

void
content_size_is (uint64_t size_bytes)
{
  if (size_bytes < disks[0].size_bytes)
    set (size_bytes, disks[0].size_bytes - size_bytes, NULL, false);
  disks[0].size_bytes = size_bytes;
}

/* Returns what is wrong, or NULL; *AT: where. */
static const char *
compare_disk (const struct disk *d, struct qcow2_view *view, size_t *at)
{
  size_t n = compared_bytes (d);

  *at = 0;
  if (!view)
    return "can't be opened";
  if (qcow2_view_size (view) != d->size_bytes)
    return "has another size";
  if (n > 0 && qcow2_pread (view, buf, n, 0) < 0)
    return "can't be read";
  for (; *at < n; ++*at)
    if (buf[*at] != d->content[*at] && !d->unknown[*at])
      return "differs";
  return NULL;
}

bool
content_is_right (struct qcow2 *image, char where[80])
{
  const char *wrong = NULL;
  size_t i, at;

  for (i = 0; i < NR_DISKS && !wrong; ++i) {
    struct qcow2_view *view;

    if (!disks[i].known)
      continue;
    view = open_disk (image, i);
    wrong = compare_disk (&disks[i], view, &at);
    qcow2_view_close (view);
    if (wrong)
      snprintf (where, 80, "disk %zu, byte %zu: %s", i, at, wrong);
  }
  return !wrong;
}
