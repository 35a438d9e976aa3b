/* SPDX-License-Identifier: BSD-3-Clause */

/* create= and create-options=.  What they mean is the engine's business. */

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin-config.h"
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
  if (r == -1) {
    nbdkit_error ("create=%s: must be a size, such as 64M, or backing", value);
    return -1;
  }
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

/* Another data file than the one that is made would be written to. */
static int
check_data_file (void)
{
  const char *given = config.options.data_file;
  struct qcow2_error error;

  if (qcow2_create_data_file_name (config.filename, &options, &data_file_name,
                                   &error) < 0) {
    nbdkit_error ("create: %s", error.message);
    return -1;
  }
  if (given && !data_file_name)
    nbdkit_error ("data-file=%s: create= makes an image with a data file only "
                  "if create-options= has data_file", given);
  else if (given && strcmp (given, data_file_name) != 0)
    nbdkit_error ("data-file=%s: create= makes the data file %s, which has to "
                  "be used; leave data-file= out", given, data_file_name);
  else
    return 0;
  return -1;
}

/* What would keep the new image from being served, as far as the parameters
 * tell: when it has been made, the same command would find it there.
 */
static int
check_serving (void)
{
  struct qcow2_error error;

  if (config.write_mode == WRITE_OFF)
    nbdkit_error ("create= makes an image to be written: it can't be used "
                  "with write=off");
  else if (config.snapshot)
    nbdkit_error ("create= makes an image without snapshots: it can't be "
                  "used with snapshot=");
  else if (!config_is_for_writing ())
    nbdkit_error ("create= makes an image to be written: it can't be used "
                  "with nbdkit's -r or the cow filter");
  else if (config.options.lazy_refcounts == QCOW2_LAZY_ON &&
           options.version < 3)
    nbdkit_error ("lazy-refcounts=on needs an image of version 3, and "
                  "create-options= has compat=0.10");
  else if (qcow2_options_check (&config.options, &error) < 0)
    nbdkit_error ("%s", error.message);
  else
    return check_data_file ();
  return -1;
}

int
create_config_complete (void)
{
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
  return wanted ? check_serving () : 0;
}

int
create_image (void)
{
  struct qcow2_error error;
  int r;

  options.lock = config.options.lock;
  r = qcow2_create (config.filename, size_bytes, &options, &error);
  if (r < 0) {
    nbdkit_error ("create: %s", error.message);
    errno = -r;
    return -1;
  }
  config.options.data_file = data_file_name;
  return 0;
}
