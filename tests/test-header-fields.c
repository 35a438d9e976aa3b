/* SPDX-License-Identifier: BSD-3-Clause */

/* The owner of the header: what it writes for a change of fields, after
 * an error, for version 2, what it refuses, and for many threads at once.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "header-disk.h"
#include "qcow2/format.h"
#include "tap.h"

static void
fields (void)
{
  static struct disk d;
  static uint8_t other[MAX_CLUSTER];
  struct header_features features = { .incompatible = INCOMPAT_DIRTY };
  struct header_features got;
  struct header_writer *w;
  struct header h;

  disk_make_plain (&d, 3, 12);
  disk_random_bytes (d.now + 200, 300);
  memcpy (other, d.now, sizeof other);
  w = disk_new_writer (&d);
  is_int (header_writer_set_size (w, 300), 0, "the size is set");
  is_int (header_writer_set_l1 (w, 12288, 2), 0, "the L1 table is set");
  is_int (header_writer_set_refcount_table (w, 16384, 3), 0,
          "the refcount table is set");
  is_int (header_writer_set_snapshots (w, 20480, 4), 0,
          "the snapshot table is set");
  is_int (header_writer_set_features (w, &features, NULL), 0,
          "a feature is set");
  is_int (d.nr_writes, 5, "... with one write each");
  is_int (d.nr_not_durable, 0, "... which is durable");
  disk_read_header (&d, &h);
  ok (h.size_bytes == 300 && h.l1_offset == 12288 && h.l1_entries == 2 &&
      h.refcount_table_offset == 16384 && h.refcount_table_clusters == 3 &&
      h.snapshots_offset == 20480 && h.nr_snapshots == 4 &&
      h.incompatible_features == INCOMPAT_DIRTY, "all are read as set");
  header_clear (&h);
  ok (memcmp (d.now + 104, other + 104, 4096 - 104) == 0,
      "... and nothing else has changed");
  is_int (header_writer_set_size (w, 300), 0, "to set what is so already");
  is_int (d.nr_writes, 5, "... writes nothing");
  header_writer_features (w, &got);
  ok (got.incompatible == INCOMPAT_DIRTY && got.compatible == 0,
      "features can be asked for");
  is_int (header_writer_set_features (w, NULL, &features), 0,
          "a feature is cleared");
  header_writer_features (w, &got);
  ok (got.incompatible == 0, "... and gone");
  header_writer_free (w);
}

static void
failed_fields (void)
{
  static struct disk d;
  struct header_writer *w;
  struct header h;

  disk_make_plain (&d, 3, 9);
  w = disk_new_writer (&d);
  d.fail_at = 0;
  d.fail_late = true;
  is_int (header_writer_set_size (w, 100), -EIO, "a write fails");
  is_int (header_writer_set_snapshots (w, 2048, 1), 0,
          "the next change is made");
  disk_read_header (&d, &h);
  ok (h.size_bytes == 512 && h.nr_snapshots == 1,
      "... without the one that failed");
  header_clear (&h);
  d.fail_at = 2;
  is_int (header_writer_set_size (w, 100), -EIO, "a write fails");
  is_int (header_writer_set_size (w, 512), 0, "what was there is set");
  is_int (d.nr_writes, 4, "... which is written, now that none can know");
  header_writer_free (w);
}

static void
version_2 (void)
{
  static struct disk d;
  struct header_features features = { .compatible = COMPAT_LAZY_REFCOUNTS };
  struct header_change change = { .set.incompatible = INCOMPAT_DIRTY };
  struct header_parts parts = {
    .parts = HEADER_BACKING_NAME, .backing_name = "base",
  };
  struct header_writer *w;
  struct header h;

  disk_make_plain (&d, 2, 16);
  w = disk_new_writer (&d);
  is_int (header_writer_set_features (w, &features, NULL), -ENOTSUP,
          "version 2 has no features to be set");
  is_int (header_writer_rewrite (w, &parts, &change, NULL), -ENOTSUP,
          "... together with others, either");
  is_int (header_writer_set_features (w, NULL, &features), 0,
          "... and none to be cleared");
  header_writer_features (w, &features);
  ok (features.compatible == 0, "... nor to be asked for");
  is_int (d.nr_writes, 0, "... nothing is written");
  is_int (header_writer_set_size (w, 100), 0, "its size is set");
  is_int (header_writer_rewrite (w, &parts, NULL, NULL), 0,
          "its backing file is set");
  disk_read_header (&d, &h);
  is_str (h.backing_name, "base", "... and read");
  ok (h.size_bytes == 100, "... so is the size");
  header_clear (&h);
  header_writer_free (w);
}

static void
refusals (void)
{
  static struct disk d;
  char text[MAX_BACKING_NAME_BYTES + 2];
  struct qcow2_error error = { "" };
  struct header_parts parts = { .parts = HEADER_BACKING_NAME };
  struct header_writer *w;

  disk_make_plain (&d, 3, 9);
  w = disk_new_writer (&d);
  disk_random_name (text, sizeof text - 1);
  parts.backing_name = text;
  is_int (header_writer_rewrite (w, &parts, NULL, &error), -EINVAL,
          "a name that is too long is refused");
  ok (strstr (error.message, "name of the backing file is too long") != NULL,
      "... so it says");
  text[400] = '\0';
  is_int (header_writer_rewrite (w, &parts, NULL, &error), -ENOSPC,
          "so is one that does not fit the cluster");
  ok (strstr (error.message, "no room in the first cluster") != NULL,
      "... so it says");
  is_int (d.nr_writes, 0, "nothing was written");
  text[392] = '\0';
  is_int (header_writer_rewrite (w, &parts, NULL, &error), 0,
          "the longest that fits is not");
  is_int (d.nr_writes, 1, "... in one write");
  header_writer_free (w);
}

/*----- Threads -----*/

