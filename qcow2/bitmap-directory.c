/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading the directory of bitmaps, which was bounded by header.c and is
 * read as a whole.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap-directory.h"
#include "format.h"

/* Decode the entry that begins at BUF, of which N bytes are left in the
 * directory.  Returns its length, or a negative errno.
 */
static int64_t
read_entry (const uint8_t *buf, size_t n, size_t index, struct bitmap *b,
            struct qcow2_error *error)
{
  struct disk_bitmap d;
  uint32_t extra_bytes;
  size_t name_bytes, bytes;

  if (n < sizeof d)
    return qcow2_error_set (error, EINVAL,
                            "bitmap directory entry %zu goes beyond the "
                            "directory", index);
  memcpy (&d, buf, sizeof d);
  extra_bytes = be32toh (d.extra_data_size);
  name_bytes = be16toh (d.name_size);
  if (extra_bytes > n - sizeof d || name_bytes > n - sizeof d - extra_bytes)
    return qcow2_error_set (error, EINVAL,
                            "bitmap directory entry %zu goes beyond the "
                            "directory", index);
  if (name_bytes == 0 || name_bytes > MAX_BITMAP_NAME_BYTES)
    return qcow2_error_set (error, EINVAL,
                            "bitmap directory entry %zu: name_size is %zu, "
                            "must be 1 to %d", index, name_bytes,
                            MAX_BITMAP_NAME_BYTES);
  if (d.type != BITMAP_TYPE_DIRTY || extra_bytes > 0 ||
      be32toh (d.flags) & ~BITMAP_FLAGS_KNOWN)
    return qcow2_error_set (error, ENOTSUP,
                            "bitmap directory entry %zu: type %u, flags "
                            "0x%" PRIx32 " or its %" PRIu32 " bytes of extra "
                            "data are not supported", index, d.type,
                            be32toh (d.flags), extra_bytes);
  if (d.granularity_bits < MIN_BITMAP_GRANULARITY_BITS ||
      d.granularity_bits > MAX_BITMAP_GRANULARITY_BITS)
    return qcow2_error_set (error, EINVAL,
                            "bitmap directory entry %zu: granularity_bits "
                            "is %u, must be %d to %d", index,
                            d.granularity_bits, MIN_BITMAP_GRANULARITY_BITS,
                            MAX_BITMAP_GRANULARITY_BITS);

  b->table_offset = be64toh (d.bitmap_table_offset);
  b->table_entries = be32toh (d.bitmap_table_size);
  b->flags = be32toh (d.flags);
  b->granularity_bits = d.granularity_bits;
  b->name = strndup ((const char *) buf + sizeof d, name_bytes);
  if (!b->name)
    return qcow2_error_set (error, ENOMEM, "out of memory");

  bytes = (sizeof d + name_bytes + 7) & ~(size_t) 7;
  return (int64_t) (bytes < n ? bytes : n);
}

static int
read_entries (const uint8_t *buf, size_t n, struct bitmap_directory *dir,
              struct qcow2_error *error)
{
  size_t done = 0, i, nr = dir->nr_bitmaps;

  dir->nr_bitmaps = 0;
  for (i = 0; i < nr; ++i) {
    int64_t r = read_entry (buf + done, n - done, i, &dir->bitmaps[i], error);

    if (r < 0)
      return (int) r;
    done += (size_t) r;
    dir->nr_bitmaps++;
  }
  if (done != n)
    return qcow2_error_set (error, EINVAL,
                            "the bitmap directory has %zu bytes, but its %zu "
                            "entries take %zu", n, nr, done);
  return 0;
}

int
bitmap_directory_read (struct qcow2_storage *s, const struct header *h,
                       struct bitmap_directory *directory,
                       struct qcow2_error *error)
{
  size_t n = h->bitmap_directory_bytes;
  uint8_t *buf;
  int r;

  memset (directory, 0, sizeof *directory);
  if (!h->has_bitmaps)
    return 0;

  /* Each entry takes some bytes of a directory that lies in the file. */
  if (h->nr_bitmaps > n / sizeof (struct disk_bitmap))
    return qcow2_error_set (error, EINVAL,
                            "nb_bitmaps is %" PRIu32 ", but the bitmap "
                            "directory has only %zu bytes", h->nr_bitmaps, n);
  buf = malloc (n);
  directory->bitmaps = calloc (h->nr_bitmaps, sizeof *directory->bitmaps);
  directory->nr_bitmaps = h->nr_bitmaps;
  if (!buf || !directory->bitmaps)
    r = qcow2_error_set (error, ENOMEM, "out of memory");
  else {
    r = qcow2_storage_read_meta (s, buf, n, h->bitmap_directory_offset);
    if (r < 0)
      qcow2_error_set (error, -r, "can't read the bitmap directory: %s",
                       strerror (-r));
    else
      r = read_entries (buf, n, directory, error);
  }
  free (buf);
  if (r < 0)
    bitmap_directory_clear (directory);
  return r;
}

void
bitmap_directory_clear (struct bitmap_directory *directory)
{
  size_t i;

  if (directory->bitmaps)
    for (i = 0; i < directory->nr_bitmaps; ++i)
      free (directory->bitmaps[i].name);
  free (directory->bitmaps);
  memset (directory, 0, sizeof *directory);
}
