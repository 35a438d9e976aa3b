/* SPDX-License-Identifier: BSD-3-Clause */

/* The -o options of qcow2-img measure.  All that create knows are accepted,
 * so that scripts can pass the same; some have no influence on the size.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "measure-options.h"
#include "message.h"
#include "size.h"

typedef int set_fn (struct img_measure_options *o, const char *name,
                    const char *value);

/*----- Values -----*/

static int
parse_bool (const char *name, const char *value, bool *out)
{
  *out = strcmp (value, "on") == 0;
  if (*out || strcmp (value, "off") == 0)
    return 0;
  img_error ("Parameter '%s' expects 'on' or 'off'", name);
  return -1;
}

static int
parse_size (const char *name, const char *value, uint64_t *out)
{
  if (img_size_parse (value, UINT64_MAX, out) == 0)
    return 0;
  img_error ("Parameter '%s' expects a non-negative number below 2^64, with "
             "an optional suffix k, M, G, T, P or E", name);
  return -1;
}

static int
set_any (struct img_measure_options *o, const char *name, const char *value)
{
  return 0;
}

static int
set_any_bool (struct img_measure_options *o, const char *name,
              const char *value)
{
  bool ignored;

  return parse_bool (name, value, &ignored);
}

static int
set_any_size (struct img_measure_options *o, const char *name,
              const char *value)
{
  uint64_t ignored;

  return parse_size (name, value, &ignored);
}

static int
set_compat (struct img_measure_options *o, const char *name,
            const char *value)
{
  if (strcmp (value, "0.10") == 0)
    o->version = 2;
  else if (strcmp (value, "1.1") == 0)
    o->version = 3;
  else {
    img_error ("Invalid compatibility level: '%s'", value);
    return -1;
  }
  return 0;
}

static int
set_backing_file (struct img_measure_options *o, const char *name,
                  const char *value)
{
  o->has_backing = true;
  return 0;
}

static int
set_cluster_size (struct img_measure_options *o, const char *name,
                  const char *value)
{
  return parse_size (name, value, &o->engine.cluster_bytes);
}

static int
set_preallocation (struct img_measure_options *o, const char *name,
                   const char *value)
{
  o->engine.all_data = strcmp (value, "falloc") == 0 ||
    strcmp (value, "full") == 0;
  if (o->engine.all_data || strcmp (value, "off") == 0 ||
      strcmp (value, "metadata") == 0)
    return 0;
  img_error ("invalid parameter value: %s", value);
  return -1;
}

static int
set_refcount_bits (struct img_measure_options *o, const char *name,
                   const char *value)
{
  char *end;
  unsigned long bits = strtoul (value, &end, 10);

  if (value[0] < '0' || value[0] > '9' || *end) {
    img_error ("Parameter '%s' expects a number", name);
    return -1;
  }
  if (bits == 0 || bits > 64 || (bits & (bits - 1)) != 0) {
    img_error ("Refcount width must be a power of two and may not exceed 64 "
               "bits");
    return -1;
  }
  o->engine.refcount_bits = (unsigned) bits;
  return 0;
}

static int
set_compression_type (struct img_measure_options *o, const char *name,
                      const char *value)
{
  if (strcmp (value, "zlib") == 0 || strcmp (value, "zstd") == 0)
    return 0;
  img_error ("invalid parameter value: %s", value);
  return -1;
}

static int
set_extended_l2 (struct img_measure_options *o, const char *name,
                 const char *value)
{
  return parse_bool (name, value, &o->engine.extended_l2);
}

static int
set_encryption (struct img_measure_options *o, const char *name,
                const char *value)
{
  if (strcmp (name, "encryption") == 0 && strcmp (value, "off") == 0)
    return 0;
  img_error ("Parameter '%s': encrypted images are not supported", name);
  return -1;
}

/*----- Names -----*/

