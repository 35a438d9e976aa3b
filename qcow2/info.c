/* SPDX-License-Identifier: BSD-3-Clause */

/* What an image says about itself: header, snapshots, bitmaps.
 *
 * No table that maps the disk is read, so this works for encrypted images,
 * and where data or backing files are missing.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing-name.h"
#include "bitmap-directory.h"
#include "codec.h"
#include "format.h"
#include "image.h"
#include "io-file.h"
#include "luks-header.h"
#include "named-file.h"

/* The public part is the first member; its strings lie in the others. */
struct info {
  struct qcow2_info public;
  char *filename;
  char *backing_filename;
  dev_t dev;                    /* identity of the file, against loops */
  ino_t ino;
  struct header header;
  struct snapshot_table snapshot_table;
  struct bitmap_directory bitmap_directory;
  struct qcow2_snapshot_info *snapshots;
  struct qcow2_bitmap_info *bitmaps;
};

/*----- One file -----*/

static void
describe_header (struct info *info)
{
  const struct header *h = &info->header;
  struct qcow2_info *p = &info->public;

  p->size_bytes = h->size_bytes;
  p->version = h->version;
  p->cluster_bytes = UINT64_C (1) << h->cluster_bits;
  p->refcount_bits = 1u << h->refcount_order;
  p->compression = codec_type_name (h->compression_type);
  p->dirty = h->incompatible_features & INCOMPAT_DIRTY;
  p->corrupt = h->incompatible_features & INCOMPAT_CORRUPT;
  p->extended_l2 = h->incompatible_features & INCOMPAT_EXTENDED_L2;
  p->lazy_refcounts = h->compatible_features & COMPAT_LAZY_REFCOUNTS;
  p->encryption = h->crypt_method == CRYPT_LUKS ? QCOW2_ENCRYPTION_LUKS :
    h->crypt_method == CRYPT_AES ? QCOW2_ENCRYPTION_AES :
    QCOW2_ENCRYPTION_NONE;
  p->backing_name = h->backing_name;
  p->backing_format = h->backing_format;
  p->data_file = h->data_file;
  p->external_data = h->incompatible_features & INCOMPAT_DATA_FILE;
  p->data_file_raw = h->autoclear_features & AUTOCLEAR_RAW_DATA;
}

static int
describe_tables (struct info *info)
{
  const struct bitmap_directory *dir = &info->bitmap_directory;
  size_t nr = info->snapshot_table.nr_snapshots, i;

  info->snapshots = calloc (nr + 1, sizeof *info->snapshots);
  info->bitmaps = calloc (dir->nr_bitmaps + 1, sizeof *info->bitmaps);
  if (!info->snapshots || !info->bitmaps)
    return -ENOMEM;

  for (i = 0; i < nr; ++i)
    snapshot_table_describe (&info->snapshot_table, i, &info->snapshots[i]);
  info->public.snapshots = info->snapshots;
  info->public.nr_snapshots = nr;

  for (i = 0; i < dir->nr_bitmaps; ++i) {
    const struct bitmap *b = &dir->bitmaps[i];

    info->bitmaps[i].name = b->name;
    info->bitmaps[i].granularity_bytes = UINT64_C (1) << b->granularity_bits;
    info->bitmaps[i].in_use = b->flags & BITMAP_IN_USE;
    info->bitmaps[i].automatic = b->flags & BITMAP_AUTO;
  }
  info->public.bitmaps = info->bitmaps;
  info->public.nr_bitmaps = dir->nr_bitmaps;
  return 0;
}

/* A name that can't be understood here is another program's matter. */
static int
find_backing_filename (struct info *info)
{
  struct backing_name name;
  int r;

  if (!info->header.backing_name)
    return 0;
  r = backing_name_parse (info->header.backing_name, info->filename, &name,
                          NULL);
  if (r < 0)
    return r == -ENOMEM ? r : 0;
  info->backing_filename = name.path;
  name.path = NULL;
  backing_name_clear (&name);
  info->public.backing_filename = info->backing_filename;
  return 0;
}

static int
read_qcow2 (struct qcow2_storage *s, struct info *info,
            struct qcow2_error *error)
{
  int r;

  r = header_read_encrypted (s, &info->header, error);
  if (r < 0)
    return r;
  describe_header (info);
  r = snapshot_table_read (s, &info->header, &info->snapshot_table, error);
  if (r == 0)
    r = bitmap_directory_read (s, &info->header, &info->bitmap_directory,
                               error);
  if (r == 0 && info->public.encryption == QCOW2_ENCRYPTION_LUKS)
    r = luks_header_read (s, &info->header, &info->public.luks, error);
  if (r < 0)
    return r;

  r = describe_tables (info);
  if (r == 0)
    r = find_backing_filename (info);
  return r == 0 ? 0 : qcow2_error_set (error, ENOMEM, "out of memory");
}

static int
read_raw (struct qcow2_storage *s, struct info *info,
          struct qcow2_error *error)
{
  int64_t size_bytes = qcow2_storage_size (s);

  if (size_bytes < 0)
    return qcow2_error_set (error, (int) -size_bytes,
                            "can't tell the size of the file: %s",
                            strerror ((int) -size_bytes));
  info->public.is_raw = true;
  info->public.size_bytes = (uint64_t) size_bytes;
  return 0;
}

static int
read_storage (struct qcow2_storage *s, bool is_raw, struct info *info,
              struct qcow2_error *error)
{
  int64_t disk_bytes = qcow2_storage_disk_bytes (s);
  int r;

  info->public.disk_bytes = disk_bytes < 0 ? -1 : disk_bytes;
  r = is_raw ? read_raw (s, info, error) : read_qcow2 (s, info, error);
  if (r < 0)
    qcow2_error_prefix (error, "%s: ", info->filename);
  return r;
}

