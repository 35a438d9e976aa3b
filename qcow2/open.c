/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening an image: its file, its data file, its backing chain.
 *
 * Files are opened in the order in which they are named, each under the
 * rule of named-file.h, and checked before the next name in it is used.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing-name.h"
#include "file-lock.h"
#include "format.h"
#include "image.h"
#include "io-direct.h"
#include "io-file.h"
#include "named-file.h"
#include "repair.h"
#include "writer.h"

/* What is needed only while an image is being opened. */
struct opening {
  const struct qcow2_options *options;
  struct named_file_rule *rule; /* made of the top image */
  struct qcow2 *image;
  bool writable;                /* the top image and its data file */
  bool is_raw;                  /* the top image */
  struct qcow2_error *error;
};

void
qcow2_options_init (struct qcow2_options *options)
{
  memset (options, 0, sizeof *options);
  options->lock = true;
  options->repair = true;
  options->discard = true;
  options->cache_bytes = QCOW2_DEFAULT_CACHE_BYTES;
  options->compressed_cache_bytes = QCOW2_DEFAULT_COMPRESSED_CACHE_BYTES;
  options->max_chain_depth = QCOW2_DEFAULT_CHAIN_DEPTH;
}

/*----- Files -----*/

/* Two writers destroy an image. */
static void
warn_without_locks (struct opening *o, int fd, const char *filename)
{
  if (!qcow2_file_has_locks (fd))
    log_message (&o->image->log, QCOW2_LOG_WARNING,
                 "%s: the filesystem has no locks, so nothing keeps other "
                 "programs from writing to the file at the same time, which "
                 "would destroy the image", filename);
}

/* Make a storage of FD, and let the hook have it. */
static int
storage_of_fd (struct opening *o, int fd, const char *filename,
               enum qcow2_storage_role role, bool writable,
               struct qcow2_storage **s)
{
  enum qcow2_cache_mode cache = o->options->cache;
  unsigned flags = (o->options->lock ? QCOW2_IO_FILE_LOCK : 0) |
    (writable ? QCOW2_IO_FILE_WRITE : 0) |
    (cache == QCOW2_CACHE_UNSAFE ? QCOW2_IO_FILE_NO_FLUSH : 0);
  int r;

  if (writable && o->options->lock)
    warn_without_locks (o, fd, filename);
  if (cache == QCOW2_CACHE_NONE || cache == QCOW2_CACHE_DIRECTSYNC)
    r = qcow2_io_direct_new (fd, filename, flags, s, o->error);
  else
    r = qcow2_io_file_new (fd, filename, flags, s, o->error);
  if (r < 0)
    return r;
  if (!o->options->wrap)
    return 0;
  r = o->options->wrap (o->options->opaque, role, filename, s);
  if (r < 0) {
    qcow2_storage_close (*s);
    *s = NULL;
    return qcow2_error_set (o->error, -r, "%s: %s", filename, strerror (-r));
  }
  return 0;
}

static struct layer *
new_layer (struct opening *o, const char *filename)
{
  struct layer *l = calloc (1, sizeof *l);

  if (l) {
    l->index = o->image->chain.nr_layers;
    l->log = o->image->log;
    l->filename = strdup (filename);
  }
  if (!l || !l->filename) {
    layer_free (l);
    qcow2_error_set (o->error, ENOMEM, "out of memory");
    return NULL;
  }
  return l;
}

/* An image that comes up a second time would have no end. */
static int
check_loop (struct opening *o, struct layer *l, int fd)
{
  const struct chain *chain = &o->image->chain;
  struct stat st;
  unsigned i;

  if (fstat (fd, &st) == -1)
    return qcow2_error_set (o->error, errno, "%s: %s", l->filename,
                            strerror (errno));
  l->dev = S_ISBLK (st.st_mode) ? st.st_rdev : st.st_dev;
  l->ino = S_ISBLK (st.st_mode) ? 0 : st.st_ino;

  for (i = 0; i < chain->nr_layers; ++i)
    if (chain->layers[i]->dev == l->dev && chain->layers[i]->ino == l->ino)
      return qcow2_error_set (o->error, ELOOP,
                              "%s: the backing chain has a loop: this is "
                              "the same file as %s", l->filename,
                              chain->layers[i]->filename);
  return 0;
}

/*----- The external data file -----*/

