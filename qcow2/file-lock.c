/* SPDX-License-Identifier: BSD-3-Clause */

/* QEMU's byte-range locks on image files.
 *
 * QEMU numbers the permissions on an image; who uses number N holds a
 * shared lock on byte 100 + N, who denies it to others one on byte
 * 200 + N.  A reader of an image that must not change meanwhile uses
 * "consistent read" and denies "write" and "resize"; a writer uses all
 * three and denies the same two.  Locks are taken
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

/* What none of the others may hold, and what to tell the user. */
struct conflict {
  int byte;
  const char *what;
};

struct role {
  const int *bytes;             /* to lock; 0 ends both lists */
  const struct conflict *conflicts;
  const char *advice;           /* what else the user can do */
};

static const struct role reader = {
  .bytes = (const int[]) {
    USED + CONSISTENT_READ, DENIED + WRITE, DENIED + RESIZE, 0,
  },
  .conflicts = (const struct conflict[]) {
    { DENIED + CONSISTENT_READ, "\"consistent read\"" },
    { USED + WRITE, "shared \"write\"" },
    { USED + RESIZE, "shared \"resize\"" },
    { 0, NULL },
  },
  .advice = "lock=off opens it all the same: what is read may then be wrong",
};

static const struct role writer = {
  .bytes = (const int[]) {
    USED + CONSISTENT_READ, USED + WRITE, USED + RESIZE,
    DENIED + WRITE, DENIED + RESIZE, 0,
  },
  .conflicts = (const struct conflict[]) {
    { DENIED + CONSISTENT_READ, "\"consistent read\"" },
    { DENIED + WRITE, "\"write\"" },
    { USED + WRITE, "shared \"write\"" },
    { DENIED + RESIZE, "\"resize\"" },
    { USED + RESIZE, "shared \"resize\"" },
    { 0, NULL },
  },
  .advice = "write=off opens it beside others that only read; lock=off in "
            "any case: this may destroy the image",
};

/* Some network and FUSE filesystems.  ENOLCK is what NFS says where its
 * lock server does not answer; from others it means that there is no room
 * for one more lock.
 */
static bool
means_no_locks (int err)
{
  return err == ENOLCK || err == EINVAL || err == ENOSYS ||
    err == EOPNOTSUPP;
}

/* Lock (SETLK) or look at (GETLK) COUNT bytes from BYTE on. */
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
  return fcntl (fd, command, lock) == 0 ? 0 : -errno;
}

/* As QEMU finds out: only where even looking at a lock fails, there are
 * none.  0, or the errno that says so.
 */
static int
why_no_locks (int fd)
{
  struct flock lock;
  int r = lock_operation (fd, F_OFD_GETLK, &lock, F_WRLCK, USED, 1);

  return means_no_locks (-r) ? -r : 0;
}

bool
qcow2_file_has_locks (int fd)
{
  return why_no_locks (fd) == 0;
}

static int
lock_bytes (int fd, const char *filename, const struct role *role,
            struct qcow2_error *error)
{
  struct flock lock;
  const int *byte;
  int r;

  for (byte = role->bytes; *byte; ++byte) {
    r = lock_operation (fd, F_OFD_SETLK, &lock, F_RDLCK, *byte, 1);
    if (r < 0)
      return qcow2_error_set (error, r == -EACCES ? EAGAIN : -r,
                              "%s: Failed to lock byte %d: %s (%s)",
                              filename, *byte, strerror (-r), role->advice);
  }
  return 0;
}

static int
check_others (int fd, const char *filename, const struct role *role,
              struct qcow2_error *error)
{
  const struct conflict *c;
  struct flock lock;
  int r;

  for (c = role->conflicts; c->byte; ++c) {
    r = lock_operation (fd, F_OFD_GETLK, &lock, F_WRLCK, c->byte, 1);
    if (r < 0)
      return qcow2_error_set (error, -r, "%s: Failed to query locks: %s",
                              filename, strerror (-r));
    if (lock.l_type != F_UNLCK)
      return qcow2_error_set (error, EAGAIN,
                              "Failed to get %s lock. Is another process "
                              "using the image [%s]? (%s)",
                              c->what, filename, role->advice);
  }
  return 0;
}

static int
lock_as (int fd, const char *filename, const struct role *role,
         struct qcow2_error *error)
{
  struct flock lock;
  int r = why_no_locks (fd);

  /* There are locks on other machines, then, that we can't see. */
  if (r == ENOLCK && role == &writer)
    return qcow2_error_set (error, ENOLCK, "%s: Failed to query locks: %s "
                            "(%s)", filename, strerror (r), role->advice);
  if (r != 0)
    return 0;
  r = lock_bytes (fd, filename, role, error);
  if (r == 0)
    r = check_others (fd, filename, role, error);

  /* A failed attempt must not stand in another's way. */
  if (r < 0)
    lock_operation (fd, F_OFD_SETLK, &lock, F_UNLCK, USED, 2 * (DENIED - USED));
  return r;
}

int
qcow2_file_lock_read (int fd, const char *filename,
                      struct qcow2_error *error)
{
  return lock_as (fd, filename, &reader, error);
}

int
qcow2_file_lock_write (int fd, const char *filename,
                       struct qcow2_error *error)
{
  return lock_as (fd, filename, &writer, error);
}
