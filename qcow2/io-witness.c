/* SPDX-License-Identifier: BSD-3-Clause */

/* The witness of errors of writing back. */

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "io-witness.h"

/* What sync_file_range waits for: one page, where few files have one, and as
 * far as the kernel's page cache goes on 32-bit machines.
 */
#define FAR_OFFSET ((INT64_C (1) << 44) - 4096)

/* The files of an overlay are not the ones that are written back. */
static bool
is_on_overlay (int fd)
{
  struct statfs st;

  return fstatfs (fd, &st) == -1 || st.f_type == OVERLAYFS_SUPER_MAGIC;
}

void
io_witness_init (struct io_witness *w, int fd, bool wanted)
{
  char path[40];

  pthread_mutex_init (&w->lock, NULL);
  w->lost = 0;
  w->fd = -1;
  if (!wanted || is_on_overlay (fd))
    return;
  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  w->fd = open (path, O_RDONLY | O_CLOEXEC);
}

void
io_witness_destroy (struct io_witness *w)
{
  if (w->fd != -1)
    close (w->fd);
  pthread_mutex_destroy (&w->lock);
}

static void
ask_kernel (struct io_witness *w)
{
  int r;

  do
    r = sync_file_range (w->fd, FAR_OFFSET, 1, SYNC_FILE_RANGE_WAIT_BEFORE);
  while (r == -1 && errno == EINTR);
  if (r == 0)
    return;
  if (errno == ENOSYS || errno == ESPIPE || errno == EINVAL) {
    close (w->fd);
    w->fd = -1;
  }
  else                          /* no room for what was written before: lost */
    w->lost = errno == ENOSPC ? -EIO : -errno;
}

int
io_witness_ask (struct io_witness *w)
{
  int r;

  pthread_mutex_lock (&w->lock);
  if (w->fd != -1 && w->lost == 0)
    ask_kernel (w);
  r = w->lost;
  pthread_mutex_unlock (&w->lock);
  return r;
}

int
io_witness_sync (struct io_witness *w, int fd)
{
  int r;

  do
    r = fdatasync (fd);
  while (r == -1 && errno == EINTR);

  return r == -1 ? -errno : io_witness_ask (w);
}

bool
io_witness_is_there (struct io_witness *w)
{
  bool r;

  pthread_mutex_lock (&w->lock);
  r = w->fd != -1;
  pthread_mutex_unlock (&w->lock);
  return r;
}