static int
identify (int fd, struct info *info, struct qcow2_error *error)
{
  struct stat st;

  if (fstat (fd, &st) == -1)
    return qcow2_error_set (error, errno, "%s: %s", info->filename,
                            strerror (errno));
  info->dev = S_ISBLK (st.st_mode) ? st.st_rdev : st.st_dev;
  info->ino = S_ISBLK (st.st_mode) ? 0 : st.st_ino;
  return 0;
}

/* FD is consumed. */
static int
open_storage (int fd, const char *filename, bool is_raw,
              const struct qcow2_options *options, struct qcow2_storage **s,
              struct qcow2_error *error)
{
  int r;

  r = qcow2_io_file_new (fd, filename,
                         options->lock ? QCOW2_IO_FILE_LOCK : 0, s, error);
  if (r < 0 || !options->wrap)
    return r;
  r = options->wrap (options->opaque, is_raw ? QCOW2_STORAGE_RAW :
                     QCOW2_STORAGE_IMAGE, filename, s);
  if (r == 0)
    return 0;
  qcow2_storage_close (*s);
  return qcow2_error_set (error, -r, "%s: %s", filename, strerror (-r));
}

static void
free_info (struct info *info)
{
  free (info->filename);
  free (info->backing_filename);
  header_clear (&info->header);
  snapshot_table_clear (&info->snapshot_table);
  bitmap_directory_clear (&info->bitmap_directory);
  free (info->snapshots);
  free (info->bitmaps);
  free (info);
}

/* FD is consumed. */
static int
read_file (int fd, const char *filename, bool is_raw,
           const struct qcow2_options *options, struct info **out,
           struct qcow2_error *error)
{
  struct info *info = calloc (1, sizeof *info);
  struct qcow2_storage *s;
  int r;

  if (info)
    info->filename = strdup (filename);
  if (!info || !info->filename) {
    free (info);
    close (fd);
    return qcow2_error_set (error, ENOMEM, "out of memory");
  }
  info->public.filename = info->filename;

  r = identify (fd, info, error);
  if (r < 0)
    close (fd);
  else
    r = open_storage (fd, filename, is_raw, options, &s, error);
  if (r == 0) {
    r = read_storage (s, is_raw, info, error);
    qcow2_storage_close (s);
  }
  if (r < 0) {
    free_info (info);
    return r;
  }
  *out = info;
  return 0;
}

/*----- The chain -----*/

static int
check_loop (const struct info *first, const struct info *last,
            struct qcow2_error *error)
{
  const struct info *i;

  for (i = first; i != last; i = (const struct info *) i->public.backing)
    if (i->dev == last->dev && i->ino == last->ino)
      return qcow2_error_set (error, ELOOP,
                              "%s: the backing chain has a loop: this is "
                              "the same file as %s", last->filename,
                              i->filename);
  return 0;
}

/* Read the backing file of LAST. */
static int
read_backing (struct info *last, const struct named_file_rule *rule,
              const struct qcow2_options *options, struct info **out,
              struct qcow2_error *error)
{
  struct backing_name name;
  bool is_raw;
  int fd, r;

  r = backing_name_parse (last->header.backing_name, last->filename, &name,
                          error);
  if (r < 0) {
    qcow2_error_prefix (error, "%s: backing file: ", last->filename);
    return r;
  }
  r = image_backing_format (options, last->filename, &last->header, &name,
                            &is_raw, error);
  if (r == 0) {
    fd = r = named_file_open (rule, NAMED_FILE_BACKING, name.path, false,
                              error);
    if (fd < 0)
      qcow2_error_prefix (error, "%s: backing file: ", last->filename);
    else
      r = read_file (fd, name.path, is_raw, options, out, error);
  }
  backing_name_clear (&name);
  return r;
}

static int
read_chain (struct info *first, const struct named_file_rule *rule,
            const struct qcow2_options *options, struct qcow2_error *error)
{
  struct info *last = first, *next;
  unsigned depth;
  int r;

  for (depth = 1; last->header.backing_name; ++depth) {
    if (depth > options->max_chain_depth)
      return qcow2_error_set (error, ELOOP,
                              "%s: the backing chain is longer than %u files",
                              last->filename, options->max_chain_depth);
    r = read_backing (last, rule, options, &next, error);
    if (r < 0)
      return r;
    last->public.backing = &next->public;
    last = next;
    r = check_loop (first, last, error);
    if (r < 0)
      return r;
  }
  return 0;
}

int
qcow2_info_read (const char *filename, const struct qcow2_options *options,
                 bool chain, struct qcow2_info **out,
                 struct qcow2_error *error)
{
  struct named_file_rule *rule = NULL;
  struct info *info = NULL;
  bool is_raw;
  int fd, r;

  r = image_format (options->format, &is_raw, error);
  if (r < 0)
    return r;
  fd = named_file_open_operator (filename, false, error);
  if (fd < 0)
    return fd;
  r = named_file_rule_new (fd, options->allow_dirs, options->nr_allow_dirs,
                           options->allow_none, &rule, error);
  if (r < 0) {
    close (fd);
    return r;
  }
  r = read_file (fd, filename, is_raw, options, &info, error);
  if (r == 0 && chain)
    r = read_chain (info, rule, options, error);
  named_file_rule_free (rule);
  if (r < 0) {
    qcow2_info_free (info ? &info->public : NULL);
    return r;
  }
  *out = &info->public;
  return 0;
}

void
qcow2_info_free (struct qcow2_info *info)
{
  while (info) {
    struct qcow2_info *backing = info->backing;

    free_info ((struct info *) info);
    info = backing;
  }
}
