/* SPDX-License-Identifier: BSD-3-Clause */

/* Creating an image: its files, and the order in which they are written.
 *
 *     what is overwritten    -> away with it, flush
 *     sizes, space, tables   -> flush; the data file, too
 *     names of the files     -> fsync of their directories
 *     header                 -> flush
 *
 * Before the header is there, nobody takes the file for an image; when it
 * is, all that it refers to is durable.  Of an image that is overwritten the
 * header goes first: an old header never meets new tables.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing-name.h"
#include "create-file.h"
#include "create.h"
#include "header.h"
#include "named-file.h"

#define SECTOR 512
#define LOOKED_AT_BYTES (UINT64_C (1) << 20)

struct creation {
  struct qcow2_create_options options; /* strings are the caller's */
  uint64_t size_bytes;
  char *backing_format;         /* NULL: there is no backing file */
  bool has_backing_st;
  struct stat backing_st;
  struct create_layout layout;
  struct header_layout header;
  struct new_file image, data;
  bool header_begun;            /* some of it may be written */
  struct qcow2_error *error;
};

static int
system_error (struct creation *c, const char *name, int err)
{
  return qcow2_error_set (c->error, err, "%s: %s", name, strerror (err));
}

/*----- The backing file -----*/

static bool
is_raw_format (const char *format)
{
  return strcmp (format, "raw") == 0 || strcmp (format, "file") == 0 ||
    strcmp (format, "host_device") == 0;
}

/* The format is said, by the option or by a json: name. */
static int
find_backing_format (struct creation *c, const struct backing_name *name)
{
  const char *format = c->options.backing_format;

  if (!format)
    format = name->format;
  if (!format)
    return qcow2_error_set (c->error, EINVAL, "Backing file specified "
                            "without backing format; add backing_fmt=qcow2 "
                            "or backing_fmt=raw");
  if (!is_raw_format (format) && strcmp (format, "qcow2") != 0)
    return qcow2_error_set (c->error, ENOTSUP, "Backing file format '%s' is "
                            "not supported, only qcow2 and raw are", format);
  c->backing_format = strdup (format);
  return c->backing_format ? 0 :
    qcow2_error_set (c->error, ENOMEM, "%s", strerror (ENOMEM));
}

static int
backing_size (struct creation *c, struct qcow2_storage *s, const char *name,
              uint64_t *size_bytes)
{
  struct header h;
  int64_t raw_bytes;
  int r;

  if (is_raw_format (c->backing_format)) {
    raw_bytes = qcow2_storage_size (s);
    if (raw_bytes < 0)
      return system_error (c, name, (int) -raw_bytes);
    *size_bytes = (uint64_t) raw_bytes;
    return 0;
  }
  r = header_read (s, &h, c->error);
  if (r < 0) {
    qcow2_error_prefix (c->error, "%s: ", name);
    return r;
  }
  *size_bytes = h.size_bytes;
  header_clear (&h);
  return 0;
}

static int
look_at_backing (struct creation *c, const char *path, uint64_t *size_bytes)
{
  struct qcow2_storage *s;
  int fd, r;

  fd = named_file_open_operator (path, false, c->error);
  if (fd < 0)
    return fd;
  c->has_backing_st = fstat (fd, &c->backing_st) == 0;
  r = new_file_storage (&c->options, fd, path,
                        is_raw_format (c->backing_format) ?
                        QCOW2_STORAGE_RAW : QCOW2_STORAGE_IMAGE, false, &s,
                        c->error);
  if (r < 0)
    return r;
  r = backing_size (c, s, path, size_bytes);
  qcow2_storage_close (s);
  return r;
}

/* It is not overwritten, looked at or not. */
static void
note_backing (struct creation *c, const char *path)
{
  c->has_backing_st = stat (path, &c->backing_st) == 0;
}

/* The size of the backing file becomes that of the image, if there is no
 * other.
 */
static int
find_backing (struct creation *c)
{
  struct backing_name name;
  uint64_t size_bytes = QCOW2_NO_SIZE;
  int r;

  if (!c->options.backing_file)
    return 0;
  r = backing_name_parse (c->options.backing_file, c->image.name, &name,
                          c->error);
  if (r == 0) {
    r = find_backing_format (c, &name);
    if (r == 0 && strcmp (name.path, c->image.name) == 0)
      r = qcow2_error_set (c->error, EINVAL, "Trying to create an image "
                           "with the same filename as the backing file");
    if (r == 0 && !c->options.unchecked_backing)
      r = look_at_backing (c, name.path, &size_bytes);
    else if (r == 0)
      note_backing (c, name.path);
    backing_name_clear (&name);
  }
  if (r < 0)
    qcow2_error_prefix (c->error, "%s: backing file: ", c->image.name);
  else if (c->size_bytes == QCOW2_NO_SIZE)
    c->size_bytes = size_bytes;
  return r;
}

