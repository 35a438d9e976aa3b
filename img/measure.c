/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img measure: how large will a new image be? */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "json.h"
#include "measure-options.h"
#include "message.h"
#include "options.h"
#include "size.h"

enum { SIZE = 256 };

static const struct img_option own_options[] = {
  { 'O', NULL, true },
  { 'o', NULL, true },
  { 'l', NULL, true },
  { SIZE, "size", true },
  { 0, NULL, false },
};

/* What the command line says. */
struct request {
  const char *format;           /* of the new image */
  char *option_text;            /* all of -o, separated by commas */
  const char *snapshot;
  bool has_size;
  uint64_t size_bytes;
};

struct answer {
  struct qcow2_measure size;
  bool has_bitmaps;
  uint64_t bitmap_bytes;
};

static void
add_option_text (struct request *request, const char *value)
{
  char *before = request->option_text;

  if (asprintf (&request->option_text, "%s%s%s", before ? before : "",
                before ? "," : "", value) == -1) {
    img_error ("out of memory");
    exit (EXIT_FAILURE);
  }
  free (before);
}

static void
set_option (void *opaque, int id, const char *value)
{
  struct request *request = opaque;

  switch (id) {
  case 'O': request->format = value; break;
  case 'o': add_option_text (request, value); break;
  case 'l': request->snapshot = value; break;
  case SIZE:
    if (img_size_option ("image size", value, &request->size_bytes) < 0)
      exit (EXIT_FAILURE);
    request->has_size = true;
    break;
  }
}

static void
check_usage (const struct img_options *options,
             const struct request *request)
{
  const char *problem = NULL;

  if (options->nr_files > 1)
    problem = "At most one filename argument is allowed.";
  else if (options->nr_files == 0 && (options->format || request->snapshot))
    problem = "--image-opts, -f, and -l require a filename argument.";
  else if (options->nr_files == 0 && !request->has_size)
    problem = "Either --size N or one filename must be specified.";
  else if (options->nr_files == 1 && request->has_size)
    problem = "--size N cannot be used together with a filename.";
  if (problem) {
    img_error ("%s", problem);
    exit (EXIT_FAILURE);
  }
}

/*----- Measuring -----*/

/* A snapshot's id or name, or "snapshot.id=ID" or "snapshot.name=NAME", as
 * qemu-img takes it.  Replaces the view.
 */
static int
choose_snapshot (struct img_image *image, const char *text)
{
  static const char by_id[] = "snapshot.id=", by_name[] = "snapshot.name=";
  struct qcow2_snapshot_info info;
  struct qcow2_error error;
  size_t i, nr = qcow2_nr_snapshots (image->image);
  int found = -1;

  if (strncmp (text, by_id, strlen (by_id)) != 0 &&
      strncmp (text, by_name, strlen (by_name)) != 0)
    found = qcow2_snapshot_find (image->image, text);
  for (i = 0; i < nr && found < 0; ++i) {
    qcow2_snapshot_get (image->image, i, &info);
    if ((strncmp (text, by_id, strlen (by_id)) == 0 &&
         strcmp (text + strlen (by_id), info.id) == 0) ||
        (strncmp (text, by_name, strlen (by_name)) == 0 &&
         strcmp (text + strlen (by_name), info.name) == 0))
      found = (int) i;
  }
  if (found < 0) {
    img_error ("Failed to load snapshot: Can't find snapshot");
    return -1;
  }
  qcow2_view_close (image->view);
  if (qcow2_view_open (image->image, (size_t) found, &image->view,
                       &error) < 0) {
    img_error ("Failed to load snapshot: %s", error.message);
    return -1;
  }
  return 0;
}

/* IMAGE is NULL for an empty disk of SIZE_BYTES. */
static int
measure_disk (const struct img_image *image, uint64_t size_bytes,
              const struct img_measure_options *o, struct answer *answer)
{
  struct qcow2_measure_options engine;
  struct qcow2_error error;
  int r;

  if (!o->is_qcow2) {
    answer->size.required_bytes = size_bytes;
    answer->size.fully_allocated_bytes = size_bytes;
    return 0;
  }
  img_measure_options_engine (o, &engine);
  /* How much the backing file will give is not known. */
  if (image && o->create.backing_file)
    engine.all_data = true;
  r = qcow2_measure (image ? image->view : NULL, size_bytes, &engine,
                     &answer->size, &error);
  if (r == -EFBIG)
    img_error ("%s", error.message);
  else if (r < 0)
    img_error ("%s: %s: %s", image->filename, error.message, img_reason (-r));
  return r;
}

