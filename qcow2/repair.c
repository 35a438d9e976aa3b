/* SPDX-License-Identifier: BSD-3-Clause */

/* Repairing an image.
 *
 *     count    all references, from the tables        nothing is written
 *     plan     room for new refcount blocks and tables nothing is written
 *     header   features and bitmaps that are stale     -> durable
 *     write    new blocks and tables, refcounts that are too low;
 *              clear COPIED flags; mend L2 entries     -> flush
 *     switch   the refcount table names new blocks,
 *              the header a new table                  -> flush
 *     switch   the header names a new snapshot table   -> durable
 *     write    refcounts that are too high             -> flush
 *     write    set COPIED flags                        -> flush
 *     header   clear the dirty bit                     -> durable
 *
 * So no refcount is lowered, nor a flag set, before what it relies on is
 * durable: where power fails, refcounts are what they were, or nearer to
 * what they should be.  The dirty bit stays to the end, so whatever is
 * there is repaired the next time.  What guests see is never written:
 * new blocks and tables lie where nothing is referenced, and what is in use
 * until a switch counts as in use.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "header-write.h"
#include "repair.h"
#include "repair-l2.h"
#include "repair-refcounts.h"

/* A repair that writes. */
struct writing {
  struct repair *rep;
  struct refcount_repair refcounts;
  struct l2_repair tables;
  struct header_writer *header;
  uint64_t snapshots;           /* cluster of a new snapshot table */
};

/*----- Steps -----*/

static int
io_error (const struct repair *rep, int r, const char *what)
{
  return qcow2_error_set (rep->error, -r, "can't %s: %s", what,
                          strerror (-r));
}

static int
flush (const struct repair *rep)
{
  int r = qcow2_storage_flush (rep->layer->file);

  return r < 0 ? io_error (rep, r, "make it durable") : 0;
}

static int
clear_features (struct layer *l, struct header_writer *header,
                uint64_t incompatible, uint64_t autoclear,
                struct qcow2_error *error)
{
  const struct header_features clear = {
    .incompatible = incompatible, .autoclear = autoclear,
  };
  int r = header_writer_set_features (header, NULL, &clear);

  if (r < 0)
    return qcow2_error_set (error, -r, "can't write the header: %s",
                            strerror (-r));
  l->header.incompatible_features &= ~incompatible;
  l->header.autoclear_features &= ~autoclear;
  return 0;
}

/* What the disk holds does not change, so bitmaps stay valid; of unknown
 * autoclear features nobody knows that.  Bitmaps that are not valid go,
 * since their clusters are free from now on; if there is no room to
 * change the header, they stay there as what they are.
 */
static int
prepare_header (struct writing *w)
{
  const struct header_parts no_bitmaps = { .parts = HEADER_BITMAPS };
  struct layer *l = w->rep->layer;
  int r;

  r = clear_features (l, w->header, 0,
                      ~(AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA),
                      w->rep->error);
  if (r < 0 || !l->header.has_stale_bitmaps)
    return r;
  r = header_writer_rewrite (w->header, &no_bitmaps, NULL, w->rep->error);
  if (r < 0 && r != -ENOSPC)
    return r;
  l->header.has_stale_bitmaps = r < 0;
  return 0;
}

/*----- A new snapshot table -----*/

static uint64_t
clusters (const struct repair *rep, uint64_t bytes)
{
  return (bytes + layer_cluster_bytes (rep->layer) - 1) >>
    rep->map->cluster_bits;
}

/* Find room for it, before it is known which refcount blocks are missing. */
static int
plan_snapshots (struct writing *w)
{
  const struct repair *rep = w->rep;
  uint64_t first = rep->keep || rep->table_is_bad ? rep->map->nr_clusters : 0;
  int r;

  if (!rep->snapshots || rep->snapshots->nr_bytes == 0)
    return 0;
  r = ref_map_take (rep->map, REF_SNAPSHOT_TABLE,
                    clusters (rep, rep->snapshots->nr_bytes),
                    qcow2_storage_can_grow (rep->layer->file), &first);
  w->snapshots = first;
  return r < 0 ? io_error (rep, r, "find room for the snapshot table") : 0;
}

