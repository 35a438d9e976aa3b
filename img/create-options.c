/* SPDX-License-Identifier: BSD-3-Clause */

/* The options of a new image.  What they mean is the engine's business; their
 * texts are kept, because "Formatting ..." repeats them.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "create-options.h"
#include "message.h"

enum shown_as {
  AS_STRING,                    /* what the user said, commas doubled */
  AS_WORD,                      /* what the user said */
  CLUSTER_BYTES, DISK_BYTES, REFCOUNT_BITS, /* a number */
};

/* In the order of qemu-img's line. */
static const struct {
  const char *name, *type;
  enum shown_as shown_as;
  const char *by_default;       /* NULL: shown only if it is given */
  const char *help;
} known[] = {
  { "encryption", NULL, AS_WORD, NULL, NULL },
  { "cluster_size", "size", CLUSTER_BYTES, "", "qcow2 cluster size" },
  { "extended_l2", "bool (on/off)", AS_WORD, "off", "Extended L2 tables" },
  { "preallocation", "str", AS_STRING, NULL,
    "Preallocation mode (allowed values: off, metadata, falloc, full)" },
  { "compression_type", "str", AS_STRING, "zlib",
    "Compression method used for image cluster compression" },
  { "size", "size", DISK_BYTES, "", "Virtual disk size" },
  { "compat", "str", AS_STRING, NULL,
    "Compatibility level (v2 [0.10] or v3 [1.1])" },
  { "backing_file", "str", AS_STRING, NULL, "File name of a base image" },
  { "backing_fmt", "str", AS_STRING, NULL, "Image format of the base image" },
  { "data_file", "str", AS_STRING, NULL,
    "File name of an external data file" },
  { "data_file_raw", "bool (on/off)", AS_WORD, NULL,
    "The external data file must stay valid as a raw image" },
  { "lazy_refcounts", "bool (on/off)", AS_WORD, "off",
    "Postpone refcount updates" },
  { "refcount_bits", "num", REFCOUNT_BITS, "",
    "Width of a reference count entry in bits" },
};

_Static_assert (sizeof known / sizeof known[0] == IMG_NR_CREATE_OPTIONS,
                "each has its text");

void
img_create_options_init (struct img_create_options *options)
{
  memset (options, 0, sizeof *options);
  qcow2_create_options_init (&options->engine);
}

void
img_create_options_clear (struct img_create_options *options)
{
  size_t i;

  qcow2_create_options_clear (&options->engine);
  for (i = 0; i < IMG_NR_CREATE_OPTIONS; ++i)
    free (options->texts[i]);
}

/*----- Setting -----*/

static void
keep_text (struct img_create_options *options, const char *name,
           const char *value)
{
  char *copy = strdup (value);
  size_t i;

  if (!copy) {
    img_error ("out of memory");
    exit (EXIT_FAILURE);
  }
  for (i = 0; i < IMG_NR_CREATE_OPTIONS; ++i)
    if (strcmp (known[i].name, name) == 0) {
      free (options->texts[i]);
      options->texts[i] = copy;
      return;
    }
  free (copy);
}

static int
set (void *opaque, const char *name, const char *value,
     struct qcow2_error *error)
{
  struct img_create_options *options = opaque;
  int r = qcow2_create_option_set (&options->engine, name, value, error);

  if (r == 0)
    keep_text (options, name, value);
  return r;
}

int
img_create_options_set (struct img_create_options *options,
                        const char *filename, const char *name,
                        const char *value)
{
  struct qcow2_error error;

  if (set (options, name, value, &error) == 0)
    return 0;
  img_error ("%s: %s", filename, error.message);
  return -1;
}

int
img_create_options_parse (struct img_create_options *options,
                          const char *filename, const char *text)
{
  struct qcow2_error error;

  if (qcow2_option_list_parse (text, set, options, &error) == 0)
    return 0;
  img_error ("%s: %s", filename, error.message);
  return -1;
}

/*----- Help -----*/

bool
img_create_options_want_help (const char *text)
{
  size_t len;

  for (;; text += len + 1) {
    len = strcspn (text, ",");
    if ((len == 4 && strncmp (text, "help", 4) == 0) ||
        (len == 1 && *text == '?'))
      return true;
    if (text[len] == '\0')
      return false;
  }
}

static int
compare_names (const void *a, const void *b)
{
  return strcmp (known[*(const size_t *) a].name,
                 known[*(const size_t *) b].name);
}

void
img_create_options_help (void)
{
  size_t order[IMG_NR_CREATE_OPTIONS], i;
  char name[64];

  for (i = 0; i < IMG_NR_CREATE_OPTIONS; ++i)
    order[i] = i;
  qsort (order, IMG_NR_CREATE_OPTIONS, sizeof order[0], compare_names);
  printf ("Supported qcow2 options:\n");
  for (i = 0; i < IMG_NR_CREATE_OPTIONS; ++i) {
    size_t n = order[i];

    if (!known[n].help)
      continue;
    snprintf (name, sizeof name, "%s=<%s>", known[n].name, known[n].type);
    printf ("  %-22s - %s\n", name, known[n].help);
  }
}

/*----- Showing -----*/

static void
print_doubling_commas (const char *text)
{
  for (; *text; ++text) {
    if (*text == ',')
      putchar (',');
    putchar (*text);
  }
}

static void
print_value (const struct img_create_options *o, size_t i,
             uint64_t disk_bytes)
{
  const char *text = o->texts[i] ? o->texts[i] : known[i].by_default;

  switch (known[i].shown_as) {
  case AS_STRING: print_doubling_commas (text); break;
  case AS_WORD: printf ("%s", text); break;
  case CLUSTER_BYTES: printf ("%" PRIu64, o->engine.cluster_bytes); break;
  case DISK_BYTES: printf ("%" PRIu64, disk_bytes); break;
  case REFCOUNT_BITS: printf ("%" PRIu64, o->engine.refcount_bits); break;
  }
}

void
img_create_options_print (const struct img_create_options *o,
                          uint64_t disk_bytes)
{
  size_t i;

  for (i = 0; i < IMG_NR_CREATE_OPTIONS; ++i)
    if (o->texts[i] || known[i].by_default) {
      printf (" %s=", known[i].name);
      print_value (o, i, disk_bytes);
    }
}
