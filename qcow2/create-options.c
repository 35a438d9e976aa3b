/* SPDX-License-Identifier: BSD-3-Clause */

/* The options of a new image: qemu-img's names, values and rules. */

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "create.h"
#include "format.h"

#define DEFAULT_CLUSTER_BYTES 65536

void
qcow2_create_options_init (struct qcow2_create_options *options)
{
  memset (options, 0, sizeof *options);
  options->version = 3;
  options->cluster_bytes = DEFAULT_CLUSTER_BYTES;
  options->refcount_bits = 16;
  options->size_bytes = QCOW2_NO_SIZE;
  options->lock = true;
}

void
qcow2_create_options_clear (struct qcow2_create_options *options)
{
  free (options->backing_file);
  free (options->backing_format);
  free (options->data_file);
  options->backing_file = options->backing_format = options->data_file = NULL;
}

/*----- Values -----*/

static int
refuse_value (const char *name, const char *value, const char *known,
              struct qcow2_error *error)
{
  return qcow2_error_set (error, EINVAL,
                          "Parameter '%s' does not accept value '%s' (%s)",
                          name, value, known);
}

/* What strtoull would take, but for a sign: -1 is no large number. */
static bool
is_number (const char *value)
{
  while (isspace ((unsigned char) *value))
    value++;
  if (*value == '+')
    value++;
  return isdigit ((unsigned char) *value);
}

static int
refuse_size (const char *name, struct qcow2_error *error)
{
  return qcow2_error_set (error, EINVAL, "Parameter '%s' expects a "
                          "non-negative number below 2^64; optional suffix "
                          "k, M, G, T, P or E means kilo-, mega-, giga-, "
                          "tera-, peta- and exabytes, respectively", name);
}

/* What a suffix multiplies with, or 0. */
static uint64_t
suffix_factor (char suffix)
{
  static const char suffixes[] = "BKMGTPE";
  const char *found;

  if (suffix == '\0')
    return 1;
  found = strchr (suffixes, toupper ((unsigned char) suffix));
  return found ? UINT64_C (1) << (10 * (found - suffixes)) : 0;
}

/* ".5" or the like at *END, which then is behind it. */
static double
parse_fraction (char **end)
{
  double fraction = 0, digit = 0.1;
  char *p = *end;

  if (*p != '.')
    return 0;
  for (p++; isdigit ((unsigned char) *p); p++, digit /= 10)
    fraction += (*p - '0') * digit;
  *end = p;
  return fraction;
}

/* A number with a suffix and a fraction of it, or a hexadecimal one. */
static int
parse_size (const char *name, const char *value, uint64_t *out,
            struct qcow2_error *error)
{
  bool is_hex = strpbrk (value, "xX") != NULL;
  unsigned long long whole;
  double fraction;
  uint64_t factor;
  char *end;

  if (!is_number (value))
    return refuse_size (name, error);
  errno = 0;
  whole = strtoull (value, &end, is_hex ? 16 : 10);
  if (errno != 0)
    goto out_of_range;
  fraction = is_hex ? 0 : parse_fraction (&end);
  factor = suffix_factor (*end);
  if (factor == 0 || (*end != '\0' && end[1] != '\0') ||
      (is_hex && *end != '\0') || (factor == 1 && fraction > 0))
    return refuse_size (name, error);
  if (whole > UINT64_MAX / factor)
    goto out_of_range;
  *out = whole * factor;
  if (UINT64_MAX - *out < factor)
    goto out_of_range;
  *out += (uint64_t) (fraction * (double) factor);
  return 0;

 out_of_range:
  return qcow2_error_set (error, EINVAL, "Value '%s' is out of range for "
                          "parameter '%s'", value, name);
}

static int
parse_number (const char *name, const char *value, uint64_t *out,
              struct qcow2_error *error)
{
  unsigned long long number;
  char *end;

  errno = 0;
  number = is_number (value) ? strtoull (value, &end, 0) : 0;
  if (!is_number (value) || errno != 0 || *end != '\0')
    return qcow2_error_set (error, EINVAL,
                            "Parameter '%s' expects a number", name);
  *out = number;
  return 0;
}

static int
parse_bool (const char *name, const char *value, bool *out,
            struct qcow2_error *error)
{
  static const char *const yes[] = { "on", "yes", "true", "y" };
  static const char *const no[] = { "off", "no", "false", "n" };
  size_t i;

  for (i = 0; i < sizeof yes / sizeof yes[0]; ++i) {
    *out = strcmp (value, yes[i]) == 0;
    if (*out || strcmp (value, no[i]) == 0)
      return 0;
  }
  return qcow2_error_set (error, EINVAL,
                          "Parameter '%s' expects 'on' or 'off'", name);
}

static int
parse_string (const char *name, const char *value, char **out,
              struct qcow2_error *error)
{
  char *copy;

