/* SPDX-License-Identifier: BSD-3-Clause */

/* nbdkit-qcow2-plugin: nbdkit's callbacks, each a few lines over the
 * engine's API (qcow2/qcow2.h).  Nothing here knows the qcow2 format.
 *
 * One engine object serves all connections.  It is opened in .get_ready,
 * so that whatever is wrong shows on the command line, before nbdkit
 * forks; it starts no threads.  A connection is a view of it.
 */

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin-config.h"
#include "plugin-create.h"
#include "plugin-exports.h"
#include "qcow2/qcow2.h"

#define MAX_BLOCK_BYTES (32u << 20)

/* nbdkit lists no more, and fails if there are. */
#define MAX_LISTED_EXPORTS 10000

static struct qcow2 *image;
static struct exports *exports;
static atomic_bool warned_readonly;

/* How many handles are open.  Without any, and under this lock, the image
 * may be read again, and EXPORTS be replaced.
 */
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned nr_handles;

/* The engine's messages.  nbdkit has no warnings of its own. */
static void
log_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  if (level == QCOW2_LOG_WARNING)
    nbdkit_error ("warning: %s", text);
  else
    nbdkit_error ("%s", text);
}

static void
plugin_load (void)
{
  config_load ();
  config.options.log = log_message;
}

/* After SIGTERM open connections are not closed, but this is called. */
static void
plugin_cleanup (void)
{
  qcow2_finish (image);         /* the log tells what went wrong */
}

static void
plugin_unload (void)
{
  exports_free (exports);
  qcow2_close (image);
  config_unload ();
}

/*----- Starting -----*/

static void
plugin_dump_plugin (void)
{
  const char *key, *value;
  size_t pos = 0;

  while (qcow2_build_info (&pos, &key, &value))
    printf ("%s=%s\n", key, value);
}

static int
plugin_get_ready (void)
{
  struct qcow2_error error;
  int r;

  if (create_wanted () && create_image () == -1)
    return -1;
  config.options.writable = config_is_for_writing ();
  config.options.repair = config.options.lock;
  r = qcow2_open (config.filename, &config.options, &image, &error);
  if (r < 0) {
    nbdkit_error ("%s%s", error.message, create_wanted () ?
                  " (the new image was made, and is still there)" : "");
    errno = -r;
    return -1;
  }
  exports = exports_new (image);
  if (!exports) {
    nbdkit_error ("malloc: %m");
    return -1;
  }
  if (config.snapshot && exports_set_default (exports, config.snapshot) < 0) {
    nbdkit_error ("%s: snapshot=%s: the image has no snapshot with this id "
                  "or name", config.filename, config.snapshot);
    return -1;
  }
  /* All that the default export needs is wrong now or never. */
  if (exports_check_default (exports, &error) < 0) {
    nbdkit_error ("%s", error.message);
    return -1;
  }
  return 0;
}

/*----- Reading the image again -----*/

/* Without locks, other programs may have changed the image before the
 * first of some clients comes.  *WHY is what went wrong, or an empty message.
 */
static void
read_again_locked (struct qcow2_error *why)
{
  struct exports *fresh;

  why->message[0] = '\0';
  if (config.options.lock || nr_handles > 0)
    return;
  qcow2_reopen (image, why);
  /* After an error, too, there may be other snapshots, or none. */
  fresh = exports_new (image);
  if (!fresh)
    nbdkit_error ("malloc: %m");
  else if (config.snapshot)
    exports_set_default (fresh, config.snapshot);
  exports_free (exports);
  exports = fresh;
}

static void
client_comes (struct qcow2_error *why)
{
  pthread_mutex_lock (&handles_lock);
  read_again_locked (why);
  nr_handles++;
  pthread_mutex_unlock (&handles_lock);
}

static void
client_goes (void)
{
  pthread_mutex_lock (&handles_lock);
  nr_handles--;
  pthread_mutex_unlock (&handles_lock);
}

/*----- Exports -----*/

/* All of them can be opened. */
static size_t
nr_listed_locked (void)
{
  static bool warned;
  size_t nr = exports_count (exports);

  if (nr <= MAX_LISTED_EXPORTS)
    return nr;
  if (!warned)
    nbdkit_error ("warning: %s: the image has %zu snapshots; only the first "
                  "%d are listed", config.filename, nr - 1,
                  MAX_LISTED_EXPORTS - 1);
  warned = true;
  return MAX_LISTED_EXPORTS;
}

