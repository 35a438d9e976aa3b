/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img check: is an image's metadata consistent?  And repairing it. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "json.h"
#include "message.h"
#include "options.h"
#include "progress.h"

/* Exit statuses besides 0. */
#define NOT_CHECKED 1
#define CORRUPT 2
#define LEAKS 3
#define NOT_SUPPORTED 63

/*----- What was found -----*/

static void
print_finding (void *opaque, const char *text)
{
  fprintf (stderr, "%s\n", text);
}

static double
percent (uint64_t part, uint64_t whole)
{
  return (double) part * 100.0 / (double) whole;
}

static void
print_problems (const struct qcow2_check_result *r)
{
  if (r->corruptions > 0)
    printf ("\n%" PRIu64 " errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may "
            "corrupt it.\n", r->corruptions);
  if (r->leaks > 0)
    printf ("\n%" PRIu64 " leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data.\n",
            r->leaks);
  if (r->check_errors > 0)
    printf ("\n%" PRIu64 " internal errors have occurred during the "
            "check.\n", r->check_errors);
}

static void
print_human (const struct qcow2_check_result *r)
{
  if (r->corruptions == 0 && r->leaks == 0 && r->check_errors == 0)
    printf ("No errors were found on the image.\n");
  else
    print_problems (r);
  if (r->total_clusters > 0 && r->allocated_clusters > 0)
    printf ("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, "
            "%.2f%% compressed clusters\n", r->allocated_clusters,
            r->total_clusters,
            percent (r->allocated_clusters, r->total_clusters),
            percent (r->fragmented_clusters, r->allocated_clusters),
            percent (r->compressed_clusters, r->allocated_clusters));
  if (r->image_end_bytes > 0)
    printf ("Image end offset: %" PRIu64 "\n", r->image_end_bytes);
}

static void
print_fixed (const struct qcow2_check_result *fixed)
{
  printf ("The following inconsistencies were found and repaired:\n\n"
          "    %" PRIu64 " leaked clusters\n"
          "    %" PRIu64 " corruptions\n\n"
          "Double checking the fixed image now...\n",
          fixed->leaks_fixed, fixed->corruptions_fixed);
}

/* Numbers that are 0 are left out. */
static void
set_count (json_t *object, const char *key, uint64_t count)
{
  if (count > 0)
    img_json_set_int (object, key, count);
}

static void
print_json (const char *filename, const struct qcow2_check_result *r,
            const struct qcow2_check_result *fixed)
{
  json_t *object = img_json_object ();

  set_count (object, "image-end-offset", r->image_end_bytes);
  set_count (object, "compressed-clusters", r->compressed_clusters);
  set_count (object, "total-clusters", r->total_clusters);
  set_count (object, "corruptions", r->corruptions);
  set_count (object, "corruptions-fixed", fixed->corruptions_fixed);
  img_json_set_int (object, "check-errors", r->check_errors);
  set_count (object, "leaks-fixed", fixed->leaks_fixed);
  set_count (object, "leaks", r->leaks);
  set_count (object, "allocated-clusters", r->allocated_clusters);
  img_json_set_string (object, "filename", filename);
  img_json_set_string (object, "format", "qcow2");
  set_count (object, "fragmented-clusters", r->fragmented_clusters);
  img_json_print (object);
  json_decref (object);
}

static int
exit_status (const struct qcow2_check_result *r)
{
  if (r->check_errors > 0) {
    img_error ("Check failed");
    return NOT_CHECKED;
  }
  return r->corruptions > 0 ? CORRUPT : r->leaks > 0 ? LEAKS : EXIT_SUCCESS;
}

/*----- The command -----*/

static const struct img_option own_options[] = {
  { 'r', NULL, true },
  { 0, NULL, false },
};

static void
set_option (void *opaque, int id, const char *value)
{
  enum qcow2_repair *repair = opaque;

  if (strcmp (value, "leaks") == 0)
    *repair = QCOW2_REPAIR_LEAKS;
  else if (strcmp (value, "all") == 0)
    *repair = QCOW2_REPAIR_ALL;
  else
    img_usage_error ("Unknown option value for -r (expecting 'leaks' or "
                     "'all'): %s", value);
}

