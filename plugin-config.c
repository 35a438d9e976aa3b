/* SPDX-License-Identifier: BSD-3-Clause */

/* The parameters. */

#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin-config.h"
#include "plugin-create.h"
#include "plugin-readonly.h"

struct plugin_config config;

static const char **allow_dirs;

void
config_load (void)
{
  qcow2_options_init (&config.options);
  create_load ();
}

void
config_unload (void)
{
  free (allow_dirs);
  create_unload ();
}

/*----- One parameter -----*/

static int
config_allow_dir (const char *value)
{
  const char **all;

  if (strcmp (value, "none") == 0) {
    config.options.allow_none = true;
    return 0;
  }
  all = realloc (allow_dirs, (config.options.nr_allow_dirs + 1) * sizeof *all);
  if (!all) {
    nbdkit_error ("realloc: %m");
    return -1;
  }
  all[config.options.nr_allow_dirs++] = value;
  config.options.allow_dirs = allow_dirs = all;
  return 0;
}

static int
config_backing (const char *value)
{
  if (strcmp (value, "none") != 0) {
    nbdkit_error ("backing=%s: the only value is none", value);
    return -1;
  }
  config.options.no_backing = true;
  return 0;
}

static int
config_discard (const char *value)
{
  if (strcmp (value, "unmap") != 0 && strcmp (value, "ignore") != 0) {
    nbdkit_error ("discard=%s: must be unmap or ignore", value);
    return -1;
  }
  config.options.discard = strcmp (value, "unmap") == 0;
  return 0;
}

/* The place of VALUE in NAMES, the values of an enum, is its number. */
static int
config_name (const char *key, const char *value,
             const char *const names[], size_t nr_names, const char *all)
{
  size_t i;

  for (i = 0; i < nr_names; ++i)
    if (strcmp (value, names[i]) == 0)
      return (int) i;
  nbdkit_error ("%s=%s: must be %s", key, value, all);
  return -1;
}

static int
config_cache (const char *key, const char *value)
{
  static const char *const names[] = {
    "writeback", "writethrough", "none", "directsync", "unsafe",
  };
  int r = config_name (key, value, names, 5, "writeback, writethrough, none, "
                       "directsync or unsafe");

  config.options.cache = (enum qcow2_cache_mode) r;
  return r == -1 ? -1 : 0;
}

static int
config_detect_zeroes (const char *key, const char *value)
{
  static const char *const names[] = { "off", "on", "unmap" };
  int r = config_name (key, value, names, 3, "off, on or unmap");

  config.options.detect_zeroes = (enum qcow2_detect_zeroes) r;
  return r == -1 ? -1 : 0;
}

/* nbdkit tells what is wrong, but not where.  Returns -1 on error. */
static int
parse_bool (const char *key, const char *value, const char *must_be)
{
  int r = nbdkit_parse_bool (value);

  if (r == -1)
    nbdkit_error ("%s=%s: must be %s", key, value, must_be);
  return r;
}

static int
config_lazy_refcounts (const char *key, const char *value)
{
  int r = parse_bool (key, value, "on or off");

  if (r == -1)
    return -1;
  config.options.lazy_refcounts = r ? QCOW2_LAZY_ON : QCOW2_LAZY_OFF;
  return 0;
}

static int
config_backing_format (const char *value)
{
  if (strcmp (value, "qcow2") != 0 && strcmp (value, "raw") != 0) {
    nbdkit_error ("backing-format=%s: must be qcow2 or raw", value);
    return -1;
  }
  config.options.backing_format = value;
  return 0;
}

static int
config_size (const char *key, const char *value, uint64_t *out)
{
  int64_t r = nbdkit_parse_size (value);

  if (r == -1) {
    nbdkit_error ("%s=%s: must be a size, such as 64M", key, value);
    return -1;
  }
  *out = (uint64_t) r;
  return 0;
}

static int
config_bool (const char *key, const char *value, bool *out)
{
  int r = parse_bool (key, value, "on or off");

  if (r == -1)
    return -1;
  *out = r;
  return 0;
}

static int
config_write (const char *key, const char *value)
{
  int r;

  if (strcmp (value, "auto") == 0) {
    config.write_mode = WRITE_AUTO;
    return 0;
  }
  r = parse_bool (key, value, "auto, on or off");
  if (r == -1)
    return -1;
  config.write_mode = r ? WRITE_ON : WRITE_OFF;
  return 0;
}

static int
config_max_chain (const char *key, const char *value)
{
  if (nbdkit_parse_unsigned (key, value, &config.options.max_chain_depth) == -1)
    return -1;
  if (config.options.max_chain_depth > QCOW2_MAX_CHAIN_DEPTH) {
    nbdkit_error ("max-chain=%s: at most %d are allowed", value,
                  QCOW2_MAX_CHAIN_DEPTH);
    return -1;
  }
  return 0;
}

int
config_parameter (const char *key, const char *value)
{
  int r;

  if (strcmp (key, "file") == 0) {
    if (config.filename) {
      nbdkit_error ("file= was given twice");
      return -1;
    }
    config.filename = value;
    return 0;
  }
  if (strcmp (key, "snapshot") == 0) {
    config.snapshot = value;
    return 0;
  }
  if (strcmp (key, "data-file") == 0) {
    config.options.data_file = value;
    return 0;
  }
  if (strcmp (key, "allow-dir") == 0)
    return config_allow_dir (value);
  if (strcmp (key, "backing") == 0)
    return config_backing (value);
  if (strcmp (key, "backing-format") == 0)
    return config_backing_format (value);
  if (strcmp (key, "cache-size") == 0)
    return config_size (key, value, &config.options.cache_bytes);
  if (strcmp (key, "compressed-cache-size") == 0)
    return config_size (key, value, &config.options.compressed_cache_bytes);
  if (strcmp (key, "lock") == 0)
    return config_bool (key, value, &config.options.lock);
  if (strcmp (key, "write") == 0)
    return config_write (key, value);
  if (strcmp (key, "discard") == 0)
    return config_discard (value);
  if (strcmp (key, "lazy-refcounts") == 0)
    return config_lazy_refcounts (key, value);
  if (strcmp (key, "cache") == 0)
    return config_cache (key, value);
  if (strcmp (key, "detect-zeroes") == 0)
    return config_detect_zeroes (key, value);
  if (strcmp (key, "max-chain") == 0)
    return config_max_chain (key, value);
  r = create_config (key, value);
  if (r != 0)
    return r == 1 ? 0 : -1;

  nbdkit_error ("unknown parameter \"%s\"", key);
  return -1;
}

/*----- All of them -----*/

int
config_complete (void)
{
  if (!config.filename) {
    nbdkit_error ("the file=DISK.qcow2 parameter is needed");
    return -1;
  }
  if (config.snapshot && config.write_mode == WRITE_ON) {
    nbdkit_error ("snapshot=%s: a snapshot can't be written to, so write=on "
                  "can't be given with it", config.snapshot);
    return -1;
  }
  return create_config_complete ();
}

/* With snapshot= the active layer is not among the exports. */
bool
config_is_for_writing (void)
{
  if (config.snapshot)
    return false;
  return config.write_mode == WRITE_ON ||
    (config.write_mode == WRITE_AUTO && !started_read_only ());
}
