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

const char *
scratch_dir_enter (void)
{
  const char *parent = getenv ("TMPDIR");

  snprintf (path, sizeof path, "%s/qcow2.XXXXXX",
            parent && parent[0] ? parent : "/tmp");
  if (!mkdtemp (path) || chdir (path) == -1) {
    printf ("Bail out! %s: %s\n", path, strerror (errno));
    exit (1);
  }
  owner = getpid ();
  atexit (leave);
  return path;
}
