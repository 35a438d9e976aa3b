/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening files for writing: the operator's anywhere, those that an image
 * names only where data files may be, and how a caller learns that a file
 * can only be read.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qcow2/named-file.h"
#include "storage-place.h"
#include "tap.h"

static char dir[200];

static struct named_file_rule *
rule_of (const char *image, const char *allow_dir)
{
  struct named_file_rule *rule = NULL;
  int fd = open (image, O_RDONLY | O_CLOEXEC);

  must (fd != -1, image);
  must (named_file_rule_new (fd, &allow_dir, allow_dir ? 1 : 0, false, &rule,
                             NULL) == 0, "named_file_rule_new");
  close (fd);
  return rule;
}

static void
for_writing (void)
{
  struct named_file_rule *rule = rule_of ("images/top", "elsewhere");
  struct qcow2_error error = { "" };
  char elsewhere_base[sizeof dir + 20], images_base[sizeof dir + 20];
  int fd = named_file_open_operator ("images/top", true, &error);

  snprintf (elsewhere_base, sizeof elsewhere_base, "%s/elsewhere/base", dir);
  snprintf (images_base, sizeof images_base, "%s/images/base", dir);
  ok (fd >= 0 && fcntl (fd, F_GETFD) == FD_CLOEXEC &&
      (fcntl (fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_PATH)) == O_RDWR,
      "the operator's file is opened for writing");
  close (fd);
  fd = named_file_open (rule, NAMED_FILE_DATA, elsewhere_base,
                        true, &error);
  ok (fd >= 0 && fcntl (fd, F_GETFD) == FD_CLOEXEC &&
      (fcntl (fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_PATH)) == O_RDWR,
      "so is one that an image names, where this is allowed");
  close (fd);
  is_int (named_file_open (rule, NAMED_FILE_DATA, images_base,
                           true, &error), -EACCES,
          "... and not where it is not");
  ok (strstr (error.message, "allow-dir=") != NULL, "... so it says");
  named_file_rule_free (rule);
}

/* Both ways of opening, in a child: FD with WRITABLE, else ERR. */
static int
open_both (const struct named_file_rule *rule, bool writable, int err)
{
  int fd = named_file_open_operator ("images/base", writable, NULL);
  int fd2 = named_file_open (rule, NAMED_FILE_BACKING, "images/base",
                             writable, NULL);

  if (err)
    return fd == -err && fd2 == -err ? 0 : 1;
  return fd >= 0 && fd2 >= 0 ? 0 : 1;
}

/* Even root, for whom no mode forbids a thing otherwise. */
static bool
obey_modes (void)
{
  struct __user_cap_header_struct header = {
    .version = _LINUX_CAPABILITY_VERSION_3,
  };
  struct __user_cap_data_struct caps[2];

  if (syscall (SYS_capget, &header, caps) == -1)
    return false;
  caps[0].effective &= ~(1u << CAP_DAC_OVERRIDE);
  return syscall (SYS_capset, &header, caps) == 0;
}

static int
not_writable_in_child (int err)
{
  struct named_file_rule *rule = rule_of ("images/top", NULL);

  if (open_both (rule, true, 0) != 0)
    return 1;
  if (err == EROFS) {
    if (unshare (CLONE_NEWNS) == -1 ||
        mount (NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == -1 ||
        mount ("images", "images", NULL, MS_BIND, NULL) == -1 ||
        mount (NULL, "images", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY,
               NULL) == -1)
      return 2;
  }
  else if (chmod ("images/base", 0444) == -1 || !obey_modes ())
    return 3;
  if (open_both (rule, true, err) != 0)
    return 4;
  if (open_both (rule, false, 0) != 0)
    return 5;
  named_file_rule_free (rule);
  return 0;
}

static void
not_writable (void)
{
  for (int i = 0; i < 2; ++i) {
    int err = (int[]) { EROFS, EACCES }[i], status;
    pid_t pid = fork ();

    must (pid != -1, "fork");
    if (pid == 0)
      _exit (not_writable_in_child (err));
    must (waitpid (pid, &status, 0) == pid, "waitpid");
    is_int (status, 0, "a file that can't be written: %s, and is opened "
            "for reading", strerror (err));
  }
}

static void
read_only_devices (void)
{
  struct named_file_rule *rule = rule_of ("images/top", "/dev");
  struct qcow2_error error = { "" };
  char path[40];
  int file = open ("elsewhere/base", O_RDWR | O_CLOEXEC), fd, ro = 1;

  must (file != -1 && ftruncate (file, 4096) == 0, "ftruncate");
  fd = make_loop_device (file, 512);
  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  must (ioctl (fd, BLKROSET, &ro) == 0, "BLKROSET");
  is_int (named_file_open_operator (path, true, &error), -EROFS,
          "a device that is read-only is not opened for writing");
  ok (strstr (error.message, "Read-only") != NULL, "... so it says");
  is_int (named_file_open (rule, NAMED_FILE_DATA, path, true, NULL), -EROFS,
          "... nor if an image names it");
  file = named_file_open_operator (path, false, NULL);
  ok (file >= 0, "... but it is for reading");
  close (file);
  ro = 0;
  must (ioctl (fd, BLKROSET, &ro) == 0, "BLKROSET");
  file = named_file_open_operator (path, true, NULL);
  ok (file >= 0, "... and for writing when it is not");
  close (file);
  close (fd);
  named_file_rule_free (rule);
}

int
main (void)
{
  const char *tmp = getenv ("TMPDIR");
  char made[sizeof dir], remove[sizeof dir + 20];

  unsetenv ("QCOW2_ALLOW_DIR");
  snprintf (made, sizeof made, "%s/named-file-write.XXXXXX",
            tmp ? tmp : "/tmp");
  must (mkdtemp (made) != NULL && chdir (made) == 0 &&
        getcwd (dir, sizeof dir) != NULL, made);
  must (system ("mkdir images elsewhere && touch images/top images/base"
                " elsewhere/base") == 0, "files");

  for_writing ();
  not_writable ();
  read_only_devices ();

  snprintf (remove, sizeof remove, "rm -rf '%s'", dir);
  must (chdir ("/") == 0 && system (remove) == 0, remove);
  return tap_done ();
}
