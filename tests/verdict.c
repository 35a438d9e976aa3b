/* SPDX-License-Identifier: BSD-3-Clause */

/* Asking the engine and QEMU about an image. */

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "verdict.h"

extern char **environ;

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

/*----- The engine -----*/

static void
log_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  struct verdict *v = opaque;

  snprintf (level == QCOW2_LOG_WARNING ? v->warning : v->message,
            sizeof v->message, "%s", text);
}

void
verdict_options (struct verdict *v, struct qcow2_options *options)
{
  qcow2_options_init (options);
  options->cache_bytes = 1 << 20;
  options->compressed_cache_bytes = 1 << 20;
  options->log = log_message;
  options->opaque = v;
  memset (v, 0, sizeof *v);
}

/* qcow2_extent_fn */
static int
check_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
              uint64_t count)
{
  struct verdict *v = opaque;
  uint64_t i;

  if (type != QCOW2_EXTENT_DATA)
    for (i = offset; i < offset + count; ++i)
      if (v->content[i] != 0)
        v->extents_lie = true;
  return 0;
}

static void
read_view (struct verdict *v, struct qcow2_view *view)
{
  v->size_bytes = qcow2_view_size (view);
  v->content_bytes = v->size_bytes < VERDICT_MAX_BYTES ?
    (size_t) v->size_bytes : VERDICT_MAX_BYTES;
  v->content = malloc (v->content_bytes + 1);
  must (v->content != NULL, "malloc");
  if (v->content_bytes == 0)
    return;

  v->err = qcow2_pread (view, v->content, v->content_bytes, 0);
  if (v->err == 0) {
    v->err = qcow2_extents (view, v->content_bytes, 0, check_extent, v);
    if (v->err == 0)
      v->err = qcow2_prefetch (view, v->content_bytes, 0);
  }
}

void
verdict_ours (struct verdict *v, const char *path, const char *snapshot,
              const struct qcow2_options *options)
{
  struct qcow2_error error = { "" };
  struct qcow2 *image;
  struct qcow2_view *view;
  int index = -1;

  v->err = qcow2_open (path, options, &image, &error);
  if (v->err == 0) {
    if (snapshot) {
      index = qcow2_snapshot_find (image, snapshot);
      must (index >= 0, snapshot);
    }
    v->err = qcow2_view_open (image, snapshot ? (size_t) index : QCOW2_ACTIVE,
                              &view, &error);
    if (v->err == 0) {
      v->opened = true;
      read_view (v, view);
      qcow2_view_close (view);
    }
    qcow2_close (image);
  }
  if (v->err < 0 && !v->opened)
    memcpy (v->message, error.message, sizeof v->message);
}

/*----- QEMU -----*/

/* Run a program without its output; true if its exit status is 0. */
static bool
run (const char *const argv[])
{
  posix_spawn_file_actions_t actions;
  pid_t pid;
  int status;

  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_addopen (&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen (&actions, 2, "/dev/null", O_WRONLY, 0);
  must (posix_spawnp (&pid, argv[0], &actions, NULL,
                      (char *const *) argv, environ) == 0, argv[0]);
  posix_spawn_file_actions_destroy (&actions);
  must (waitpid (pid, &status, 0) == pid, "waitpid");
  return WIFEXITED (status) && WEXITSTATUS (status) == 0;
}

static bool
run_qemu (const char *path, const char *snapshot, const char *out)
{
  char input[4200];
  const char *dd[] = { "qemu-img", "dd", "-f", "qcow2", "-O", "raw",
                       "bs=64k", "count=16", input, "of=verdict.raw", NULL };
  const char *convert[] = { "qemu-img", "convert", "-f", "qcow2", "-O", "raw",
                            "-l", snapshot, path, out, NULL };

  snprintf (input, sizeof input, "if=%s", path);
  return run (snapshot ? convert : dd);
}

void
verdict_qemu (struct verdict *v, const char *path, const char *snapshot)
{
  const char *out = "verdict.raw";
  struct stat st;
  FILE *fp;

  memset (v, 0, sizeof *v);
  if (!run_qemu (path, snapshot, out)) {
    v->err = -EIO;
    unlink (out);
    return;
  }
  v->opened = true;
  fp = fopen (out, "r");
  must (fp && fstat (fileno (fp), &st) == 0, out);
  v->content_bytes = (uint64_t) st.st_size < VERDICT_MAX_BYTES ?
    (size_t) st.st_size : VERDICT_MAX_BYTES;
  v->content = malloc (v->content_bytes + 1);
  must (v->content &&
        fread (v->content, 1, v->content_bytes, fp) == v->content_bytes, out);
  fclose (fp);
  unlink (out);
}

void
verdict_clear (struct verdict *v)
{
  free (v->content);
  v->content = NULL;
}

bool
verdict_same (const struct verdict *a, const struct verdict *b)
{
  size_t n = a->content_bytes < b->content_bytes ?
    a->content_bytes : b->content_bytes;

  if (a->err < 0 || b->err < 0)
    return true;
  /* QEMU's disks have whole sectors. */
  if (a->content_bytes / 512 != b->content_bytes / 512)
    return false;
  return memcmp (a->content, b->content, n) == 0;
}
