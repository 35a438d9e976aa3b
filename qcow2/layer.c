/* SPDX-License-Identifier: BSD-3-Clause */

/* Loading one file of a backing chain. */

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "layer.h"

/* Read NR entries at OFFSET, in host order, into zeroed memory.  What is a hole
 * is not touched, so it takes no memory: many small files, or snapshots of one,
 * may claim tables of the largest size.
 */
static int
read_entries (struct qcow2_storage *s, uint64_t offset, uint32_t nr,
              uint64_t *entries)
{
  uint64_t end = offset + nr * UINT64_C (8), length, i;
  int64_t size_bytes;
  bool hole;
  int r;

  for (; offset < end; offset += length) {
    if (qcow2_storage_hole (s, offset, &hole, &length) < 0) {
      hole = false;
      length = UINT64_MAX;
    }
    if (length > end - offset)
      length = end - offset;
    if (length < 8) {           /* a word that is a hole in part is data */
      hole = false;
      length = 8;
    }
    length &= ~UINT64_C (7);
    if (!hole) {
      r = qcow2_storage_read_meta (s, entries, length, offset);
      if (r < 0)
        return r;
      for (i = 0; i < length / 8; ++i)
        entries[i] = be64toh (entries[i]);
    }
    entries += length / 8;
  }
  /* Behind the end of the file there are no zeros, but an error. */
  size_bytes = qcow2_storage_size (s);
  if (size_bytes < 0)
    return (int) size_bytes;
  return (uint64_t) size_bytes < end ? -EIO : 0;
}

int
l1_table_read (const struct layer *l, const char *what,
               uint64_t offset, uint32_t nr_entries,
               struct l1_table *table, struct qcow2_error *error)
{
  int64_t file_bytes = qcow2_storage_size (l->file);
  uint64_t *entries;
  int r;

  table->entries = NULL;
  table->nr_entries = 0;
  table->alone = false;
  if (file_bytes < 0)
    return qcow2_error_set (error, (int) -file_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -file_bytes));
  r = header_check_table (&l->header, (uint64_t) file_bytes, what, offset,
                          nr_entries, sizeof *entries, MAX_L1_BYTES, error);
  if (r < 0)
    return r;
  if (nr_entries == 0)
    return 0;

  entries = calloc (nr_entries, sizeof *entries);
  if (!entries)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  r = read_entries (l->file, offset, nr_entries, entries);
  if (r < 0) {
    free (entries);
    return qcow2_error_set (error, -r, "can't read %s at 0x%" PRIx64 ": %s",
                            what, offset, strerror (-r));
  }
  table->entries = (_Atomic uint64_t *) entries;
  table->nr_entries = nr_entries;
  return 0;
}

int
layer_vm_state_offset (const struct layer *l, uint64_t disk_bytes,
                       uint64_t count, uint64_t *offset)
{
  unsigned bits = header_l1_entry_bits (&l->header);
  uint64_t start = header_disk_l1_entries (&l->header, disk_bytes) << bits;
  uint64_t limit = MAX_L1_BYTES / 8 << bits;

  if (start > limit || count > limit - start ||
      *offset > limit - start - count)
    return -EFBIG;
  *offset += start;
  return 0;
}

void
layer_warn_damaged (const struct layer *l)
{
  const char *problem = NULL;

  if (l->header.incompatible_features & INCOMPAT_CORRUPT)
    problem = "is marked corrupt";
  else if (l->header.incompatible_features & INCOMPAT_DIRTY)
    problem = "was not closed properly (dirty bit)";
  if (problem)
    log_message (&l->log, QCOW2_LOG_WARNING,
                 "%s: the image %s; it is served read-only, use "
                 "\"qcow2-img check -r all\" to repair it",
                 l->filename, problem);
}

/* What follows from the header. */
static void
prepare (struct layer *l)
{
  const struct header *h = &l->header;
  uint64_t cluster_bytes;

  cluster_bytes = layer_cluster_bytes (l);
  l->size_bytes = h->size_bytes;
  l->codec = codec_find (h->compression_type);
  l->slice_bytes = cluster_bytes < SLICE_MAX_BYTES ?
    (uint32_t) cluster_bytes : SLICE_MAX_BYTES;
  l->external_data = h->incompatible_features & INCOMPAT_DATA_FILE;
  l->l2_entry_bits = header_l2_entry_bytes (h) == 16 ? 4 : 3;
  l->unit_bits = h->cluster_bits;
  if (h->incompatible_features & INCOMPAT_EXTENDED_L2)
    l->unit_bits -= SUBCLUSTER_BITS;
}

int
layer_load_qcow2 (struct layer *l, struct qcow2_error *error)
{
  const struct header *h = &l->header;
  int r;

  r = header_read (l->file, &l->header, error);
  if (r == 0)
    r = l1_table_read (l, "active L1 table", h->l1_offset, h->l1_entries,
                       &l->l1, error);
  if (r < 0)
    qcow2_error_prefix (error, "%s: ", l->filename);
  else
    prepare (l);
  return r;
}

int
layer_load_damaged (struct layer *l, struct qcow2_error *error)
{
  const struct header *h = &l->header;
  int r;

  r = header_read_damaged (l->file, &l->header, error);
  if (r == 0) {
    r = l1_table_read (l, "active L1 table", h->l1_offset, h->l1_entries,
                       &l->l1, error);
    /* It is not in the file: the check tells. */
    if (r == -EINVAL)
      r = 0;
  }
  if (r < 0)
    qcow2_error_prefix (error, "%s: ", l->filename);
  else
    prepare (l);
  return r;
}

int
layer_load_raw (struct layer *l, struct qcow2_error *error)
{
  int64_t size_bytes = qcow2_storage_size (l->file);

  if (size_bytes < 0)
    return qcow2_error_set (error, (int) -size_bytes,
                            "%s: can't tell the size of the file: %s",
                            l->filename, strerror ((int) -size_bytes));
  l->is_raw = true;
  l->size_bytes = l->header.size_bytes = (uint64_t) size_bytes;
  return 0;
}

void
layer_free (struct layer *l)
{
  if (!l)
    return;
  if (l->data != l->file)
    qcow2_storage_close (l->data);
  qcow2_storage_close (l->file);
  header_clear (&l->header);
  free ((void *) l->l1.entries);
  free (l->filename);
  free (l->data_filename);
  free (l);
}
