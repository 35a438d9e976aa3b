/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading guest data.
 *
 * A request is cut into runs by look-ups; adjacent runs are joined, so
 * that contiguous host clusters are read by one pread straight into the
 * caller's buffer.  Nothing is allocated and no lock is taken on this
 * path, but for compressed clusters and metadata that is not cached.
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "image.h"

static int
read_data (const struct run *run, void *buf)
{
  const struct layer *l = run->layer;
  int r;

  r = qcow2_storage_read_data (l->data, buf, run->length_bytes,
                               run->host_offset);
  if (r < 0)
    log_message (&l->log, QCOW2_LOG_ERROR,
                 "%s: can't read %" PRIu64 " bytes of data at 0x%" PRIx64
                 ": %s", l->filename, run->length_bytes, run->host_offset,
                 log_errno_text (-r));
  return r;
}

/* Returns R, the result of decompressing RUN's cluster. */
static int
report_compressed (const struct run *run, int r)
{
  const struct layer *l = run->layer;

  if (r < 0)
    log_message (&l->log, QCOW2_LOG_ERROR,
                 "%s: can't read the compressed cluster at 0x%" PRIx64
                 " (%s, %zu bytes): %s", l->filename, run->host_offset,
                 l->codec->name, run->compressed_bytes, log_errno_text (-r));
  return r;
}

static int
read_compressed (const struct qcow2 *image, const struct run *run, void *buf)
{
  struct compressed_cluster c;

  run_compressed_cluster (run, &c);
  return report_compressed (run,
                            cluster_cache_read (image->clusters, &c,
                                                run->cluster_from, buf,
                                                run->length_bytes));
}

static int
read_run (const struct qcow2 *image, const struct run *run, void *buf)
{
  switch (run->kind) {
  case RUN_DATA:
    return read_data (run, buf);
  case RUN_COMPRESSED:
    return read_compressed (image, run, buf);
  case RUN_UNALLOCATED:
  case RUN_ZERO:
    memset (buf, 0, run->length_bytes);
    return 0;
  }
  return -EINVAL;
}

/* The longest run from OFFSET on, over slices and layers. */
static int
lookup_joined (const struct chain *chain, const struct l1_table *l1,
               uint64_t offset, uint64_t max_bytes, struct run *run,
               struct run *next)
{
  int r;

  *run = *next;
  if (run->length_bytes == 0) {
    r = chain_lookup (chain, l1, offset, max_bytes, run);
    if (r < 0)
      return r;
  }
  next->length_bytes = 0;
  while (run->length_bytes < max_bytes) {
    r = chain_lookup (chain, l1, offset + run->length_bytes,
                      max_bytes - run->length_bytes, next);
    if (r < 0)
      return r;
    if (!run_join (run, next))
      return 0;
    next->length_bytes = 0;
  }
  return 0;
}

int
image_read (const struct qcow2 *image, const struct l1_table *l1,
            void *buf, size_t count, uint64_t offset)
{
  struct run run, next = { .length_bytes = 0 };
  char *p = buf;
  int r;

  while (count > 0) {
    r = lookup_joined (&image->chain, l1, offset, count, &run, &next);
    if (r < 0)
      return r;
    r = read_run (image, &run, p);
    if (r < 0)
      return r;
    p += run.length_bytes;
    offset += run.length_bytes;
    count -= run.length_bytes;
  }
  return 0;
}

int
qcow2_pread (struct qcow2_view *view, void *buf, size_t count,
             uint64_t offset)
{
  struct epoch_ticket ticket = gate_enter (&view->image->gate);
  int r;

  r = image_read (view->image, view->l1, buf, count, offset);
  epoch_leave (ticket);
  return r;
}

/* How many runs one call may go through: it is only advice. */
#define MAX_PREFETCH_RUNS 65536

/* Decompressing more than the cache can hold would be for nothing. */
static int
prefetch_compressed (const struct qcow2 *image, const struct run *run,
                     uint64_t *room_bytes)
{
  struct compressed_cluster c;

  run_compressed_cluster (run, &c);
  if (c.cluster_bytes > *room_bytes)
    return 0;
  *room_bytes -= c.cluster_bytes;
  return report_compressed (run,
                            cluster_cache_prefetch (image->clusters, &c));
}

static int
prefetch (struct qcow2_view *view, uint64_t count, uint64_t offset)
{
  uint64_t room_bytes = view->image->compressed_cache_bytes;
  unsigned nr_runs = 0;
  struct run run;
  int r;

  while (count > 0 && nr_runs++ < MAX_PREFETCH_RUNS) {
    r = view_lookup (view, offset, count, &run);
    if (r < 0)
      return r;
    if (run.kind == RUN_DATA)
      qcow2_storage_prefetch (run.layer->data, run.host_offset,
                              run.length_bytes);
    else if (run.kind == RUN_COMPRESSED) {
      r = prefetch_compressed (view->image, &run, &room_bytes);
      if (r < 0)
        return r;
    }
    offset += run.length_bytes;
    count -= run.length_bytes;
  }
  return 0;
}

int
qcow2_prefetch (struct qcow2_view *view, uint64_t count, uint64_t offset)
{
  struct epoch_ticket ticket = gate_enter (&view->image->gate);
  int r;

  r = prefetch (view, count, offset);
  epoch_leave (ticket);
  return r;
}
