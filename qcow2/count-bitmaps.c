/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting the clusters of bitmaps (specification: "Bitmaps").
 *
 * As in QEMU, they count only while the autoclear bit vouches for them:
 * else they are left over from before a program wrote to the image which
 * did not know them, and their clusters are free.
 */

#include <errno.h>
#include <stdlib.h>

#include "count-refs.h"
#include "format.h"

#define TABLE_RESERVED UINT64_C (0xff000000000001fe)
#define TABLE_ALL_ONES UINT64_C (1)

static int
count_bits (const struct ref_counter *c, uint64_t entry, uint32_t times,
            const struct ref_place *at)
{
  uint64_t offset = entry & ENTRY_OFFSET_MASK;
  bool good;

  if (entry & TABLE_RESERVED || (offset != 0 && entry & TABLE_ALL_ONES))
    return ref_problem (c, PROBLEM_BAD, at, "reserved bits are set");
  if (offset == 0)
    return 0;
  if (offset & (c->cluster_bytes - 1))
    return ref_problem (c, PROBLEM_BAD, at,
                        "the cluster of bits is not aligned");
  return ref_count (c, REF_BITMAP, offset, c->cluster_bytes, times, at, &good);
}

/* *TABLE is what is to be read, of length 0 if nothing is. */
static int
count_table (const struct ref_counter *c, const struct disk_bitmap *d,
             const struct ref_place *at, struct ref_table *table)
{
  uint64_t offset = be64toh (d->bitmap_table_offset);
  uint64_t nr = be32toh (d->bitmap_table_size);
  bool good;
  int r;

  *table = (struct ref_table) { 0, 0 };
  if (offset == 0 || offset & (c->cluster_bytes - 1))
    return ref_problem (c, PROBLEM_BAD, at, "the bitmap table is not aligned");
  if (nr > MAX_BITMAP_BYTES / c->cluster_bytes)
    return ref_problem (c, PROBLEM_BAD, at, "the bitmap table is too large");
  r = ref_count (c, REF_BITMAP, offset, nr * 8, 1, at, &good);
  if (r == 0 && good)
    *table = (struct ref_table) { offset, nr };
  return r;
}

/* *NR tables were found. */
static int
count_directory (const struct ref_counter *c, struct ref_place *at,
                 struct ref_table *tables, size_t *nr)
{
  const struct header *h = &c->layer->header;
  uint64_t offset = at->offset, end = offset + h->bitmap_directory_bytes;
  struct disk_bitmap d;
  int r;

  for (; at->index < h->nr_bitmaps; ++at->index) {
    if (end - offset < sizeof d)
      return ref_problem (c, PROBLEM_BAD, at, "past the end of the directory");
    r = ref_read (c, &d, sizeof d, offset, at->what);
    if (r == 0)
      r = count_table (c, &d, at, &tables[*nr]);
    if (r < 0)
      return r;
    ++*nr;
    offset += (sizeof d + be32toh (d.extra_data_size) +
               UINT64_C (7) + be16toh (d.name_size)) & ~UINT64_C (7);
    if (offset > end)
      return ref_problem (c, PROBLEM_BAD, at, "past the end of the directory");
  }
  return 0;
}

int
count_bitmaps (const struct ref_counter *c)
{
  const struct header *h = &c->layer->header;
  struct ref_place at = {
    "bitmap directory", h->bitmap_directory_offset, 0, NULL,
  };
  struct ref_table *tables;
  size_t nr = 0;
  bool good;
  int r;

  if (!h->has_bitmaps)
    return 0;
  r = ref_count (c, REF_BITMAP, at.offset, h->bitmap_directory_bytes, 1, &at,
                 &good);
  if (r < 0 || !good)
    return r;
  tables = malloc ((h->nr_bitmaps + (size_t) 1) * sizeof *tables);
  if (!tables)
    return qcow2_error_set (c->error, ENOMEM, "out of memory");
  r = count_directory (c, &at, tables, &nr);
  if (r == 0)
    r = ref_each_word (c, "bitmap table", tables, nr, count_bits);
  free (tables);
  return r;
}
