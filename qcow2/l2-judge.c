/* SPDX-License-Identifier: BSD-3-Clause */

/* Judging L2 entries by themselves.
 *
 * What QEMU's repair writes is written here, too, and nothing that could
 * lose data: an entry is emptied only if it says itself that the cluster
 * reads as zeros.
 */

#include "format.h"
#include "l2-judge.h"

/* "Cluster mapping": bits that must be 0. */
#define L2_RESERVED UINT64_C (0x3f000000000001fe)

#define ALL_SUBCLUSTERS_ZERO UINT64_C (0xffffffff00000000)

static bool
is_extended (const struct layer *l)
{
  return l->l2_entry_bits == 4;
}

static void
bad (struct l2_judgement *j, const char *problem)
{
  j->fault = L2_BAD;
  j->problem = problem;
}

static void
judge_compressed (const struct layer *l, struct l2_judgement *j)
{
  if (l->external_data)
    bad (j, "compressed cluster, but there is an external data file");
  else if (j->bitmap)
    bad (j, "compressed cluster with subclusters");
  if (j->fault == L2_BAD) {
    j->counts = j->counts_mended = false;
    return;
  }
  if (j->entry & ENTRY_COPIED) {
    j->fault = L2_WRONG_FLAG;
    j->problem = "the copied flag must not be set for a compressed cluster";
    j->entry &= ~ENTRY_COPIED;
  }
}

/* A cluster that reads as zeros needs no place.  In version 2 there is no
 * way to say so, but to leave it out where nothing is below.
 */
static void
judge_misaligned (const struct layer *l, struct l2_judgement *j)
{
  bool has_data = is_extended (l) ? subclusters_allocated (j->bitmap) != 0 :
    !(j->entry & ENTRY_ZERO);

  if (has_data ||
      (l->header.version < 3 && l->header.backing_name)) {
    bad (j, "the data cluster is not aligned");
    return;
  }
  j->fault = L2_MENDABLE;
  j->problem = "the preallocated cluster is not aligned";
  j->counts_mended = false;
  j->entry = is_extended (l) || l->header.version < 3 ? 0 : ENTRY_ZERO;
  j->bitmap = is_extended (l) ? ALL_SUBCLUSTERS_ZERO : 0;
}

static void
judge_standard (const struct layer *l, uint64_t guest, struct l2_judgement *j)
{
  uint64_t host = j->entry & ENTRY_OFFSET_MASK;
  bool has_host = host != 0 || (l->external_data && j->entry & ENTRY_COPIED);

  j->counts = j->counts_mended = host != 0 && !l->external_data;
  if (j->entry & L2_RESERVED)
    bad (j, "reserved bits are set");
  else if (has_host ?
           subclusters_allocated (j->bitmap) & subclusters_zero (j->bitmap) :
           subclusters_allocated (j->bitmap))
    bad (j, "invalid subcluster bitmap");
  else if (host & (layer_cluster_bytes (l) - 1))
    judge_misaligned (l, j);
  else if (l->external_data && has_host && guest != UINT64_MAX &&
           host != guest)
    bad (j, "its offset in the data file differs from the guest's");
  else if (j->entry & ENTRY_ZERO &&
           (is_extended (l) || l->header.version < 3)) {
    j->fault = L2_MENDABLE;
    j->problem = "the zero flag is set, which is reserved in this image";
    j->entry &= ~ENTRY_ZERO;
  }
}

void
l2_judge (const struct layer *l, uint64_t entry, uint64_t bitmap,
          uint64_t guest, struct l2_judgement *j)
{
  j->fault = L2_SOUND;
  j->problem = NULL;
  j->counts = j->counts_mended = true;
  j->entry = entry;
  j->bitmap = bitmap;
  if (entry & ENTRY_COMPRESSED)
    judge_compressed (l, j);
  else
    judge_standard (l, guest, j);
}
