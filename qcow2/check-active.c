/* SPDX-License-Identifier: BSD-3-Clause */

/* The part of a check that is about the active layer. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "check-active.h"
#include "format.h"
#include "l2-walk.h"

/* Does the COPIED flag of ENTRY tell whether the cluster of host OFFSET
 * has refcount 1 on disk?  Nobody knows where refcounts can't be read.
 */
static bool
is_flag_right (const struct check *c, uint64_t entry, uint64_t offset)
{
  uint64_t cluster = offset >> c->map->cluster_bits;
  bool once = cluster < c->map->nr_clusters && check_bit (c->once, cluster);

  return c->unknown_refcounts || once == !!(entry & ENTRY_COPIED);
}

/*----- L2 entries -----*/

/* What a thread does now. */
struct part {
  struct check *check;
  struct parallel_unit *unit;
  struct qcow2_check_result result;
  uint64_t next;                /* where the next cluster would lie that is
                                   not fragmented, or 0 */
};

static void
check_compressed (struct part *p)
{
  /* As QEMU sees it, they are fragmented by nature. */
  p->result.allocated_clusters++;
  p->result.compressed_clusters++;
  p->result.fragmented_clusters++;
}

static void
wrong_l2_flag (struct part *p, uint64_t entry)
{
  p->result.corruptions++;
  parallel_wait_turn (p->unit);
  check_found (p->check, "ERROR OFLAG_COPIED data cluster: l2_entry=%" PRIx64
               ", but its refcount is %s1", entry,
               entry & ENTRY_COPIED ? "not " : "");
}

static void
check_entry (struct part *p, uint64_t entry)
{
  const struct layer *l = p->check->layer;
  uint64_t host = entry & ENTRY_OFFSET_MASK;

  if (entry & ENTRY_COMPRESSED) {
    if (!l->external_data)
      check_compressed (p);
    return;
  }
  if (host == 0 && !(l->external_data && entry & ENTRY_COPIED &&
                     !(entry & ENTRY_ZERO)))
    return;
  p->result.allocated_clusters++;
  if (p->next != 0 && host != p->next)
    p->result.fragmented_clusters++;
  p->next = host + layer_cluster_bytes (l);
  if (host & (layer_cluster_bytes (l) - 1))
    return;
  if (l->external_data ? !(entry & ENTRY_COPIED) :
      !is_flag_right (p->check, entry, host))
    wrong_l2_flag (p, entry);
}

/*----- L2 tables -----*/

static int
check_table (void *opaque, uint64_t cluster, uint64_t *words,
             struct parallel_unit *unit)
{
  struct part p = { .check = opaque, .unit = unit };
  const struct layer *l = p.check->layer;
  uint64_t nr = layer_cluster_bytes (l) / 8, i;
  unsigned step = 1u << (l->l2_entry_bits - 3);

  for (i = 0; i < nr; i += step) {
    uint64_t entry = be64toh (words[i]);

    /* Neither is allocated, as QEMU counts. */
    if (entry == 0 || (step == 2 && entry & ENTRY_COMPRESSED && words[i + 1]))
      continue;
    check_entry (&p, entry);
  }
  check_add_result (p.check, &p.result);
  return 0;
}

static int
failed (void *opaque, uint64_t cluster, int why)
{
  struct check *c = opaque;
  const struct qcow2_check_result one = { .check_errors = 1 };

  check_add_result (c, &one);
  check_found (c, "Can't read the L2 table at 0x%" PRIx64 ": %s",
               cluster << c->map->cluster_bits, strerror (-why));
  return 0;
}

/*----- The L1 table -----*/

static void
check_l1_entry (struct check *c, uint32_t index, uint64_t entry)
{
  uint64_t offset = entry & ENTRY_OFFSET_MASK;
  uint64_t cluster = offset >> c->map->cluster_bits;

  if (offset == 0)
    return;
  if (!is_flag_right (c, entry, offset)) {
    c->result->corruptions++;
    check_found (c, "ERROR OFLAG_COPIED L2 cluster: l1_index=%" PRIu32
                 " l1_entry=%" PRIx64 ", but its refcount is %s1", index,
                 entry, entry & ENTRY_COPIED ? "not " : "");
  }
  if (!(offset & (layer_cluster_bytes (c->layer) - 1)) &&
      cluster < c->map->nr_clusters)
    check_set_bit (c->active, cluster);
}

int
check_active (struct check *c)
{
  const struct l1_table *l1 = &c->layer->l1;
  struct l2_walk walk = {
    .layer = c->layer, .map = c->map, .only = c->active,
    .nr_threads = c->nr_threads, .table = check_table, .failed = failed,
    .progress = check_progress, .opaque = c,
  };
  uint32_t i;

  for (i = 0; i < l1->nr_entries; ++i)
    check_l1_entry (c, i, l1->entries[i]);
  return l2_walk (&walk) < 0 ?
    qcow2_error_set (c->error, ENOMEM, "out of memory") : 0;
}
