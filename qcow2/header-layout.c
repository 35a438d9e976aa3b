/* SPDX-License-Identifier: BSD-3-Clause */

/* The first cluster as bytes.
 *
 *     | fields | extension | ... | end | backing file's name |
 *              ^ header_length         ^ backing_file_offset
 *
 * The extensions follow the fields and one another without gaps, except
 * that an extension of a type that nobody knows is a gap of any length.
 * The name lies anywhere behind them, and bounds them.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "extension.h"
#include "format.h"
#include "header-layout.h"

static size_t
whole_sectors (size_t nr_bytes)
{
  return (nr_bytes + SECTOR_BYTES - 1) & ~(size_t) (SECTOR_BYTES - 1);
}

int
header_layout_new (size_t nr_bytes, struct header_layout *layout)
{
  layout->nr_bytes = whole_sectors (nr_bytes);
  layout->bytes = calloc (1, layout->nr_bytes);
  layout->live = calloc (1, layout->nr_bytes);
  if (layout->bytes && layout->live)
    return 0;
  header_layout_clear (layout);
  return -ENOMEM;
}

void
header_layout_clear (struct header_layout *layout)
{
  free (layout->bytes);
  free (layout->live);
  memset (layout, 0, sizeof *layout);
}

static void
mark_live (struct header_layout *layout, size_t from, size_t to)
{
  memset (layout->live + from, 1, to - from);
}

size_t
header_layout_end (const struct header_layout *layout)
{
  size_t end = layout->nr_bytes;

  while (end > 0 && !layout->live[end - 1])
    end--;
  return end;
}

/*----- From bytes -----*/

static int
mark_extensions (struct header_layout *layout, size_t offset,
                 struct qcow2_error *error)
{
  size_t end = extension_bound (layout->bytes, layout->nr_bytes);
  size_t begin = offset;
  struct extension x;
  int r;

  while ((r = extension_next (layout->bytes, end, &offset, &x, error)) > 0) {
    if (x.type == EXTENSION_GAP)
      mark_live (layout, begin, begin + sizeof (struct disk_extension));
    else
      mark_live (layout, begin, offset < end ? offset : end);
    begin = offset;
  }
  if (r == 0 && offset > begin) /* the end marker */
    mark_live (layout, begin, offset);
  return r;
}

/* Bounds were checked when the header was read; a name out of bounds is
 * none.
 */
static void
mark_name (struct header_layout *layout)
{
  const struct disk_header *d = (const struct disk_header *) layout->bytes;
  uint64_t offset = be64toh (d->backing_file_offset);
  uint32_t nr_bytes = be32toh (d->backing_file_size);

  if (offset != 0 && offset < layout->nr_bytes &&
      nr_bytes <= layout->nr_bytes - offset)
    mark_live (layout, (size_t) offset, (size_t) offset + nr_bytes);
}

static int
keep_used_part (struct header_layout *layout)
{
  size_t nr_bytes = whole_sectors (header_layout_end (layout));
  struct header_layout used;
  int r;

  r = header_layout_new (nr_bytes, &used);
  if (r < 0)
    return r;
  memcpy (used.bytes, layout->bytes, nr_bytes);
  memcpy (used.live, layout->live, nr_bytes);
  header_layout_clear (layout);
  *layout = used;
  return 0;
}

int
header_layout_parse (const uint8_t *cluster, size_t cluster_bytes,
                     size_t header_bytes, struct header_layout *layout,
                     struct qcow2_error *error)
{
  int r;

  r = header_layout_new (cluster_bytes, layout);
  if (r == 0) {
    memcpy (layout->bytes, cluster, cluster_bytes);
    mark_live (layout, 0, header_bytes);
    r = mark_extensions (layout, header_bytes, error);
  }
  if (r == 0) {
    mark_name (layout);
    r = keep_used_part (layout);
  }
  if (r == -ENOMEM)
    qcow2_error_set (error, ENOMEM, "out of memory");
  if (r < 0)
    header_layout_clear (layout);
  return r;
}

bool
header_layout_compatible (const struct header_layout *old,
                          const struct header_layout *new_layout)
{
  size_t i;

  for (i = SECTOR_BYTES; i < old->nr_bytes && i < new_layout->nr_bytes; ++i)
    if (old->live[i] && new_layout->live[i] &&
        old->bytes[i] != new_layout->bytes[i])
      return false;
  return true;
}

/*----- To bytes -----*/

/* COPIED_BYTES of DATA: with the padding, or without, which is zeros
 * then.  Room is left for the end marker.
 */
