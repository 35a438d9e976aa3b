/* SPDX-License-Identifier: BSD-3-Clause */

/* Making qcow2 images.  Nothing of the engine is used but format.h, so
 * that a mistake there does not cancel out.
 */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "image-builder.h"

static void
must (bool cond, const struct image *img, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s: %s\n", img->path, what, strerror (errno));
    exit (1);
  }
}

/*----- Raw access -----*/

void
image_write (struct image *img, uint64_t offset, const void *buf,
             size_t count)
{
  must (pwrite (img->fd, buf, count, (off_t) offset) == (ssize_t) count,
        img, "pwrite");
}

void
image_put (struct image *img, uint64_t offset, unsigned width,
           uint64_t value)
{
  uint64_t be = htobe64 (value);

  image_write (img, offset, (const char *) &be + 8 - width, width);
}

uint64_t
image_get (struct image *img, uint64_t offset, unsigned width)
{
  uint64_t be = 0;

  must (pread (img->fd, (char *) &be + 8 - width, width,
               (off_t) offset) == (ssize_t) width, img, "pread");
  return be64toh (be);
}

void
image_truncate (struct image *img, uint64_t bytes)
{
  must (ftruncate (img->fd, (off_t) bytes) == 0, img, "ftruncate");
}

uint64_t
image_alloc (struct image *img, uint64_t bytes)
{
  uint64_t offset = img->end;

  img->end += (bytes + img->cluster_bytes - 1) & ~(img->cluster_bytes - 1);
  image_truncate (img, img->end);
  return offset;
}

/*----- Making, opening, closing -----*/

static unsigned
l1_entry_bits (const struct image *img)
{
  return 2 * img->cluster_bits - (img->extended_l2 ? 4 : 3);
}

static void
write_header (struct image *img, const struct image_options *o)
{
  struct disk_header d = {
    .magic = htobe32 (QCOW_MAGIC),
    .version = htobe32 (img->version),
    .cluster_bits = htobe32 (img->cluster_bits),
    .size = htobe64 (o->size_bytes),
    .l1_size = htobe32 (img->l1_entries),
    .l1_table_offset = htobe64 (img->l1_offset),
    .refcount_table_offset = htobe64 (img->cluster_bytes),
    .refcount_table_clusters = htobe32 (1),
    .incompatible_features = htobe64 (o->incompatible),
    .compatible_features = htobe64 (o->compatible),
    .autoclear_features = htobe64 (o->autoclear),
    .refcount_order = htobe32 (4),
    .compression_type = o->compression_type,
  };
  uint32_t length = o->header_length ? o->header_length : sizeof d;

  if (img->version < 3)
    length = V2_HEADER_BYTES;
  d.header_length = htobe32 (length);
  image_write (img, 0, &d, length < sizeof d ? length : sizeof d);
  img->header_end = length;
}

void
image_create (struct image *img, const char *path,
              const struct image_options *o)
{
  uint64_t entry_bytes;

  memset (img, 0, sizeof *img);
  img->path = path;
  img->version = o->version ? o->version : 3;
  img->cluster_bits = o->cluster_bits ? o->cluster_bits : 16;
  img->cluster_bytes = UINT64_C (1) << img->cluster_bits;
  img->extended_l2 = o->incompatible & INCOMPAT_EXTENDED_L2;
  unlink (path);
  img->fd = open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  must (img->fd != -1, img, "open");

  image_alloc (img, 3 * img->cluster_bytes);
  entry_bytes = UINT64_C (1) << l1_entry_bits (img);
  img->l1_entries = (uint32_t) ((o->size_bytes + entry_bytes - 1) /
                                entry_bytes);
  img->l1_offset = image_alloc (img, img->l1_entries * UINT64_C (8));
  image_put (img, img->cluster_bytes, 8, 2 * img->cluster_bytes);
  write_header (img, o);
}

void
image_reopen (struct image *img)
{
  img->fd = open (img->path, O_RDWR | O_CLOEXEC);
  must (img->fd != -1, img, "open");
}

void
image_close (struct image *img)
{
  uint64_t i, nr = img->end >> img->cluster_bits;

  if (nr > img->cluster_bytes / 2)
    nr = img->cluster_bytes / 2;
  for (i = 0; i < nr; ++i)
    image_put (img, 2 * img->cluster_bytes + 2 * i, 2, 1);
  close (img->fd);
  img->fd = -1;
}

/*----- Header -----*/

void
image_add_extension (struct image *img, uint32_t type, const void *data,
                     size_t bytes)
{
  image_put (img, img->header_end, 4, type);
  image_put (img, img->header_end + 4, 4, bytes);
  image_write (img, img->header_end + 8, data, bytes);
  img->header_end += 8 + ((bytes + 7) & ~(size_t) 7);
}

void
image_set_backing (struct image *img, const char *name)
{
  size_t offset = img->header_end + sizeof (struct disk_extension);

  image_write (img, offset, name, strlen (name));
  image_put_header (img, backing_file_offset, offset);
  image_put_header (img, backing_file_size, strlen (name));
}

/*----- Mapping -----*/

