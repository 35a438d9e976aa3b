/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading header extensions: each known type has a small reader, all
 * others are kept as they are.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "extension.h"
#include "format.h"

/* A string that is not NUL-terminated, nor allowed to have a NUL. */
static int
read_string (const char *what, const uint8_t *data, uint32_t len,
             uint32_t max_bytes, char **out, struct qcow2_error *error)
{
  if (len > max_bytes)
    return qcow2_error_set (error, EINVAL,
                            "%s extension is too long: %" PRIu32 " bytes, "
                            "at most %" PRIu32 " are allowed",
                            what, len, max_bytes);
  if (memchr (data, '\0', len))
    return qcow2_error_set (error, EINVAL,
                            "%s extension contains a NUL byte", what);
  *out = strndup ((const char *) data, len);
  if (!*out)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  return 0;
}

static int
read_feature_names (const uint8_t *data, uint32_t len, struct header *h,
                    struct qcow2_error *error)
{
  size_t n = len / sizeof (struct disk_feature_name);

  if (n == 0)
    return 0;
  h->feature_names = malloc (n * sizeof (struct disk_feature_name));
  if (!h->feature_names)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  memcpy (h->feature_names, data, n * sizeof (struct disk_feature_name));
  h->nr_feature_names = n;
  return 0;
}

/* Checked only where the autoclear bit vouches for it, as in QEMU: the
 * extension is otherwise left over from a program that didn't know it.
 */
static int
read_bitmaps (const uint8_t *data, uint32_t len, uint64_t file_bytes,
              struct header *h, struct qcow2_error *error)
{
  struct disk_bitmaps d;

  if (!(h->autoclear_features & AUTOCLEAR_BITMAPS)) {
    h->has_stale_bitmaps = true;
    return 0;
  }
  if (len != sizeof d)
    return qcow2_error_set (error, EINVAL,
                            "bitmaps extension: length is %" PRIu32 ", must "
                            "be %zu", len, sizeof d);
  memcpy (&d, data, sizeof d);
  h->nr_bitmaps = be32toh (d.nb_bitmaps);
  h->bitmap_directory_offset = be64toh (d.bitmap_directory_offset);
  h->bitmap_directory_bytes = be64toh (d.bitmap_directory_size);

  if (d.reserved != 0)
    return qcow2_error_set (error, EINVAL,
                            "bitmaps extension: the reserved field is not 0");
  if (h->nr_bitmaps == 0 || h->nr_bitmaps > MAX_BITMAPS)
    return qcow2_error_set (error, EINVAL,
                            "bitmaps extension: nb_bitmaps is %" PRIu32
                            ", must be 1 to %d",
                            h->nr_bitmaps, MAX_BITMAPS);
  if (h->bitmap_directory_bytes == 0)
    return qcow2_error_set (error, EINVAL,
                            "bitmaps extension: bitmap_directory_size is 0");
  h->has_bitmaps = true;
  return header_check_table (h, file_bytes, "bitmap directory",
                             h->bitmap_directory_offset,
                             h->bitmap_directory_bytes, 1,
                             MAX_BITMAP_DIRECTORY_BYTES, error);
}

/* Make room for one more.  A first cluster of 2 MiB can hold 262000
 * empty ones, so the room doubles.
 */
static int
grow_unknown (struct header *h)
{
  size_t n = h->nr_unknown_extensions;
  struct unknown_extension *all;

  if ((n & (n - 1)) != 0)
    return 0;
  all = realloc (h->unknown_extensions, (n > 0 ? 2 * n : 1) * sizeof *all);
  if (!all)
    return -ENOMEM;
  h->unknown_extensions = all;
  return 0;
}

static int
keep_unknown (uint32_t type, const uint8_t *data, uint32_t len,
              struct header *h, struct qcow2_error *error)
{
  struct unknown_extension *x;

  if (grow_unknown (h) < 0)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  x = &h->unknown_extensions[h->nr_unknown_extensions];
  x->type = type;
  x->length_bytes = len;
  x->data = malloc (len > 0 ? len : 1);
  if (!x->data)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  memcpy (x->data, data, len);
  h->nr_unknown_extensions++;
  return 0;
}

