/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img create: a new image. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "create-options.h"
#include "message.h"
#include "options.h"
#include "size.h"

struct request {
  const char **option_texts;    /* of each -o, in order */
  size_t nr_option_texts;
  const char *backing_file;
  bool unchecked_backing;
};

static const struct img_option own_options[] = {
  { 'o', NULL, true },
  { 'b', NULL, true },
  { 'u', NULL, false },
  { 0, NULL, false },
};

static void
add_option_text (struct request *request, const char *text)
{
  size_t n = request->nr_option_texts;
  const char **all = realloc ((void *) request->option_texts,
                              (n + 1) * sizeof *all);

  if (!all) {
    img_error ("out of memory");
    exit (EXIT_FAILURE);
  }
  all[n] = text;
  request->option_texts = all;
  request->nr_option_texts = n + 1;
}

static void
set_option (void *opaque, int id, const char *value)
{
  struct request *request = opaque;

  switch (id) {
  case 'o': add_option_text (request, value); break;
  case 'b': request->backing_file = value; break;
  case 'u': request->unchecked_backing = true; break;
  }
}

static bool
wants_help (const struct request *request)
{
  size_t i;

  for (i = 0; i < request->nr_option_texts; ++i)
    if (img_create_options_want_help (request->option_texts[i]))
      return true;
  return false;
}

static void
check_usage (const struct img_options *options)
{
  if (options->nr_files == 0)
    img_usage_error ("Expecting image file name");
  if (options->nr_files > 2)
    img_usage_error ("Unexpected argument: %s", options->files[2]);
}

/* What is no part of -o, but counts like that. */
static int
fill_options (const struct img_options *options,
              const struct request *request, struct img_create_options *o)
{
  const char *filename = options->files[0];
  size_t i;

  for (i = 0; i < request->nr_option_texts; ++i)
    if (img_create_options_parse (o, filename, request->option_texts[i]) < 0)
      return -1;
  if (request->backing_file &&
      img_create_options_set (o, filename, "backing_file",
                              request->backing_file) < 0)
    return -1;
  if (options->format_2 &&
      img_create_options_set (o, filename, "backing_fmt",
                              options->format_2) < 0)
    return -1;
  o->engine.unchecked_backing = request->unchecked_backing;
  o->engine.overwrite = true;
  return 0;
}

static int
create (const struct img_options *options, struct img_create_options *o,
        uint64_t size_bytes)
{
  const char *filename = options->files[0];
  struct qcow2_error error;
  int r;

  r = qcow2_create_size (filename, size_bytes, &o->engine, &size_bytes,
                         &error);
  if (r == 0) {
    if (!options->quiet) {
      printf ("Formatting '%s', fmt=qcow2", filename);
      img_create_options_print (o, size_bytes);
      printf ("\n");
    }
    o->engine.size_bytes = QCOW2_NO_SIZE; /* SIZE_BYTES is all there is */
    r = qcow2_create (filename, size_bytes, &o->engine, &error);
  }
  if (r < 0)
    img_engine_error (&error);
  return r;
}

static int
run_request (const struct img_options *options,
             const struct request *request)
{
  struct img_create_options o;
  uint64_t size_bytes = QCOW2_NO_SIZE;
  int r = 0;

  if (options->format && strcmp (options->format, "qcow2") != 0) {
    img_error ("%s: Only images in qcow2 format are created here, not '%s'",
               options->files[0], options->format);
    return -1;
  }
  if (options->nr_files == 2)
    r = img_size_option ("image size", options->files[1], &size_bytes);
  img_create_options_init (&o);
  if (r == 0)
    r = fill_options (options, request, &o);
  if (r == 0)
    r = create (options, &o, size_bytes);
  img_create_options_clear (&o);
  return r;
}

static int
run (int argc, char **argv)
{
  struct request request = { .option_texts = NULL };
  struct img_options options;
  int r = 0;

  img_options_parse (&img_create, argc, argv,
                     IMG_FORMAT | IMG_FORMAT_2 | IMG_QUIET, own_options,
                     set_option, &request, &options);
  if (wants_help (&request))
    img_create_options_help ();
  else {
    check_usage (&options);
    r = run_request (&options, &request);
  }
  free ((void *) request.option_texts);
  img_options_clear (&options);
  return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct img_command img_create = {
  .name = "create",
  .usage = "[-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] "
    "[-o options]... filename [size]",
  .help =
    "Make a new image.  A file that is there already is overwritten, unless\n"
    "it is in use.\n"
    "\n"
    "  -f FMT                the image's format: qcow2\n"
    "  -b FILE               its backing file, relative to the image; without\n"
    "                        SIZE the new image gets the size of that\n"
    "  -F FMT                the backing file's format: qcow2 or raw\n"
    "  -u                    don't look whether the backing file is there\n"
    "  -o NAME=VALUE,...     options of the image; -o help lists them\n"
    IMG_HELP_QUIET,
  .error_status = EXIT_FAILURE,
  .run = run,
};
