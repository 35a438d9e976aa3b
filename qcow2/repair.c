/* SPDX-License-Identifier: BSD-3-Clause */

/* Repairing an image that was not closed properly.
 *
 *     count    all references, from the tables        nothing is written
 *     plan     room for missing refcount blocks       nothing is written
 *     header   features and bitmaps that are stale     -> durable
 *     write    new blocks, refcounts that are too low;
 *              clear COPIED flags                      -> flush
 *     switch   the refcount table names new blocks
 *     write    refcounts that are too high             -> flush
 *     write    set COPIED flags                        -> flush
 *     header   clear the dirty bit                     -> durable
 *
 * So no refcount is lowered, nor a flag set, before what it relies on is
 * durable: where power fails, refcounts are what they were, or nearer to
 * what they should be.  The dirty bit stays to the end, so whatever is
 * there is repaired the next time.  What guests see is never written:
 * new blocks lie where nothing is referenced.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "count-refs.h"
#include "format.h"
#include "header-write.h"
#include "repair.h"
#include "repair-flags.h"
#include "repair-refcounts.h"

struct repair {
  struct layer *layer;
  struct ref_map map;
  struct refcount_repair refcounts;
  struct header_writer *header;
  uint64_t missing_flags;
  struct qcow2_error *error;
};

/*----- Looking -----*/

/* The first problem ends it: refcounts made of damaged tables could let
 * what they don't name any more be overwritten.
 */
static int
give_up (void *opaque, const char *text)
{
  struct repair *rep = opaque;

  return qcow2_error_set (rep->error, EINVAL, "%s", text);
}

static int
count (struct repair *rep, const struct snapshot_table *snapshots)
{
  int64_t file_bytes = qcow2_storage_size (rep->layer->file);
  const struct ref_walk walk = {
    .layer = rep->layer, .snapshots = snapshots, .map = &rep->map,
    .problem = give_up, .opaque = rep,
  };
  int r;

  if (file_bytes < 0)
    return qcow2_error_set (rep->error, (int) -file_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -file_bytes));
  r = ref_map_init (&rep->map, (uint64_t) file_bytes,
                    rep->layer->header.cluster_bits);
  if (r == -EFBIG)
    return qcow2_error_set (rep->error, EFBIG,
                            "the file is so large that it would take more "
                            "than 1 GiB of memory");
  if (r < 0)
    return qcow2_error_set (rep->error, -r, "out of memory");
  return count_refs (&walk, rep->error);
}

/*----- Writing -----*/

static int
flush (struct repair *rep)
{
  int r = qcow2_storage_flush (rep->layer->file);

  return r < 0 ? qcow2_error_set (rep->error, -r, "can't make it durable: %s",
                                  strerror (-r)) : 0;
}

static int
change_features (struct repair *rep, uint64_t incompatible,
                 uint64_t autoclear)
{
  const struct header_features clear = {
    .incompatible = incompatible, .autoclear = autoclear,
  };
  int r = header_writer_set_features (rep->header, NULL, &clear);

  if (r < 0)
    return qcow2_error_set (rep->error, -r, "can't write the header: %s",
                            strerror (-r));
  rep->layer->header.incompatible_features &= ~incompatible;
  rep->layer->header.autoclear_features &= ~autoclear;
  return 0;
}

/* What the disk holds does not change, so bitmaps stay valid; of unknown
 * autoclear features nobody knows that.  Bitmaps that are not valid go,
 * since their clusters are free from now on; if there is no room to
 * change the header, they stay there as what they are.
 */
static int
prepare_header (struct repair *rep)
{
  const struct header_parts no_bitmaps = { .parts = HEADER_BITMAPS };
  int r;

  r = change_features (rep, 0, ~(AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA));
  if (r < 0 || !rep->layer->header.has_stale_bitmaps)
    return r;
  r = header_writer_rewrite (rep->header, &no_bitmaps, NULL, rep->error);
  if (r < 0 && r != -ENOSPC)
    return r;
  rep->layer->header.has_stale_bitmaps = r < 0;
  return 0;
}

/* All that is too low, and flags that rely on it. */
static int
raise (struct repair *rep)
{
  int r = refcount_repair_write_new (&rep->refcounts);

  if (r == 0)
    r = refcount_repair_raise (&rep->refcounts);
  if (r == 0)
    r = repair_flags (rep->layer, &rep->map, false, &rep->missing_flags,
                      rep->error);
  if (r == 0)
    r = flush (rep);
  return r == 0 ? refcount_repair_switch (&rep->refcounts, rep->header) : r;
}

static int
lower (struct repair *rep)
{
  int r = refcount_repair_lower (&rep->refcounts);

  if (r == 0)
    r = flush (rep);
  if (r < 0 || rep->missing_flags == 0)
    return r;
  r = repair_flags (rep->layer, &rep->map, true, &rep->missing_flags,
                    rep->error);
  return r == 0 ? flush (rep) : r;
}

static int
write_all (struct repair *rep)
{
  struct layer *l = rep->layer;
  int r = header_writer_new (l->file, &l->header, &rep->header, rep->error);

  if (r == 0)
    r = prepare_header (rep);
  if (r == 0)
    r = raise (rep);
  if (r == 0)
    r = lower (rep);
  if (r == 0)
    r = change_features (rep, INCOMPAT_DIRTY, 0);
  header_writer_free (rep->header);
  return r;
}

int
repair_image (struct layer *l, const struct snapshot_table *snapshots,
              struct qcow2_error *error)
{
  struct repair rep = { .layer = l, .error = error };
  int r = count (&rep, snapshots);

  rep.refcounts.layer = l;
  rep.refcounts.map = &rep.map;
  rep.refcounts.error = error;
  if (r == 0)
    r = refcount_repair_plan (&rep.refcounts);
  if (r == 0)
    r = write_all (&rep);
  if (r == 0)
    log_message (&l->log, QCOW2_LOG_WARNING,
                 "%s: the image was not closed properly; it has been "
                 "repaired: %" PRIu64 " refcounts corrected, %" PRIu64
                 " leaks freed", l->filename, rep.refcounts.nr_raised,
                 rep.refcounts.nr_lowered);
  refcount_repair_clear (&rep.refcounts);
  ref_map_clear (&rep.map);
  return r;
}