static int
list_exports_locked (struct nbdkit_exports *list)
{
  struct qcow2_error why;
  size_t i, nr;

  read_again_locked (&why);
  if (why.message[0] != '\0')
    nbdkit_error ("%s", why.message);
  nr = nr_listed_locked ();
  for (i = 0; i < nr; ++i) {
    char *description = exports_describe (exports, i);
    int r;

    if (!description) {
      nbdkit_error ("malloc: %m");
      return -1;
    }
    r = nbdkit_add_export (list, exports_name (exports, i), description);
    free (description);
    if (r == -1)
      return -1;
  }
  return 0;
}

static int
plugin_list_exports (int readonly, int is_tls, struct nbdkit_exports *list)
{
  int r;

  pthread_mutex_lock (&handles_lock);
  r = list_exports_locked (list);
  pthread_mutex_unlock (&handles_lock);
  return r;
}

struct handle {
  struct qcow2_view *view;
  size_t export;
};

/* A client may ask for anything. */
static void
no_such_export (const char *name)
{
  char harmless[1024];

  qcow2_error_escape (harmless, sizeof harmless, name);
  nbdkit_error ("%s: there is no export \"%s\"", config.filename, harmless);
}

/* WHY is what went wrong when the image was read again.  Mostly no export can
 * be opened then, for the same reason, which is printed once.
 */
static int
open_export (struct handle *h, const char *name, const struct qcow2_error *why)
{
  struct qcow2_error error = { "" };
  int r = exports_find (exports, name, &h->export);

  if (r < 0)
    no_such_export (name);
  else
    r = exports_open (exports, h->export, &h->view, &error);
  if (error.message[0] != '\0')
    nbdkit_error ("%s", error.message);
  if (why->message[0] != '\0' && strcmp (why->message, error.message) != 0)
    nbdkit_error ("%s", why->message);
  return r;
}

static void *
plugin_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct qcow2_error why;
  struct handle *h;
  int r;

  if (!name)
    return NULL;
  if (!readonly && !config.options.writable && !config.snapshot &&
      config.write_mode == WRITE_AUTO &&
      !atomic_exchange (&warned_readonly, true))
    nbdkit_error ("warning: %s: nbdkit's command line looked as if no client "
                  "could write, so the image is served read-only; use "
                  "write=on or write=off", config.filename);
  h = malloc (sizeof *h);
  if (!h) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  client_comes (&why);
  r = open_export (h, name, &why);
  if (r < 0) {
    client_goes ();
    free (h);
    nbdkit_set_error (-r);
    return NULL;
  }
  return h;
}

static void
plugin_close (void *handle)
{
  struct handle *h = handle;

  qcow2_view_close (h->view);
  client_goes ();
  free (h);
}

static const char *
plugin_export_description (void *handle)
{
  const struct handle *h = handle;
  char *description = exports_describe (exports, h->export);
  const char *r = NULL;

  if (description)
    r = nbdkit_strdup_intern (description);
  free (description);
  return r;
}

/*----- What a connection can do -----*/

static int64_t
plugin_get_size (void *handle)
{
  const struct handle *h = handle;

  return (int64_t) qcow2_view_size (h->view);
}

static int
plugin_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                   uint32_t *maximum)
{
  uint64_t cluster_bytes = qcow2_cluster_size (image);

  *minimum = 1;
  *preferred = cluster_bytes > 4096 ? (uint32_t) cluster_bytes : 4096;
  *maximum = MAX_BLOCK_BYTES;
  return 0;
}

static int
plugin_can_write (void *handle)
{
  const struct handle *h = handle;

  return qcow2_view_can_write (h->view);
}

static int
plugin_can_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

static int
plugin_yes (void *handle)
{
  return 1;
}

static int
plugin_can_cache (void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

/*----- Requests -----*/

/* The engine has told why in its log. */
static int
result (int r)
{
  if (r < 0) {
    nbdkit_set_error (-r);
    return -1;
  }
  return 0;
}

static int
plugin_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  const struct handle *h = handle;

  return result (qcow2_pread (h->view, buf, count, offset));
}