/*----- Files -----*/

/* Does what would be written on the device, or a bit more, read as zeros? */
static int
check_is_empty (struct creation *c)
{
  struct qcow2_storage *s = c->image.storage;
  const uint64_t bytes = c->layout.file_bytes > LOOKED_AT_BYTES ?
    c->layout.file_bytes : LOOKED_AT_BYTES;
  const size_t piece = 65536;
  uint8_t *buffer = malloc (piece);
  uint64_t offset;
  int r = buffer ? 0 : -ENOMEM;

  for (offset = 0; r == 0 && offset < bytes; offset += piece) {
    r = qcow2_storage_read_data (s, buffer, piece, offset);
    if (r == 0 && (buffer[0] != 0 ||
                   memcmp (buffer, buffer + 1, piece - 1) != 0))
      r = -EEXIST;
  }
  free (buffer);
  if (r == -EEXIST)
    return qcow2_error_set (c->error, EEXIST,
                            "%s: there is something on the device, and it is "
                            "not overwritten; if it is not needed, make the "
                            "first %" PRIu64 " bytes zeros", c->image.name,
                            bytes);
  return r < 0 ? system_error (c, c->image.name, -r) : 0;
}

static int
check_device (struct creation *c)
{
  int64_t size_bytes = qcow2_storage_size (c->image.storage);

  if (c->has_backing_st && S_ISBLK (c->backing_st.st_mode) &&
      c->backing_st.st_rdev == c->image.st.st_rdev)
    return qcow2_error_set (c->error, EINVAL, "%s: the backing file is the "
                            "same device", c->image.name);
  /* What is on the device would be seen on the disk. */
  if (c->layout.nr_data_clusters > 0 && !c->options.data_file)
    return qcow2_error_set (c->error, EINVAL, "%s: preallocation is not "
                            "possible on a device", c->image.name);
  if (size_bytes < 0)
    return system_error (c, c->image.name, (int) -size_bytes);
  if ((uint64_t) size_bytes < c->layout.file_bytes)
    return qcow2_error_set (c->error, ENOSPC, "%s: the device is too small: "
                            "%" PRIu64 " bytes are needed", c->image.name,
                            c->layout.file_bytes);
  return c->options.overwrite ? 0 : check_is_empty (c);
}

static int
open_new (struct creation *c, struct new_file *file,
          enum qcow2_storage_role role)
{
  return new_file_open (file, role, &c->options,
                        c->has_backing_st ? &c->backing_st : NULL, c->error);
}

static int
open_files (struct creation *c)
{
  int r;

  if (c->data.name && strcmp (c->data.name, c->image.name) == 0)
    return qcow2_error_set (c->error, EINVAL, "%s: Trying to create an image "
                            "with the same filename as the data file",
                            c->image.name);
  r = open_new (c, &c->image, QCOW2_STORAGE_IMAGE);
  if (r == 0 && c->image.is_device)
    r = check_device (c);
  if (r == 0 && c->data.name)
    r = open_new (c, &c->data, QCOW2_STORAGE_DATA);
  return r;
}

/*----- Writing -----*/

/* Behind the first sector: without that it is none. */
static int
write_header_rest (struct creation *c)
{
  if (c->header.nr_bytes <= SECTOR)
    return 0;
  c->header_begun = true;
  return qcow2_storage_write (c->image.storage, c->header.bytes + SECTOR,
                              c->header.nr_bytes - SECTOR, SECTOR,
                              false);
}

/* One sector is written or is not; the rest of the header is durable. */
static int
write_header (struct creation *c)
{
  struct qcow2_storage *s = c->image.storage;
  size_t bytes = c->header.nr_bytes < SECTOR ? c->header.nr_bytes : SECTOR;
  int r;

  c->header_begun = true;
  r = qcow2_storage_write (s, c->header.bytes, bytes, 0, false);
  return r < 0 ? r : qcow2_storage_flush (s);
}

/* A device can't be removed.  It read as zeros before. */
static void
undo_header (struct creation *c)
{
  struct qcow2_storage *s = c->image.storage;

  if (!c->image.is_device || !c->header_begun)
    return;
  if (qcow2_storage_zero (s, 0, c->header.nr_bytes, false) == 0)
    qcow2_storage_flush (s);
}

static int
write_failed (struct creation *c, int r)
{
  return qcow2_error_set (c->error, -r, "%s: the image can't be written: "
                          "%s", c->image.name, strerror (-r));
}

