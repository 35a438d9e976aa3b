/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening files: the operator's, and those that an image names.
 *
 * A file named by an image is opened in two steps.  O_PATH finds it,
 * follows all links, and has no effect on what it finds, be it a FIFO
 * or a tape drive.  The kernel then tells through /proc where the file
 * that the descriptor holds really is; only when that place and the
 * kind of file are allowed, the same file is opened for reading
 * or writing, through the descriptor and not by name.  Whoever exchanges a link
 * between the steps wins nothing.
 *
 * The place is judged by canonical paths, component by component, on
 * both sides.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "named-file.h"

#define ALLOW_DIR_VARIABLE "QCOW2_ALLOW_DIR"

struct named_file_rule {
  char *image_dir;              /* canonical; NULL: the image has none */
  bool allow_none;              /* the image's directory does not count */
  char **dirs;                  /* canonical */
  size_t nr_dirs;
};

struct fd_link {
  char path[sizeof "/proc/self/fd/" + 3 * sizeof (int)];
};

static struct fd_link
link_of_fd (int fd)
{
  struct fd_link link;

  snprintf (link.path, sizeof link.path, "/proc/self/fd/%d", fd);
  return link;
}

static int
no_memory (struct qcow2_error *error)
{
  return qcow2_error_set (error, ENOMEM, "%s", strerror (ENOMEM));
}

/* Read a symbolic link of any length; NULL and errno on error. */
static char *
read_link (const char *link)
{
  size_t size = 256;
  char *target = NULL;

  for (;;) {
    char *larger = realloc (target, size);
    ssize_t len;

    if (!larger)
      break;
    target = larger;
    len = readlink (link, target, size);
    if (len == -1)
      break;
    if ((size_t) len < size) {
      target[len] = '\0';
      return target;
    }
    size *= 2;
  }
  free (target);
  return NULL;
}

/* The canonical path of the open file FD, whose fstat is ST.  A path
 * that does not lead to that very file is none: the file was removed
 * ("... (deleted)"), or lies outside of what this process sees.
 */
static int
canonical_path (int fd, const struct stat *st, char **path)
{
  char *target = read_link (link_of_fd (fd).path);
  struct stat there;
  int err;

  if (!target)
    return -errno;
  if (lstat (target, &there) == -1)
    err = errno;
  else if (target[0] != '/' || there.st_dev != st->st_dev ||
           there.st_ino != st->st_ino)
    err = ENOENT;
  else {
    *path = target;
    return 0;
  }
  free (target);
  return -err;
}

/* Cut the last component off a canonical path. */
static void
cut_last_component (char *path)
{
  char *slash = strrchr (path, '/');

  slash[slash == path] = '\0';
}

/* Is PATH below DIR?  Both are canonical. */
static bool
is_below (const char *path, const char *dir)
{
  size_t len = strlen (dir);

  if (strcmp (dir, "/") == 0)
    return true;
  return strncmp (path, dir, len) == 0 && path[len] == '/';
}

/*----- Rules -----*/

/* Without the image's directory there is less to be allowed, so
 * whatever keeps it from being known is no error here.
 */
static void
find_image_dir (struct named_file_rule *rule, int image_fd)
{
  struct stat st;

  if (fstat (image_fd, &st) == -1 || !S_ISREG (st.st_mode))
    return;
  if (canonical_path (image_fd, &st, &rule->image_dir) == 0)
    cut_last_component (rule->image_dir);
}

/* WHERE is how the user said it, for messages. */
static int
add_dir (struct named_file_rule *rule, const char *where, const char *dir,
         struct qcow2_error *error)
{
  char **larger;
  char *canonical;
  struct stat st;

  canonical = realpath (dir, NULL);
  if (!canonical)
    return qcow2_error_set (error, errno, "%s%s: %s", where, dir,
                            strerror (errno));
  if (stat (canonical, &st) == -1 || !S_ISDIR (st.st_mode)) {
    free (canonical);
    return qcow2_error_set (error, ENOTDIR, "%s%s: %s", where, dir,
                            strerror (ENOTDIR));
  }

