/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img snapshot: list, create, apply and delete internal snapshots. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "message.h"
#include "open-to-write.h"
#include "options.h"
#include "snapshot-list.h"
#include "vmstate.h"

enum own_id { LOAD_VMSTATE = 256, SAVE_VMSTATE };

/* What is to be done, and with which snapshot. */
struct action {
  int option;                   /* 'l', 'c', 'a', 'd', 's', or 0 */
  const char *name;
  const char *image_name;
  const char *load, *save;      /* a file for VM state, or NULL */
};

/*----- The actions -----*/

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

/* Backing files don't matter, and stay closed. */
static int
change (const struct img_options *options, const struct action *action)
{
  struct img_options alone = *options;
  struct qcow2_error error = { "" };
  struct img_image image;
  size_t i = 0;
  int r;

  alone.engine.no_backing = true;
  if (img_open_to_write (&alone, action->image_name, &image) < 0)
    return EXIT_FAILURE;
  while (actions[i].option != action->option)
    i++;
  /* A smaller disk is not applied while a view is open. */
  qcow2_view_close (image.view);
  image.view = NULL;
  r = actions[i].fn (image.image, action, &error);
  if (r < 0)
    img_error ("Could not %s snapshot '%s': %s", actions[i].verb,
               action->name, img_logged_error () ? img_logged_error () :
               error.message);
  return img_close_written (&image, r < 0) < 0 || r < 0 ? EXIT_FAILURE :
    EXIT_SUCCESS;
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
    img_snapshots_print (info);
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
    "  -U, --force-share     list or save even if the image is in use; what\n"
    "                        is read may then be inconsistent\n",
  .error_status = EXIT_FAILURE,
  .run = run,
};
