/* SPDX-License-Identifier: BSD-3-Clause */

/* The -o options of qcow2-img measure.  All that create knows are accepted,
 * so that scripts can pass the same; some have no influence on the size.
 */

#include <stdlib.h>
#include <string.h>

#include "measure-options.h"
#include "message.h"

/* What a raw image knows of them, and whether it matters to the engine. */
static const struct {
  const char *name;
  bool is_engines;
} raw_names[] = {
  { "extent_size_hint", false },
  { "nocow", false },
  { "preallocation", true },
  { "size", true },
};

int
img_measure_options_init (struct img_measure_options *options,
                          const char *format)
{
  qcow2_create_options_init (&options->create);
  options->is_qcow2 = strcmp (format, "qcow2") == 0;
  if (options->is_qcow2 || strcmp (format, "raw") == 0)
    return 0;
  img_error ("Unknown file format '%s': only qcow2 and raw are supported",
             format);
  return -1;
}

void
img_measure_options_clear (struct img_measure_options *options)
{
  qcow2_create_options_clear (&options->create);
}

static int
parse (struct img_measure_options *options, const char *text)
{
  struct qcow2_error error;

  if (qcow2_create_option_parse (&options->create, text, &error) == 0)
    return 0;
  img_error ("%s", error.message);
  return -1;
}

static int
parse_raw (struct img_measure_options *options, const char *item)
{
  size_t len = strcspn (item, "=");
  size_t i;

  for (i = 0; i < sizeof raw_names / sizeof raw_names[0]; ++i)
    if (strlen (raw_names[i].name) == len &&
        strncmp (item, raw_names[i].name, len) == 0)
      return raw_names[i].is_engines ? parse (options, item) : 0;
  img_error ("Invalid parameter '%.*s' for file format 'raw'", (int) len,
             item);
  return -1;
}

int
img_measure_options_parse (struct img_measure_options *options,
                           const char *text)
{
  char *copy, *rest, *item;
  int r = 0;

  if (options->is_qcow2)
    return parse (options, text);
  copy = rest = strdup (text);
  if (!copy) {
    img_error ("out of memory");
    return -1;
  }
  while (r == 0 && (item = strsep (&rest, ",")) != NULL)
    r = parse_raw (options, item);
  free (copy);
  return r;
}

/* As qemu-img measure, which does not look at what makes no difference. */
int
img_measure_options_check (const struct img_measure_options *o)
{
  uint64_t cluster_bytes = o->create.cluster_bytes;
  uint64_t refcount_bits = o->create.refcount_bits;

  if (cluster_bytes < 512 || cluster_bytes > 2u << 20 ||
      (cluster_bytes & (cluster_bytes - 1)) != 0) {
    img_error ("Cluster size must be a power of two between 512 and 2048k");
    return -1;
  }
  if (o->create.extended_l2 && cluster_bytes < 16384) {
    img_error ("Extended L2 entries are only supported with cluster sizes of "
               "at least 16384 bytes");
    return -1;
  }
  if (refcount_bits == 0 || refcount_bits > 64 ||
      (refcount_bits & (refcount_bits - 1)) != 0) {
    img_error ("Refcount width must be a power of two and may not exceed 64 "
               "bits");
    return -1;
  }
  if (o->create.version < 3 && refcount_bits != 16) {
    img_error ("Different refcount widths than 16 bits require compatibility "
               "level 1.1 or above (use compat=1.1 or greater)");
    return -1;
  }
  return 0;
}

void
img_measure_options_engine (const struct img_measure_options *options,
                            struct qcow2_measure_options *engine)
{
  const struct qcow2_create_options *create = &options->create;

  memset (engine, 0, sizeof *engine);
  engine->cluster_bytes = create->cluster_bytes;
  engine->refcount_bits = (unsigned) create->refcount_bits;
  engine->extended_l2 = create->extended_l2;
  engine->all_data = create->preallocation == QCOW2_PREALLOCATION_FALLOC ||
    create->preallocation == QCOW2_PREALLOCATION_FULL;
}
