/* SPDX-License-Identifier: BSD-3-Clause */

/* Giving the disk another size: may it be done? */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "format.h"
#include "header-write.h"
#include "resize.h"

/* A snapshot that doesn't tell its disk's size has the image's. */
static int
check_snapshots (const struct layer *top, const struct snapshot_table *table,
                 struct qcow2_error *error)
{
  size_t i;

  if (top->header.version < 3 && table->nr_snapshots > 0)
    return qcow2_error_set (error, ENOTSUP,
                            "%s: Can't resize a v2 image which has "
                            "snapshots; use \"qemu-img amend -o "
                            "compat=1.1\" first", top->filename);
  for (i = 0; i < table->nr_snapshots; ++i)
    if (!table->snapshots[i].has_disk_size)
      return qcow2_error_set (error, ENOTSUP,
                              "%s: the image can't be resized, because "
                              "snapshot table entry %zu has no disk size; "
                              "use \"qcow2-img check -r all\" first",
                              top->filename, i);
  return 0;
}

/* They tell of each part of a disk of the old size whether it was changed,
 * and are kept up to date by none of the writes here.
 */
static int
check_bitmaps (const struct resize *z, struct qcow2_error *error)
{
  struct header_features f;

  header_writer_features (z->w->header, &f);
  if (!(f.autoclear & AUTOCLEAR_BITMAPS))
    return 0;
  return qcow2_error_set (error, ENOTSUP, "%s: the image has dirty bitmaps, "
                          "which can't be resized; remove them first "
                          "(\"qemu-img bitmap --remove\")",
                          z->w->top->filename);
}

static int
check_size (struct resize *z, bool may_shrink, struct qcow2_error *error)
{
  const struct layer *top = z->w->top;
  uint64_t entries = header_disk_l1_entries (&top->header, z->new_bytes);

  if (z->new_bytes < z->old_bytes && !may_shrink)
    return qcow2_error_set (error, ENOTSUP,
                            "%s: the disk can't be made smaller than it is "
                            "(%" PRIu64 " bytes)", top->filename,
                            z->old_bytes);
  if (z->new_bytes < z->old_bytes &&
      z->preallocation != QCOW2_PREALLOCATION_OFF)
    return qcow2_error_set (error, EINVAL, "%s: Preallocation can't be used "
                            "for shrinking an image", top->filename);
  if (z->new_bytes > INT64_MAX || entries > MAX_L1_BYTES / 8)
    return qcow2_error_set (error, EFBIG,
                            "%s: a size of %" PRIu64 " bytes is too large "
                            "for clusters of %" PRIu64 " bytes",
                            top->filename, z->new_bytes,
                            layer_cluster_bytes (top));
  z->l1_entries = (uint32_t) entries;
  return 0;
}

/* A request that waits at the gate may lie behind the new end. */
static int
check_views (struct qcow2 *image, struct qcow2_error *error)
{
  if (!image_has_views (image))
    return 0;
  return qcow2_error_set (error, EBUSY, "%s: the disk can't be made smaller "
                          "while it is in use",
                          image->chain.layers[0]->filename);
}

static int
check (struct qcow2 *image, struct resize *z, bool may_shrink,
       struct qcow2_error *error)
{
  int r = check_size (z, may_shrink, error);

  if (r == 0 && z->new_bytes < z->old_bytes)
    r = check_views (image, error);
  if (r < 0 || z->new_bytes == z->old_bytes)
    return r;
  r = check_snapshots (z->w->top, &image->snapshots, error);
  return r < 0 ? r : check_bitmaps (z, error);
}

static int
resize (struct qcow2 *image, struct resize *z, struct qcow2_error *error)
{
  const struct layer *top = z->w->top;
  bool larger = z->new_bytes > z->old_bytes;
  int r = larger ? disk_grow (z) : disk_shrink (z);

  if (r == 0 && !image_has_views (image))
    r = writer_rest (z->w);
  if (r == 0)
    return 0;
  if (top->size_bytes == z->new_bytes)
    return qcow2_error_set (error, -r, larger ?
                            "%s: the disk was made larger, but the image "
                            "could not be brought to rest: %s" :
                            "%s: the disk was made smaller, but not all of "
                            "its space could be given back: %s",
                            top->filename, strerror (-r));
  return qcow2_error_set (error, -r, "%s: the disk could not be made %s: %s",
                          top->filename, larger ? "larger" : "smaller",
                          strerror (-r));
}

int
qcow2_resize (struct qcow2 *image, uint64_t size_bytes,
              enum qcow2_preallocation preallocation, bool may_shrink,
              struct qcow2_error *error)
{
  const struct layer *top = image->chain.layers[0];
  struct resize z = {
    .new_bytes = size_bytes, .preallocation = preallocation,
  };
  int r;

  gate_close (&image->gate);
  z.w = image->writer;
  z.old_bytes = top->size_bytes;
  if (!z.w)
    r = qcow2_error_set (error, EROFS, "%s: the image is not open for "
                         "writing", top->filename);
  else
    r = check (image, &z, may_shrink, error);
  if (r == 0 && z.new_bytes != z.old_bytes)
    r = resize (image, &z, error);
  gate_open (&image->gate);
  return r;
}
