/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading an image again that another program has changed.
 *
 * The descriptors stay: no name is looked up a second time, so it does
 * not matter where the server's directory is by now, and what an image
 * may open was decided once.  All else is made anew.  A layer is replaced
 * by what was read of it only if that is sound and goes on with the same
 * files; until all of them are, no view can be opened.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "image.h"
#include "writer.h"

static const char *
or_none (const char *text)
{
  return text && text[0] ? text : "(none)";
}

static int
check_same (const struct layer *l, const char *what, const char *was,
            const char *is, struct qcow2_error *error)
{
  was = or_none (was);
  is = or_none (is);
  if (strcmp (was, is) == 0)
    return 0;
  return qcow2_error_set (error, ESTALE,
                          "%s: the %s has changed since the image was opened, "
                          "from \"%s\" to \"%s\"; the image has to be opened "
                          "anew: start the server again", l->filename, what,
                          was, is);
}

/* Does FRESH go on with the files that L has? */
static int
check_files (const struct qcow2 *image, const struct layer *l,
             const struct layer *fresh, struct qcow2_error *error)
{
  const struct header *was = &l->header, *is = &fresh->header;
  int r;

  r = check_same (l, "kind of data file",
                  l->external_data ? "external" : "the image itself",
                  fresh->external_data ? "external" : "the image itself",
                  error);
  if (r == 0 && l->external_data &&
      !(l->index == 0 && image->data_file_given))
    r = check_same (l, "name of the data file", was->data_file,
                    is->data_file, error);
  if (image->options.no_backing)
    return r;
  if (r == 0)
    r = check_same (l, "name of the backing file", was->backing_name,
                    is->backing_name, error);
  if (r == 0 && is->backing_name)
    r = check_same (l, "format of the backing file", was->backing_format,
                    is->backing_format, error);
  return r;
}

#define INCOMPAT_DAMAGE (INCOMPAT_DIRTY | INCOMPAT_CORRUPT)

static void
warn_about_change (const struct layer *l, const struct layer *fresh)
{
  uint64_t new_bits = fresh->header.incompatible_features &
    ~l->header.incompatible_features & INCOMPAT_DAMAGE;

  if (new_bits)
    log_message (&l->log, QCOW2_LOG_WARNING,
                 "%s: the image %s since it was opened", l->filename,
                 new_bits & INCOMPAT_CORRUPT ? "was marked corrupt" :
                 "was marked as in use (dirty bit)");
}

static int
reload_layer (const struct qcow2 *image, struct layer *l,
              struct qcow2_error *error)
{
  /* Its log is silent: a lasting warning was given when it was opened. */
  struct layer fresh = {
    .index = l->index, .filename = l->filename, .file = l->file,
  };
  int r;

  if (l->is_raw)
    return layer_load_raw (l, error);

  r = layer_load_qcow2 (&fresh, error);
  if (r == 0)
    r = check_files (image, l, &fresh, error);
  if (r == 0) {
    warn_about_change (l, &fresh);
    header_clear (&l->header);
    free ((void *) l->l1.entries);
    fresh.dev = l->dev;
    fresh.ino = l->ino;
    fresh.log = l->log;
    fresh.data = l->data;
    fresh.data_filename = l->data_filename;
    *l = fresh;
    return 0;
  }
  header_clear (&fresh.header);
  free ((void *) fresh.l1.entries);
  return r;
}

/* Drop all that image_prepare makes. */
static void
drop_state (struct qcow2 *image)
{
  writer_free (image->writer);
  image->writer = NULL;
  slice_cache_free (image->chain.slices);
  image->chain.slices = NULL;
  cluster_cache_free (image->clusters);
  image->clusters = NULL;
  snapshot_table_clear (&image->snapshots);
  memset (&image->snapshots, 0, sizeof image->snapshots);
}

static int
read_again (struct qcow2 *image, struct qcow2_error *error)
{
  unsigned i;
  int r = 0;

  drop_state (image);
  for (i = 0; i < image->chain.nr_layers && r == 0; ++i)
    r = reload_layer (image, image->chain.layers[i], error);
  if (r == 0)
    r = image_prepare (image, error);
  if (r < 0)
    drop_state (image);
  return r;
}

/* A writer that has ended never writes again, so nothing is to be waited for.
 * After a flush that failed the kernel may show what is not on the disk: the
 * image stays read-only then, see qcow2_reopen.
 */
static void
end_writer (struct qcow2 *image)
{
  struct writer *w = image->writer;

  worker_stop (w);
  if (w->committer.failed && !w->given_up)
    image->writable = false;
}

static int
come_to_rest (struct qcow2 *image, struct qcow2_error *error)
{
  struct writer *w = image->writer;
  int r;

  if (!w)
    return 0;
  if (committer_state (&w->committer) < 0) {
    end_writer (image);
    return 0;
  }
  r = writer_rest (w);
  if (r < 0)
    qcow2_error_set (error, -r, "%s: what was changed can't be made durable, "
                     "so the image is not read again: %s", w->top->filename,
                     strerror (-r));
  return r;
}

int
qcow2_reopen (struct qcow2 *image, struct qcow2_error *error)
{
  int r;

  gate_close (&image->gate);
  if (image->finished)
    r = qcow2_error_set (error, ESHUTDOWN, "the image is being closed");
  else if (image_has_views (image))
    r = qcow2_error_set (error, EBUSY, "%s: the image is in use",
                         image->chain.layers[0]->filename);
  else {
    r = come_to_rest (image, error);
    if (r == 0) {
      r = image->broken = read_again (image, &image->why);
      if (r < 0 && error)
        *error = image->why;
    }
  }
  gate_open (&image->gate);
  return r;
}
