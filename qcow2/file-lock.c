/* SPDX-License-Identifier: BSD-3-Clause */

/* QEMU's byte-range locks on image files.
 *
 * QEMU numbers the permissions on an image; who uses number N holds a
 * shared lock on byte 100 + N, who denies it to others one on byte
 * 200 + N.  A reader of an image that must not change meanwhile uses
 * "consistent read" and denies "write" and "resize".  Locks are taken
 * first and the others' looked at after that, so of two who come at the
 * same time at least one sees the other.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "file-lock.h"

enum permission {
  CONSISTENT_READ = 0,
  WRITE = 1,
  RESIZE = 3,
};

enum {
  USED = 100,
  DENIED = 200,
};

static const int reader_bytes[] = {
  USED + CONSISTENT_READ, DENIED + WRITE, DENIED + RESIZE,
};

/* What none of the others may hold, and what to tell the user. */
static const struct {
  int byte;
  const char *what;
} conflicts[] = {
  { USED + WRITE, "shared \"write\"" },
  { USED + RESIZE, "shared \"resize\"" },
  { DENIED + CONSISTENT_READ, "\"consistent read\"" },
};

/* Some network and FUSE filesystems. */
static bool
means_no_locks (int err)
{
  return err == ENOLCK || err == EINVAL || err == ENOSYS ||
    err == EOPNOTSUPP;
}

/* Lock (SETLK) or look at (GETLK) COUNT bytes from BYTE on.  On a
 * filesystem without locks that succeeds and finds nobody.
 */
static int
lock_operation (int fd, int command, struct flock *lock, short type,
                int byte, int count)
{
  *lock = (struct flock) {
    .l_type = type,
    .l_whence = SEEK_SET,
    .l_start = byte,
    .l_len = count,
  };
  if (fcntl (fd, command, lock) == 0)
    return 0;
  lock->l_type = F_UNLCK;
  return means_no_locks (errno) ? 0 : -errno;
}

static int
lock_reader_bytes (int fd, const char *filename, struct qcow2_error *error)
{
  struct flock lock;
  size_t i;
  int r;

  for (i = 0; i < sizeof reader_bytes / sizeof reader_bytes[0]; ++i) {
    r = lock_operation (fd, F_OFD_SETLK, &lock, F_RDLCK, reader_bytes[i], 1);
    if (r < 0)
      return qcow2_error_set (error, r == -EACCES ? EAGAIN : -r,
                              "%s: Failed to lock byte %d: %s",
                              filename, reader_bytes[i], strerror (-r));
  }
  return 0;
}

static int
check_others (int fd, const char *filename, struct qcow2_error *error)
{
  struct flock lock;
  size_t i;
  int r;

  for (i = 0; i < sizeof conflicts / sizeof conflicts[0]; ++i) {
    r = lock_operation (fd, F_OFD_GETLK, &lock, F_WRLCK,
                        conflicts[i].byte, 1);
    if (r < 0)
      return qcow2_error_set (error, -r, "%s: Failed to query locks: %s",
                              filename, strerror (-r));
    if (lock.l_type != F_UNLCK)
      return qcow2_error_set (error, EAGAIN,
                              "Failed to get %s lock. Is another process "
                              "using the image [%s]? (lock=off opens it "
                              "all the same: what is read may then be "
                              "wrong)", conflicts[i].what, filename);
  }
  return 0;
}

int
qcow2_file_lock_read (int fd, const char *filename,
                      struct qcow2_error *error)
{
  struct flock lock;
  int r;

  r = lock_reader_bytes (fd, filename, error);
  if (r == 0)
    r = check_others (fd, filename, error);

  /* A failed attempt must not stand in another's way. */
  if (r < 0)
    lock_operation (fd, F_OFD_SETLK, &lock, F_UNLCK, USED, 2 * (DENIED - USED));
  return r;
}
