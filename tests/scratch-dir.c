/* SPDX-License-Identifier: BSD-3-Clause */

/* Making and removing a test program's directories. */

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scratch-dir.h"

static char path[4096];
static pid_t owner;             /* children that exit leave it alone */

static int
remove_one (const char *name, const struct stat *st, int type,
            struct FTW *ftw)
{
  return remove (name);
}

void
remove_tree (const char *dir)
{
  nftw (dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void
leave (void)
{
  if (getpid () != owner)
    return;
  if (chdir ("/") == 0)
    remove_tree (path);
}

static const char *
enter_below (const char *standard)
{
  const char *parent = getenv ("TMPDIR");

  snprintf (path, sizeof path, "%s/qcow2.XXXXXX",
            parent && parent[0] ? parent : standard);
  if (!mkdtemp (path) || chdir (path) == -1) {
    printf ("Bail out! %s: %s\n", path, strerror (errno));
    exit (1);
  }
  owner = getpid ();
  atexit (leave);
  return path;
}

const char *
scratch_dir_enter (void)
{
  return enter_below ("/tmp");
}

const char *
scratch_dir_enter_memory (void)
{
  return enter_below (access ("/dev/shm", W_OK | X_OK) == 0 ?
                      "/dev/shm" : "/tmp");
}