uint64_t
image_l2_entry (struct image *img, uint64_t guest)
{
  unsigned bits = l1_entry_bits (img);
  uint64_t in_l1 = img->l1_offset + 8 * (guest >> bits);
  uint64_t l2 = image_get (img, in_l1, 8) & ENTRY_OFFSET_MASK;
  uint64_t index = (guest & ((UINT64_C (1) << bits) - 1)) >>
    img->cluster_bits;

  if (l2 == 0) {
    l2 = image_alloc (img, img->cluster_bytes);
    image_put (img, in_l1, 8, l2 | ENTRY_COPIED);
  }
  return l2 + index * (img->extended_l2 ? 16 : 8);
}

void
image_map (struct image *img, uint64_t guest, uint64_t entry,
           uint64_t bitmap)
{
  uint64_t where = image_l2_entry (img, guest);

  image_put (img, where, 8, entry);
  if (img->extended_l2)
    image_put (img, where + 8, 8, bitmap);
}

static uint8_t *
filled_cluster (const struct image *img, uint8_t fill)
{
  uint8_t *buf = malloc (img->cluster_bytes);

  must (buf != NULL, img, "malloc");
  memset (buf, fill, img->cluster_bytes);
  return buf;
}

uint64_t
image_add_data (struct image *img, uint64_t guest, uint8_t fill)
{
  uint64_t host = image_alloc (img, img->cluster_bytes);
  uint8_t *buf = filled_cluster (img, fill);

  image_write (img, host, buf, img->cluster_bytes);
  free (buf);
  image_map (img, guest, host | ENTRY_COPIED, UINT32_MAX);
  return host;
}

uint64_t
image_compressed_entry (const struct image *img, uint64_t host,
                        size_t compressed_bytes)
{
  uint64_t sectors = ((host & 511) + compressed_bytes - 1) / 512;

  return ENTRY_COMPRESSED | host |
    sectors << (62 - (img->cluster_bits - 8));
}

uint64_t
image_add_compressed (struct image *img, uint64_t guest, uint8_t fill)
{
  uint64_t host = image_alloc (img, img->cluster_bytes);
  uint8_t *buf = filled_cluster (img, fill);
  uint8_t out[8192];
  z_stream z = { .next_in = buf, .avail_in = (uInt) img->cluster_bytes,
                 .next_out = out, .avail_out = sizeof out };

  must (deflateInit2 (&z, 9, Z_DEFLATED, -12, 8, Z_DEFAULT_STRATEGY) == Z_OK &&
        deflate (&z, Z_FINISH) == Z_STREAM_END, img, "deflate");
  deflateEnd (&z);
  free (buf);
  image_write (img, host, out, z.total_out);
  image_map (img, guest, image_compressed_entry (img, host, z.total_out), 0);
  return host;
}

/*----- Snapshots -----*/

static size_t
snapshot_bytes (const struct image_snapshot *sn)
{
  size_t bytes = sizeof (struct disk_snapshot) + sn->extra_bytes +
    strlen (sn->id) + strlen (sn->name);

  return (bytes + 7) & ~(size_t) 7;
}

static void
write_snapshot (struct image *img, const struct image_snapshot *sn)
{
  struct disk_snapshot d = {
    .l1_table_offset = htobe64 (sn->l1_offset),
    .l1_size = htobe32 (sn->l1_size),
    .id_str_size = htobe16 ((uint16_t) strlen (sn->id)),
    .name_size = htobe16 ((uint16_t) strlen (sn->name)),
    .extra_data_size = htobe32 (sn->extra_bytes),
  };
  struct disk_snapshot_extra x = { .disk_size = htobe64 (sn->disk_size) };
  size_t known = sn->extra_bytes < sizeof x ? sn->extra_bytes : sizeof x;
  uint64_t offset = sn->entry_offset;

  image_write (img, offset, &d, sizeof d);
  offset += sizeof d;
  image_write (img, offset, &x, known);
  offset += sn->extra_bytes;
  image_write (img, offset, sn->id, strlen (sn->id));
  offset += strlen (sn->id);
  image_write (img, offset, sn->name, strlen (sn->name));
}

void
image_set_snapshots (struct image *img, struct image_snapshot *snapshots,
                     uint32_t nr_snapshots)
{
  uint64_t bytes = 0, table;
  uint32_t i;

  for (i = 0; i < nr_snapshots; ++i)
    bytes += snapshot_bytes (&snapshots[i]);
  table = image_alloc (img, bytes);
  image_put_header (img, nb_snapshots, nr_snapshots);
  image_put_header (img, snapshots_offset, table);
  for (i = 0; i < nr_snapshots; ++i) {
    snapshots[i].entry_offset = table;
    write_snapshot (img, &snapshots[i]);
    table += snapshot_bytes (&snapshots[i]);
  }
}

uint64_t
image_copy_tables (struct image *img)
{
  uint64_t l1 = image_alloc (img, img->l1_entries * UINT64_C (8));
  uint8_t *buf = filled_cluster (img, 0);
  uint32_t i;

  for (i = 0; i < img->l1_entries; ++i) {
    uint64_t l2 = image_get (img, img->l1_offset + 8 * i, 8) &
      ENTRY_OFFSET_MASK;
    uint64_t copy;

    if (l2 == 0)
      continue;
    must (pread (img->fd, buf, img->cluster_bytes, (off_t) l2) ==
          (ssize_t) img->cluster_bytes, img, "pread");
    copy = image_alloc (img, img->cluster_bytes);
    image_write (img, copy, buf, img->cluster_bytes);
    image_put (img, l1 + 8 * i, 8, copy);
  }
  free (buf);
  return l1;
}
