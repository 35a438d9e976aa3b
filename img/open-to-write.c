/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening an image that is to be changed. */

#include <stdio.h>
#include <string.h>

#include "message.h"
#include "open-to-write.h"

#define READ_ONLY "served read-only"

/* The engine opens what can't be written for reading, and warns: that is not
 * printed.
 */
static struct qcow2_error why_not;

static void
log_text (void *opaque, enum qcow2_log_level level, const char *text)
{
  static bool writes = true;

  if (level != QCOW2_LOG_WARNING || !strstr (text, READ_ONLY))
    img_log (&writes, level, text);
  else if (why_not.message[0] == '\0')
    snprintf (why_not.message, sizeof why_not.message, "%s", text);
}

/* Nothing is served here. */
static void
say_why_not (const char *filename)
{
  char *end = strstr (why_not.message, "; the image is " READ_ONLY);

  if (end)
    *end = '\0';
  else if (why_not.message[0] == '\0')
    snprintf (why_not.message, sizeof why_not.message,
              "it can't be written to");
  img_cut_share_advice (&why_not);
  img_open_error (filename, &why_not, NULL);
}

int
img_open_to_write (const struct img_options *options, const char *filename,
                   struct img_image *image)
{
  struct img_options to_write = *options;

  to_write.engine.writable = true;
  to_write.engine.discard = true;
  to_write.engine.log = log_text;
  if (img_open (&to_write, filename, options->format, NULL,
                options->engine.data_file, image) < 0)
    return -1;
  if (!qcow2_view_can_write (image->view)) {
    say_why_not (filename);
    img_close (image);
    return -1;
  }
  return 0;
}

int
img_close_written (struct img_image *image, bool quiet)
{
  int r;

  qcow2_view_close (image->view);
  image->view = NULL;
  r = qcow2_close (image->image);
  image->image = NULL;
  if (r < 0 && !quiet)
    img_error ("%s: %s", image->filename, img_reason (-r));
  return r < 0 ? -1 : 0;
}
