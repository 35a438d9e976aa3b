/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeros are there when the request has ended, whoever else is under way.
 *
 *     A  writes in place, and is slow
 *        the whole cluster becomes zeros, its host cluster stays
 *     B  writes another part: the cluster's data, zeros but for this part,
 *        is in the host cluster, the entry not yet linked
 *     A  goes on: its bytes are in the host cluster, too, but the entry says
 *        zeros; so it must not end before B does, and then they are seen
 *     B  links
 *     Z  zeroes A's bytes
 */

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define CLUSTER_BYTES UINT64_C (65536)

/*----- Storage in which a thread's writes stop -----*/

struct gate {
  sem_t reached, open;
};

/* Where the writes of this thread wait. */
static __thread struct gate *before_write, *after_write;

struct gated {
  struct qcow2_storage storage;
  struct qcow2_storage *next;
};

static struct qcow2_storage *
next_of (struct qcow2_storage *s)
{
  return ((struct gated *) s)->next;
}

static void
pass (struct gate *gate)
{
  if (!gate)
    return;
  sem_post (&gate->reached);
  sem_wait (&gate->open);
}

static ssize_t
gated_pread (struct qcow2_storage *s, void *buf, size_t count,
             uint64_t offset)
{
  return next_of (s)->ops->pread (next_of (s), buf, count, offset);
}

static int64_t
gated_size (struct qcow2_storage *s)
{
  return next_of (s)->ops->size (next_of (s));
}

static int
gated_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
               uint64_t offset, bool durable)
{
  int r;

  pass (before_write);
  r = next_of (s)->ops->pwritev (next_of (s), iov, iovcnt, offset, durable);
  pass (after_write);
  return r;
}

static int
gated_flush (struct qcow2_storage *s)
{
  return next_of (s)->ops->flush (next_of (s));
}

static int
gated_truncate (struct qcow2_storage *s, uint64_t size_bytes)
{
  return next_of (s)->ops->truncate (next_of (s), size_bytes);
}

static bool
gated_can_grow (struct qcow2_storage *s)
{
  return next_of (s)->ops->can_grow (next_of (s));
}

static void
gated_close (struct qcow2_storage *s)
{
  next_of (s)->ops->close (next_of (s));
  free (s);
}

static const struct qcow2_storage_ops gated_ops = {
  .pread = gated_pread,
  .size = gated_size,
  .pwritev = gated_pwritev,
  .flush = gated_flush,
  .truncate = gated_truncate,
  .can_grow = gated_can_grow,
  .close = gated_close,
};

static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  struct gated *gated = calloc (1, sizeof *gated);

  if (!gated)
    return -ENOMEM;
  gated->storage.ops = &gated_ops;
  gated->next = *s;
  *s = &gated->storage;
  return 0;
}

/*----- Requests in threads -----*/

static struct qcow2_view *view;

struct request {
  pthread_t thread;
  struct gate *before, *after;
  int byte;                     /* 0: a zero request */
  uint64_t offset, count;
  int result;
  atomic_bool ended;
};

static void *
run (void *opaque)
{
  struct request *req = opaque;
  char buf[4096];

  before_write = req->before;
  after_write = req->after;
  memset (buf, req->byte, req->count);
  if (req->byte != 0)
    req->result = qcow2_pwrite (view, buf, req->count, req->offset, false);
  else
    req->result = qcow2_zero (view, req->count, req->offset, false, false,
                              false);
  atomic_store (&req->ended, true);
  return NULL;
}

static void
start (struct request *req)
{
  pthread_create (&req->thread, NULL, run, req);
}

static int
finish (struct request *req)
{
  pthread_join (req->thread, NULL);
  return req->result;
}

static struct gate
closed_gate (void)
{
  struct gate gate;

  sem_init (&gate.reached, 0, 0);
  sem_init (&gate.open, 0, 0);
  return gate;
}

/* 4096 bytes from OFFSET on are BYTE. */
static bool
holds (uint64_t offset, int byte)
{
  char got[4096], want[4096];

  memset (want, byte, sizeof want);
  return qcow2_pread (view, got, sizeof got, offset) == 0 &&
    memcmp (got, want, sizeof got) == 0;
}

static void
test_order (void)
{
  struct gate gate_a = closed_gate (), gate_b = closed_gate ();
  struct request a = { .before = &gate_a, .byte = 'a', .offset = 8192,
                       .count = 4096 };
  struct request b = { .after = &gate_b, .byte = 'b', .offset = 32768,
                       .count = 4096 };
  struct request z = { .offset = 8192, .count = 4096 };

  start (&a);
  sem_wait (&gate_a.reached);
  is_int (qcow2_zero (view, CLUSTER_BYTES, 0, false, false, false), 0,
          "the cluster becomes zeros");
  start (&b);
  sem_wait (&gate_b.reached);
  sem_post (&gate_a.open);
  sem_post (&gate_a.open);      /* it writes again */
  usleep (50000);
  ok (!atomic_load (&a.ended) || holds (8192, 'a'),
      "the slow write has not ended, since it is not seen");
  sem_post (&gate_b.open);
  is_int (finish (&b), 0, "the other write ends");
  is_int (finish (&a), 0, "the slow write ends");
  ok (holds (8192, 'a'), "then it is seen");
  start (&z);
  is_int (finish (&z), 0, "its bytes are zeroed");
  ok (holds (8192, 0), "they are zeros");
  ok (holds (32768, 'b'), "the other ones are not");
}

static void
test_image (const char *options, const char *data_file)
{
  struct qcow2_options o;
  struct qcow2_error error;
  struct qcow2 *image;

  run_command ("rm -f disk.qcow2 data; qemu-img create -q -f qcow2 %s "
               "disk.qcow2 4M", options);
  run_command ("qemu-io -f qcow2 -c 'write -q -P 1 0 128k' disk.qcow2");
  qcow2_options_init (&o);
  o.writable = true;
  o.data_file = data_file;
  o.wrap = wrap;
  if (!ok (qcow2_open ("disk.qcow2", &o, &image, &error) == 0 &&
           qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) == 0,
           "an image with the options '%s'", options))
    return;
  test_order ();
  qcow2_view_close (view);
  is_int (qcow2_close (image), 0, "closed");
}

int
main (void)
{
  alarm (60);
  scratch_dir_enter ();
  test_image ("", NULL);
  test_image ("-o data_file=data", "data");
  test_image ("-o cluster_size=2M,extended_l2=on", NULL);
  return tap_done ();
}