static const struct {
  const char *name;
  bool is_raw_too;
  set_fn *set;
} known[] = {
  { "backing_file", false, set_backing_file },
  { "backing_fmt", false, set_any },
  { "cluster_size", false, set_cluster_size },
  { "compat", false, set_compat },
  { "compression_type", false, set_compression_type },
  { "data_file", false, set_any },
  { "data_file_raw", false, set_any_bool },
  { "encrypt.", false, set_encryption }, /* and whatever follows */
  { "encryption", false, set_encryption },
  { "extended_l2", false, set_extended_l2 },
  { "extent_size_hint", true, set_any_size },
  { "lazy_refcounts", false, set_any_bool },
  { "nocow", true, set_any_bool },
  { "preallocation", true, set_preallocation },
  { "refcount_bits", false, set_refcount_bits },
  { "size", true, set_any_size },
};

static int
set (struct img_measure_options *o, const char *name, const char *value)
{
  size_t i;

  for (i = 0; i < sizeof known / sizeof known[0]; ++i) {
    size_t len = strlen (known[i].name);
    bool is_prefix = known[i].name[len - 1] == '.';

    if (o->is_qcow2 || known[i].is_raw_too)
      if (is_prefix ? strncmp (name, known[i].name, len) == 0 :
          strcmp (name, known[i].name) == 0)
        return known[i].set (o, name, value);
  }
  img_error ("Invalid parameter '%s' for file format '%s'", name,
             o->is_qcow2 ? "qcow2" : "raw");
  return -1;
}

/* Cut the next "name=value" off *REST, in place: the end of the value is a
 * single comma.  A name alone is a switch that is turned on.
 */
static void
next_assignment (char **rest, const char **name, const char **value)
{
  char *from = *rest, *to;

  *name = from;
  from += strcspn (from, "=,");
  *value = "on";
  if (*from == '=') {
    *from++ = '\0';
    *value = to = from;
    for (; *from && (*from != ',' || from[1] == ','); ++from) {
      from += *from == ',';
      *to++ = *from;
    }
    *rest = *from ? from + 1 : from;
    *to = '\0';
    return;
  }
  *rest = *from ? from + 1 : from;
  *from = '\0';
}

int
img_measure_options_parse (struct img_measure_options *options,
                           const char *text)
{
  char *copy = strdup (text), *rest = copy;
  const char *name, *value;
  int r = 0;

  if (!copy) {
    img_error ("out of memory");
    return -1;
  }
  while (r == 0 && *rest) {
    next_assignment (&rest, &name, &value);
    r = set (options, name, value);
  }
  free (copy);
  return r;
}

int
img_measure_options_init (struct img_measure_options *options,
                          const char *format)
{
  memset (options, 0, sizeof *options);
  options->version = 3;
  options->engine.cluster_bytes = 65536;
  options->engine.refcount_bits = 16;
  options->is_qcow2 = strcmp (format, "qcow2") == 0;
  if (options->is_qcow2 || strcmp (format, "raw") == 0)
    return 0;
  img_error ("Unknown file format '%s': only qcow2 and raw are supported",
             format);
  return -1;
}

int
img_measure_options_check (const struct img_measure_options *o)
{
  uint64_t cluster_bytes = o->engine.cluster_bytes;

  if (cluster_bytes < 512 || cluster_bytes > 2u << 20 ||
      (cluster_bytes & (cluster_bytes - 1)) != 0) {
    img_error ("Cluster size must be a power of two between 512 and 2048k");
    return -1;
  }
  if (o->engine.extended_l2 && cluster_bytes < 16384) {
    img_error ("Extended L2 entries are only supported with cluster sizes of "
               "at least 16384 bytes");
    return -1;
  }
  if (o->version < 3 && o->engine.refcount_bits != 16) {
    img_error ("Different refcount widths than 16 bits require compatibility "
               "level 1.1 or above (use compat=1.1 or greater)");
    return -1;
  }
  return 0;
}