static int
write_snapshots (struct writing *w)
{
  const struct repair *rep = w->rep;
  int r;

  if (!rep->snapshots || rep->snapshots->nr_bytes == 0)
    return 0;
  r = qcow2_storage_write (rep->layer->file, rep->snapshots->bytes,
                           rep->snapshots->nr_bytes,
                           w->snapshots << rep->map->cluster_bits, false);
  return r < 0 ? io_error (rep, r, "write the snapshot table") : 0;
}

static int
switch_snapshots (struct writing *w)
{
  const struct repair *rep = w->rep;
  struct header *h = &rep->layer->header;
  uint64_t offset = w->snapshots << rep->map->cluster_bits;
  uint32_t nr;
  int r;

  if (!rep->snapshots)
    return 0;
  nr = (uint32_t) rep->snapshots->table.nr_snapshots;
  r = header_writer_set_snapshots (w->header, nr == 0 ? 0 : offset, nr);
  if (r < 0)
    return io_error (rep, r, "write the header");
  ref_map_drop (rep->map, REF_SNAPSHOT_TABLE,
                h->snapshots_offset >> rep->map->cluster_bits,
                clusters (rep, rep->snapshots->table.table_bytes));
  h->snapshots_offset = nr == 0 ? 0 : offset;
  h->nr_snapshots = nr;
  return 0;
}

/*----- All steps -----*/

/* All that is too low, and what relies on it.  New blocks have to be named
 * durably before the old ones may be freed, and before a snapshot table
 * relies on the refcounts in them.
 */
static int
raise (struct writing *w)
{
  int r = refcount_repair_write_new (&w->refcounts);

  if (r == 0)
    r = write_snapshots (w);
  if (r == 0)
    r = refcount_repair_raise (&w->refcounts);
  if (r == 0)
    r = l2_repair (&w->tables, false);
  if (r == 0)
    r = flush (w->rep);
  if (r == 0)
    r = refcount_repair_switch (&w->refcounts, w->header);
  if (r == 0)
    r = flush (w->rep);
  return r == 0 ? switch_snapshots (w) : r;
}

static int
lower (struct writing *w)
{
  int r = w->rep->keep ? 0 : refcount_repair_lower (&w->refcounts);

  if (r == 0)
    r = flush (w->rep);
  if (r < 0 || w->tables.nr_missing == 0)
    return r;
  r = l2_repair (&w->tables, true);
  return r == 0 ? flush (w->rep) : r;
}

static void
begin (struct writing *w, struct repair *rep)
{
  *w = (struct writing) {
    .rep = rep,
    .refcounts = {
      .layer = rep->layer, .map = rep->map, .error = rep->error,
      .table_is_bad = rep->table_is_bad, .table_counted = rep->table_counted,
      .keep = rep->keep, .found = rep->found, .opaque = rep->opaque,
    },
    .tables = {
      .layer = rep->layer, .map = rep->map, .mend = rep->mend,
      .found = rep->found, .opaque = rep->opaque, .error = rep->error,
    },
  };
}

static void
end (struct writing *w)
{
  w->rep->nr_raised = w->refcounts.nr_raised;
  w->rep->nr_lowered = w->refcounts.nr_lowered;
  w->rep->nr_flags = w->tables.nr_flags;
  w->rep->nr_mended = w->tables.nr_mended;
  w->rep->nr_left = w->tables.nr_left;
  header_writer_free (w->header);
  refcount_repair_clear (&w->refcounts);
}

static int
begin_writing (struct writing *w)
{
  struct layer *l = w->rep->layer;
  int r = header_writer_new (l->file, &l->header, &w->header, w->rep->error);

  return r == 0 ? prepare_header (w) : r;
}