static int
write_files (struct creation *c)
{
  struct qcow2_storage *data = c->data.storage;
  int r;

  r = new_file_begin (&c->image, c->header.nr_bytes);
  if (r == 0)
    r = new_file_begin (&c->data, 0);
  if (r == 0)
    r = preallocate_space (c->image.storage, data, &c->layout,
                           c->options.preallocation);
  if (r == 0)
    r = preallocate_tables (c->image.storage, &c->layout);
  if (r == 0)
    r = write_header_rest (c);
  if (r == 0 && data)
    r = qcow2_storage_flush (data);
  if (r == 0)
    r = qcow2_storage_flush (c->image.storage);
  if (r < 0)
    return write_failed (c, r);

  r = new_file_sync_directory (&c->image, c->error);
  if (r == 0 && data)
    r = new_file_sync_directory (&c->data, c->error);
  if (r < 0)
    return r;
  r = write_header (c);
  return r < 0 ? write_failed (c, r) : 0;
}

/*----- All of it -----*/

static int
find_size (struct creation *c, uint64_t size_bytes)
{
  uint64_t by_option = c->options.size_bytes;

  if (size_bytes != QCOW2_NO_SIZE && by_option != QCOW2_NO_SIZE)
    return qcow2_error_set (c->error, EINVAL, "%s: The image size must be "
                            "specified only once", c->image.name);
  c->size_bytes = size_bytes != QCOW2_NO_SIZE ? size_bytes : by_option;
  return 0;
}

static int
check_has_size (struct creation *c)
{
  if (c->size_bytes == QCOW2_NO_SIZE)
    return qcow2_error_set (c->error, EINVAL, "%s: Image creation needs a "
                            "size parameter", c->image.name);
  return 0;
}

static int
make_layout (struct creation *c)
{
  int r = check_has_size (c);

  if (r < 0)
    return r;
  if (c->size_bytes <= QCOW2_NO_SIZE - SECTOR)
    c->size_bytes = (c->size_bytes + SECTOR - 1) & ~(uint64_t) (SECTOR - 1);
  r = create_layout_make (&c->options, c->size_bytes, &c->layout, c->error);
  if (r == 0)
    r = create_header (&c->options, c->backing_format, &c->layout,
                       &c->header, c->error);
  if (r < 0)
    qcow2_error_prefix (c->error, "%s: ", c->image.name);
  return r;
}

/* All that can be known before there is a file. */
static int
prepare (struct creation *c, const char *filename, uint64_t size_bytes)
{
  int r;

  c->image.name = strdup (filename);
  if (!c->image.name)
    return system_error (c, filename, ENOMEM);
  r = create_options_check (&c->options, c->error);
  if (r < 0) {
    qcow2_error_prefix (c->error, "%s: ", filename);
    return r;
  }
  /* What is in a raw data file is on the disk: all is mapped. */
  if (c->options.data_file_raw &&
      c->options.preallocation == QCOW2_PREALLOCATION_OFF)
    c->options.preallocation = QCOW2_PREALLOCATION_METADATA;

  r = find_size (c, size_bytes);
  if (r == 0)
    r = find_backing (c);
  if (r == 0)
    r = qcow2_create_data_file_name (filename, &c->options, &c->data.name,
                                     c->error);
  return r < 0 ? r : make_layout (c);
}

static void
clear_creation (struct creation *c)
{
  qcow2_storage_close (c->image.storage);
  qcow2_storage_close (c->data.storage);
  header_layout_clear (&c->header);
  free (c->backing_format);
  free (c->image.name);
  free (c->data.name);
}

int
qcow2_create (const char *filename, uint64_t size_bytes,
              const struct qcow2_create_options *options,
              struct qcow2_error *error)
{
  struct creation c = { .options = *options, .error = error };
  int r;

  r = prepare (&c, filename, size_bytes);
  if (r == 0)
    r = open_files (&c);
  if (r == 0)
    r = write_files (&c);
  if (r < 0) {                  /* while the locks are still held */
    undo_header (&c);
    new_file_undo (&c.image);
    new_file_undo (&c.data);
  }
  clear_creation (&c);
  return r;
}

int
qcow2_create_size (const char *filename, uint64_t size_bytes,
                   const struct qcow2_create_options *options,
                   uint64_t *disk_bytes, struct qcow2_error *error)
{
  struct creation c = { .options = *options, .error = error };
  int r;

  c.image.name = strdup (filename);
  if (!c.image.name)
    return system_error (&c, filename, ENOMEM);
  r = find_size (&c, size_bytes);
  if (r == 0)
    r = find_backing (&c);
  if (r == 0)
    r = check_has_size (&c);
  *disk_bytes = c.size_bytes;
  clear_creation (&c);
  return r;
}

int
qcow2_create_data_file_name (const char *filename,
                             const struct qcow2_create_options *options,
                             char **name, struct qcow2_error *error)
{
  struct backing_name parsed;
  int r;

  *name = NULL;
  if (!options->data_file)
    return 0;
  r = backing_name_parse (options->data_file, filename, &parsed, error);
  if (r < 0) {
    qcow2_error_prefix (error, "%s: data file: ", filename);
    return r;
  }
  *name = parsed.path;
  parsed.path = NULL;
  backing_name_clear (&parsed);
  return 0;
}