/* Returns a descriptor, and the name under which it was opened. */
static int
open_named_data_file (struct opening *o, const struct layer *l,
                      bool writable, char **filename)
{
  struct backing_name name;
  int fd;

  if (!l->header.data_file)
    return qcow2_error_set (o->error, EINVAL,
                            "%s: the image has an external data file, but "
                            "does not name it; use data-file=FILE",
                            l->filename);
  fd = backing_name_parse (l->header.data_file, l->filename, &name, o->error);
  if (fd < 0) {
    qcow2_error_prefix (o->error, "%s: data file: ", l->filename);
    return fd;
  }
  fd = named_file_open (o->rule, NAMED_FILE_DATA, name.path, writable,
                        o->error);
  if (fd < 0)
    qcow2_error_prefix (o->error, "%s: data file: ", l->filename);
  else {
    *filename = name.path;
    name.path = NULL;
  }
  backing_name_clear (&name);
  return fd;
}

static int
open_data_file (struct opening *o, struct layer *l)
{
  const char *by_operator = l->index == 0 ? o->options->data_file : NULL;
  bool writable = l->index == 0 && o->writable;
  char *filename = NULL;
  int fd;

  l->data = l->file;
  if (!l->external_data) {
    if (by_operator)
      return qcow2_error_set (o->error, EINVAL,
                              "%s: data-file was given, but the image has "
                              "no external data file", l->filename);
    return 0;
  }

  if (by_operator) {
    fd = named_file_open_operator (by_operator, writable, o->error);
    if (fd < 0)
      qcow2_error_prefix (o->error, "%s: data file: ", l->filename);
  }
  else
    fd = open_named_data_file (o, l, writable, &filename);
  if (fd < 0)
    return fd;
  if (by_operator)
    filename = strdup (by_operator);
  if (!filename) {
    close (fd);
    return qcow2_error_set (o->error, ENOMEM, "out of memory");
  }
  l->data_filename = filename;
  return storage_of_fd (o, fd, filename, QCOW2_STORAGE_DATA, writable,
                        &l->data);
}

/*----- Layers -----*/

static bool
to_be_repaired (const struct opening *o, const struct layer *l)
{
  return l->index == 0 && o->writable && o->options->repair &&
    !o->options->check &&
    (l->header.incompatible_features & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT))
    == INCOMPAT_DIRTY;
}

/* Make the file open on FD, which is consumed, the next layer. */
static int
add_layer (struct opening *o, int fd, const char *filename, bool is_raw)
{
  struct chain *chain = &o->image->chain;
  struct layer *l = new_layer (o, filename);
  int r;

  if (!l) {
    close (fd);
    return -ENOMEM;
  }
  r = check_loop (o, l, fd);
  if (r < 0)
    close (fd);
  else
    r = storage_of_fd (o, fd, filename,
                       is_raw ? QCOW2_STORAGE_RAW : QCOW2_STORAGE_IMAGE,
                       l->index == 0 && o->writable, &l->file);
  if (r == 0)
    r = is_raw ? layer_load_raw (l, o->error) : o->options->check ?
      layer_load_damaged (l, o->error) : layer_load_qcow2 (l, o->error);
  if (r == 0)
    r = open_data_file (o, l);
  if (r < 0) {
    layer_free (l);
    return r;
  }
  if (!to_be_repaired (o, l) && !o->options->check)
    layer_warn_damaged (l);
  chain->layers[chain->nr_layers++] = l;
  return 0;
}

int
image_backing_format (const struct qcow2_options *options,
                      const char *filename, const struct header *header,
                      const struct backing_name *name, bool *is_raw,
                      struct qcow2_error *error)
{
  const char *format = header->backing_format;

  if (!format || format[0] == '\0')
    format = name->format;
  if (!format)
    format = options->backing_format;
  if (!format)
    return qcow2_error_set (error, EINVAL,
                            "%s: the image does not tell the format of its "
                            "backing file \"%s\", and formats are never "
                            "guessed; use backing-format=qcow2 or "
                            "backing-format=raw", filename, name->path);

  *is_raw = strcmp (format, "raw") == 0 || strcmp (format, "file") == 0 ||
    strcmp (format, "host_device") == 0;
  if (!*is_raw && strcmp (format, "qcow2") != 0)
    return qcow2_error_set (error, ENOTSUP,
                            "%s: backing file format \"%s\" is not "
                            "supported, only qcow2 and raw are", filename,
                            format);
  return 0;
}

static int
add_backing_layer (struct opening *o)
{
  const struct chain *chain = &o->image->chain;
  const struct layer *l = chain->layers[chain->nr_layers - 1];
  struct backing_name name;
  bool is_raw;
  int fd, r;

  if (chain->nr_layers > o->options->max_chain_depth)
    return qcow2_error_set (o->error, ELOOP,
                            "%s: the backing chain is longer than %u files",
                            l->filename, o->options->max_chain_depth);
  r = backing_name_parse (l->header.backing_name, l->filename, &name,
                          o->error);
  if (r < 0) {
    qcow2_error_prefix (o->error, "%s: backing file: ", l->filename);
    return r;
  }
  r = image_backing_format (o->options, l->filename, &l->header, &name,
                            &is_raw, o->error);
  if (r == 0) {
    fd = r = named_file_open (o->rule, NAMED_FILE_BACKING, name.path,
                              false, o->error);
    if (fd < 0)
      qcow2_error_prefix (o->error, "%s: backing file: ", l->filename);
    else
      r = add_layer (o, fd, name.path, is_raw);
  }
  backing_name_clear (&name);
  return r;
}