  if (value[0] == '\0')
    return qcow2_error_set (error, EINVAL, "Parameter '%s' expects a name, "
                            "got empty string", name);
  copy = strdup (value);
  if (!copy)
    return qcow2_error_set (error, ENOMEM, "%s", strerror (ENOMEM));
  free (*out);
  *out = copy;
  return 0;
}

/*----- Options -----*/

static int
parse_compat (const char *name, const char *value, unsigned *version,
              struct qcow2_error *error)
{
  if (strcmp (value, "0.10") == 0 || strcmp (value, "v2") == 0)
    *version = 2;
  else if (strcmp (value, "1.1") == 0 || strcmp (value, "v3") == 0)
    *version = 3;
  else
    return refuse_value (name, value, "0.10 or v2, 1.1 or v3", error);
  return 0;
}

static int
parse_preallocation (const char *name, const char *value,
                     enum qcow2_preallocation *out, struct qcow2_error *error)
{
  static const char *const names[] = { "off", "metadata", "falloc", "full" };
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i)
    if (strcmp (value, names[i]) == 0) {
      *out = (enum qcow2_preallocation) i;
      return 0;
    }
  return refuse_value (name, value, "off, metadata, falloc or full", error);
}

static int
parse_compression (const char *name, const char *value, bool *zstd,
                   struct qcow2_error *error)
{
  *zstd = strcmp (value, "zstd") == 0;
  if (!*zstd && strcmp (value, "zlib") != 0)
    return refuse_value (name, value, "zlib or zstd", error);
  return 0;
}

/* What QEMU has besides. */
static int
parse_foreign (const char *name, const char *value,
               struct qcow2_error *error)
{
  bool on = true;

  if (strncmp (name, "encrypt.", 8) == 0 || strcmp (name, "encryption") == 0) {
    if (strcmp (name, "encryption") == 0 &&
        parse_bool (name, value, &on, error) < 0)
      return -EINVAL;
    if (!on)
      return 0;
    return qcow2_error_set (error, ENOTSUP, "Parameter '%s': encryption is "
                            "not supported yet", name);
  }
  if (strcmp (name, "nocow") == 0 || strcmp (name, "extent_size_hint") == 0)
    return qcow2_error_set (error, ENOTSUP, "Parameter '%s' of QEMU's "
                            "driver for files is not supported", name);
  return qcow2_error_set (error, EINVAL, "Invalid parameter '%s'", name);
}

int
qcow2_create_option_set (struct qcow2_create_options *o, const char *name,
                         const char *value, struct qcow2_error *error)
{
  if (strcmp (name, "size") == 0)
    return parse_size (name, value, &o->size_bytes, error);
  if (strcmp (name, "compat") == 0)
    return parse_compat (name, value, &o->version, error);
  if (strcmp (name, "cluster_size") == 0)
    return parse_size (name, value, &o->cluster_bytes, error);
  if (strcmp (name, "extended_l2") == 0)
    return parse_bool (name, value, &o->extended_l2, error);
  if (strcmp (name, "refcount_bits") == 0)
    return parse_number (name, value, &o->refcount_bits, error);
  if (strcmp (name, "lazy_refcounts") == 0)
    return parse_bool (name, value, &o->lazy_refcounts, error);
  if (strcmp (name, "preallocation") == 0)
    return parse_preallocation (name, value, &o->preallocation, error);
  if (strcmp (name, "backing_file") == 0)
    return parse_string (name, value, &o->backing_file, error);
  if (strcmp (name, "backing_fmt") == 0)
    return parse_string (name, value, &o->backing_format, error);
  if (strcmp (name, "data_file") == 0)
    return parse_string (name, value, &o->data_file, error);
  if (strcmp (name, "data_file_raw") == 0)
    return parse_bool (name, value, &o->data_file_raw, error);
  if (strcmp (name, "compression_type") == 0)
    return parse_compression (name, value, &o->zstd, error);
  return parse_foreign (name, value, error);
}

/* ITEM is "name=value"; a name alone is on, with "no" before it off. */
static int
parse_item (char *item, qcow2_option_fn *fn, void *opaque,
            struct qcow2_error *error)
{
  char *equals = strchr (item, '=');

  if (equals) {
    *equals = '\0';
    return fn (opaque, item, equals + 1, error);
  }
  if (strncmp (item, "no", 2) == 0 && strcmp (item, "nocow") != 0)
    return fn (opaque, item + 2, "off", error);
  return fn (opaque, item, "on", error);
}

/* Copy the item that *TEXT begins with to ITEM, ",," as ",", and let *TEXT
 * point behind it and the comma that ends it.  Returns whether a comma
 * did.
 */
static bool
take_item (const char **text, char *item)
{
  const char *p = *text;

  for (; *p; ++p) {
    if (*p == ',' && *++p != ',') {
      *item = '\0';
      *text = p;
      return true;
    }
    *item++ = *p;
  }
  *item = '\0';
  *text = p;
  return false;
}

