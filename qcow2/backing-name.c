/* SPDX-License-Identifier: BSD-3-Clause */

/* The names by which an image refers to its backing or data file.
 *
 * Such a name is QEMU's: a path, or a path behind the prefix of a
 * protocol, or "json:" and an object with the options of a block
 * device.  Only what comes down to a local file is understood; anything
 * else is refused by name, since an option that is passed over (an
 * offset, a password) would make another disk of it.
 *
 * A relative path is relative to the image in every spelling.  QEMU
 * does so for plain paths and takes the others as relative to its
 * current directory, which a server that went into the background has
 * not got.
 */

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "backing-name.h"

/* The members of a json: object that are understood.  QEMU takes
 * {"file":{"driver":...}} and {"file.driver":...} for the same.
 */
enum member {
  DRIVER,
  FILENAME,
  FILE_DRIVER,                  /* from here on, below "file" */
  FILE_FILENAME,
  NR_MEMBERS
};

static const char *const member_names[NR_MEMBERS] = {
  "driver", "filename", "file.driver", "file.filename",
};

static int
no_memory (struct qcow2_error *error)
{
  return qcow2_error_set (error, ENOMEM, "%s", strerror (ENOMEM));
}

/* The part of NAME behind PREFIX, or NULL if it begins otherwise. */
static const char *
after_prefix (const char *name, const char *prefix)
{
  size_t len = strlen (prefix);

  return strncmp (name, prefix, len) == 0 ? name + len : NULL;
}

/* A colon before any slash ends a protocol, perhaps an empty one. */
static bool
has_protocol (const char *name)
{
  return name[strcspn (name, ":/")] == ':';
}

static int
set_path (struct backing_name *out, const char *path,
          const char *image_filename, struct qcow2_error *error)
{
  const char *slash = strrchr (image_filename, '/');
  size_t dir_len = slash && path[0] != '/' ? slash + 1 - image_filename : 0;
  size_t path_len = strlen (path);

  if (path_len == 0)
    return qcow2_error_set (error, EINVAL, "the file name is empty");

  out->path = malloc (dir_len + path_len + 1);
  if (!out->path)
    return no_memory (error);
  memcpy (out->path, image_filename, dir_len);
  memcpy (out->path + dir_len, path, path_len + 1);
  return 0;
}

/*----- json: -----*/

/* QEMU's JSON has strings in single quotes, too, which people like on a
 * command line, from where they get into images.  Returns the text in
 * standard JSON, malloced, or NULL.
 */
static char *
standard_json (const char *text)
{
  char *standard = malloc (2 * strlen (text) + 1);
  char *q = standard;
  char quote = '\0';            /* of the string that we are in */

  if (!standard)
    return NULL;

  for (; *text; ++text) {
    if (quote && text[0] == '\\' && text[1]) {
      if (text[1] != '\'')
        *q++ = '\\';
      *q++ = *++text;
    }
    else if (quote ? *text == quote : *text == '"' || *text == '\'') {
      quote = quote ? '\0' : *text;
      *q++ = '"';
    }
    else {
      if (*text == '"')         /* plain within single quotes */
        *q++ = '\\';
      *q++ = *text;
    }
  }
  *q = '\0';
  return standard;
}

/* Which member KEY is, in the object "file" or in the one around it;
 * NR_MEMBERS for an unknown one.
 */
static enum member
find_member (const char *key, bool in_file)
{
  enum member i = in_file ? FILE_DRIVER : DRIVER;

  for (; i < NR_MEMBERS; ++i) {
    const char *name = member_names[i];

    if (strcmp (key, in_file ? after_prefix (name, "file.") : name) == 0)
      break;
  }
  return i;
}

/* Collect the members of OBJECT; VALUES point into it. */
static int
read_members (json_t *object, bool in_file, const char *values[NR_MEMBERS],
              struct qcow2_error *error)
{
  const char *key;
  json_t *value;

