/* SPDX-License-Identifier: BSD-3-Clause */

/* The files of a new image. */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "create-file.h"
#include "io-file.h"

#define FILE_MODE 0644          /* before umask, as qemu-img's */

/* O_EXCL alone refuses devices that are in use, for instance mounted. */
#define OPEN_FLAGS (O_RDWR | O_CLOEXEC | O_NOCTTY)

static int
system_error (struct qcow2_error *error, const char *name, int err)
{
  return qcow2_error_set (error, err, "%s: %s", name, strerror (err));
}

int
new_file_storage (const struct qcow2_create_options *options, int fd,
                  const char *name, enum qcow2_storage_role role,
                  bool writable, struct qcow2_storage **s,
                  struct qcow2_error *error)
{
  unsigned flags = (options->lock ? QCOW2_IO_FILE_LOCK : 0) |
    (writable ? QCOW2_IO_FILE_WRITE : 0);
  int r;

  r = qcow2_io_file_new (fd, name, flags, s, error);
  if (r < 0 || !options->wrap)
    return r;
  r = options->wrap (options->opaque, role, name, s);
  if (r < 0) {
    qcow2_storage_close (*s);
    *s = NULL;
    return system_error (error, name, -r);
  }
  return 0;
}

/*----- Opening -----*/

static bool
is_block_device (const char *name)
{
  struct stat st;

  return stat (name, &st) == 0 && S_ISBLK (st.st_mode);
}

static int
exists_already (struct qcow2_error *error, const char *name,
                const char *what)
{
  return qcow2_error_set (error, EEXIST, "%s: %s, and is not overwritten",
                          name, what);
}

/* What is there already, under this name.  A descriptor or -errno. */
static int
open_existing (struct new_file *file, enum qcow2_storage_role role,
               bool overwrite, struct qcow2_error *error)
{
  int fd;

  file->is_device = is_block_device (file->name);
  if (file->is_device && role == QCOW2_STORAGE_DATA)
    return exists_already (error, file->name, "a data file is made anew, "
                           "this is a device");
  if (!file->is_device && !overwrite)
    return exists_already (error, file->name, "the file exists already");
  file->overwrites = overwrite;
  /* A link may lead to where there is nothing yet; a pipe must not block. */
  fd = file->is_device ? open (file->name, OPEN_FLAGS | O_EXCL) :
    open (file->name, OPEN_FLAGS | O_CREAT | O_NONBLOCK, FILE_MODE);
  return fd == -1 ? system_error (error, file->name, errno) : fd;
}

static int
check_existing (const struct new_file *file, const struct stat *backing,
                struct qcow2_error *error)
{
  if (file->is_ours || file->is_device)
    return 0;
  if (!S_ISREG (file->st.st_mode))
    return qcow2_error_set (error, EINVAL, "%s: this is no regular file, and "
                            "no block device", file->name);
  if (backing && file->st.st_dev == backing->st_dev &&
      file->st.st_ino == backing->st_ino)
    return qcow2_error_set (error, EINVAL, "%s: the backing file is the same "
                            "file, and is not overwritten", file->name);
  return 0;
}

int
new_file_open (struct new_file *file, enum qcow2_storage_role role,
               const struct qcow2_create_options *options,
               const struct stat *backing, struct qcow2_error *error)
{
  int fd = open (file->name, OPEN_FLAGS | O_EXCL | O_CREAT, FILE_MODE), r;

  file->is_ours = fd != -1;
  if (fd == -1 && errno == EEXIST) {
    fd = open_existing (file, role, options->overwrite, error);
    if (fd < 0)
      return fd;
  }
  if (fd == -1)
    return system_error (error, file->name, errno);
  if (fstat (fd, &file->st) == -1)
    r = system_error (error, file->name, errno);
  else
    r = check_existing (file, backing, error);
  if (r < 0) {
    close (fd);
    return r;
  }
  return new_file_storage (options, fd, file->name, role, true,
                           &file->storage, error);
}

/*----- Writing -----*/

int
new_file_begin (struct new_file *file, size_t header_bytes)
{
  struct qcow2_storage *s = file->storage;
  int r;

  if (!file->overwrites)
    return 0;
  file->has_begun = true;
  if (file->is_device)
    r = qcow2_storage_zero (s, 0, header_bytes, false);
  else
    r = qcow2_storage_truncate (s, 0);
  return r < 0 ? r : qcow2_storage_flush (s);
}

/* Where the file lies: a link may have led to where there was nothing.  What
 * can't be found there is nothing to be made durable.  Malloced.
 */
static char *
directory_of (const struct new_file *file)
{
  char *name = file->is_ours ? strdup (file->name) :
    realpath (file->name, NULL);
  char *slash = name ? strrchr (name, '/') : NULL;

  if (slash)
    slash[1] = '\0';
  else if (name) {
    free (name);
    name = strdup (".");
  }
  return name;
}

/* A directory that we may write to but not read can't be opened; one that
 * can't be made durable is none of those that need it.
 */
int
new_file_sync_directory (const struct new_file *file,
                         struct qcow2_error *error)
{
  char *dir;
  int fd, r = 0;

  if (file->is_device)
    return 0;
  dir = directory_of (file);
  if (!dir)
    return file->is_ours || errno == ENOMEM ?
      system_error (error, file->name, ENOMEM) : 0;
  fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1) {
    if (errno != EACCES && (file->is_ours || errno != ENOENT))
      r = system_error (error, dir, errno);
  }
  else {
    if (fsync (fd) == -1 && errno != EINVAL && errno != ENOTSUP)
      r = system_error (error, dir, errno);
    close (fd);
  }
  free (dir);
  return r;
}

/* Only what was made here, and only while it is still there: somebody may
 * have put another file in its place.
 */
static void
remove_made (struct new_file *file)
{
  struct stat there;

  if (lstat (file->name, &there) == 0 &&
      there.st_dev == file->st.st_dev && there.st_ino == file->st.st_ino)
    unlink (file->name);
}

void
new_file_undo (struct new_file *file)
{
  if (file->is_ours)
    remove_made (file);
  else if (file->has_begun && !file->is_device &&
           qcow2_storage_truncate (file->storage, 0) == 0)
    qcow2_storage_flush (file->storage);
}
