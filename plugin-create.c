/* SPDX-License-Identifier: BSD-3-Clause */

/* create= and create-options=.  What they mean is the engine's business. */

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin-create.h"
#include "qcow2/qcow2.h"

static bool wanted;
static bool has_options;
static uint64_t size_bytes;
static struct qcow2_create_options options;
static char *data_file_name;

void
create_load (void)
{
  qcow2_create_options_init (&options);
}

void
create_unload (void)
{
  qcow2_create_options_clear (&options);
  free (data_file_name);
}

static int
config_create (const char *value)
{
  int64_t r;

  wanted = true;
  size_bytes = QCOW2_NO_SIZE;
  if (strcmp (value, "backing") == 0)
    return 1;
  r = nbdkit_parse_size (value);
  if (r == -1)
    return -1;
  size_bytes = (uint64_t) r;
  return 1;
}

static int
config_options (const char *value)
{
  struct qcow2_error error;

  has_options = true;
  if (qcow2_create_option_parse (&options, value, &error) < 0) {
    nbdkit_error ("create-options: %s", error.message);
    return -1;
  }
  return 1;
}

int
create_config (const char *key, const char *value)
{
  if (strcmp (key, "create") == 0)
    return config_create (value);
  if (strcmp (key, "create-options") == 0)
    return config_options (value);
  return 0;
}

bool
create_wanted (void)
{
  return wanted;
}

int
create_config_complete (bool write_off, bool has_snapshot)
{
  if (wanted && write_off) {
    nbdkit_error ("create= makes an image to be written: it can't be used "
                  "with write=off");
    return -1;
  }
  if (wanted && has_snapshot) {
    nbdkit_error ("create= makes an image without snapshots: it can't be "
                  "used with snapshot=");
    return -1;
  }
  if (has_options && !wanted) {
    nbdkit_error ("create-options= needs create=SIZE");
    return -1;
  }
  if (options.size_bytes != QCOW2_NO_SIZE) {
    nbdkit_error ("create-options: the size is given by create=SIZE");
    return -1;
  }
  if (wanted && size_bytes == QCOW2_NO_SIZE && !options.backing_file) {
    nbdkit_error ("create=backing needs a backing_file in create-options=");
    return -1;
  }
  return 0;
}

int
create_image (const char *filename, bool lock, const char **data_file)
{
  struct qcow2_error error;
  int r;

  options.lock = lock;
  r = qcow2_create_data_file_name (filename, &options, &data_file_name,
                                   &error);
  if (r == 0)
    r = qcow2_create (filename, size_bytes, &options, &error);
  if (r < 0) {
    nbdkit_error ("create: %s", error.message);
    errno = -r;
    return -1;
  }
  if (!*data_file)
    *data_file = data_file_name;
  return 0;
}
