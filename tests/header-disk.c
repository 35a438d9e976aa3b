/* SPDX-License-Identifier: BSD-3-Clause */

/* The first cluster of an image in memory. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "header-disk.h"
#include "qcow2/format.h"

uint64_t disk_seed = 1;

unsigned
disk_random (unsigned n)
{
  disk_seed = disk_seed * UINT64_C (6364136223846793005) + 1442695040888963407;
  return (unsigned) (disk_seed >> 33) % n;
}

void
disk_must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

/*----- A disk in memory -----*/

ssize_t
disk_pread (struct qcow2_storage *s, void *buf, size_t count,
            uint64_t offset)
{
  struct disk *d = (struct disk *) s;

  if (offset >= d->cluster_bytes)
    return -EIO;
  if (count > d->cluster_bytes - offset)
    count = d->cluster_bytes - offset;
  memcpy (buf, d->now + offset, count);
  return (ssize_t) count;
}

/* The file goes on behind the first cluster. */
int64_t
disk_size (struct qcow2_storage *s)
{
  return (int64_t) ((struct disk *) s)->cluster_bytes * 16;
}

static int
disk_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
              uint64_t offset, bool durable)
{
  struct disk *d = (struct disk *) s;
  struct disk_write *w = &d->log[d->nr_writes];

  disk_must (iovcnt == 1 && d->nr_writes < MAX_WRITES,
             "one buffer, few writes");
  disk_must (offset % SECTOR == 0 && iov->iov_len % SECTOR == 0 &&
             offset + iov->iov_len <= d->cluster_bytes,
             "sectors of the cluster");
  disk_must (offset > 0 || iov->iov_len == SECTOR, "sector 0 is written alone");
  w->offset = offset;
  w->nr_bytes = iov->iov_len;
  w->done = (int) d->nr_writes != d->fail_at;
  w->data = malloc (w->nr_bytes);
  disk_must (w->data != NULL, "malloc");
  memcpy (w->data, iov->iov_base, w->nr_bytes);
  d->nr_writes++;
  d->nr_not_durable += !durable;
  if (w->done || d->fail_late)
    memcpy (d->now + offset, w->data, w->nr_bytes);
  return w->done ? 0 : -EIO;
}

const struct qcow2_storage_ops disk_ops = {
  .pread = disk_pread,
  .size = disk_size,
  .pwritev = disk_pwritev,
};

void
disk_begin_log (struct disk *d)
{
  while (d->nr_writes > 0)
    free (d->log[--d->nr_writes].data);
  d->fail_at = -1;
  d->nr_not_durable = 0;
  memcpy (d->before, d->now, sizeof d->before);
}

/*----- Random headers -----*/

void
disk_random_bytes (uint8_t *buf, size_t n)
{
  while (n-- > 0)
    *buf++ = (uint8_t) (1 + disk_random (255));
}

/* Letters: names are compared as strings. */
void
disk_random_name (char *buf, size_t n)
{
  size_t i;

  for (i = 0; i < n; ++i)
    buf[i] = (char) ('a' + disk_random (26));
  buf[n] = '\0';
}

static size_t
put_extension (uint8_t *cluster, size_t pos, size_t room, uint32_t type,
               const void *data, size_t n)
{
  struct disk_extension x = {
    .type = htobe32 (type), .length = htobe32 ((uint32_t) n),
  };
  size_t padded = (n + 7) & ~(size_t) 7;

  if (pos + sizeof x + padded + 8 > room)
    return pos;
  memcpy (cluster + pos, &x, sizeof x);
  disk_random_bytes (cluster + pos + sizeof x, padded);
  if (data)
    memcpy (cluster + pos + sizeof x, data, n);
  return pos + sizeof x + padded;
}

static size_t
put_known (uint8_t *cluster, size_t pos, size_t room, unsigned which,
           bool is_v3)
{
  struct disk_bitmaps b = {
    .nb_bitmaps = htobe32 (1), .bitmap_directory_size = htobe64 (32),
    .bitmap_directory_offset = htobe64 (room * 4),
  };
  struct disk_header *h = (struct disk_header *) cluster;
  size_t next = pos;
  char name[400];
  size_t n;

  switch (which) {
  case 0:
    n = 3 + disk_random (6);
    disk_random_name (name, n);
    return put_extension (cluster, pos, room, EXTENSION_BACKING_FORMAT,
                          name, n);
  case 1:
    n = 1 + disk_random (sizeof name - 1);
    disk_random_name (name, n);
    return put_extension (cluster, pos, room, EXTENSION_DATA_FILE, name, n);
  case 2:
    return put_extension (cluster, pos, room, EXTENSION_FEATURE_NAMES,
                          NULL, 48 * (1 + disk_random (10)));
  default:
    if (is_v3)
      next = put_extension (cluster, pos, room, EXTENSION_BITMAPS, &b,
                            sizeof b);
    if (next != pos)
      h->autoclear_features |= htobe64 (AUTOCLEAR_BITMAPS);
    return next;
  }
}

