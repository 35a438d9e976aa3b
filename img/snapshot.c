/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img snapshot: list, create, apply and delete internal snapshots. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "message.h"
#include "options.h"
#include "snapshot-line.h"
#include "vmstate.h"

enum own_id { LOAD_VMSTATE = 256, SAVE_VMSTATE };

/* What is to be done, and with which snapshot. */
struct action {
  int option;                   /* 'l', 'c', 'a', 'd', 's', or 0 */
  const char *name;
  const char *image_name;
  const char *load, *save;      /* a file for VM state, or NULL */
};

/*----- Opening -----*/

/* An image that can't be written is opened for reading, with a warning that
 * says why.
 */
struct opening {
  bool read_only;
  bool has_reason;              /* img_reason knows more than an errno */
  struct qcow2_error why;
};

static void
log_text (void *opaque, enum qcow2_log_level level, const char *text)
{
  static bool writes = true;
  struct opening *o = opaque;
  const char *end = strstr (text, " served read-only");

  o->has_reason |= level == QCOW2_LOG_ERROR;
  if (level != QCOW2_LOG_WARNING || !end)
    img_log (&writes, level, text);
  else if (!o->read_only) {
    o->read_only = true;
    end = strstr (text, "; the image is served read-only");
    snprintf (o->why.message, sizeof o->why.message, "%.*s",
              end ? (int) (end - text) : (int) strlen (text), text);
  }
}

static struct qcow2 *
open_image (const struct img_options *options, struct opening *o)
{
  struct qcow2_options engine = options->engine;
  struct qcow2 *image = NULL;

  engine.no_backing = true;
  engine.writable = true;
  engine.discard = true;
  engine.log = log_text;
  engine.opaque = o;
  if (qcow2_open (options->files[0], &engine, &image, &o->why) == 0 &&
      !o->read_only)
    return image;
  img_open_error (options->files[0], &o->why, NULL);
  qcow2_close (image);
  return NULL;
}

/*----- The actions -----*/

static void
list (const struct qcow2_info *info)
{
  size_t i;

  if (info->nr_snapshots == 0)
    return;
  printf ("Snapshot list:\n");
  img_snapshot_print_heading ();
  for (i = 0; i < info->nr_snapshots; ++i)
    img_snapshot_print (&info->snapshots[i]);
}

static int
create (struct qcow2 *image, const struct action *action,
        struct qcow2_error *error)
{
  struct qcow2_snapshot_params params = { .name = action->name };
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  params.date_sec = (uint32_t) now.tv_sec;
  params.date_nsec = (uint32_t) (now.tv_nsec / 1000 * 1000);
  if (action->load)
    return img_vmstate_create (image, action->image_name, &params,
                               action->load, error);
  return qcow2_snapshot_create (image, &params, error);
}

/* As qemu-img finds them: an id comes first here, then a name. */
static int
apply (struct qcow2 *image, const struct action *action,
       struct qcow2_error *error)
{
  int index = qcow2_snapshot_find (image, action->name);

  if (index < 0)
    return qcow2_error_set (error, ENOENT, "Failed to load snapshot: %s",
                            strerror (ENOENT));
  return qcow2_snapshot_apply (image, (size_t) index, error);
}

/* ... and only a name here. */
static int
delete (struct qcow2 *image, const struct action *action,
        struct qcow2_error *error)
{
  int index = qcow2_snapshot_find_name (image, action->name);

  if (index < 0)
    return qcow2_error_set (error, ENOENT, "snapshot not found");
  return qcow2_snapshot_delete (image, (size_t) index, error);
}

static const struct {
  int option;
  const char *verb;
  int (*fn) (struct qcow2 *image, const struct action *action,
             struct qcow2_error *error);
} actions[] = {
  { 'c', "create", create },
  { 'a', "apply", apply },
  { 'd', "delete", delete },
};

