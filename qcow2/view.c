/* SPDX-License-Identifier: BSD-3-Clause */

/* Views: the active layer and internal snapshots as disks. */

#include <errno.h>
#include <stdlib.h>

#include "image.h"
#include "writer.h"

static struct qcow2_view *
find_open_locked (struct qcow2 *image, size_t snapshot)
{
  struct qcow2_view *view;

  for (view = image->views; view; view = view->next)
    if (view->snapshot == snapshot)
      return view;
  return NULL;
}

static struct qcow2_view *
find_open (struct qcow2 *image, size_t snapshot)
{
  struct qcow2_view *view;

  pthread_mutex_lock (&image->views_lock);
  view = find_open_locked (image, snapshot);
  if (view)
    view->nr_refs++;
  pthread_mutex_unlock (&image->views_lock);
  return view;
}

static void
free_view (struct qcow2_view *view)
{
  free ((void *) view->own_l1.entries);
  free (view);
}

static int
load_snapshot (const struct layer *top, const struct snapshot *sn,
               struct qcow2_view *view, struct qcow2_error *error)
{
  if (sn->disk_size_bytes > INT64_MAX)
    return qcow2_error_set (error, EFBIG, "disk size %llu is too large",
                            (unsigned long long) sn->disk_size_bytes);
  view->l1 = &view->own_l1;
  view->size_bytes = sn->disk_size_bytes;
  view->vm_state_bytes = sn->vm_state_bytes;
  return l1_table_read (top, "snapshot L1 table", sn->l1_offset,
                        sn->l1_entries, &view->own_l1, error);
}

/* Make the view and read what it needs, without a lock.  *OUT is set on
 * success only.
 */
static int
load (struct qcow2 *image, size_t snapshot, struct qcow2_view **out,
      struct qcow2_error *error)
{
  struct layer *top = image->chain.layers[0];
  struct qcow2_view *view = calloc (1, sizeof *view);
  int r;

  if (!view)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  view->image = image;
  view->snapshot = snapshot;
  view->nr_refs = 1;

  if (snapshot == QCOW2_ACTIVE)
    view->l1 = &top->l1;        /* the size is set when it is published */
  else {
    r = load_snapshot (top, &image->snapshots.snapshots[snapshot], view,
                       error);
    if (r < 0) {
      qcow2_error_prefix (error, "%s: snapshot table entry %zu: ",
                          top->filename, snapshot);
      free_view (view);
      return r;
    }
  }
  *out = view;
  return 0;
}

/* Another thread may have been faster. */
static struct qcow2_view *
publish (struct qcow2 *image, struct qcow2_view *view)
{
  struct qcow2_view *other;

  pthread_mutex_lock (&image->views_lock);
  other = find_open_locked (image, view->snapshot);
  if (other)
    other->nr_refs++;
  else {
    /* That of the layer may be one that is not yet true, see grow.c. */
    if (view->snapshot == QCOW2_ACTIVE)
      view->size_bytes = image->chain.layers[0]->header.size_bytes;
    view->next = image->views;
    image->views = view;
  }
  pthread_mutex_unlock (&image->views_lock);

  if (!other)
    return view;
  free_view (view);
  return other;
}

int
qcow2_view_open (struct qcow2 *image, size_t snapshot,
                 struct qcow2_view **view, struct qcow2_error *error)
{
  int r;

  *view = NULL;
  if (image->broken) {
    if (error)
      *error = image->why;
    return image->broken;
  }
  *view = find_open (image, snapshot);
  if (*view)
    return 0;
  r = load (image, snapshot, view, error);
  if (r < 0)
    return r;
  *view = publish (image, *view);
  return 0;
}

void
qcow2_view_close (struct qcow2_view *view)
{
  struct qcow2_view **p;
  struct qcow2 *image;
  bool last, none_left;

  if (!view)
    return;
  image = view->image;
  pthread_mutex_lock (&image->views_lock);
  last = --view->nr_refs == 0;
  if (last) {
    for (p = &image->views; *p != view; p = &(*p)->next)
      ;
    *p = view->next;
  }
  none_left = image->views == NULL;
  pthread_mutex_unlock (&image->views_lock);
  if (last)
    free_view (view);
  if (none_left)
    writer_views_closed (image->writer);
}

void
image_set_size (struct qcow2 *image, uint64_t size_bytes)
{
  struct layer *top = image->chain.layers[0];
  struct qcow2_view *view;

  pthread_mutex_lock (&image->views_lock);
  top->size_bytes = top->header.size_bytes = size_bytes;
  view = find_open_locked (image, QCOW2_ACTIVE);
  if (view)
    view->size_bytes = size_bytes;
  pthread_mutex_unlock (&image->views_lock);
}

bool
image_has_view_of (struct qcow2 *image, size_t snapshot)
{
  bool r;

  pthread_mutex_lock (&image->views_lock);
  r = find_open_locked (image, snapshot) != NULL;
  pthread_mutex_unlock (&image->views_lock);
  return r;
}

void
image_remove_snapshot (struct qcow2 *image, size_t snapshot)
{
  struct qcow2_view *view;

  pthread_mutex_lock (&image->views_lock);
  for (view = image->views; view; view = view->next)
    if (view->snapshot != QCOW2_ACTIVE && view->snapshot > snapshot)
      view->snapshot--;
  pthread_mutex_unlock (&image->views_lock);
}

bool
image_has_views (struct qcow2 *image)
{
  bool r;

  pthread_mutex_lock (&image->views_lock);
  r = image->views != NULL;
  pthread_mutex_unlock (&image->views_lock);
  return r;
}

void
view_free_all (struct qcow2 *image)
{
  while (image->views) {
    struct qcow2_view *next = image->views->next;

    free_view (image->views);
    image->views = next;
  }
}

uint64_t
qcow2_view_size (const struct qcow2_view *view)
{
  return view->size_bytes;
}

/*----- What there is to view -----*/

size_t
qcow2_nr_snapshots (const struct qcow2 *image)
{
  return image->snapshots.nr_snapshots;
}

void
qcow2_snapshot_get (const struct qcow2 *image, size_t index,
                    struct qcow2_snapshot_info *info)
{
  snapshot_table_describe (&image->snapshots, index, info);
}

int
qcow2_snapshot_find_name (const struct qcow2 *image, const char *name)
{
  return snapshot_table_find_name (&image->snapshots, name);
}

int
qcow2_snapshot_find (const struct qcow2 *image, const char *id_or_name)
{
  return snapshot_table_find (&image->snapshots, id_or_name);
}
