/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests that change an image.
 *
 * Each runs within its epoch, which it enters through the gate, and leaves
 * before it waits for a commit: retiring waits for epochs.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "detect-zeroes.h"
#include "guard.h"
#include "image.h"
#include "write.h"
#include "writer.h"
#include "zero.h"

struct request {
  const void *buf;              /* NULL: a zero or trim */
  enum zero_mode mode;
  uint64_t count;
  uint64_t offset;
  bool fast;                    /* a zero: not if it is slow */
  bool fua;
  bool *too_short;              /* not NULL: a write to the VM state, where
                                   OFFSET is; set if the L1 table is too
                                   short for it */
};

static struct writer *
writer_of (const struct qcow2_view *view)
{
  return view->snapshot == QCOW2_ACTIVE ? view->image->writer : NULL;
}

bool
qcow2_view_can_write (const struct qcow2_view *view)
{
  struct writer *w = writer_of (view);

  return w && committer_state (&w->committer) == 0;
}

/* Is the request to be durable when it is answered? */
static bool
wants_durable (const struct writer *w, const struct request *req)
{
  return req->fua || w->writethrough;
}

/* Before anything is changed: may it be done, and does the image say on
 * disk that it is being changed?
 */
static int
prepare (struct writer *w, const struct request *req)
{
  if (req->fast && !zero_is_fast (w, req->mode, req->count, req->offset))
    return -EOPNOTSUPP;
  return req->too_short ? writer_begin_beside (w) : writer_begin_change (w);
}

/* Where the VM state begins depends on the size of the disk, so that is looked
 * at within the epoch.
 */
static int
place_vm_state (const struct writer *w, const struct request *req,
                uint64_t *offset)
{
  const struct layer *top = w->top;
  int r = layer_vm_state_offset (top, top->size_bytes, req->count, offset);

  if (r == 0 && header_disk_l1_entries (&top->header, *offset + req->count) >
      top->l1.nr_entries) {
    *req->too_short = true;
    r = -EFBIG;
  }
  return r;
}

/* *DURABLE: all that was done is durable, if the request wants that.
 *
 * A write in place relies on the mapping alone: if that is durable, so is
 * the write once its own bytes are.  Whether the mapping is can be said
 * only after it was looked up: another request may have linked the
 * cluster a moment before.  Asking before, too, avoids durable writes
 * that a commit would follow anyway.
 */
static int
run_once (struct writer *w, const struct request *req, bool *durable)
{
  struct epoch_ticket ticket = gate_enter (&w->image->gate);
  bool direct = wants_durable (w, req) && req->buf &&
    committer_is_clean (&w->committer);
  uint64_t offset = req->offset;
  bool in_place = true;
  int r = req->too_short ? place_vm_state (w, req, &offset) : 0;

  if (r == 0)
    r = prepare (w, req);
  if (r == 0 && req->buf && !req->too_short &&
      w->detect_zeroes != QCOW2_DETECT_ZEROES_OFF)
    r = write_detecting_zeroes (w, ticket, req->buf, req->count, req->offset,
                                direct, &in_place);
  else if (r == 0 && req->buf)
    r = write_guest (w, ticket, req->buf, req->count, offset, direct,
                     &in_place);
  else if (r == 0)
    r = zero_guest (w, ticket, req->mode, req->count, req->offset, &in_place);
  epoch_leave (ticket);
  *durable = direct && in_place && committer_is_clean (&w->committer);
  return r;
}

/* Failures of which the user knows already, or that are answers. */
static bool
is_silent (const struct writer *w, const struct request *req, int r)
{
  return r == -EOPNOTSUPP || r == -EROFS || r == -ESHUTDOWN ||
    guard_is_corrupt (w->top) || (req->too_short && *req->too_short);
}

/* Clients go on writing when the disk is full. */
static void
log_failure (struct writer *w, const struct request *req, int r)
{
  unsigned nr_before;
  char before[60] = "";

  if (!log_limit_passes (&w->failures, &nr_before))
    return;
  if (nr_before > 0)
    snprintf (before, sizeof before, " (and %u requests before that)",
              nr_before);
  log_message (&w->top->log, QCOW2_LOG_ERROR,
               "%s: can't %s %" PRIu64 " bytes at %s 0x%" PRIx64 ": %s%s",
               w->top->filename, req->buf ? "write" :
               req->mode == ZERO_TRIM ? "trim" : "zero", req->count,
               req->too_short ? "VM state offset" : "guest offset",
               req->offset, log_errno_text (-r), before);
}

/* A commit may lack room itself.  A round of the worker's frees what requests
 * gave back that failed, and what earlier commits have made free, even if its
 * own commit fails.
 */
static int
commit_with_room (struct writer *w)
{
  int r = commit (&w->committer);

  if (r == -ENOSPC && !retire_is_empty (&w->retire) &&
      worker_reclaim (w) == 0)
    r = commit (&w->committer);
  return r;
}

static int
run_durably (struct writer *w, const struct request *req)
{
  bool durable;
  int r;

  r = run_once (w, req, &durable);
  if (r == -ENOSPC) {
    alloc_note_full (&w->alloc);
    if (retire_is_empty (&w->retire) || worker_reclaim (w) == 0)
      r = run_once (w, req, &durable);
  }
  if (r == 0 && wants_durable (w, req) && !durable)
    r = commit_with_room (w);
  return r;
}

static int
run (const struct qcow2_view *view, const struct request *req)
{
  struct writer *w = writer_of (view);
  int r;

  if (!w)
    return -EROFS;
  if (req->count == 0)
    return 0;
  r = run_durably (w, req);
  if (r < 0 && !is_silent (w, req, r))
    log_failure (w, req, r);
  return r;
}

int
qcow2_pwrite (struct qcow2_view *view, const void *buf, size_t count,
              uint64_t offset, bool fua)
{
  const struct request req = {
    .buf = buf, .count = count, .offset = offset, .fua = fua,
  };

  return run (view, &req);
}

int
request_write_vm_state (struct qcow2_view *view, const void *buf,
                        size_t count, uint64_t offset, bool *too_short)
{
  const struct request req = {
    .buf = buf, .count = count, .offset = offset, .too_short = too_short,
  };

  *too_short = false;
  return run (view, &req);
}

int
qcow2_trim (struct qcow2_view *view, uint64_t count, uint64_t offset,
            bool fua)
{
  const struct request req = {
    .mode = ZERO_TRIM, .count = count, .offset = offset, .fua = fua,
  };

  return run (view, &req);
}

int
qcow2_zero (struct qcow2_view *view, uint64_t count, uint64_t offset,
            bool may_trim, bool fast, bool fua)
{
  const struct request req = {
    .mode = may_trim ? ZERO_UNMAP : ZERO_KEEP,
    .count = count, .offset = offset, .fast = fast, .fua = fua,
  };

  return run (view, &req);
}

int
qcow2_flush (struct qcow2_view *view)
{
  struct writer *w = writer_of (view);

  return w ? commit_with_room (w) : 0;
}
