/* SPDX-License-Identifier: BSD-3-Clause */

/* The map of a disk, extent by extent: qcow2_map calls back, here one asks.
 * A bounded number is read ahead.
 */

#include "extent-reader.h"

#define ENOUGH 1                /* what the callback returns */

void
img_extent_reader_init (struct img_extent_reader *reader,
                        struct qcow2_view *view, uint64_t disk_bytes)
{
  reader->view = view;
  reader->end = disk_bytes;
  reader->read_to = 0;
  reader->next = reader->nr = 0;
}

static int
collect (void *opaque, const struct qcow2_map_extent *extent)
{
  struct img_extent_reader *reader = opaque;

  reader->extents[reader->nr++] = *extent;
  reader->read_to = extent->offset + extent->count;
  return reader->nr == IMG_EXTENTS_AT_ONCE ? ENOUGH : 0;
}

/* What was read before an error is good: the error comes when its place is
 * asked for.
 */
static int
refill (struct img_extent_reader *reader)
{
  int r;

  reader->next = reader->nr = 0;
  r = qcow2_map (reader->view, reader->end - reader->read_to,
                 reader->read_to, collect, reader);
  return r < 0 && reader->nr == 0 ? r : 0;
}

int
img_extent_reader_at (struct img_extent_reader *reader, uint64_t offset,
                      const struct qcow2_map_extent **extent)
{
  for (;;) {
    const struct qcow2_map_extent *e = &reader->extents[reader->next];
    int r;

    if (reader->next == reader->nr) {
      r = refill (reader);
      if (r < 0)
        return r;
      continue;
    }
    if (offset < e->offset + e->count) {
      *extent = e;
      return 0;
    }
    reader->next++;
  }
}
