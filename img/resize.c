/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img resize: another size for a disk. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "message.h"
#include "open-to-write.h"
#include "size.h"

enum own_id { PREALLOCATION = 256, SHRINK };

struct request {
  const char *preallocation_text; /* NULL: not given */
  enum qcow2_preallocation preallocation;
  bool shrink;
};

/* How the new size is told. */
struct wanted {
  int sign;                     /* 0: BYTES is the new size */
  uint64_t bytes;
};

static const struct img_option own_options[] = {
  { PREALLOCATION, "preallocation", true },
  { SHRINK, "shrink", false },
  { 0, NULL, false },
};

static void
set_option (void *opaque, int id, const char *value)
{
  struct request *request = opaque;

  switch (id) {
  case PREALLOCATION: request->preallocation_text = value; break;
  case SHRINK: request->shrink = true; break;
  }
}

static int
set_preallocation (struct request *request)
{
  static const char *const names[] = { "off", "metadata", "falloc", "full" };
  size_t i;

  if (!request->preallocation_text)
    return 0;
  for (i = 0; i < sizeof names / sizeof names[0]; ++i)
    if (strcmp (request->preallocation_text, names[i]) == 0) {
      request->preallocation = (enum qcow2_preallocation) i;
      return 0;
    }
  img_error ("Invalid preallocation mode '%s'", request->preallocation_text);
  return -1;
}

/*----- The size -----*/

static int
parse_size (const char *text, struct wanted *wanted)
{
  wanted->sign = *text == '+' ? 1 : *text == '-' ? -1 : 0;
  return img_size_option ("image size", wanted->sign ? text + 1 : text,
                          &wanted->bytes);
}

static int
new_size (const struct wanted *wanted, uint64_t old_bytes, uint64_t *bytes)
{
  uint64_t n = wanted->bytes;

  if (wanted->sign > 0)
    n += old_bytes;
  if (wanted->sign < 0)
    n = n < old_bytes ? old_bytes - n : 0;
  if (n == 0 || n > INT64_MAX) {
    img_error ("New image size must be positive");
    return -1;
  }
  *bytes = n;
  return 0;
}

static int
check_request (const struct request *request, uint64_t old_bytes,
               uint64_t new_bytes)
{
  if (new_bytes <= old_bytes &&
      request->preallocation != QCOW2_PREALLOCATION_OFF) {
    img_error ("Preallocation can only be used for growing images");
    return -1;
  }
  if (new_bytes < old_bytes && !request->shrink) {
    img_error ("Use the --shrink option to perform a shrink operation.");
    img_error ("warning: Shrinking an image will delete all data beyond the "
               "shrunken image's end. Before performing such an operation, "
               "make sure there is no important data there.");
    return -1;
  }
  if (new_bytes % 512 != 0) {
    img_error ("The new size must be a multiple of 512");
    return -1;
  }
  return 0;
}

/*----- The command -----*/

/* The disk, and not more: the view is closed, so that the image comes to rest
 * with its new size.
 */
static int
resize (struct img_image *image, const struct request *request,
        const struct wanted *wanted)
{
  uint64_t old_bytes = qcow2_view_size (image->view), new_bytes;
  struct qcow2_error error;
  int r = new_size (wanted, old_bytes, &new_bytes);

  if (r == 0)
    r = check_request (request, old_bytes, new_bytes);
  if (r < 0)
    return r;
  qcow2_view_close (image->view);
  image->view = NULL;
  r = qcow2_resize (image->image, new_bytes, request->preallocation,
                    request->shrink, &error);
  if (r < 0)
    img_engine_error (&error);
  return r;
}

static int
resize_file (const struct img_options *options,
             const struct request *request, const struct wanted *wanted)
{
  const char *filename = options->files[0];
  struct img_image image;
  int r;

  if (options->format && strcmp (options->format, "qcow2") != 0) {
    img_error ("%s: Only images in qcow2 format are resized here, not '%s'",
               filename, options->format);
    return -1;
  }
  if (img_open_to_write (options, filename, &image) < 0)
    return -1;
  r = resize (&image, request, wanted);
  return img_close_written (&image, r < 0) < 0 ? -1 : r;
}

static int
run (int argc, char **argv)
{
  struct request request = { .shrink = false };
  struct img_options options;
  struct wanted wanted;
  const char *size = NULL;
  int r;

  /* The last argument, even if it looks like an option: "-1G". */
  if (argc > 2)
    size = argv[--argc];
  img_options_parse (&img_resize, argc, argv,
                     IMG_FORMAT | IMG_QUIET | IMG_FILES, own_options,
                     set_option, &request, &options);
  r = set_preallocation (&request);
  if (r == 0 && !size)
    img_usage_error ("Not enough arguments");
  if (r == 0 && options.nr_files != 1)
    img_usage_error ("Expecting image file name and size");
  if (r == 0)
    r = parse_size (size, &wanted);
  if (r == 0)
    r = resize_file (&options, &request, &wanted);
  if (r == 0 && !options.quiet)
    printf ("Image resized.\n");
  img_options_clear (&options);
  return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct img_command img_resize = {
  .name = "resize",
  .usage = "[-q] [-f fmt] [--preallocation=prealloc] [--shrink] "
    "[--allow-dir=dir]... [--data-file=file] [--backing-format=fmt] "
    "filename [+|-]size",
  .help =
    "Give the disk another size, or one that is larger or smaller by so much.\n"
    "\n"
    "  --shrink              the disk may become smaller: what is behind its\n"
    "                        new end is lost\n"
    "  --preallocation=MODE  take the space of what is added: off (default),\n"
    "                        metadata (map it), falloc (reserve it) or full\n"
    "                        (write zeros)\n"
    "  -f FMT                the image's format: qcow2\n"
    IMG_HELP_QUIET
    IMG_HELP_FILES,
  .error_status = EXIT_FAILURE,
  .run = run,
};
