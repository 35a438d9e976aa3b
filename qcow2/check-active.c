/* SPDX-License-Identifier: BSD-3-Clause */

/* The part of a check that is about the active layer. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check-active.h"
#include "format.h"

/* Does the COPIED flag of ENTRY tell whether the cluster of host OFFSET
 * has refcount 1 on disk?  Nobody knows where refcounts can't be read.
 */
static bool
is_flag_right (const struct check *c, uint64_t entry, uint64_t offset)
{
  uint64_t cluster = offset >> c->map->cluster_bits;
  bool once = cluster < c->map->nr_clusters && check_bit (c->once, cluster);

  return c->result->check_errors > 0 || once == !!(entry & ENTRY_COPIED);
}

static void
wrong_flag (struct check *c, const char *what, uint64_t entry)
{
  c->result->corruptions++;
  check_found (c, "ERROR OFLAG_COPIED %s=%" PRIx64 ", but its refcount is %s"
               "1", what, entry, entry & ENTRY_COPIED ? "not " : "");
}

/*----- L2 entries -----*/

static void
check_compressed (struct check *c, uint64_t entry)
{
  struct qcow2_check_result *res = c->result;

  if (entry & ENTRY_COPIED) {
    res->corruptions++;
    check_found (c, "ERROR: l2_entry=%" PRIx64 ": the copied flag must not "
                 "be set for a compressed cluster", entry);
  }
  /* As QEMU sees it, they are fragmented by nature. */
  res->allocated_clusters++;
  res->compressed_clusters++;
  res->fragmented_clusters++;
}

/* *NEXT: where the cluster would lie that is not fragmented, or 0. */
static void
check_entry (struct check *c, uint64_t entry, uint64_t *next)
{
  const struct layer *l = c->layer;
  uint64_t host = entry & ENTRY_OFFSET_MASK;

  if (entry & ENTRY_COMPRESSED) {
    check_compressed (c, entry);
    return;
  }
  if (host == 0 && !(l->external_data && entry & ENTRY_COPIED &&
                     !(entry & ENTRY_ZERO)))
    return;
  if (host & (layer_cluster_bytes (l) - 1))
    return;
  c->result->allocated_clusters++;
  if (*next != 0 && host != *next)
    c->result->fragmented_clusters++;
  *next = host + layer_cluster_bytes (l);
  if (l->external_data ? !(entry & ENTRY_COPIED) :
      !is_flag_right (c, entry, host))
    wrong_flag (c, "data cluster: l2_entry", entry);
}

/*----- L2 tables -----*/

static void
check_l2_table (struct check *c, uint64_t offset, uint64_t *words)
{
  uint64_t bytes = layer_cluster_bytes (c->layer), next = 0, i;
  unsigned step = 1u << (c->layer->l2_entry_bits - 3);
  int r;

  if (qcow2_storage_is_hole (c->layer->file, offset, bytes))
    return;
  r = qcow2_storage_read_meta (c->layer->file, words, bytes, offset);
  if (r < 0) {
    c->result->check_errors++;
    check_found (c, "Can't read the L2 table at 0x%" PRIx64 ": %s", offset,
                 strerror (-r));
    return;
  }
  for (i = 0; i < bytes / 8; i += step)
    if (words[i] != 0)
      check_entry (c, be64toh (words[i]), &next);
}

/*----- The L1 table -----*/

static void
check_l1_entry (struct check *c, uint32_t index, uint64_t entry,
                uint64_t *words)
{
  uint64_t offset = entry & ENTRY_OFFSET_MASK;
  uint64_t cluster = offset >> c->map->cluster_bits;
  char what[60];

  if (offset == 0)
    return;
  if (!is_flag_right (c, entry, offset)) {
    snprintf (what, sizeof what, "L2 cluster: l1_index=%" PRIu32 " l1_entry",
              index);
    wrong_flag (c, what, entry);
  }
  if (offset & (layer_cluster_bytes (c->layer) - 1) ||
      ref_map_kind (c->map, cluster) != REF_L2 ||
      check_bit (c->seen, cluster))
    return;
  check_set_bit (c->seen, cluster);
  check_l2_table (c, offset, words);
}

int
check_active (struct check *c)
{
  const struct l1_table *l1 = &c->layer->l1;
  uint64_t *words = malloc (layer_cluster_bytes (c->layer));
  uint32_t i;

  if (!words)
    return qcow2_error_set (c->error, ENOMEM, "out of memory");
  for (i = 0; i < l1->nr_entries; ++i)
    check_l1_entry (c, i, l1->entries[i], words);
  free (words);
  return 0;
}
