/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img: finding the sub-command. */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "message.h"

#define IMG_COMMAND_POINTER(name) &img_##name,

static const struct img_command *const commands[] = {
  IMG_COMMANDS (IMG_COMMAND_POINTER)
};

#define NR_COMMANDS (sizeof commands / sizeof commands[0])

static void
print_version (void)
{
  printf ("%s version %s\n", IMG_NAME, PACKAGE_VERSION);
}

void
img_help (const struct img_command *command)
{
  size_t i;

  if (command) {
    printf ("usage: %s %s %s\n\n%s", IMG_NAME, command->name, command->usage,
            command->help);
    return;
  }
  print_version ();
  printf ("usage: %s [standard options] command [command options]\n"
          "Tool for qcow2 images\n"
          "\n"
          "    '-h', '--help'       display this help and exit\n"
          "    '-V', '--version'    output version information and exit\n"
          "\n"
          "Command syntax:\n", IMG_NAME);
  for (i = 0; i < NR_COMMANDS; ++i)
    printf ("  %s %s\n", commands[i]->name, commands[i]->usage);
  printf ("\n"
          "'%s COMMAND --help' explains the options of a command, the manual "
          "%s(1)\neverything.\n", IMG_NAME, IMG_NAME);
}

/* Options before the command.  Returns the index of the first argument
 * that is none.
 */
static int
standard_options (int argc, char **argv)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "trace", required_argument, NULL, 'T' },
    { NULL, 0, NULL, 0 },
  };
  int c;

  opterr = 0;
  while ((c = getopt_long (argc, argv, "+:hVT:", options, NULL)) != -1) {
    switch (c) {
    case 'h':
      img_help (NULL);
      exit (EXIT_SUCCESS);
    case 'V':
      print_version ();
      exit (EXIT_SUCCESS);
    case 'T':
      img_usage_error ("%s: there is nothing to trace", argv[optind - 1]);
    case ':':
      img_usage_error ("missing argument for option '%s'", argv[optind - 1]);
    default:
      img_usage_error ("unrecognized option '%s'", argv[optind - 1]);
    }
  }
  return optind;
}

/* What has been printed must have got out, or a script goes on with half
 * of it.
 */
static int
check_stdout (int status)
{
  if (fflush (stdout) == 0 && !ferror (stdout))
    return status;
  img_error ("can't write to the standard output: %m");
  return status == 0 ? EXIT_FAILURE : status;
}

int
main (int argc, char **argv)
{
  int first = standard_options (argc, argv);
  size_t i;

  if (first >= argc)
    img_usage_error ("Not enough arguments");
  for (i = 0; i < NR_COMMANDS; ++i) {
    if (strcmp (commands[i]->name, argv[first]) == 0) {
      optind = 0;               /* getopt begins anew */
      return check_stdout (commands[i]->run (argc - first, argv + first));
    }
  }
  img_usage_error ("Command not found: %s", argv[first]);
}