static int
change (const struct img_options *options, const struct action *action)
{
  struct opening opening = { .read_only = false };
  struct qcow2_error error = { "" };
  struct qcow2 *image = open_image (options, &opening);
  size_t i = 0;
  int r, r2;

  if (!image)
    return EXIT_FAILURE;
  while (actions[i].option != action->option)
    i++;
  r = actions[i].fn (image, action, &error);
  r2 = qcow2_close (image);
  if (r < 0)
    img_error ("Could not %s snapshot '%s': %s", actions[i].verb,
               action->name,
               opening.has_reason ? img_reason (-r) : error.message);
  else if (r2 < 0)
    img_error ("Could not %s snapshot '%s' completely: %s", actions[i].verb,
               action->name, img_reason (-r2));
  return r < 0 || r2 < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* The image is only read. */
static int
save_vmstate (const struct img_options *options, const struct action *action)
{
  struct qcow2_options engine = options->engine;
  struct qcow2_error error = { "" };
  struct qcow2 *image;
  int r;

  engine.no_backing = true;
  if (qcow2_open (action->image_name, &engine, &image, &error) < 0) {
    img_open_error (action->image_name, &error, NULL);
    return EXIT_FAILURE;
  }
  r = img_vmstate_save (image, action->image_name, action->name, action->save,
                        &error);
  qcow2_close (image);
  if (r == 0)
    return EXIT_SUCCESS;
  img_error ("Could not save the VM state of snapshot '%s': %s", action->name,
             error.message);
  return EXIT_FAILURE;
}

/*----- The command -----*/

static const struct img_option own_options[] = {
  { 'l', NULL, false },
  { 'a', NULL, true },
  { 'c', NULL, true },
  { 'd', NULL, true },
  { 's', NULL, true },
  { LOAD_VMSTATE, "load-vmstate", true },
  { SAVE_VMSTATE, "save-vmstate", true },
  { 0, NULL, false },
};

static void
set_option (void *opaque, int id, const char *value)
{
  struct action *action = opaque;

  if (id == LOAD_VMSTATE) {
    action->load = value;
    return;
  }
  if (id == SAVE_VMSTATE) {
    action->save = value;
    return;
  }
  if (action->option)
    img_usage_error ("Cannot mix '-l', '-a', '-c', '-d', '-s'");
  action->option = id;
  action->name = value;
}

static void
check_vmstate_options (const struct action *action)
{
  if (action->option == 's' && !action->save)
    img_usage_error ("-s needs --save-vmstate=FILE: where to write the VM "
                     "state");
  if (action->save && action->option != 's')
    img_usage_error ("--save-vmstate needs -s SNAPSHOT: whose VM state to "
                     "write");
  if (action->load && action->option != 'c')
    img_usage_error ("--load-vmstate needs -c NAME: the snapshot that gets "
                     "the VM state");
}

/* A data file need not be opened to say that it is in the way. */
static int
look (const struct img_options *options, const struct action *action)
{
  struct qcow2_error error = { "" };
  struct qcow2_info *info;
  int status = EXIT_SUCCESS;

  if (qcow2_info_read (options->files[0], &options->engine, false, &info,
                       &error) < 0) {
    img_open_error (options->files[0], &error, NULL);
    return EXIT_FAILURE;
  }
  if (action->option == 'l')
    list (info);
  else if (action->option && info->external_data) {
    img_error ("Could not %s the snapshots of '%s': an image with an "
               "external data file can't have internal snapshots",
               action->option == 's' ? "read" : "change",
               options->files[0]);
    status = EXIT_FAILURE;
  }
  qcow2_info_free (info);
  return status;
}

static int
run (int argc, char **argv)
{
  struct img_options options;
  struct action action = { .option = 0 };
  int status;

  img_options_parse (&img_snapshot, argc, argv, IMG_SHARE | IMG_QUIET,
                     own_options, set_option, &action, &options);
  if (options.nr_files != 1)
    img_usage_error ("Expecting one image file name");
  action.image_name = options.files[0];
  check_vmstate_options (&action);
  if (!options.engine.lock && action.option && action.option != 'l' &&
      action.option != 's') {
    img_error ("Could not open '%s': force-share=on can only be used with "
               "read-only images", options.files[0]);
    return EXIT_FAILURE;
  }

  status = look (&options, &action);
  if (status == EXIT_SUCCESS && action.option == 's')
    status = save_vmstate (&options, &action);
  else if (status == EXIT_SUCCESS && action.option && action.option != 'l')
    status = change (&options, &action);
  img_options_clear (&options);
  return status;
}

const struct img_command img_snapshot = {
  .name = "snapshot",
  .usage = "[-U] [-q] [-l | -a snapshot | -c snapshot [--load-vmstate=file] | "
    "-d snapshot | -s snapshot --save-vmstate=file] filename",
  .help =
    "List or change the internal snapshots of an image.\n"
    "\n"
    "  -l                    list them\n"
    "  -c NAME               take one of the disk as it is now\n"
    "  -a ID|NAME            give the disk the content of a snapshot\n"
    "  -d NAME               delete one\n"
    "  -s ID|NAME            write its VM state to the file of --save-vmstate\n"
    "  --save-vmstate=FILE   with -s; - is the standard output\n"
    "  --load-vmstate=FILE   with -c: the snapshot gets the VM state in FILE;\n"
    "                        - is the standard input\n"
    IMG_HELP_QUIET
    "  -U, --force-share     list or save even if the image is in use; what is\n"
    "                        read may then be inconsistent\n",
  .error_status = EXIT_FAILURE,
  .run = run,
};