  larger = realloc (rule->dirs, (rule->nr_dirs + 1) * sizeof *larger);
  if (!larger) {
    free (canonical);
    return no_memory (error);
  }
  rule->dirs = larger;
  rule->dirs[rule->nr_dirs++] = canonical;
  return 0;
}

static int
add_dirs_of_environment (struct named_file_rule *rule,
                         struct qcow2_error *error)
{
  const char *value = secure_getenv (ALLOW_DIR_VARIABLE);
  char *copy, *rest, *entry;
  int r = 0;

  if (!value)
    return 0;
  rest = copy = strdup (value);
  if (!copy)
    return no_memory (error);

  while (r == 0 && (entry = strsep (&rest, ":")) != NULL) {
    if (entry[0] == '\0')
      continue;
    if (strcmp (entry, "none") == 0)
      rule->allow_none = true;
    else if (entry[0] != '/')
      r = qcow2_error_set (error, EINVAL,
                           ALLOW_DIR_VARIABLE ": %s: must be an absolute "
                           "path or \"none\"", entry);
    else
      r = add_dir (rule, ALLOW_DIR_VARIABLE ": ", entry, error);
  }
  free (copy);
  return r;
}

int
named_file_rule_new (int image_fd, const char *const *allow_dirs,
                     size_t nr_allow_dirs, bool allow_none,
                     struct named_file_rule **rule,
                     struct qcow2_error *error)
{
  struct named_file_rule *new_rule = calloc (1, sizeof *new_rule);
  size_t i;
  int r = 0;

  if (!new_rule)
    return no_memory (error);

  new_rule->allow_none = allow_none;
  find_image_dir (new_rule, image_fd);
  for (i = 0; r == 0 && i < nr_allow_dirs; ++i)
    r = add_dir (new_rule, "allow-dir=", allow_dirs[i], error);
  if (r == 0)
    r = add_dirs_of_environment (new_rule, error);
  if (r < 0) {
    named_file_rule_free (new_rule);
    return r;
  }
  *rule = new_rule;
  return 0;
}

void
named_file_rule_free (struct named_file_rule *rule)
{
  size_t i;

  if (!rule)
    return;
  for (i = 0; i < rule->nr_dirs; ++i)
    free (rule->dirs[i]);
  free (rule->dirs);
  free (rule->image_dir);
  free (rule);
}

/* A device that is read-only opens for writing all the same; writes to
 * it fail.  Such a descriptor is closed, with errno EROFS.
 */
static int
refuse_read_only_device (int fd)
{
  int is_read_only = 0;

  /* On anything else the request is unknown. */
  if (ioctl (fd, BLKROGET, &is_read_only) == -1 || !is_read_only)
    return fd;
  close (fd);
  errno = EROFS;
  return -1;
}

/*----- What the operator names -----*/

static void
clear_nonblock (int fd)
{
  int flags = fcntl (fd, F_GETFL);

  if (flags != -1)
    fcntl (fd, F_SETFL, flags & ~O_NONBLOCK);
}

int
named_file_open_operator (const char *filename, bool writable,
                          struct qcow2_error *error)
{
  const int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY;
  int fd;

  fd = open (filename, flags | O_NONBLOCK);
  /* A file server lets go of its lease only if we wait for it. */
  if (fd == -1 && errno == EWOULDBLOCK)
    fd = open (filename, flags);
  if (fd != -1 && writable)
    fd = refuse_read_only_device (fd);
  if (fd == -1)
    return qcow2_error_set (error, errno, "%s: %s", filename,
                            strerror (errno));
  clear_nonblock (fd);
  return fd;
}

/*----- What an image names -----*/

static const char *
kind_of_file (mode_t mode)
{
  switch (mode & S_IFMT) {
  case S_IFDIR: return "a directory";
  case S_IFCHR: return "a character device";
  case S_IFIFO: return "a FIFO";
  case S_IFSOCK: return "a socket";
  default: return "no regular file";
  }
}

