/* SPDX-License-Identifier: BSD-3-Clause */

/* Counting the clusters of bitmaps (specification: "Bitmaps").
 *
 * As in QEMU, they count only while the autoclear bit vouches for them:
 * else they are left over from before a program wrote to the image which
 * did not know them, and their clusters are free.
 */

#include <inttypes.h>
#include <stdio.h>

#include "count-refs.h"
#include "format.h"

#define TABLE_RESERVED UINT64_C (0xff000000000001fe)
#define TABLE_ALL_ONES UINT64_C (1)

static int
count_bits (const struct ref_counter *c, uint64_t entry,
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
  return ref_count (c, REF_BITMAP, offset, c->cluster_bytes, 1, at, &good);
}

static int
count_bitmap (const struct ref_counter *c, const struct disk_bitmap *d,
              const struct ref_place *at)
{
  uint64_t offset = be64toh (d->bitmap_table_offset);
  uint64_t nr = be32toh (d->bitmap_table_size);
  bool good;
  int r;

  if (offset == 0 || offset & (c->cluster_bytes - 1))
    return ref_problem (c, PROBLEM_BAD, at, "the bitmap table is not aligned");
  r = ref_count (c, REF_BITMAP, offset, nr * 8, 1, at, &good);
  if (r < 0 || !good)
    return r;
  return ref_each_word (c, "bitmap table", offset, nr, count_bits);
}

int
count_bitmaps (const struct ref_counter *c)
{
  const struct header *h = &c->layer->header;
  uint64_t offset = h->bitmap_directory_offset;
  uint64_t end = offset + h->bitmap_directory_bytes;
  struct ref_place at = { "bitmap directory", offset, 0, NULL };
  struct disk_bitmap d;
  bool good;
  int r;

  if (!h->has_bitmaps)
    return 0;
  r = ref_count (c, REF_BITMAP, offset, h->bitmap_directory_bytes, 1, &at,
                 &good);
  if (r < 0 || !good)
    return r;
  for (at.index = 0; at.index < h->nr_bitmaps; ++at.index) {
    if (end - offset < sizeof d)
      return ref_problem (c, PROBLEM_BAD, &at, "past the end of the directory");
    r = ref_read (c, &d, sizeof d, offset, at.what);
    if (r < 0)
      return r;
    r = count_bitmap (c, &d, &at);
    if (r < 0)
      return r;
    offset += (sizeof d + be32toh (d.extra_data_size) +
               UINT64_C (7) + be16toh (d.name_size)) & ~UINT64_C (7);
    if (offset > end)
      return ref_problem (c, PROBLEM_BAD, &at, "past the end of the directory");
  }
  return 0;
}
