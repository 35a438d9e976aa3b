/* SPDX-License-Identifier: BSD-3-Clause */

/* VM state: a stream of bytes that means something to QEMU alone. */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "message.h"
#include "vmstate.h"

#define PIECE_BYTES ((size_t) 1 << 20)

/* The file that VM state is read from, or written to. */
struct state_file {
  const char *filename;         /* for messages */
  int fd;
  bool is_regular;              /* and ours from its beginning on */
};

/* Set the message, with the system's words for errno. */
static int
fail (struct qcow2_error *error, const char *what, const char *filename)
{
  int err = errno;

  return qcow2_error_set (error, err, "%s '%s': %s", what, filename,
                          strerror (err));
}

static bool
is_image (const struct stat *st, const char *image_name)
{
  struct stat other;

  return stat (image_name, &other) == 0 && st->st_dev == other.st_dev &&
    st->st_ino == other.st_ino;
}

/* The memory of a guest is nothing that other users should read. */
static int
open_file (struct state_file *f, const char *image_name, const char *filename,
           bool write, struct qcow2_error *error)
{
  bool is_std = strcmp (filename, "-") == 0;
  struct stat st;
  int r = 0;

  f->filename = !is_std ? filename :
    write ? "the standard output" : "the standard input";
  f->fd = is_std ? fcntl (write ? STDOUT_FILENO : STDIN_FILENO,
                          F_DUPFD_CLOEXEC, 3) :
    open (filename, (write ? O_WRONLY | O_CREAT : O_RDONLY) | O_CLOEXEC, 0600);
  if (f->fd == -1)
    return fail (error, "can't open", f->filename);
  if (fstat (f->fd, &st) == -1)
    r = fail (error, "can't open", f->filename);
  else if (is_image (&st, image_name))
    r = qcow2_error_set (error, EINVAL, "'%s' is the image itself", filename);
  else
    f->is_regular = S_ISREG (st.st_mode) && !is_std;
  if (r < 0)
    close (f->fd);
  return r;
}

static int
no_memory (struct qcow2_error *error)
{
  return qcow2_error_set (error, ENOMEM, "out of memory");
}

/*----- Saving -----*/

static int
write_all (int fd, const char *buf, size_t count)
{
  while (count > 0) {
    ssize_t n = write (fd, buf, count);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -1;
    buf += n;
    count -= (size_t) n;
  }
  return 0;
}

/* Zeros become holes in a regular file. */
static int
write_piece (const struct state_file *f, const char *buf, size_t count)
{
  bool zeros = buf[0] == 0 && memcmp (buf, buf + 1, count - 1) == 0;

  if (!zeros || !f->is_regular)
    return write_all (f->fd, buf, count);
  return lseek (f->fd, (off_t) count, SEEK_CUR) == -1 ? -1 : 0;
}

static int
read_state (struct qcow2_view *view, char *buf, size_t count, uint64_t pos,
            struct qcow2_error *error)
{
  int r = qcow2_vmstate_pread (view, buf, count, pos);

  return r < 0 ? qcow2_error_set (error, -r, "%s", img_reason (-r)) : 0;
}

static int
save_to (const struct state_file *f, struct qcow2_view *view, uint64_t bytes,
         char *buf, struct qcow2_error *error)
{
  uint64_t pos, n;

  if (f->is_regular && ftruncate (f->fd, 0) == -1)
    return fail (error, "can't write", f->filename);
  for (pos = 0; pos < bytes; pos += n) {
    int r;

    n = bytes - pos < PIECE_BYTES ? bytes - pos : PIECE_BYTES;
    r = read_state (view, buf, n, pos, error);
    if (r < 0)
      return r;
    if (write_piece (f, buf, n) == -1)
      return fail (error, "can't write", f->filename);
  }
  if (f->is_regular &&
      (ftruncate (f->fd, (off_t) bytes) == -1 || fsync (f->fd) == -1))
    return fail (error, "can't write", f->filename);
  return 0;
}