/* What a run of the engine has told of its progress. */
struct progress {
  bool shown;
  bool begun;
  uint64_t done;
};

static void
show_progress (void *opaque, uint64_t done, uint64_t total)
{
  struct progress *p = opaque;

  if (!p->begun)
    img_progress_begin (p->shown, total);
  p->begun = true;
  img_progress_add (done - p->done);
  p->done = done;
}

/* Check once.  Returns 0, or reports an error. */
static int
check_once (const struct img_options *options, struct qcow2 *image,
            enum qcow2_repair repair, struct qcow2_check_result *result)
{
  struct progress progress = { .shown = options->progress };
  const struct qcow2_check_options how = {
    .repair = repair, .found = print_finding, .progress = show_progress,
    .opaque = &progress,
  };
  struct qcow2_error error = { "" };
  int r = qcow2_check (image, &how, result, &error);

  if (progress.begun)
    img_progress_end ();
  if (r < 0)
    img_error ("Check failed: %s", error.message);
  return r;
}

static int
check (const struct img_options *options, struct qcow2 *image,
       enum qcow2_repair repair)
{
  struct qcow2_check_result result, fixed;
  int r = check_once (options, image, repair, &result);

  if (r < 0)
    return NOT_CHECKED;
  fixed = result;
  if (fixed.corruptions_fixed > 0 || fixed.leaks_fixed > 0) {
    if (!options->quiet && !options->json)
      print_fixed (&fixed);
    if (check_once (options, image, QCOW2_REPAIR_NONE, &result) < 0)
      return NOT_CHECKED;
  }
  if (!options->quiet) {
    if (options->json)
      print_json (options->files[0], &result, &fixed);
    else
      print_human (&result);
  }
  return exit_status (&result);
}

/* Where the image is in use, a repair would destroy it. */
static void
prepare_options (struct img_options *options, enum qcow2_repair repair)
{
  if (options->nr_files != 1)
    img_usage_error ("Expecting one image file name");
  if (repair != QCOW2_REPAIR_NONE && !options->engine.lock)
    img_usage_error ("-U can't be used with -r: an image that is in use can "
                     "only be checked");
  options->engine.check = true;
  options->engine.writable = repair != QCOW2_REPAIR_NONE;
  options->engine.no_backing = true;
}

static int
run (int argc, char **argv)
{
  enum qcow2_repair repair = QCOW2_REPAIR_NONE;
  struct img_options options;
  struct img_image image;
  int status = NOT_CHECKED;

  img_options_parse (&img_check, argc, argv,
                     IMG_FORMAT | IMG_OUTPUT | IMG_SHARE | IMG_PROGRESS |
                     IMG_QUIET | IMG_SRC_CACHE | IMG_FILES,
                     own_options, set_option, &repair, &options);
  prepare_options (&options, repair);
  if (img_open (&options, options.files[0], options.format, "-f",
                options.engine.data_file, &image) == 0) {
    if (qcow2_is_raw (image.image)) {
      img_error ("This image format does not support checks");
      status = NOT_SUPPORTED;
    }
    else
      status = check (&options, image.image, repair);
    img_close (&image);
  }
  img_options_clear (&options);
  return status;
}

const struct img_command img_check = {
  .name = "check",
  .usage = "[-f fmt] [--output=ofmt] [-r leaks|all] [-p] [-q] "
    "[-T src_cache] [-U] [--allow-dir=dir]... [--data-file=file] filename",
  .help =
    "Tell whether the metadata of an image is consistent, and how much of\n"
    "the disk is allocated.  Only with -r the image is changed.\n"
    "\n"
    "  -r leaks              free clusters that nothing refers to\n"
    "  -r all                repair all that can be repaired\n"
    IMG_HELP_FORMAT
    IMG_HELP_OUTPUT
    IMG_HELP_PROGRESS
    "  -q                    print nothing but what is wrong\n"
    IMG_HELP_SRC_CACHE
    IMG_HELP_SHARE
    "  --allow-dir=DIR|none  the image may name a data file in DIR\n"
    "  --data-file=FILE      the image's external data file\n",
  .error_status = NOT_CHECKED,
  .run = run,
};