/* The top image with its data file.  A rule made here is the caller's to
 * free, after an error, too.
 */
static int
open_top (struct opening *o, const char *filename)
{
  int fd = named_file_open_operator (filename, o->writable, o->error);
  int r;

  if (fd < 0)
    return fd;
  r = named_file_rule_new (fd, o->options->allow_dirs,
                           o->options->nr_allow_dirs, o->options->allow_none,
                           &o->rule, o->error);
  if (r < 0) {
    close (fd);
    return r;
  }
  return add_layer (o, fd, filename, o->is_raw);
}

/* Where the image or its data file can't be written, both are opened as
 * if writing had never been asked for: under the locks of a reader.
 */
static int
open_top_or_read_only (struct opening *o, const char *filename)
{
  struct qcow2_error why, *error = o->error;
  int r;

  if (o->options->check)
    return open_top (o, filename);
  o->error = &why;
  r = open_top (o, filename);
  o->error = error;
  if (!o->writable || (r != -EACCES && r != -EPERM && r != -EROFS)) {
    if (r < 0 && error)
      *error = why;
    return r;
  }
  named_file_rule_free (o->rule);
  o->rule = NULL;
  o->writable = false;
  r = open_top (o, filename);
  if (r == 0)
    log_message (&o->image->log, QCOW2_LOG_WARNING,
                 "%s; the image is served read-only", why.message);
  return r;
}

static int
open_layers (struct opening *o, const char *filename)
{
  struct chain *chain = &o->image->chain;
  int r = open_top_or_read_only (o, filename);

  while (r == 0 && !o->options->no_backing &&
         chain->layers[chain->nr_layers - 1]->header.backing_name)
    r = add_backing_layer (o);
  named_file_rule_free (o->rule);
  return r;
}

/*----- The image -----*/

static int
make_caches (struct opening *o)
{
  struct qcow2 *image = o->image;
  struct chain *chain = &image->chain;
  unsigned i;

  image->compressed_cache_bytes = o->options->compressed_cache_bytes;
  image->clusters = cluster_cache_new (image->compressed_cache_bytes);
  chain->slices = slice_cache_new (o->options->cache_bytes,
                                   chain_slice_bytes (chain));
  if (!image->clusters || !chain->slices)
    return qcow2_error_set (o->error, ENOMEM, "out of memory");
  for (i = 0; i < chain->nr_layers; ++i)
    chain->layers[i]->slices = chain->slices;
  chain_prepare (chain);
  return 0;
}

static int
read_snapshots (struct opening *o)
{
  struct layer *top = o->image->chain.layers[0];
  int r;

  /* A check reads what there is of them. */
  if (o->options->check)
    return 0;
  r = snapshot_table_read (top->file, &top->header, &o->image->snapshots,
                           o->error);
  if (r < 0)
    qcow2_error_prefix (o->error, "%s: ", top->filename);
  return r;
}

/* What can't be repaired stays dirty. */
static void
repair_top (struct opening *o)
{
  struct layer *top = o->image->chain.layers[0];
  struct qcow2_error error;

  if (repair_image (top, &o->image->snapshots, &error) < 0)
    log_message (&top->log, QCOW2_LOG_WARNING,
                 "%s: the image was not closed properly (dirty bit) and "
                 "can't be repaired here: %s; it is served read-only, use "
                 "\"qcow2-img check -r all\" to repair it", top->filename,
                 error.message);
}

/* Damaged images are not made worse. */
static int
make_writer (struct opening *o)
{
  const struct layer *top = o->image->chain.layers[0];

  if (!o->writable || o->options->check)
    return 0;
  if (o->options->lazy_refcounts == QCOW2_LAZY_ON && top->header.version < 3)
    return qcow2_error_set (o->error, ENOTSUP,
                            "%s: lazy refcounts need an image of version 3 "
                            "(compat=1.1), this one has version %u",
                            top->filename, top->header.version);
  if (to_be_repaired (o, top))
    repair_top (o);
  if (top->header.incompatible_features & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT))
    return 0;
  return writer_new (o->image, o->options, o->error);
}

