/* SPDX-License-Identifier: BSD-3-Clause */

/* A model of how qcow2 maps guest offsets.  Numbers are those of the
 * specification, written out here once more on purpose.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk-model.h"

static uint64_t
big_endian (const struct disk_model *m, uint64_t offset, unsigned nr_bytes)
{
  uint64_t value = 0;
  uint8_t bytes[8];
  unsigned i;

  if (pread (m->fd, bytes, nr_bytes, offset) != (ssize_t) nr_bytes) {
    printf ("Bail out! model: nothing at %llu\n",
            (unsigned long long) offset);
    exit (1);
  }
  for (i = 0; i < nr_bytes; ++i)
    value = value * 256 + bytes[i];
  return value;
}

void
disk_model_open (struct disk_model *m, const char *filename, bool is_raw)
{
  struct stat st;
  uint64_t features = 0;

  m->fd = open (filename, O_RDONLY | O_CLOEXEC);
  if (m->fd == -1 || fstat (m->fd, &st) == -1) {
    perror (filename);
    exit (1);
  }
  m->is_raw = is_raw;
  m->size_bytes = st.st_size;
  if (is_raw)
    return;
  m->cluster_bits = big_endian (m, 20, 4);
  m->size_bytes = big_endian (m, 24, 8);
  m->l1_entries = big_endian (m, 36, 4);
  m->l1_offset = big_endian (m, 40, 8);
  if (big_endian (m, 4, 4) >= 3)
    features = big_endian (m, 72, 8);
  m->external_data = features & 4;
  m->entry_bytes = features & 16 ? 16 : 8;
}

void
disk_model_close (struct disk_model *m)
{
  close (m->fd);
}

void
disk_model_use_snapshot (struct disk_model *m)
{
  uint64_t table = big_endian (m, 64, 8);

  m->l1_offset = big_endian (m, table, 8);
  m->l1_entries = big_endian (m, table + 8, 4);
}

static struct place
look_compressed (const struct disk_model *m, uint64_t entry,
                 uint64_t in_cluster)
{
  unsigned offset_bits = 62 - (m->cluster_bits - 8);
  struct place p = { .kind = PLACE_COMPRESSED, .in_cluster = in_cluster };
  uint64_t more_sectors;

  entry &= ~(UINT64_C (3) << 62);
  more_sectors = entry >> offset_bits;
  p.host = entry & ((UINT64_C (1) << offset_bits) - 1);
  p.compressed_bytes = (p.host / 512 + more_sectors + 1) * 512 - p.host;
  return p;
}

static enum place_kind
subcluster_kind (const struct disk_model *m, uint64_t bitmap,
                 uint64_t in_cluster)
{
  unsigned nr = in_cluster * 32 >> m->cluster_bits;

  if (bitmap >> (32 + nr) & 1)
    return PLACE_ZERO;
  return bitmap >> nr & 1 ? PLACE_DATA : PLACE_BELOW;
}

struct place
disk_model_look (const struct disk_model *m, uint64_t offset)
{
  uint64_t cluster_bytes = UINT64_C (1) << m->cluster_bits;
  uint64_t per_table = cluster_bytes / m->entry_bytes;
  uint64_t nr = offset >> m->cluster_bits;
  uint64_t in_cluster = offset & (cluster_bytes - 1);
  uint64_t table, at, entry;
  struct place p = { .kind = PLACE_BELOW };

  if (nr / per_table >= m->l1_entries)
    return p;
  table = big_endian (m, m->l1_offset + nr / per_table * 8, 8);
  table &= UINT64_C (0x00fffffffffffe00);
  if (table == 0)
    return p;
  at = table + nr % per_table * m->entry_bytes;
  entry = big_endian (m, at, 8);
  if (entry >> 62 & 1)
    return look_compressed (m, entry, in_cluster);

  p.host = (entry & UINT64_C (0x00fffffffffffe00)) + in_cluster;
  if (m->entry_bytes == 16)
    p.kind = subcluster_kind (m, big_endian (m, at + 8, 8), in_cluster);
  else if (entry & 1)
    p.kind = PLACE_ZERO;
  else if (p.host != in_cluster || (m->external_data && entry >> 63))
    p.kind = PLACE_DATA;
  return p;
}

struct place
disk_model_look_down (const struct disk_model *models, unsigned first,
                      unsigned nr, uint64_t offset)
{
  struct place p = { .kind = PLACE_ZERO };
  unsigned k;

  for (k = first; k < nr && offset < models[k].size_bytes; ++k) {
    if (models[k].is_raw)
      p = (struct place) { .kind = PLACE_DATA, .host = offset };
    else
      p = disk_model_look (&models[k], offset);
    p.layer = k;
    if (p.kind != PLACE_BELOW)
      return p;
  }
  return (struct place) { .kind = PLACE_ZERO };
}

bool
place_goes_on (const struct place *a, const struct place *b,
               uint64_t distance)
{
  if (a->kind != b->kind)
    return false;
  switch (a->kind) {
  case PLACE_DATA:
    return a->layer == b->layer && a->host + distance == b->host;
  case PLACE_COMPRESSED:
    return a->layer == b->layer && a->host == b->host &&
      a->compressed_bytes == b->compressed_bytes &&
      a->in_cluster + distance == b->in_cluster;
  default:
    return true;
  }
}