static int
measure_bitmaps (const struct img_options *options,
                 const struct img_measure_options *o, struct answer *answer)
{
  struct qcow2_options engine = options->engine;
  struct qcow2_error error;
  struct qcow2_info *info;

  if (!o->is_qcow2 || o->create.version < 3)
    return 0;
  engine.format = options->format;
  if (qcow2_info_read (options->files[0], &engine, false, &info,
                       &error) < 0) {
    img_open_error (options->files[0], &error, NULL);
    return -1;
  }
  answer->has_bitmaps = !info->is_raw && info->version >= 3;
  if (answer->has_bitmaps)
    answer->bitmap_bytes =
      qcow2_measure_bitmaps (info, o->create.cluster_bytes);
  qcow2_info_free (info);
  return 0;
}

static int
measure_file (const struct img_options *options,
              const struct request *request,
              const struct img_measure_options *o, struct answer *answer)
{
  struct img_image image;
  int r;

  if (img_open (options, options->files[0], options->format, "-f",
                options->engine.data_file, &image) < 0)
    return -1;
  r = request->snapshot ? choose_snapshot (&image, request->snapshot) : 0;
  if (r == 0)
    r = measure_disk (&image, img_disk_bytes (&image), o, answer);
  img_close (&image);
  return r == 0 ? measure_bitmaps (options, o, answer) : r;
}

static int
measure_with (const struct img_options *options,
              const struct request *request, struct img_measure_options *o,
              struct answer *answer)
{
  if (request->option_text &&
      img_measure_options_parse (o, request->option_text) < 0)
    return -1;
  if (img_measure_options_check (o) < 0)
    return -1;
  if (options->nr_files == 1)
    return measure_file (options, request, o, answer);
  return measure_disk (NULL, (request->size_bytes + 511) / 512 * 512, o,
                       answer);
}

static int
measure (const struct img_options *options, const struct request *request,
         struct answer *answer)
{
  struct img_measure_options o;
  int r;

  r = img_measure_options_init (&o, request->format);
  if (r == 0)
    r = measure_with (options, request, &o, answer);
  img_measure_options_clear (&o);
  return r;
}

/*----- The command -----*/

static void
print_human (const struct answer *answer)
{
  printf ("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
          answer->size.required_bytes, answer->size.fully_allocated_bytes);
  if (answer->has_bitmaps)
    printf ("bitmaps size: %" PRIu64 "\n", answer->bitmap_bytes);
}

static void
print_json (const struct answer *answer)
{
  json_t *object = img_json_object ();

  if (answer->has_bitmaps)
    img_json_set_int (object, "bitmaps", answer->bitmap_bytes);
  img_json_set_int (object, "required", answer->size.required_bytes);
  img_json_set_int (object, "fully-allocated",
                    answer->size.fully_allocated_bytes);
  img_json_print (object);
  json_decref (object);
}

static int
run (int argc, char **argv)
{
  struct request request = { .format = "raw" };
  struct answer answer = { .has_bitmaps = false };
  struct img_options options;
  int r;

  img_options_parse (&img_measure, argc, argv,
                     IMG_FORMAT | IMG_OUTPUT | IMG_SHARE | IMG_FILES,
                     own_options, set_option, &request, &options);
  check_usage (&options, &request);
  r = measure (&options, &request, &answer);
  if (r == 0) {
    if (options.json)
      print_json (&answer);
    else
      print_human (&answer);
  }
  free (request.option_text);
  img_options_clear (&options);
  return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct img_command img_measure = {
  .name = "measure",
  .usage = "[--output=ofmt] [-O output_fmt] [-o options] [--size N | "
    "[-f fmt] [-l snapshot] [-U] [--allow-dir=dir]... [--data-file=file] "
    "[--backing-format=fmt] filename]",
  .help =
    "Tell how large a new image will be: an empty one (--size), or one that\n"
    "holds the content of an image.\n"
    "\n"
    "  -O FMT                the new image's format: raw (default) or qcow2\n"
    "  -o NAME=VALUE,...     options of the new image, as for qemu-img create\n"
    "  --size N              the size of the disk, in bytes or with a suffix\n"
    "                        k, M, G, T, P or E\n"
    "  -l SNAPSHOT           the content of this internal snapshot\n"
    IMG_HELP_FORMAT
    IMG_HELP_OUTPUT
    IMG_HELP_SHARE
    IMG_HELP_FILES,
  .error_status = EXIT_FAILURE,
  .run = run,
};