int
image_prepare (struct qcow2 *image, struct qcow2_error *error)
{
  struct opening o = {
    .options = &image->options, .image = image,
    .writable = image->writable, .error = error,
  };
  int r;

  r = read_snapshots (&o);
  if (r == 0)
    r = make_caches (&o);
  if (r == 0)
    r = make_writer (&o);
  return r;
}

static void
keep_options (struct qcow2 *image, const struct qcow2_options *options)
{
  image->data_file_given = options->data_file != NULL;
  image->options = *options;
  image->options.format = NULL;
  image->options.backing_format = NULL;
  image->options.data_file = NULL;
  image->options.allow_dirs = NULL;
  image->options.nr_allow_dirs = 0;
}

int
image_format (const char *format, bool *is_raw, struct qcow2_error *error)
{
  *is_raw = format && strcmp (format, "raw") == 0;
  if (format && !*is_raw && strcmp (format, "qcow2") != 0)
    return qcow2_error_set (error, ENOTSUP,
                            "the format \"%s\" is not supported, only qcow2 "
                            "and raw are", format);
  return 0;
}

static int
check_values (const struct qcow2_options *options, bool *is_raw,
              struct qcow2_error *error)
{
  int r = image_format (options->format, is_raw, error);

  if (r < 0)
    return r;
  if (options->max_chain_depth > QCOW2_MAX_CHAIN_DEPTH)
    return qcow2_error_set (error, EINVAL,
                            "the limit for the backing chain may be at most "
                            "%d", QCOW2_MAX_CHAIN_DEPTH);
  if (options->detect_zeroes == QCOW2_DETECT_ZEROES_UNMAP &&
      !options->discard)
    return qcow2_error_set (error, EINVAL,
                            "setting detect-zeroes to unmap is not allowed "
                            "without setting discard operation to unmap");
  return 0;
}

int
qcow2_options_check (const struct qcow2_options *options,
                     struct qcow2_error *error)
{
  struct named_file_rule *rule;
  bool is_raw;
  int r = check_values (options, &is_raw, error);

  if (r == 0)
    r = named_file_rule_new (-1, options->allow_dirs, options->nr_allow_dirs,
                             options->allow_none, &rule, error);
  if (r == 0)
    named_file_rule_free (rule);
  return r;
}

int
qcow2_open (const char *filename, const struct qcow2_options *options,
            struct qcow2 **image, struct qcow2_error *error)
{
  struct opening o = {
    .options = options, .error = error,
  };
  int r;

  *image = NULL;
  r = check_values (options, &o.is_raw, error);
  if (r < 0)
    return r;
  o.writable = options->writable && !o.is_raw;
  /* Its epochs lie in cache lines of their own. */
  o.image = aligned_alloc (_Alignof (struct qcow2), sizeof *o.image);
  if (!o.image)
    return qcow2_error_set (error, ENOMEM, "out of memory");
  memset (o.image, 0, sizeof *o.image);
  pthread_mutex_init (&o.image->views_lock, NULL);
  epoch_init (&o.image->epoch);
  gate_init (&o.image->gate, &o.image->epoch);
  keep_options (o.image, options);
  o.image->log.fn = options->log;
  o.image->log.opaque = options->opaque;
  o.image->chain.layers = calloc (options->max_chain_depth + 1,
                                  sizeof *o.image->chain.layers);
  if (!o.image->chain.layers) {
    qcow2_close (o.image);
    return qcow2_error_set (error, ENOMEM, "out of memory");
  }

  r = open_layers (&o, filename);
  o.image->writable = o.writable;
  if (r == 0)
    r = image_prepare (o.image, error);
  if (r < 0) {
    qcow2_close (o.image);
    return r;
  }
  *image = o.image;
  return 0;
}

int
qcow2_finish (struct qcow2 *image)
{
  int r;

  if (!image)
    return 0;
  gate_close (&image->gate);
  image->finished = true;
  r = writer_finish (image->writer);
  gate_open (&image->gate);
  return r;
}

int
qcow2_close (struct qcow2 *image)
{
  unsigned i;
  int r;

  if (!image)
    return 0;
  r = qcow2_finish (image);
  writer_free (image->writer);
  view_free_all (image);
  for (i = 0; i < image->chain.nr_layers; ++i)
    layer_free (image->chain.layers[i]);
  free (image->chain.layers);
  slice_cache_free (image->chain.slices);
  cluster_cache_free (image->clusters);
  snapshot_table_clear (&image->snapshots);
  pthread_mutex_destroy (&image->views_lock);
  gate_destroy (&image->gate);
  free (image);
  return r;
}

bool
qcow2_is_raw (const struct qcow2 *image)
{
  return image->chain.layers[0]->is_raw;
}

uint64_t
qcow2_cluster_size (const struct qcow2 *image)
{
  return layer_cluster_bytes (image->chain.layers[0]);
}