static int
read_one (uint32_t type, const uint8_t *data, uint32_t len,
          uint64_t file_bytes, struct header *h, struct qcow2_error *error)
{
  switch (type) {
  case EXTENSION_BACKING_FORMAT:
    return read_string ("backing file format name", data, len,
                        MAX_BACKING_FORMAT_BYTES, &h->backing_format, error);
  case EXTENSION_DATA_FILE:
    return read_string ("external data file name", data, len,
                        MAX_DATA_FILE_NAME_BYTES, &h->data_file, error);
  case EXTENSION_FEATURE_NAMES:
    return read_feature_names (data, len, h, error);
  case EXTENSION_BITMAPS:
    return read_bitmaps (data, len, file_bytes, h, error);
  default:
    /* The encryption header's pointer among them: an encrypted image is
     * refused by crypt_method, with a message of its own.
     */
    return keep_unknown (type, data, len, h, error);
  }
}

/* Known types may appear only once. */
static int
check_once (uint32_t type, unsigned *seen, struct qcow2_error *error)
{
  static const uint32_t known[] = {
    EXTENSION_BACKING_FORMAT, EXTENSION_FEATURE_NAMES, EXTENSION_BITMAPS,
    EXTENSION_CRYPTO, EXTENSION_DATA_FILE,
  };
  size_t i;

  for (i = 0; i < sizeof known / sizeof known[0]; ++i) {
    if (type != known[i])
      continue;
    if (*seen & 1u << i)
      return qcow2_error_set (error, EINVAL,
                              "header extension 0x%08" PRIx32 " appears "
                              "twice", type);
    *seen |= 1u << i;
  }
  return 0;
}

size_t
extension_bound (const uint8_t *cluster, size_t cluster_bytes)
{
  const struct disk_header *d = (const struct disk_header *) cluster;
  uint64_t name_offset = be64toh (d->backing_file_offset);

  return name_offset == 0 || name_offset > cluster_bytes ? cluster_bytes :
    (size_t) name_offset;
}

int
extension_next (const uint8_t *cluster, size_t end, size_t *offset,
                struct extension *x, struct qcow2_error *error)
{
  struct disk_extension d;

  if (end < sizeof d || *offset > end - sizeof d)
    return 0;
  memcpy (&d, cluster + *offset, sizeof d);
  x->type = be32toh (d.type);
  x->length_bytes = be32toh (d.length);
  *offset += sizeof d;
  x->data = cluster + *offset;

  if (x->type == EXTENSION_END)
    return 0;
  if (x->length_bytes > end - *offset)
    return qcow2_error_set (error, EINVAL,
                            "header extension 0x%08" PRIx32 " at byte %zu "
                            "is too long: %" PRIu32 " bytes, %zu are left "
                            "in the header", x->type, *offset,
                            x->length_bytes, end - *offset);
  *offset += ((size_t) x->length_bytes + 7) & ~(size_t) 7;
  return 1;
}

int
extension_read_all (const uint8_t *cluster, size_t end, uint64_t file_bytes,
                    struct header *h, struct qcow2_error *error)
{
  size_t offset = h->header_bytes;
  struct extension x;
  unsigned seen = 0;
  int r;

  while ((r = extension_next (cluster, end, &offset, &x, error)) > 0) {
    r = check_once (x.type, &seen, error);
    if (r == 0)
      r = read_one (x.type, x.data, x.length_bytes, file_bytes, h, error);
    if (r < 0)
      break;
  }
  if (r < 0)
    return r;

  if (h->autoclear_features & AUTOCLEAR_BITMAPS && !h->has_bitmaps)
    return qcow2_error_set (error, EINVAL,
                            "the bitmaps feature bit is set, but there is "
                            "no bitmaps extension");
  return 0;
}

/* NAME has room for any name and its NUL. */
static void
find_feature_name (const struct header *h, uint8_t type, unsigned bit,
                   char name[47])
{
  const struct disk_feature_name *names =
    (const struct disk_feature_name *) h->feature_names;
  size_t i;

  for (i = 0; i < h->nr_feature_names; ++i) {
    if (names[i].type == type && names[i].bit == bit &&
        names[i].name[0] != '\0') {
      snprintf (name, 47, "%.46s", names[i].name);
      return;
    }
  }
  snprintf (name, 47, "unknown feature bit %u", bit);
}

void
extension_feature_names (const struct header *h, uint8_t type, uint64_t bits,
                         char *buf, size_t len)
{
  char name[47];
  unsigned bit;
  size_t pos = 0;

  buf[0] = '\0';
  for (bit = 0; bit < 64 && pos < len; ++bit) {
    if (!(bits & UINT64_C (1) << bit))
      continue;
    find_feature_name (h, type, bit, name);
    pos += (size_t) snprintf (buf + pos, len - pos, "%s%s",
                              pos > 0 ? ", " : "", name);
  }
}
