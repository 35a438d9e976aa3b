/* SPDX-License-Identifier: BSD-3-Clause */

/* Files and block devices to test storage on. */

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2/io-file.h"
#include "storage-place.h"

char place_dir[200];
const char *where;

void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

int
make_file (off_t size, int flags)
{
  char path[sizeof place_dir + 20];
  int fd;

  snprintf (path, sizeof path, "%s/file", place_dir);
  fd = open (path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  must (fd != -1 && ftruncate (fd, size) == 0, "open");
  if (flags != O_RDWR) {
    close (fd);
    fd = open (path, flags | O_CLOEXEC);
    must (fd != -1, "open");
  }
  return fd;
}

struct qcow2_storage *
storage_of (int fd)
{
  struct qcow2_storage *s = NULL;

  must (qcow2_io_file_new (fd, "NAME", QCOW2_IO_FILE_WRITE, &s, NULL) == 0,
        "qcow2_io_file_new");
  return s;
}

struct qcow2_storage *
file_storage (off_t size)
{
  return storage_of (make_file (size, O_RDWR));
}

/* FD goes to the device. */
int
make_loop_device (int fd, unsigned sector_bytes)
{
  int control = open ("/dev/loop-control", O_RDWR | O_CLOEXEC);
  char path[40];

  must (control != -1, "/dev/loop-control");
  for (int tries = 0; tries < 20; ++tries) {
    struct loop_config config = {
      .fd = (unsigned) fd,
      .block_size = sector_bytes,
      .info.lo_flags = LO_FLAGS_AUTOCLEAR,
    };
    int nr = ioctl (control, LOOP_CTL_GET_FREE), loop;

    must (nr >= 0, "LOOP_CTL_GET_FREE");
    snprintf (path, sizeof path, "/dev/loop%d", nr);
    loop = open (path, O_RDWR | O_CLOEXEC);
    must (loop != -1, path);
    if (ioctl (loop, LOOP_CONFIGURE, &config) == 0) {
      close (control);
      close (fd);
      return loop;
    }
    must (errno == EBUSY, "LOOP_CONFIGURE");    /* another was faster */
    close (loop);
  }
  must (false, "loop device");
  return -1;
}

int64_t
blocks_of (int fd)
{
  struct stat st;

  must (fsync (fd) == 0 && fstat (fd, &st) == 0, "fstat");
  return st.st_blocks;
}

void
fill (struct qcow2_storage *s, size_t nr_bytes)
{
  static uint8_t buf[1 << 20];

  memset (buf, 'x', sizeof buf);
  must (nr_bytes <= sizeof buf &&
        qcow2_storage_write (s, buf, nr_bytes, 0, false) == 0, "fill");
}

void
in_place (const char *parent, const char *name, void (*tests) (void))
{
  char remove[sizeof place_dir + 20];

  where = name;
  snprintf (place_dir, sizeof place_dir, "%s/storage.XXXXXX", parent);
  must (mkdtemp (place_dir) != NULL, "mkdtemp");
  tests ();
  snprintf (remove, sizeof remove, "rm -rf '%s'", place_dir);
  must (system (remove) == 0, remove);
}

void
in_each_place (void (*tests) (void))
{
  const char *tmp = getenv ("TMPDIR");

  in_place (tmp ? tmp : "/var/tmp", "disk", tests);
  in_place ("/dev/shm", "tmpfs", tests);
}
