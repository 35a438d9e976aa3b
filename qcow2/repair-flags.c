/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the COPIED flags what a ref_map says. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "repair-flags.h"

#define SECTOR_WORDS 64

struct flags {
  struct layer *layer;
  const struct ref_map *map;
  bool set;
  uint64_t missing;
  uint64_t *table;              /* an L2 table */
  uint8_t *seen;                /* a bit for each cluster: an L2 table that
                                   was corrected */
  struct qcow2_error *error;
};

static int
io_error (const struct flags *f, int r, const char *what, uint64_t offset)
{
  return qcow2_error_set (f->error, -r, "can't %s at 0x%" PRIx64 ": %s",
                          what, offset, strerror (-r));
}

/* ENTRY with the flag as it is to be now. */
static uint64_t
correct (struct flags *f, uint64_t entry, bool want)
{
  if (!want)
    return entry & ~ENTRY_COPIED;
  if (!(entry & ENTRY_COPIED))
    f->missing++;
  return f->set ? entry | ENTRY_COPIED : entry;
}

/*----- L2 tables -----*/

/* Of an entry without a host cluster the flag means nothing; but with a
 * data file it says that there is one, at 0.  There all are ours.
 */
static uint64_t
correct_l2_entry (struct flags *f, uint64_t entry)
{
  uint64_t host = entry & ENTRY_OFFSET_MASK;

  if (entry & ENTRY_COMPRESSED)
    return entry & ~ENTRY_COPIED;
  if (host == 0)
    return entry;
  return correct (f, entry, f->layer->external_data ||
                  ref_map_count (f->map, host >> f->map->cluster_bits) == 1);
}

static int
correct_l2_table (struct flags *f, uint64_t offset)
{
  const struct layer *l = f->layer;
  size_t nr = layer_cluster_bytes (l) / 8, first, i;
  size_t words_per_entry = (size_t) 1 << (l->l2_entry_bits - 3);
  int r;

  if (qcow2_storage_is_hole (l->file, offset, nr * 8))
    return 0;
  r = qcow2_storage_read_meta (l->file, f->table, nr * 8, offset);
  if (r < 0)
    return io_error (f, r, "read the L2 table", offset);
  for (first = 0; first < nr; first += SECTOR_WORDS) {
    bool changed = false;

    for (i = first; i < first + SECTOR_WORDS; i += words_per_entry) {
      uint64_t was = be64toh (f->table[i]), is = correct_l2_entry (f, was);

      changed = changed || is != was;
      f->table[i] = htobe64 (is);
    }
    if (!changed)
      continue;
    r = qcow2_storage_write (l->file, f->table + first, SECTOR_WORDS * 8,
                             offset + first * 8, false);
    if (r < 0)
      return io_error (f, r, "write the L2 table", offset);
  }
  return 0;
}

/* However many entries of a hostile L1 table name it, it is read once. */
static bool
is_first_time (struct flags *f, uint64_t cluster)
{
  uint8_t bit = (uint8_t) (1u << (cluster & 7));

  if (cluster >= f->map->nr_clusters || f->seen[cluster / 8] & bit)
    return false;
  f->seen[cluster / 8] |= bit;
  return true;
}

/*----- The L1 table -----*/

/* The entries of a sector, FIRST the first. */
static int
correct_l1_sector (struct flags *f, uint32_t first)
{
  struct layer *l = f->layer;
  uint64_t words[SECTOR_WORDS], offset = l->header.l1_offset + first * 8;
  uint32_t nr = l->l1.nr_entries - first, i;
  bool changed = false;
  int r;

  if (nr > SECTOR_WORDS)
    nr = SECTOR_WORDS;
  for (i = 0; i < nr; ++i) {
    uint64_t was = l->l1.entries[first + i], is = was;
    uint64_t l2_offset = was & ENTRY_OFFSET_MASK;
    uint64_t cluster = l2_offset >> f->map->cluster_bits;

    if (l2_offset != 0) {
      r = is_first_time (f, cluster) ? correct_l2_table (f, l2_offset) : 0;
      if (r < 0)
        return r;
      is = correct (f, was, ref_map_count (f->map, cluster) == 1);
    }
    changed = changed || is != was;
    words[i] = htobe64 (is);
  }
  if (!changed)
    return 0;
  r = qcow2_storage_write (l->file, words, nr * sizeof *words, offset, false);
  if (r < 0)
    return io_error (f, r, "write the L1 table", offset);
  for (i = 0; i < nr; ++i)
    l->l1.entries[first + i] = be64toh (words[i]);
  return 0;
}

int
repair_flags (struct layer *l, const struct ref_map *map, bool set,
              uint64_t *missing, struct qcow2_error *error)
{
  struct flags f = {
    .layer = l, .map = map, .set = set, .error = error,
    .table = malloc (layer_cluster_bytes (l)),
    .seen = calloc (map->nr_clusters / 8 + 1, 1),
  };
  uint32_t first;
  int r = f.table && f.seen ? 0 :
    qcow2_error_set (error, ENOMEM, "out of memory");

  for (first = 0; r == 0 && first < l->l1.nr_entries; first += SECTOR_WORDS)
    r = correct_l1_sector (&f, first);
  free (f.table);
  free (f.seen);
  *missing = f.missing;
  return r;
}
