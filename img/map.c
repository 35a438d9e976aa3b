/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img map: where the disk's content is. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "message.h"
#include "options.h"
#include "size.h"

#define NO_FILE_OFFSET 1        /* what the callback returns */

/*----- For people -----*/

static int
print_line (void *opaque, const struct qcow2_map_extent *e)
{
  char name[4096];

  if (e->data && !e->filename)
    return NO_FILE_OFFSET;
  if (e->data && !e->zero) {
    qcow2_error_escape (name, sizeof name, e->filename);
    printf ("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", e->offset,
            e->count, e->host_offset, name);
  }
  return 0;
}

static int
map_for_people (const struct img_image *image, uint64_t start, uint64_t end)
{
  int r = 0;

  printf ("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
  if (start < end)
    r = qcow2_map (image->view, end - start, start, print_line, NULL);
  if (r == NO_FILE_OFFSET)
    img_error ("File contains external, encrypted or compressed clusters.");
  return r;
}

/*----- For programs -----*/

static void
print_object (uint64_t start, const struct qcow2_map_extent *e)
{
  printf ("{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
          ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
          start, e->count, e->depth, e->present ? "true" : "false",
          e->zero ? "true" : "false", e->data ? "true" : "false");
  if (e->filename)
    printf (", \"offset\": %" PRIu64, e->host_offset);
  putchar ('}');
}

static int
print_member (void *opaque, const struct qcow2_map_extent *e)
{
  bool *first = opaque;

  printf (*first ? "[" : ",\n");
  print_object (e->offset, e);
  *first = false;
  return 0;
}

/* An empty range is shown as an extent without length. */
static int
map_for_programs (const struct img_image *image, uint64_t start,
                  uint64_t end)
{
  const struct qcow2_map_extent nothing = { .count = 0 };
  bool first = true;
  int r = 0;

  if (start < end)
    r = qcow2_map (image->view, end - start, start, print_member, &first);
  if (r == 0 && first) {
    putchar ('[');
    print_object (start, &nothing);
  }
  if (r == 0)
    printf ("]\n");
  return r;
}

/*----- The command -----*/

static const struct img_option own_options[] = {
  { 's', "start-offset", true },
  { 'l', "max-length", true },
  { 0, NULL, false },
};

struct range {
  uint64_t start, max_bytes;
};

static void
set_option (void *opaque, int id, const char *value)
{
  struct range *range = opaque;
  int r;

  if (id == 's')
    r = img_size_option ("start offset", value, &range->start);
  else
    r = img_size_option ("max length", value, &range->max_bytes);
  if (r < 0)
    exit (EXIT_FAILURE);
}

static int
map (const struct img_image *image, const struct range *range, bool json)
{
  uint64_t end = img_disk_bytes (image);
  int r;

  if (range->start < end && range->max_bytes < end - range->start)
    end = range->start + range->max_bytes;
  r = json ? map_for_programs (image, range->start, end) :
    map_for_people (image, range->start, end);
  if (r < 0)
    img_error ("Failed to read image metadata: %s", img_reason (-r));
  return r == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int
run (int argc, char **argv)
{
  struct range range = { 0, UINT64_MAX };
  struct img_options options;
  struct img_image image;
  int status = EXIT_FAILURE;

  img_options_parse (&img_map, argc, argv,
                     IMG_FORMAT | IMG_OUTPUT | IMG_SHARE | IMG_FILES,
                     own_options, set_option, &range, &options);
  if (options.nr_files != 1)
    img_usage_error ("Expecting one image file name");

  if (img_open (&options, options.files[0], options.format, "-f",
                options.engine.data_file, &image) == 0) {
    status = map (&image, &range, options.json);
    img_close (&image);
  }
  img_options_clear (&options);
  return status;
}

const struct img_command img_map = {
  .name = "map",
  .usage = "[-f fmt] [--start-offset=offset] [--max-length=len] "
    "[--output=ofmt] [-U] [--allow-dir=dir]... [--data-file=file] "
    "[--backing-format=fmt] filename",
  .help =
    "Show which file of the backing chain holds which part of the disk, and\n"
    "where in that file it is.\n"
    "\n"
    IMG_HELP_FORMAT
    "  -s, --start-offset=OFFSET, -l, --max-length=LEN\n"
    "                        only this part of the disk\n"
    IMG_HELP_OUTPUT
    IMG_HELP_SHARE
    IMG_HELP_FILES,
  .error_status = EXIT_FAILURE,
  .run = run,
};