/* Is all there that the image says it has?  That is asked for before a file
 * loses what it holds.
 */
static int
save (struct qcow2_view *view, const char *image_name, uint64_t bytes,
      const char *filename, struct qcow2_error *error)
{
  char *buf = malloc (PIECE_BYTES);
  struct state_file f;
  int r;

  if (!buf)
    return no_memory (error);
  r = read_state (view, buf, 1, bytes - 1, error);
  if (r == 0)
    r = open_file (&f, image_name, filename, true, error);
  if (r == 0) {
    r = save_to (&f, view, bytes, buf, error);
    if (close (f.fd) == -1 && r == 0)
      r = fail (error, "can't write", f.filename);
  }
  free (buf);
  return r;
}

int
img_vmstate_save (struct qcow2 *image, const char *image_name,
                  const char *snapshot, const char *filename,
                  struct qcow2_error *error)
{
  int index = qcow2_snapshot_find (image, snapshot), r;
  struct qcow2_snapshot_info info;
  struct qcow2_view *view;

  if (index < 0)
    return qcow2_error_set (error, ENOENT, "snapshot not found");
  qcow2_snapshot_get (image, (size_t) index, &info);
  if (info.vm_state_bytes == 0)
    return qcow2_error_set (error, ENODATA, "it has no VM state");
  r = qcow2_view_open (image, (size_t) index, &view, error);
  if (r < 0)
    return r;
  r = save (view, image_name, info.vm_state_bytes, filename, error);
  qcow2_view_close (view);
  return r;
}

/*----- Loading -----*/

/* As much as there is, up to PIECE_BYTES. */
static ssize_t
read_piece (int fd, char *buf)
{
  size_t count = 0;

  while (count < PIECE_BYTES) {
    ssize_t n = read (fd, buf + count, PIECE_BYTES - count);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -1;
    if (n == 0)
      break;
    count += (size_t) n;
  }
  return (ssize_t) count;
}

static int
load_from (const struct state_file *f, struct qcow2_view *view, char *buf,
           uint64_t *bytes, struct qcow2_error *error)
{
  ssize_t n;
  int r;

  /* What is there already may be longer. */
  r = qcow2_vmstate_discard (view);
  for (*bytes = 0; r == 0; *bytes += (uint64_t) n) {
    n = read_piece (f->fd, buf);
    if (n == -1)
      return fail (error, "can't read", f->filename);
    if (n == 0)
      break;
    r = qcow2_vmstate_pwrite (view, buf, (size_t) n, *bytes);
  }
  if (r < 0)
    return qcow2_error_set (error, -r, "can't write the VM state: %s",
                            img_reason (-r));
  if (*bytes == 0)
    return qcow2_error_set (error, ENODATA, "'%s' is empty", f->filename);
  return 0;
}

static int
load (struct qcow2_view *view, const char *image_name, const char *filename,
      uint64_t *bytes, struct qcow2_error *error)
{
  char *buf = malloc (PIECE_BYTES);
  struct state_file f;
  int r;

  if (!buf)
    return no_memory (error);
  r = open_file (&f, image_name, filename, false, error);
  if (r == 0) {
    r = load_from (&f, view, buf, bytes, error);
    close (f.fd);
  }
  free (buf);
  return r;
}

int
img_vmstate_create (struct qcow2 *image, const char *image_name,
                    const struct qcow2_snapshot_params *params,
                    const char *filename, struct qcow2_error *error)
{
  struct qcow2_snapshot_params with_state = *params;
  struct qcow2_view *view;
  int r = qcow2_view_open (image, QCOW2_ACTIVE, &view, error);

  if (r < 0)
    return r;
  r = load (view, image_name, filename, &with_state.vm_state_bytes, error);
  /* As QEMU's savevm says it of a machine that does not count. */
  with_state.icount = QCOW2_NO_ICOUNT;
  if (r == 0)
    r = qcow2_snapshot_create (image, &with_state, error);
  if (r < 0)
    qcow2_vmstate_discard (view);
  qcow2_view_close (view);
  return r;
}
