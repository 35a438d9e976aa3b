/* SPDX-License-Identifier: BSD-3-Clause */

/* How large a new image will be.
 *
 * Metadata is counted as for a disk all of which is allocated.
 */

#include <errno.h>
#include <string.h>

#include "format.h"
#include "qcow2.h"

static uint64_t
divide_up (uint64_t n, uint64_t by)
{
  return n / by + (n % by != 0);
}

static uint64_t
round_up (uint64_t n, uint64_t to)
{
  return divide_up (n, to) * to;
}

/* Refcount table and blocks that count CLUSTERS and themselves. */
static uint64_t
refcount_clusters (uint64_t clusters,
                   const struct qcow2_measure_options *options)
{
  uint64_t per_block = options->cluster_bytes * 8 / options->refcount_bits;
  uint64_t blocks = 0, table = 0, before;

  do {
    before = blocks + table;
    blocks = divide_up (clusters + before, per_block);
    table = divide_up (blocks, options->cluster_bytes / 8);
  } while (blocks + table != before);
  return blocks + table;
}

/* All clusters of an image for a disk of DATA_CLUSTERS. */
static uint64_t
all_clusters (uint64_t data_clusters,
              const struct qcow2_measure_options *options)
{
  uint64_t entry_bytes = options->extended_l2 ? 16 : 8;
  uint64_t l2 = divide_up (data_clusters,
                           options->cluster_bytes / entry_bytes);
  uint64_t l1 = divide_up (l2, options->cluster_bytes / 8);
  uint64_t clusters = 1 + l1 + l2 + data_clusters;

  return clusters + refcount_clusters (clusters, options);
}

/* Which clusters of the new image hold data. */
struct count {
  uint64_t cluster_bytes;
  uint64_t end;                 /* of the last cluster counted */
  uint64_t bytes;
};

static int
count_extent (void *opaque, const struct qcow2_map_extent *extent)
{
  struct count *c = opaque;
  uint64_t begin = extent->offset, end = extent->offset + extent->count;

  if (extent->zero || !extent->data)
    return 0;
  begin -= begin % c->cluster_bytes;
  end = round_up (end, c->cluster_bytes);
  if (begin < c->end)
    begin = c->end;
  if (begin < end) {
    c->bytes += end - begin;
    c->end = end;
  }
  return 0;
}

int
qcow2_measure (struct qcow2_view *view, uint64_t size_bytes,
               const struct qcow2_measure_options *options,
               struct qcow2_measure *measure, struct qcow2_error *error)
{
  uint64_t cluster_bytes = options->cluster_bytes;
  uint64_t l2_entries = cluster_bytes / (options->extended_l2 ? 16 : 8);
  uint64_t data_clusters = divide_up (size_bytes, cluster_bytes);
  struct count count = { .cluster_bytes = cluster_bytes };
  int r;

  if (divide_up (data_clusters, l2_entries) > MAX_L1_BYTES / 8)
    return qcow2_error_set (error, EFBIG,
                            "The image size is too large (try using a larger "
                            "cluster size)");
  if (options->all_data)
    count.bytes = data_clusters * cluster_bytes;
  else if (view) {
    r = qcow2_map (view, size_bytes, 0, count_extent, &count);
    if (r < 0)
      return qcow2_error_set (error, -r, "Unable to get block status");
  }
  measure->fully_allocated_bytes =
    all_clusters (data_clusters, options) * cluster_bytes;
  measure->required_bytes = measure->fully_allocated_bytes -
    data_clusters * cluster_bytes + count.bytes;
  return 0;
}

uint64_t
qcow2_measure_bitmaps (const struct qcow2_info *info, uint64_t cluster_bytes)
{
  uint64_t bytes = 0, directory_bytes = 0;
  size_t i;

  for (i = 0; i < info->nr_bitmaps; ++i) {
    const struct qcow2_bitmap_info *b = &info->bitmaps[i];
    uint64_t bits = divide_up (info->size_bytes, b->granularity_bytes);
    uint64_t clusters = divide_up (divide_up (bits, 8), cluster_bytes);

    bytes += (clusters + divide_up (clusters * 8, cluster_bytes)) *
      cluster_bytes;
    directory_bytes += round_up (sizeof (struct disk_bitmap) +
                                 strlen (b->name), 8);
  }
  return bytes + round_up (directory_bytes, cluster_bytes);
}