int
repair_all (struct repair *rep)
{
  struct writing w;
  int r;

  begin (&w, rep);
  r = plan_snapshots (&w);
  if (r == 0)
    r = refcount_repair_plan (&w.refcounts);
  if (r == 0)
    r = begin_writing (&w);
  if (r == 0)
    r = raise (&w);
  if (r == 0)
    r = lower (&w);
  end (&w);
  return r;
}

int
repair_leaks (struct repair *rep)
{
  struct writing w;
  int r;

  begin (&w, rep);
  r = begin_writing (&w);
  if (r == 0)
    r = refcount_repair_lower_only (&w.refcounts);
  if (r == 0)
    r = flush (rep);
  end (&w);
  return r;
}

/* Flags are cleared before others are set, as in repair_all. */
int
repair_flags (struct repair *rep)
{
  struct writing w;
  int r;

  begin (&w, rep);
  r = begin_writing (&w);
  if (r == 0)
    r = l2_repair (&w.tables, false);
  if (r == 0)
    r = flush (rep);
  if (r == 0 && w.tables.nr_missing > 0) {
    r = l2_repair (&w.tables, true);
    if (r == 0)
      r = flush (rep);
  }
  end (&w);
  return r;
}

int
repair_mark_clean (struct layer *l, struct qcow2_error *error)
{
  struct header_writer *header;
  int r;

  if (!(l->header.incompatible_features & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT)))
    return 0;
  r = header_writer_new (l->file, &l->header, &header, error);
  if (r < 0)
    return r;
  r = clear_features (l, header, INCOMPAT_DIRTY | INCOMPAT_CORRUPT, 0, error);
  header_writer_free (header);
  return r;
}

/*----- When an image is opened -----*/

/* The first problem ends it: refcounts made of damaged tables could let
 * what they don't name any more be overwritten.
 */
static int
give_up (void *opaque, enum ref_problem kind, const char *text)
{
  const struct repair *rep = opaque;

  return kind == PROBLEM_FLAG ? 0 :
    qcow2_error_set (rep->error, EINVAL, "%s", text);
}

static int
count (struct repair *rep, const struct snapshot_table *snapshots)
{
  int64_t file_bytes = qcow2_storage_size (rep->layer->file);
  struct ref_walk walk = {
    .layer = rep->layer, .snapshots = snapshots, .map = rep->map,
    .problem = give_up, .opaque = rep,
  };
  int r;

  if (file_bytes < 0)
    return qcow2_error_set (rep->error, (int) -file_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -file_bytes));
  r = ref_map_init (rep->map, (uint64_t) file_bytes,
                    rep->layer->header.cluster_bits);
  if (r == -EFBIG)
    return qcow2_error_set (rep->error, EFBIG,
                            "the file is so large that it would take more "
                            "than 1 GiB of memory");
  if (r < 0)
    return qcow2_error_set (rep->error, -r, "out of memory");
  walk.nr_threads = rep->map->nr_clusters < MIN_PARALLEL_CLUSTERS ? 1 : 0;
  r = count_refs (&walk, rep->error);
  rep->table_is_bad = walk.table_is_bad;
  rep->table_counted = walk.table_counted;
  return r;
}

int
repair_image (struct layer *l, const struct snapshot_table *snapshots,
              struct qcow2_error *error)
{
  struct ref_map map = { .words = NULL };
  struct repair rep = { .layer = l, .map = &map, .error = error };
  int r = count (&rep, snapshots);

  if (r == 0)
    r = repair_all (&rep);
  if (r == 0)
    r = repair_mark_clean (l, error);
  if (r == 0)
    log_message (&l->log, QCOW2_LOG_WARNING,
                 "%s: the image was not closed properly; it has been "
                 "repaired: %" PRIu64 " refcounts corrected, %" PRIu64
                 " leaks freed", l->filename, rep.nr_raised,
                 rep.nr_lowered);
  ref_map_clear (&map);
  return r;
}
