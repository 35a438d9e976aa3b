/* SPDX-License-Identifier: BSD-3-Clause */

/* Names and descriptions of exports. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plugin-exports.h"

/* The NBD protocol's limit for a string. */
#define MAX_NAME_BYTES 4096

struct exports {
  struct qcow2 *image;
  size_t default_snapshot;      /* index, or QCOW2_ACTIVE */
  bool default_missing;         /* what snapshot= chose is not there */
  size_t nr_names;
  char **names;                 /* of snapshot I */
};

struct sort_item {
  const char *name;
  size_t index;
};

static int
compare_items (const void *a, const void *b)
{
  const struct sort_item *x = a, *y = b;

  return strcmp (x->name, y->name);
}

/* Could make_name have made this name for another snapshot? */
static bool
looks_made (const char *name)
{
  const char *id = strstr (name, "(id ");

  return id && id[strlen (id) - 1] == ')';
}

static char *
make_name (const struct qcow2_snapshot_info *info, bool is_unique)
{
  char *name;
  int r;

  if (is_unique && info->name[0] != '\0' && !looks_made (info->name) &&
      strlen (info->name) <= MAX_NAME_BYTES)
    return strdup (info->name);
  if (strlen (info->name) + strlen (info->id) + 8 <= MAX_NAME_BYTES)
    r = asprintf (&name, "%s (id %s)", info->name, info->id);
  else
    r = asprintf (&name, "(id %.64s)", info->id);
  return r == -1 ? NULL : name;
}

/* An image may have 65536 snapshots: duplicates are found by sorting. */
static int
make_names (struct exports *exports)
{
  struct qcow2_snapshot_info info;
  struct sort_item *items;
  size_t i, n = exports->nr_names;

  items = calloc (n + 1, sizeof *items);
  if (!items)
    return -1;
  for (i = 0; i < n; ++i) {
    qcow2_snapshot_get (exports->image, i, &info);
    items[i].name = info.name;
    items[i].index = i;
  }
  qsort (items, n, sizeof *items, compare_items);

  for (i = 0; i < n; ++i) {
    bool is_unique =
      (i == 0 || strcmp (items[i - 1].name, items[i].name) != 0) &&
      (i + 1 == n || strcmp (items[i + 1].name, items[i].name) != 0);

    qcow2_snapshot_get (exports->image, items[i].index, &info);
    exports->names[items[i].index] = make_name (&info, is_unique);
    if (!exports->names[items[i].index])
      break;
  }
  free (items);
  return i == n ? 0 : -1;
}

struct exports *
exports_new (struct qcow2 *image)
{
  struct exports *exports = calloc (1, sizeof *exports);

  if (!exports)
    return NULL;
  exports->image = image;
  exports->default_snapshot = QCOW2_ACTIVE;
  exports->nr_names = qcow2_nr_snapshots (image);
  exports->names = calloc (exports->nr_names + 1, sizeof *exports->names);
  if (!exports->names || make_names (exports) == -1) {
    exports_free (exports);
    return NULL;
  }
  return exports;
}

void
exports_free (struct exports *exports)
{
  size_t i;

  if (!exports)
    return;
  if (exports->names)
    for (i = 0; i < exports->nr_names; ++i)
      free (exports->names[i]);
  free (exports->names);
  free (exports);
}

size_t
exports_count (const struct exports *exports)
{
  return exports ? exports->nr_names + 1 : 0;
}

const char *
exports_name (const struct exports *exports, size_t i)
{
  return i == 0 ? "" : exports->names[i - 1];
}

/* The snapshot behind export I. */
static size_t
export_snapshot (const struct exports *exports, size_t i)
{
  return i == 0 ? exports->default_snapshot : i - 1;
}

char *
exports_describe (const struct exports *exports, size_t i)
{
  size_t snapshot = export_snapshot (exports, i);
  struct qcow2_snapshot_info info;
  char date[64] = "?";
  struct tm tm;
  time_t t;
  char *text;

  if (i == 0 && exports->default_missing)
    return strdup ("a snapshot that is not there");
  if (snapshot == QCOW2_ACTIVE)
    return strdup ("active layer");

  qcow2_snapshot_get (exports->image, snapshot, &info);
  t = info.date_sec;
  if (gmtime_r (&t, &tm))
    strftime (date, sizeof date, "%Y-%m-%d %H:%M:%S UTC", &tm);
  if (asprintf (&text, "snapshot, id %.64s, %s, VM state %" PRIu64 " bytes",
                info.id, date, info.vm_state_bytes) == -1)
    return NULL;
  return text;
}

int
exports_find (const struct exports *exports, const char *name, size_t *i)
{
  for (*i = 0; *i < exports_count (exports); ++*i)
    if (strcmp (exports_name (exports, *i), name) == 0)
      return 0;
  return -ENOENT;
}

int
exports_set_default (struct exports *exports, const char *id_or_name)
{
  int r = qcow2_snapshot_find (exports->image, id_or_name);

  exports->default_missing = r < 0;
  if (r < 0)
    return r;
  exports->default_snapshot = (size_t) r;
  return 0;
}

int
exports_open (const struct exports *exports, size_t i,
              struct qcow2_view **view, struct qcow2_error *error)
{
  if (i == 0 && exports->default_missing)
    return qcow2_error_set (error, ENOENT, "the image has no snapshot any "
                            "more with the id or name of snapshot=");
  return qcow2_view_open (exports->image, export_snapshot (exports, i), view,
                          error);
}

int
exports_check_default (const struct exports *exports,
                       struct qcow2_error *error)
{
  struct qcow2_view *view;
  int r;

  r = exports_open (exports, 0, &view, error);
  if (r == 0)
    qcow2_view_close (view);
  return r;
}
