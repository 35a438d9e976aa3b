/* SPDX-License-Identifier: BSD-3-Clause */

/* The sub-commands of qcow2-img.
 *
 * A sub-command is a file that defines `const struct img_command img_NAME',
 * and a line here.
 */

#ifndef IMG_COMMAND_H
#define IMG_COMMAND_H

#define IMG_COMMANDS(COMMAND) \
  COMMAND (check) \
  COMMAND (compare) \
  COMMAND (create) \
  COMMAND (info) \
  COMMAND (map) \
  COMMAND (measure) \
  COMMAND (resize) \
  COMMAND (snapshot)

struct img_command {
  const char *name;
  const char *usage;            /* options and arguments, on one line */
  const char *help;             /* what it does, and each option */
  int error_status;             /* exit status where an image or an option
                                   is wrong */

  /* ARGV[0] is the name.  Returns the exit status. */
  int (*run) (int argc, char **argv);
};

#define IMG_DECLARE_COMMAND(name) extern const struct img_command img_##name;
IMG_COMMANDS (IMG_DECLARE_COMMAND)

/* Print the usage and help of a command, or of them all if it is NULL. */
extern void img_help (const struct img_command *command);

#endif /* IMG_COMMAND_H */