  json_object_foreach (object, key, value) {
    enum member member = find_member (key, in_file);

    if (!in_file && strcmp (key, "file") == 0) {
      int r;

      if (!json_is_object (value))
        return qcow2_error_set (error, EINVAL, "\"file\" is no object");
      r = read_members (value, true, values, error);
      if (r < 0)
        return r;
      continue;
    }

    if (member == NR_MEMBERS)
      return qcow2_error_set (error, ENOTSUP,
                              "the option \"%s%s\" is not supported",
                              in_file ? "file." : "", key);
    if (!json_is_string (value))
      return qcow2_error_set (error, EINVAL, "\"%s\" is no string",
                              member_names[member]);
    if (values[member])
      return qcow2_error_set (error, EINVAL, "\"%s\" is there twice",
                              member_names[member]);
    values[member] = json_string_value (value);
  }
  return 0;
}

static bool
is_file_driver (const char *driver)
{
  return strcmp (driver, "file") == 0 || strcmp (driver, "host_device") == 0;
}

static bool
is_format_driver (const char *driver)
{
  return strcmp (driver, "qcow2") == 0 || strcmp (driver, "raw") == 0;
}

/* Either a driver for files with a file name, or a driver for a format
 * over that.  The inner driver is a file where it is not said; the
 * format is left to the image where it is not said.
 */
static int
use_members (const char *const values[NR_MEMBERS],
             const char *image_filename, struct backing_name *out,
             struct qcow2_error *error)
{
  const char *driver = values[DRIVER];
  bool is_plain = driver && is_file_driver (driver);
  enum member unused;
  const char *file_driver, *filename;

  if (driver && !is_plain && !is_format_driver (driver))
    return qcow2_error_set (error, ENOTSUP,
                            "the driver \"%s\" is not supported", driver);
  file_driver = values[FILE_DRIVER];
  if (!is_plain && file_driver && !is_file_driver (file_driver))
    return qcow2_error_set (error, ENOTSUP,
                            "the driver \"%s\" is not supported below "
                            "\"file\"", file_driver);

  for (unused = FILENAME; unused < NR_MEMBERS; ++unused)
    if (values[unused] && (unused == FILENAME) != is_plain)
      return qcow2_error_set (error, EINVAL,
                              "\"%s\" does not go with the driver \"%s\"",
                              member_names[unused],
                              driver ? driver : "(none)");

  filename = values[is_plain ? FILENAME : FILE_FILENAME];
  if (!filename)
    return qcow2_error_set (error, EINVAL, "there is no \"%s\"",
                            member_names[is_plain ? FILENAME :
                                         FILE_FILENAME]);
  if (driver && !is_plain) {
    out->format = strdup (driver);
    if (!out->format)
      return no_memory (error);
  }
  return set_path (out, filename, image_filename, error);
}

static int
parse_json (const char *text, const char *image_filename,
            struct backing_name *out, struct qcow2_error *error)
{
  const char *values[NR_MEMBERS] = { NULL };
  char *standard = standard_json (text);
  json_error_t json_error;
  json_t *root;
  int r;

  if (!standard)
    return no_memory (error);
  root = json_loads (standard, JSON_REJECT_DUPLICATES, &json_error);
  free (standard);
  if (!root)
    return qcow2_error_set (error, EINVAL, "%s", json_error.text);

  r = read_members (root, false, values, error);
  if (r == 0)
    r = use_members (values, image_filename, out, error);
  json_decref (root);
  return r;
}

/*----- All kinds -----*/

int
backing_name_parse (const char *name, const char *image_filename,
                    struct backing_name *out, struct qcow2_error *error)
{
  const char *rest;
  int r;

  *out = (struct backing_name) { NULL, NULL };

  if ((rest = after_prefix (name, "json:")) != NULL)
    r = parse_json (rest, image_filename, out, error);
  else if ((rest = after_prefix (name, "file:")) != NULL ||
           (rest = after_prefix (name, "host_device:")) != NULL)
    r = set_path (out, rest, image_filename, error);
  else if (has_protocol (name))
    r = qcow2_error_set (error, ENOTSUP,
                         "the protocol \"%.*s\" is not supported",
                         (int) strcspn (name, ":"), name);
  else
    r = set_path (out, name, image_filename, error);

  if (r < 0) {
    backing_name_clear (out);
    qcow2_error_prefix (error, "\"%s\": ", name);
  }
  return r;
}

void
backing_name_clear (struct backing_name *out)
{
  free (out->path);
  free (out->format);
  *out = (struct backing_name) { NULL, NULL };
}