static bool
is_allowed (const struct named_file_rule *rule, enum named_file_use use,
            mode_t mode, const char *path)
{
  size_t i;

  if (use == NAMED_FILE_BACKING && S_ISREG (mode) &&
      !rule->allow_none && rule->image_dir &&
      is_below (path, rule->image_dir))
    return true;

  for (i = 0; i < rule->nr_dirs; ++i)
    if (is_below (path, rule->dirs[i]))
      return true;
  return false;
}

static const char *
why_refused (const struct named_file_rule *rule, enum named_file_use use,
             mode_t mode)
{
  if (use == NAMED_FILE_DATA)
    return "data files that an image names are opened only where this is "
      "allowed";
  if (!S_ISREG (mode))
    return "block devices that an image names are opened only where this "
      "is allowed";
  if (rule->allow_none)
    return "backing files are opened only where this is allowed";
  if (!rule->image_dir)
    return "the image has no directory of its own in which its backing "
      "file could be";
  return "this backing file is not in the image's directory or below";
}

/* Say why, and what makes it possible.  What to add comes before the
 * resolved path: names may be so long that the message is cut.
 */
static int
refuse (const struct named_file_rule *rule, enum named_file_use use,
        mode_t mode, const char *filename, const char *path,
        struct qcow2_error *error)
{
  const char *slash = strrchr (path, '/');
  int dir_len = slash == path ? 1 : slash - path;
  bool is_data = use == NAMED_FILE_DATA;
  bool is_resolved = strcmp (filename, path) == 0;

  return qcow2_error_set (error, EACCES,
                          "%s: %s: add %s%s%sallow-dir=%.*s%s%s%s",
                          filename, why_refused (rule, use, mode),
                          is_data ? "data-file=" : "",
                          is_data ? filename : "", is_data ? " or " : "",
                          dir_len, path,
                          is_resolved ? "" : " (the file is ",
                          is_resolved ? "" : path, is_resolved ? "" : ")");
}

/* Whether the file that FD (O_PATH) holds may be opened. */
static int
check_found (int fd, const struct named_file_rule *rule,
             enum named_file_use use, const char *filename,
             struct qcow2_error *error)
{
  struct stat st;
  char *path;
  int r;

  if (fstat (fd, &st) == -1)
    return qcow2_error_set (error, errno, "%s: %s", filename,
                            strerror (errno));
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode))
    return qcow2_error_set (error, EINVAL,
                            "%s: is %s; an image may name only regular "
                            "files and block devices",
                            filename, kind_of_file (st.st_mode));

  r = canonical_path (fd, &st, &path);
  if (r < 0)
    return qcow2_error_set (error, EACCES,
                            "%s: cannot find out where this file is, so "
                            "it is not opened: %s", filename,
                            access ("/proc/self/fd", X_OK) == -1 ?
                            "/proc is not mounted" : strerror (-r));
  r = 0;
  if (!is_allowed (rule, use, st.st_mode, path))
    r = refuse (rule, use, st.st_mode, filename, path, error);
  free (path);
  return r;
}

int
named_file_open (const struct named_file_rule *rule,
                 enum named_file_use use, const char *filename,
                 bool writable, struct qcow2_error *error)
{
  const int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY;
  int path_fd, fd, r;

  path_fd = open (filename, O_PATH | O_CLOEXEC);
  if (path_fd == -1)
    return qcow2_error_set (error, errno, "%s: %s", filename,
                            strerror (errno));

  r = check_found (path_fd, rule, use, filename, error);
  if (r == 0) {
    /* This cannot be a FIFO any more: no need for O_NONBLOCK. */
    fd = open (link_of_fd (path_fd).path, flags);
    if (fd != -1 && writable)
      fd = refuse_read_only_device (fd);
    r = fd != -1 ? fd : qcow2_error_set (error, errno, "%s: %s", filename,
                                         strerror (errno));
  }
  close (path_fd);
  return r;
}