static int
plugin_pwrite (void *handle, const void *buf, uint32_t count,
               uint64_t offset, uint32_t flags)
{
  const struct handle *h = handle;

  return result (qcow2_pwrite (h->view, buf, count, offset,
                               flags & NBDKIT_FLAG_FUA));
}

static int
plugin_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct handle *h = handle;

  return result (qcow2_trim (h->view, count, offset,
                             flags & NBDKIT_FLAG_FUA));
}

static int
plugin_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct handle *h = handle;

  return result (qcow2_zero (h->view, count, offset,
                             flags & NBDKIT_FLAG_MAY_TRIM,
                             flags & NBDKIT_FLAG_FAST_ZERO,
                             flags & NBDKIT_FLAG_FUA));
}

static int
plugin_flush (void *handle, uint32_t flags)
{
  const struct handle *h = handle;

  return result (qcow2_flush (h->view));
}

static int
plugin_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct handle *h = handle;

  return result (qcow2_prefetch (h->view, count, offset));
}

struct extents_request {
  struct nbdkit_extents *extents;
  bool one;                     /* the client wants just the first */
};

static int
add_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
            uint64_t count)
{
  const struct extents_request *req = opaque;
  uint32_t nbd_type = 0;

  switch (type) {
  case QCOW2_EXTENT_DATA: break;
  case QCOW2_EXTENT_ZERO: nbd_type = NBDKIT_EXTENT_ZERO; break;
  case QCOW2_EXTENT_HOLE:
    nbd_type = NBDKIT_EXTENT_ZERO | NBDKIT_EXTENT_HOLE;
    break;
  }
  if (nbdkit_add_extent (req->extents, offset, count, nbd_type) == -1)
    return -errno;
  return req->one;
}

static int
plugin_extents (void *handle, uint32_t count, uint64_t offset,
                uint32_t flags, struct nbdkit_extents *extents)
{
  const struct handle *h = handle;
  struct extents_request req = {
    .extents = extents,
    .one = flags & NBDKIT_FLAG_REQ_ONE,
  };

  return result (qcow2_extents (h->view, count, offset, add_extent, &req));
}

/* --help prints it: what this is and what is in it. */
static char description[1024] = "Serve qcow2 disk images.";

static void __attribute__ ((__constructor__))
describe_build (void)
{
  const char *key, *value;
  size_t pos = 0, len = strlen (description);

  len += (size_t) snprintf (description + len, sizeof description - len,
                            "\nVersion %s, built with:", PACKAGE_VERSION);
  while (qcow2_build_info (&pos, &key, &value) && len < sizeof description)
    len += (size_t) snprintf (description + len, sizeof description - len,
                              "\n%s=%s", key, value);
}

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static struct nbdkit_plugin plugin = {
  .name               = "qcow2",
  .longname           = "nbdkit qcow2 plugin",
  .version            = PACKAGE_VERSION,
  .description        = description,
  .load               = plugin_load,
  .unload             = plugin_unload,
  .cleanup            = plugin_cleanup,
  .config             = config_parameter,
  .config_complete    = config_complete,
  .config_help        = CONFIG_HELP,
  .magic_config_key   = "file",
  .dump_plugin        = plugin_dump_plugin,
  .get_ready          = plugin_get_ready,
  .list_exports       = plugin_list_exports,
  .open               = plugin_open,
  .close              = plugin_close,
  .export_description = plugin_export_description,
  .get_size           = plugin_get_size,
  .block_size         = plugin_block_size,
  .can_write          = plugin_can_write,
  .can_flush          = plugin_can_write,
  .can_trim           = plugin_can_write,
  .can_zero           = plugin_can_write,
  .can_fast_zero      = plugin_can_write,
  .can_fua            = plugin_can_fua,
  .can_multi_conn     = plugin_yes,
  .can_extents        = plugin_yes,
  .can_cache          = plugin_can_cache,
  .pread              = plugin_pread,
  .pwrite             = plugin_pwrite,
  .trim               = plugin_trim,
  .zero               = plugin_zero,
  .flush              = plugin_flush,
  .cache              = plugin_cache,
  .extents            = plugin_extents,
};

NBDKIT_REGISTER_PLUGIN (plugin)
