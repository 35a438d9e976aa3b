/* SPDX-License-Identifier: BSD-3-Clause */

/* Checking an image: is its metadata consistent?  And repairing it.
 *
 *     count    all references, from the tables, into a ref_map
 *     compare  the refcounts on disk with it
 *     repair   what is wrong, if that is wanted (repair.c)
 *     active   COPIED flags against the refcounts on disk, and how the
 *              clusters lie
 *
 * Nothing else is written.
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
#include "parallel.h"
#include "repair.h"

/* Counting, comparing, the active layer: each goes over the file once. */
#define NR_PARTS 3

void
check_found (const struct check *c, const char *fs, ...)
{
  char text[300];
  va_list args;

  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  if (c->options->found)
    c->options->found (c->options->opaque, text);
}

void
check_progress (void *opaque, uint64_t nr_clusters)
{
  struct check *c = opaque;

  c->done += nr_clusters;
  if (c->done > c->total)
    c->done = c->total;
  if (c->options->progress)
    c->options->progress (c->options->opaque, c->done, c->total);
}

void
check_add_result (struct check *c, const struct qcow2_check_result *part)
{
  struct qcow2_check_result *r = c->result;

  pthread_mutex_lock (&c->lock);
  r->corruptions += part->corruptions;
  r->leaks += part->leaks;
  r->check_errors += part->check_errors;
  r->allocated_clusters += part->allocated_clusters;
  r->fragmented_clusters += part->fragmented_clusters;
  r->compressed_clusters += part->compressed_clusters;
  if (r->image_end_bytes < part->image_end_bytes)
    r->image_end_bytes = part->image_end_bytes;
  pthread_mutex_unlock (&c->lock);
}

/*----- Looking -----*/

/* What a check has found besides the numbers of its result. */
struct findings {
  struct check *check;
  struct snapshot_mend snapshots;
  uint64_t nr_bad;              /* of the corruptions: that stay, */
  uint64_t nr_refcount_problems; /* need the refcount structures rebuilt, */
  uint64_t nr_flags, nr_mendable; /* and in L2 entries */
  bool table_is_bad, table_counted;
};

static int
problem (void *opaque, enum ref_problem kind, const char *text)
{
  struct findings *f = opaque;

  if (kind == PROBLEM_SHARED)
    return 0;                   /* the refcounts will tell */
  f->check->result->corruptions++;
  f->nr_bad += kind == PROBLEM_BAD;
  f->nr_refcount_problems += kind == PROBLEM_REFCOUNTS;
  f->nr_flags += kind == PROBLEM_FLAG;
  f->nr_mendable += kind == PROBLEM_MENDABLE;
  check_found (f->check, "ERROR %s", text);
  return 0;
}

static void
progress (void *opaque, uint64_t nr_clusters)
{
  const struct findings *f = opaque;

  check_progress (f->check, nr_clusters);
}

static void
found (void *opaque, const char *text)
{
  check_found (opaque, "%s", text);
}

static int
read_snapshots (struct findings *f)
{
  struct check *c = f->check;
  int r;

  f->snapshots.found = found;
  f->snapshots.opaque = c;
  r = snapshot_mend_read (c->layer, c->options->repair == QCOW2_REPAIR_ALL,
                          &f->snapshots, c->error);
  c->result->corruptions += f->snapshots.nr_wrong;
  return r;
}

static int
count (struct findings *f)
{
  struct check *c = f->check;
  struct ref_walk walk = {
    .layer = c->layer, .snapshots = &f->snapshots.table, .map = c->map,
    .nr_threads = c->nr_threads,
    .mend = c->options->repair == QCOW2_REPAIR_ALL,
    .problem = problem, .progress = progress, .opaque = f,
  };
  int r = count_refs (&walk, c->error);

  f->table_is_bad = walk.table_is_bad;
  f->table_counted = walk.table_counted;
  return r;
}

static int
make_map (struct check *c)
{
  int64_t file_bytes = qcow2_storage_size (c->layer->file);
  int r;

  if (file_bytes < 0)
    return qcow2_error_set (c->error, (int) -file_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -file_bytes));
  r = ref_map_init (c->map, (uint64_t) file_bytes,
                    c->layer->header.cluster_bits);
  if (r == -EFBIG)
    return qcow2_error_set (c->error, EFBIG,
                            "the file is so large that it would take more "
                            "than 1 GiB of memory");
  if (r == 0) {
    c->once = calloc (c->map->nr_clusters / 8 + 1, 1);
    c->active = calloc (c->map->nr_clusters / 8 + 1, 1);
  }
  if (r < 0 || !c->once || !c->active)
    return qcow2_error_set (c->error, ENOMEM, "out of memory");
  c->nr_threads = c->options->nr_threads;
  if (c->nr_threads == 0 && c->map->nr_clusters < MIN_PARALLEL_CLUSTERS)
    c->nr_threads = 1;
  c->total = NR_PARTS * c->map->nr_clusters;
  return 0;
}

/*----- Repairing -----*/

static void
make_repair (const struct findings *f, struct repair *rep)
{
  struct check *c = f->check;

  *rep = (struct repair) {
    .layer = c->layer, .map = c->map, .table_is_bad = f->table_is_bad,
    .table_counted = f->table_counted,
    .keep = f->nr_bad > 0 || f->snapshots.lost,
    .mend = c->options->repair == QCOW2_REPAIR_ALL,
    .snapshots = f->snapshots.nr_wrong > 0 ? &f->snapshots : NULL,
    .found = found, .opaque = c, .error = c->error,
  };
}

