/* SPDX-License-Identifier: BSD-3-Clause */

/* The first cluster of a new image. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "create.h"
#include "codec.h"
#include "format.h"

/* As QEMU 7.2 names them, in its order. */
static const struct disk_feature_name feature_names[] = {
  { FEATURE_INCOMPATIBLE, 0, "dirty bit" },
  { FEATURE_INCOMPATIBLE, 1, "corrupt bit" },
  { FEATURE_INCOMPATIBLE, 2, "external data file" },
  { FEATURE_INCOMPATIBLE, 3, "compression type" },
  { FEATURE_INCOMPATIBLE, 4, "extended L2 entries" },
  { FEATURE_COMPATIBLE, 0, "lazy refcounts" },
  { FEATURE_AUTOCLEAR, 0, "bitmaps" },
  { FEATURE_AUTOCLEAR, 1, "raw external data" },
};

/* In small clusters the names have no place. */
#define MAX_BYTES_WITHOUT_NAMES 4096

static void
fill_version_3 (const struct qcow2_create_options *options,
                const struct create_layout *layout, struct disk_header *d)
{
  uint64_t incompatible = 0;

  if (options->data_file)
    incompatible |= INCOMPAT_DATA_FILE;
  if (options->zstd)
    incompatible |= INCOMPAT_COMPRESSION;
  if (options->extended_l2)
    incompatible |= INCOMPAT_EXTENDED_L2;
  d->incompatible_features = htobe64 (incompatible);
  if (options->lazy_refcounts)
    d->compatible_features = htobe64 (COMPAT_LAZY_REFCOUNTS);
  if (options->data_file_raw)
    d->autoclear_features = htobe64 (AUTOCLEAR_RAW_DATA);
  d->refcount_order = htobe32 (layout->refcount_order);
  d->header_length = htobe32 (sizeof *d);
  d->compression_type = options->zstd ? COMPRESSION_ZSTD :
    COMPRESSION_DEFLATE;
}

static void
fill_fields (const struct qcow2_create_options *options,
             const struct create_layout *layout, struct disk_header *d)
{
  memset (d, 0, sizeof *d);
  d->magic = htobe32 (QCOW_MAGIC);
  d->version = htobe32 (options->version);
  d->cluster_bits = htobe32 (layout->cluster_bits);
  d->size = htobe64 (layout->size_bytes);
  d->l1_size = htobe32 ((uint32_t) layout->l1_entries);
  d->l1_table_offset = htobe64 (create_layout_l1_table (layout));
  d->refcount_table_offset = htobe64 (create_layout_refcount_table (layout));
  d->refcount_table_clusters =
    htobe32 ((uint32_t) layout->refcount_table_clusters);
  if (options->version >= 3)
    fill_version_3 (options, layout, d);
}

/* -ENOBUFS if they don't fit. */
static int
make_extensions (const struct qcow2_create_options *options,
                 const char *backing_format, size_t header_bytes,
                 size_t room_bytes, struct extension_list *list)
{
  struct extension_change all[3];
  struct header_layout nothing;
  size_t nr = 0;
  int r;

  if (backing_format)
    all[nr++] = (struct extension_change) {
      EXTENSION_BACKING_FORMAT, backing_format, strlen (backing_format)
    };
  if (options->data_file)
    all[nr++] = (struct extension_change) {
      EXTENSION_DATA_FILE, options->data_file, strlen (options->data_file)
    };
  if (options->version >= 3 &&
      options->cluster_bytes > MAX_BYTES_WITHOUT_NAMES)
    all[nr++] = (struct extension_change) {
      EXTENSION_FEATURE_NAMES, feature_names, sizeof feature_names
    };

  r = header_layout_new (header_bytes, &nothing);
  if (r < 0)
    return r;
  r = header_layout_extensions (&nothing, header_bytes, all, nr, false,
                                room_bytes, list);
  header_layout_clear (&nothing);
  return r;
}

int
create_header (const struct qcow2_create_options *options,
               const char *backing_format,
               const struct create_layout *layout,
               struct header_layout *header, struct qcow2_error *error)
{
  struct disk_header d;
  struct extension_list extensions = { .bytes = NULL };
  struct header_plan plan = {
    .fields = (const uint8_t *) &d,
    .header_bytes = options->version >= 3 ? sizeof d : V2_HEADER_BYTES,
    .cluster_bytes = (size_t) options->cluster_bytes,
    .extensions = &extensions,
    .name = options->backing_file,
    .name_bytes = options->backing_file ? strlen (options->backing_file) : 0,
  };
  int r;

  fill_fields (options, layout, &d);
  plan.extensions_offset = plan.header_bytes;
  r = make_extensions (options, backing_format, plan.header_bytes,
                       plan.cluster_bytes - plan.header_bytes, &extensions);
  if (r == 0) {
    plan.name_offset = plan.header_bytes + extensions.nr_bytes;
    r = header_layout_build (&plan, header);
    free (extensions.bytes);
  }
  if (r == -ENOBUFS)
    return qcow2_error_set (error, EINVAL,
                            "the names of backing file and data file are "
                            "too long for a cluster size of %zu bytes",
                            plan.cluster_bytes);
  if (r < 0)
    return qcow2_error_set (error, -r, "%s", strerror (-r));
  return 0;
}
