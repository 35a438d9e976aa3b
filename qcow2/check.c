/* SPDX-License-Identifier: BSD-3-Clause */

/* Checking an image: is its metadata consistent?
 *
 *     count    all references, from the tables, into a ref_map
 *     compare  the refcounts on disk with it
 *     active   COPIED flags against the refcounts on disk, and how the
 *              clusters lie
 *
 * Nothing is written.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check-active.h"
#include "check-refcounts.h"
#include "count-refs.h"
#include "image.h"

void
check_found (const struct check *c, const char *fs, ...)
{
  char text[300];
  va_list args;

  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  if (c->fn)
    c->fn (c->opaque, text);
}

/* What can't be right in a table. */
static int
bad_entry (void *opaque, const char *text)
{
  struct check *c = opaque;

  c->result->corruptions++;
  check_found (c, "ERROR %s", text);
  return 0;
}

static int
count (struct check *c, const struct snapshot_table *snapshots,
       struct ref_map *map)
{
  const struct ref_walk walk = {
    .layer = c->layer, .snapshots = snapshots, .map = map,
    .problem = bad_entry, .opaque = c,
  };
  int64_t file_bytes = qcow2_storage_size (c->layer->file);
  int r;

  if (file_bytes < 0)
    return qcow2_error_set (c->error, (int) -file_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -file_bytes));
  r = ref_map_init (map, (uint64_t) file_bytes,
                    c->layer->header.cluster_bits);
  if (r == -EFBIG)
    return qcow2_error_set (c->error, EFBIG,
                            "the file is so large that it would take more "
                            "than 1 GiB of memory");
  if (r < 0)
    return qcow2_error_set (c->error, -r, "out of memory");
  return count_refs (&walk, c->error);
}

static int
compare (struct check *c)
{
  size_t bytes = c->map->nr_clusters / 8 + 1;
  int r;

  c->once = calloc (bytes, 1);
  c->seen = calloc (bytes, 1);
  if (!c->once || !c->seen)
    r = qcow2_error_set (c->error, ENOMEM, "out of memory");
  else
    r = check_refcounts (c);
  if (r == 0)
    r = check_active (c);
  free (c->once);
  free (c->seen);
  return r;
}

int
qcow2_check (struct qcow2 *image, qcow2_check_fn *fn, void *opaque,
             struct qcow2_check_result *result, struct qcow2_error *error)
{
  const struct layer *l = image->chain.layers[0];
  struct ref_map map = { .words = NULL };
  struct check c = {
    .layer = l, .map = &map, .fn = fn, .opaque = opaque,
    .result = result, .error = error,
  };
  int r;

  memset (result, 0, sizeof *result);
  if (l->is_raw)
    return qcow2_error_set (error, ENOTSUP,
                            "This image format does not support checks");
  if (image->writer)
    return qcow2_error_set (error, EBUSY, "%s: the image is open for writing",
                            l->filename);
  result->total_clusters =
    (l->size_bytes >> l->header.cluster_bits) +
    !!(l->size_bytes & (layer_cluster_bytes (l) - 1));
  r = count (&c, &image->snapshots, &map);
  if (r == 0)
    r = compare (&c);
  ref_map_clear (&map);
  if (r < 0)
    qcow2_error_prefix (error, "%s: ", l->filename);
  return r;
}