int
qcow2_option_list_parse (const char *text, qcow2_option_fn *fn, void *opaque,
                         struct qcow2_error *error)
{
  const char *rest = text;
  char *item = malloc (strlen (text) + 1);
  bool more;
  int r;

  if (!item)
    return qcow2_error_set (error, ENOMEM, "%s", strerror (ENOMEM));
  do {
    more = take_item (&rest, item);
    if (item[0] == '\0')
      r = qcow2_error_set (error, EINVAL, "Invalid option list: %s", text);
    else
      r = parse_item (item, fn, opaque, error);
  } while (r == 0 && more);
  free (item);
  return r;
}

static int
set_option (void *options, const char *name, const char *value,
            struct qcow2_error *error)
{
  return qcow2_create_option_set (options, name, value, error);
}

int
qcow2_create_option_parse (struct qcow2_create_options *options,
                           const char *text, struct qcow2_error *error)
{
  return qcow2_option_list_parse (text, set_option, options, error);
}

/*----- What goes together -----*/

static bool
is_power_of_two (uint64_t n)
{
  return n != 0 && (n & (n - 1)) == 0;
}

static int
check_sizes (const struct qcow2_create_options *o, struct qcow2_error *error)
{
  if (!is_power_of_two (o->cluster_bytes) ||
      o->cluster_bytes < UINT64_C (1) << MIN_CLUSTER_BITS ||
      o->cluster_bytes > UINT64_C (1) << MAX_CLUSTER_BITS)
    return qcow2_error_set (error, EINVAL, "Cluster size must be a power of "
                            "two between 512 and 2048k");
  if (!is_power_of_two (o->refcount_bits) ||
      o->refcount_bits > UINT64_C (1) << MAX_REFCOUNT_ORDER)
    return qcow2_error_set (error, EINVAL, "Refcount width must be a power "
                            "of two and may not exceed 64 bits");
  if (o->extended_l2 &&
      o->cluster_bytes < UINT64_C (1) << MIN_EXTENDED_L2_CLUSTER_BITS)
    return qcow2_error_set (error, EINVAL, "Extended L2 entries are only "
                            "supported with cluster sizes of at least %d "
                            "bytes", 1 << MIN_EXTENDED_L2_CLUSTER_BITS);
  return 0;
}

/* Version 2 has nothing of these. */
static int
check_version (const struct qcow2_create_options *o,
               struct qcow2_error *error)
{
  const char *what = NULL;

  if (o->version >= 3)
    return 0;
  if (o->extended_l2)
    what = "Extended L2 entries are only supported with";
  else if (o->lazy_refcounts)
    what = "Lazy refcounts are only supported with";
  else if (o->refcount_bits != 16)
    what = "Different refcount widths than 16 bits require";
  else if (o->data_file)
    what = "External data files are only supported with";
  else if (o->zstd)
    what = "Non-zlib compression type is only supported with";
  if (!what)
    return 0;
  return qcow2_error_set (error, EINVAL, "%s compatibility level 1.1 and "
                          "above (use compat=1.1)", what);
}

static int
check_files (const struct qcow2_create_options *o, struct qcow2_error *error)
{
  if (o->backing_format && !o->backing_file)
    return qcow2_error_set (error, EINVAL, "Backing format cannot be used "
                            "without backing file");
  if (o->data_file_raw && !o->data_file)
    return qcow2_error_set (error, EINVAL,
                            "data_file_raw requires data_file");
  if (o->data_file_raw && o->backing_file)
    return qcow2_error_set (error, EINVAL, "Backing file and data_file_raw "
                            "cannot be used at the same time");
  if (o->backing_file && !o->extended_l2 &&
      o->preallocation != QCOW2_PREALLOCATION_OFF)
    return qcow2_error_set (error, EINVAL, "Backing file and preallocation "
                            "can only be used at the same time if "
                            "extended_l2 is on");
  if (o->backing_file && strlen (o->backing_file) > MAX_BACKING_NAME_BYTES)
    return qcow2_error_set (error, EINVAL, "The name of the backing file is "
                            "longer than %d bytes", MAX_BACKING_NAME_BYTES);
  if (o->data_file && strlen (o->data_file) > MAX_DATA_FILE_NAME_BYTES)
    return qcow2_error_set (error, EINVAL, "The name of the data file is "
                            "longer than %d bytes",
                            MAX_DATA_FILE_NAME_BYTES);
  return 0;
}

int
create_options_check (const struct qcow2_create_options *o,
                      struct qcow2_error *error)
{
  int r;

  r = check_sizes (o, error);
  if (r == 0)
    r = check_version (o, error);
  if (r == 0)
    r = check_files (o, error);
  if (r == 0 && o->zstd && !codec_find (COMPRESSION_ZSTD))
    r = qcow2_error_set (error, ENOTSUP, "Parameter 'compression_type': "
                         "zstd is not built in");
  return r;
}