static int
append (struct extension_list *list, uint32_t type, const void *data,
        size_t length_bytes, size_t copied_bytes)
{
  struct disk_extension d = {
    .type = htobe32 (type), .length = htobe32 ((uint32_t) length_bytes),
  };
  size_t padded = (length_bytes + 7) & ~(size_t) 7;

  if (list->room_bytes - list->nr_bytes < padded + 2 * sizeof d)
    return -ENOBUFS;
  memcpy (list->bytes + list->nr_bytes, &d, sizeof d);
  memcpy (list->bytes + list->nr_bytes + sizeof d, data, copied_bytes);
  list->nr_bytes += sizeof d + padded;
  return 0;
}

static const struct extension_change *
find_change (const struct extension_change *changes, size_t nr, uint32_t type)
{
  size_t i;

  for (i = 0; i < nr; ++i)
    if (changes[i].type == type)
      return &changes[i];
  return NULL;
}

static int
append_change (struct extension_list *list, const struct extension_change *c)
{
  if (c->length_bytes == 0)
    return 0;
  return append (list, c->type, c->data, c->length_bytes, c->length_bytes);
}

/* Those that are there already, in their order.  *REPLACED gets a bit
 * for each change that was made.
 */
static int
append_existing (struct extension_list *list,
                 const struct header_layout *layout, size_t offset,
                 const struct extension_change *changes, size_t nr,
                 bool drop_names, unsigned *replaced)
{
  size_t end = extension_bound (layout->bytes, layout->nr_bytes);
  struct extension x;
  int r;

  while ((r = extension_next (layout->bytes, end, &offset, &x, NULL)) > 0) {
    const struct extension_change *c = find_change (changes, nr, x.type);
    const uint8_t *next = layout->bytes + offset;

    if (x.type == EXTENSION_GAP ||
        (drop_names && x.type == EXTENSION_FEATURE_NAMES))
      continue;
    if (c) {
      *replaced |= 1u << (c - changes);
      r = append_change (list, c);
    }
    else                        /* the padding, too, where it is its own */
      r = append (list, x.type, x.data, x.length_bytes,
                  offset <= end ? (size_t) (next - x.data) : x.length_bytes);
    if (r < 0)
      break;
  }
  return r;
}

int
header_layout_extensions (const struct header_layout *layout,
                          size_t header_bytes,
                          const struct extension_change *changes, size_t nr,
                          bool drop_names, size_t room_bytes,
                          struct extension_list *list)
{
  unsigned replaced = 0;
  size_t i;
  int r;

  if (room_bytes < sizeof (struct disk_extension))
    return -ENOBUFS;
  list->bytes = calloc (1, room_bytes);
  if (!list->bytes)
    return -ENOMEM;
  list->nr_bytes = 0;
  list->room_bytes = room_bytes;

  r = append_existing (list, layout, header_bytes, changes, nr, drop_names,
                       &replaced);
  for (i = 0; r == 0 && i < nr; ++i)
    if (!(replaced & 1u << i) &&
        !(drop_names && changes[i].type == EXTENSION_FEATURE_NAMES))
      r = append_change (list, &changes[i]);
  if (r < 0) {
    free (list->bytes);
    list->bytes = NULL;
    return r;
  }
  list->nr_bytes += sizeof (struct disk_extension);     /* zeros: the end */
  return 0;
}

static void
place (struct header_layout *layout, size_t offset, const void *data,
       size_t nr_bytes)
{
  memcpy (layout->bytes + offset, data, nr_bytes);
  mark_live (layout, offset, offset + nr_bytes);
}

static void
place_name (struct header_layout *layout, const struct header_plan *plan)
{
  struct disk_header *d = (struct disk_header *) layout->bytes;

  d->backing_file_offset = htobe64 (plan->name ? plan->name_offset : 0);
  d->backing_file_size =
    htobe32 (plan->name ? (uint32_t) plan->name_bytes : 0);
  if (plan->name)
    place (layout, plan->name_offset, plan->name, plan->name_bytes);
}

static void
place_gap (struct header_layout *layout, const struct header_plan *plan)
{
  struct disk_extension gap = { .type = htobe32 (EXTENSION_GAP) };
  size_t begin = plan->header_bytes + sizeof gap;

  if (plan->extensions_offset == plan->header_bytes)
    return;
  gap.length = htobe32 ((uint32_t) (plan->extensions_offset - begin));
  place (layout, plan->header_bytes, &gap, sizeof gap);
}

int
header_layout_build (const struct header_plan *plan,
                     struct header_layout *layout)
{
  size_t end = plan->extensions_offset + plan->extensions->nr_bytes;
  int r;

  if (plan->name)
    end = plan->name_offset + plan->name_bytes;
  if (end > plan->cluster_bytes)
    return -ENOBUFS;
  r = header_layout_new (end, layout);
  if (r < 0)
    return r;
  place (layout, 0, plan->fields, plan->header_bytes);
  place_name (layout, plan);
  place_gap (layout, plan);
  place (layout, plan->extensions_offset, plan->extensions->bytes,
         plan->extensions->nr_bytes);
  return 0;
}