struct thread {
  pthread_t id;
  struct header_writer *w;
  uint64_t bit;
  int result;
};

static void *
set_a_bit (void *opaque)
{
  struct thread *t = opaque;
  struct header_features bit = { .compatible = t->bit };
  unsigned i;

  for (i = 0; i < 200 && t->result == 0; ++i) {
    t->result = header_writer_set_features (t->w, NULL, &bit);
    if (t->result == 0)
      t->result = header_writer_set_features (t->w, &bit, NULL);
  }
  return NULL;
}

/* Takes any number of writes, without a log. */
static int
quick_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
               uint64_t offset, bool durable)
{
  struct disk *d = (struct disk *) s;

  d->nr_not_durable += !durable || iovcnt != 1;
  memcpy (d->now + offset, iov->iov_base, iov->iov_len);
  return 0;
}

static void
many_threads (void)
{
  static const struct qcow2_storage_ops quick_ops = {
    .pread = disk_pread, .size = disk_size, .pwritev = quick_pwritev,
  };
  static struct disk d;
  struct thread threads[4];
  struct header h;
  unsigned i;

  disk_make_plain (&d, 3, 16);
  d.storage.ops = &quick_ops;
  threads[0].w = disk_new_writer (&d);
  for (i = 0; i < 4; ++i) {
    threads[i] = (struct thread) { .w = threads[0].w,
                                   .bit = UINT64_C (1) << i };
    disk_must (pthread_create (&threads[i].id, NULL, set_a_bit,
                               &threads[i]) == 0, "pthread_create");
  }
  for (i = 0; i < 4; ++i) {
    pthread_join (threads[i].id, NULL);
    is_int (threads[i].result, 0, "a thread changes a bit");
  }
  disk_read_header (&d, &h);
  ok (h.compatible_features == 15, "... and none is lost");
  header_clear (&h);
  header_writer_free (threads[0].w);
}

int
main (void)
{
  fields ();
  failed_fields ();
  version_2 ();
  refusals ();
  many_threads ();
  return tap_done ();
}