static size_t
put_random_extensions (uint8_t *cluster, size_t pos, size_t room, bool is_v3)
{
  unsigned used = 0, i;

  for (i = disk_random (7); i > 0; --i) {
    unsigned which = disk_random (8);

    if (which >= 4)
      pos = put_extension (cluster, pos, room, 0x1000 + disk_random (9),
                           NULL, disk_random (disk_random (3) ? 40 : 700));
    else if (!(used & 1u << which)) {
      used |= 1u << which;
      pos = put_known (cluster, pos, room, which, is_v3);
    }
  }
  return pos;
}

static void
put_random_name (uint8_t *cluster, size_t pos, size_t cluster_bytes)
{
  struct disk_header *h = (struct disk_header *) cluster;
  char name[MAX_BACKING_NAME_BYTES + 1];
  size_t n = 1 + disk_random (disk_random (2) ? 60 : 1023);
  size_t gap = disk_random (3) ? 0 : disk_random (900);

  if (pos + gap + n > cluster_bytes || disk_random (3) == 0)
    return;
  disk_random_name (name, n);
  memcpy (cluster + pos + gap, name, n);
  h->backing_file_offset = htobe64 (pos + gap);
  h->backing_file_size = htobe32 ((uint32_t) n);
}

void
disk_make_random (struct disk *d)
{
  static const unsigned char bits[] = { 9, 10, 11, 12, 16 };
  static const unsigned short lengths[] = { 104, 112, 112, 120, 480, 504,
                                            512, 600 };
  struct disk_header *h = (struct disk_header *) d->now;
  unsigned cluster_bits = bits[disk_random (sizeof bits)];
  bool is_v3 = disk_random (4) > 0;
  size_t pos = is_v3 ? lengths[disk_random (8)] : V2_HEADER_BYTES;

  if (pos > 480 && cluster_bits == 9)
    pos = 112;
  disk_begin_log (d);
  d->storage.ops = &disk_ops;
  d->cluster_bytes = (size_t) 1 << cluster_bits;
  memset (d->now, 0, sizeof d->now);
  h->magic = htobe32 (QCOW_MAGIC);
  h->version = htobe32 (is_v3 ? 3 : 2);
  h->cluster_bits = htobe32 (cluster_bits);
  h->size = htobe64 (512);
  h->l1_size = htobe32 (1);
  h->l1_table_offset = htobe64 (d->cluster_bytes * 2);
  h->refcount_table_offset = htobe64 (d->cluster_bytes);
  h->refcount_table_clusters = htobe32 (1);
  if (is_v3) {
    h->refcount_order = htobe32 (4);
    h->header_length = htobe32 ((uint32_t) pos);
    if (pos > sizeof *h)
      disk_random_bytes (d->now + sizeof *h, pos - sizeof *h);
  }
  pos = put_random_extensions (d->now, pos, d->cluster_bytes, is_v3);
  if (disk_random (2)) {
    if (disk_random (2) == 0)
      pos += 8;                 /* an end marker before the name */
    put_random_name (d->now, pos, d->cluster_bytes);
  }
  disk_begin_log (d);
}

/* A disk whose header has nothing that a test does not put there. */
size_t
disk_make_plain (struct disk *d, unsigned version, unsigned cluster_bits)
{
  struct disk_header *h = (struct disk_header *) d->now;

  do
    disk_make_random (d);
  while (be32toh (h->version) != version);
  memset (d->now + sizeof *h, 0, sizeof d->now - sizeof *h);
  memset (&h->backing_file_offset, 0, 12);
  d->cluster_bytes = (size_t) 1 << cluster_bits;
  h->cluster_bits = htobe32 (cluster_bits);
  h->l1_table_offset = htobe64 (d->cluster_bytes * 2);
  h->refcount_table_offset = htobe64 (d->cluster_bytes);
  if (version == 3) {
    h->header_length = htobe32 (sizeof *h);
    h->autoclear_features = 0;
  } else
    memset (d->now + V2_HEADER_BYTES, 0, sizeof *h - V2_HEADER_BYTES);
  disk_begin_log (d);
  return version == 3 ? sizeof *h : V2_HEADER_BYTES;
}

void
disk_read_header (struct disk *d, struct header *h)
{
  struct qcow2_error error = { "" };

  if (header_read (&d->storage, h, &error) < 0) {
    printf ("# %s\n", error.message);
    disk_must (false, "a header that can be read");
  }
}

struct header_writer *
disk_new_writer (struct disk *d)
{
  struct header_writer *w;
  struct header h;

  disk_read_header (d, &h);
  disk_must (header_writer_new (&d->storage, &h, &w, NULL) == 0, "a writer");
  header_clear (&h);
  return w;
}