static bool
is_clean (const struct qcow2_check_result *r)
{
  return r->corruptions == 0 && r->check_errors == 0 && r->leaks == 0;
}

static void
tell_kept_leaks (const struct check *c)
{
  if (c->result->leaks > 0)
    check_found (c, "Leaked clusters are not freed: what is damaged may have "
                 "named them");
}

static int
fix_all (const struct findings *f)
{
  struct check *c = f->check;
  struct qcow2_check_result *res = c->result;
  struct repair rep;
  int r;

  make_repair (f, &rep);
  r = repair_all (&rep);
  if (r < 0)
    return r;
  /* Entries that lie in other metadata, too, stay as they are. */
  res->corruptions_fixed = res->corruptions - f->nr_bad - f->nr_mendable -
    f->nr_flags + rep.nr_mended + rep.nr_flags;
  res->corruptions = f->nr_bad + f->nr_mendable - rep.nr_mended +
    rep.nr_left;
  res->check_errors = 0;
  if (rep.keep)
    tell_kept_leaks (c);
  else {
    res->leaks_fixed = res->leaks;
    res->leaks = 0;
  }
  return 0;
}

/* As QEMU does, which wants sound refcount structures for that. */
static int
fix_leaks (const struct findings *f)
{
  struct check *c = f->check;
  struct qcow2_check_result *res = c->result;
  struct repair rep;
  int r;

  if (f->nr_refcount_problems > 0 || c->has_lost_refcounts) {
    check_found (c, "ERROR need to rebuild refcount structures: use -r all");
    return qcow2_error_set (c->error, EIO, "the refcount structures are "
                            "damaged; \"-r all\" rebuilds them");
  }
  make_repair (f, &rep);
  if (rep.keep) {
    tell_kept_leaks (c);
    return 0;
  }
  r = res->leaks > 0 ? repair_leaks (&rep) : 0;
  if (r < 0)
    return r;
  res->leaks_fixed = res->leaks;
  res->leaks = 0;
  if (res->corruptions > 0)
    return 0;
  r = repair_flags (&rep);
  res->corruptions_fixed = rep.nr_flags;
  res->corruptions = rep.nr_left;
  return r;
}

/* Flags are looked at first where they are all that may be wrong. */
static int
fix (const struct findings *f)
{
  struct check *c = f->check;
  struct qcow2_check_result *res = c->result;
  bool was_clean = is_clean (res);
  int r = 0;

  if (was_clean)
    r = check_active (c);
  /* Refcounts that can't be read may be made anew, or be read by then. */
  if (r < 0 || (res->check_errors > 0 &&
                (was_clean || c->options->repair != QCOW2_REPAIR_ALL)))
    return r;
  if (is_clean (res))
    return repair_mark_clean (c->layer, c->error);
  if (was_clean)
    res->corruptions = 0;       /* flags: told again when they are repaired */
  r = c->options->repair == QCOW2_REPAIR_ALL ? fix_all (f) : fix_leaks (f);
  if (r == 0 && !was_clean && res->corruptions_fixed + res->leaks_fixed == 0)
    r = check_active (c);
  if (r == 0 && res->corruptions == 0 && res->check_errors == 0)
    r = repair_mark_clean (c->layer, c->error);
  return r;
}

/*----- All of it -----*/

static int
check (struct check *c)
{
  struct findings f = { .check = c };
  int r = make_map (c);

  if (r == 0)
    r = read_snapshots (&f);
  if (r == 0)
    r = count (&f);
  if (r == 0)
    r = check_refcounts (c);
  if (r == 0)
    r = c->options->repair != QCOW2_REPAIR_NONE ? fix (&f) : check_active (c);
  snapshot_mend_clear (&f.snapshots);
  return r;
}

static int
judge_image (const struct qcow2 *image, bool repair,
             struct qcow2_error *error)
{
  const struct layer *l = image->chain.layers[0];

  if (l->is_raw)
    return qcow2_error_set (error, ENOTSUP,
                            "This image format does not support checks");
  if (image->writer)
    return qcow2_error_set (error, EBUSY, "%s: the image is open for writing",
                            l->filename);
  if (repair && !(image->options.check && image->writable))
    return qcow2_error_set (error, EROFS, "%s: the image is not open to be "
                            "repaired", l->filename);
  return 0;
}

int
qcow2_check (struct qcow2 *image, const struct qcow2_check_options *options,
             struct qcow2_check_result *result, struct qcow2_error *error)
{
  static const struct qcow2_check_options only_look;
  struct layer *l = image->chain.layers[0];
  struct ref_map map = { .words = NULL };
  struct check c = {
    .layer = l, .map = &map, .options = options ? options : &only_look,
    .result = result, .error = error,
  };
  int r;

  memset (result, 0, sizeof *result);
  r = judge_image (image, c.options->repair != QCOW2_REPAIR_NONE, error);
  if (r < 0)
    return r;
  result->total_clusters =
    (l->size_bytes >> l->header.cluster_bits) +
    !!(l->size_bytes & (layer_cluster_bytes (l) - 1));
  pthread_mutex_init (&c.lock, NULL);
  r = check (&c);
  pthread_mutex_destroy (&c.lock);
  free (c.once);
  free (c.active);
  ref_map_clear (&map);
  if (r < 0)
    qcow2_error_prefix (error, "%s: ", l->filename);
  return r;
}
