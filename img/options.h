/* SPDX-License-Identifier: BSD-3-Clause */

/* The command line of a sub-command: the options that many of them share,
 * and its own.
 */

#ifndef IMG_OPTIONS_H
#define IMG_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "command.h"
#include "qcow2.h"

/* Groups of shared options that a command may have.  All have -h, --object
 * and --image-opts (which tell that they are not supported).
 */
enum img_shared {
  IMG_FORMAT    = 1 << 0,       /* -f */
  IMG_FORMAT_2  = 1 << 1,       /* -F, of a second image */
  IMG_OUTPUT    = 1 << 2,       /* --output */
  IMG_SHARE     = 1 << 3,       /* -U */
  IMG_PROGRESS  = 1 << 4,       /* -p */
  IMG_QUIET     = 1 << 5,       /* -q */
  IMG_SRC_CACHE = 1 << 6,       /* -T */
  IMG_FILES     = 1 << 7,       /* --allow-dir, --data-file,
                                   --backing-format */
};

/* Help for them, as a part of img_command.help. */
#define IMG_HELP_FORMAT \
  "  -f FMT                the image's format: qcow2 (default) or raw\n"
#define IMG_HELP_OUTPUT \
  "  --output=human|json   for people (default) or for programs\n"
#define IMG_HELP_SHARE \
  "  -U, --force-share     open images even if they are in use; what is\n" \
  "                        read may then be inconsistent\n"
#define IMG_HELP_PROGRESS \
  "  -p                    show progress\n"
#define IMG_HELP_QUIET \
  "  -q                    print nothing but errors\n"
#define IMG_HELP_SRC_CACHE \
  "  -T CACHE              none or directsync: read past the page cache;\n" \
  "                        writeback (default), writethrough or unsafe:\n" \
  "                        through it\n"
#define IMG_HELP_FILES \
  "  --allow-dir=DIR|none  the image may name files in DIR\n" \
  "  --data-file=FILE      the image's external data file\n" \
  "  --backing-format=FMT  where the image does not tell the format of its\n" \
  "                        backing file: qcow2 or raw\n"

/* An option of one command. */
struct img_option {
  int id;                       /* its letter, or a number above 255 that is
                                   below IMG_SHARED_ID */
  const char *name;             /* of the long option, or NULL */
  bool has_value;
};

#define IMG_SHARED_ID 1024

struct img_options {
  const char *format, *format_2; /* NULL: not given */
  bool json;
  bool progress;                /* never together with quiet */
  bool quiet;

  /* Options for opening, filled in but for format. */
  struct qcow2_options engine;

  char **files;                 /* what is no option */
  int nr_files;
};

/* Called with the id and the value (or NULL) of each own option. */
typedef void img_option_fn (void *opaque, int id, const char *value);

/* Parse the command line of COMMAND, which has the SHARED groups of options
 * and OWN (ended by id 0, or NULL).  Any error is reported and ends the
 * program with status 1 (a wrong -T: with the command's error status); -h
 * ends it with status 0.
 */
extern void img_options_parse (const struct img_command *command,
                               int argc, char **argv, unsigned shared,
                               const struct img_option *own,
                               img_option_fn *fn, void *opaque,
                               struct img_options *options);

/* Free what img_options_parse allocated. */
extern void img_options_clear (struct img_options *options);

/* An image of the command line with the view of its active layer. */
struct img_image {
  const char *filename;
  struct qcow2 *image;
  struct qcow2_view *view;
};

/* Open FILENAME for reading, with FORMAT (or NULL) as the user gave it
 * behind FORMAT_OPTION, and DATA_FILE (or NULL).  Reports an error and
 * returns -1.
 */
extern int img_open (const struct img_options *options, const char *filename,
                     const char *format, const char *format_option,
                     const char *data_file, struct img_image *image);

extern void img_close (struct img_image *image);

/* The size of the disk as QEMU counts it: whole sectors of 512 bytes for
 * raw images.
 */
extern uint64_t img_disk_bytes (const struct img_image *image);

#endif /* IMG_OPTIONS_H */
