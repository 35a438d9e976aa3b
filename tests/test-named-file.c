/* SPDX-License-Identifier: BSD-3-Clause */

/* Which files an image gets opened by naming them: those in its
 * directory or in an allowed one, wherever links lead, and no others.
 */

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qcow2/named-file.h"
#include "tap.h"

static char dir[200];           /* canonical; the current directory */

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

static void
make_file (const char *path)
{
  int fd = open (path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

  must (fd != -1 && write (fd, path, strlen (path)) > 0, path);
  close (fd);
}

static const char *
absolute (const char *relative)
{
  static char path[2][sizeof dir + 200];
  static int which;

  which = !which;
  snprintf (path[which], sizeof path[which], "%s/%s", dir, relative);
  return path[which];
}

/* If set, images/link is made to lead there when the engine looks at the
 * place of the file that it has found.
 */
static const char *exchange_for;

int
lstat (const char *path, struct stat *st)
{
  if (exchange_for) {
    must (symlink (exchange_for, "images/new") == 0 &&
          rename ("images/new", "images/link") == 0, "images/link");
    exchange_for = NULL;
  }
  return fstatat (AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
}

/* images/ holds the image, store/ is what may be allowed. */
static void
make_tree (void)
{
  static const char *const dirs[] = {
    "images", "images/sub", "images/is a dir", "images2", "store",
    "store/sub", "elsewhere",
  };
  static const char *const files[] = {
    "images/top", "images/base", "images/sub/base", "images/a (deleted)",
    "images/a\nb", "images2/base", "store/base", "store/sub/base",
    "elsewhere/base", "base",
  };
  static const char *const links[][2] = {
    { "../elsewhere/base", "images/to-elsewhere" },
    { "../elsewhere", "images/elsewhere" },
    { "../images/base", "elsewhere/to-images" },
    { "store", "to-store" },
    { "images/top", "to-top" },
    { "nowhere", "images/dangling" },
    { "loop", "images/loop" },
  };
  struct sockaddr_un address = { AF_UNIX, "images/socket" };
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  for (size_t i = 0; i < sizeof dirs / sizeof dirs[0]; ++i)
    must (mkdir (dirs[i], 0700) == 0, dirs[i]);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; ++i)
    make_file (files[i]);
  for (size_t i = 0; i < sizeof links / sizeof links[0]; ++i)
    must (symlink (links[i][0], links[i][1]) == 0, links[i][1]);
  must (mkfifo ("images/fifo", 0600) == 0, "mkfifo");
  must (bind (sock, (struct sockaddr *) &address, sizeof address) == 0,
        "bind");
  close (sock);
}

/*----- Rules -----*/

static struct named_file_rule *
rule_of (const char *image, const char *allow_dir, bool allow_none)
{
  struct named_file_rule *rule = NULL;
  int fd = open (image, O_RDONLY | O_CLOEXEC);

  must (fd != -1, image);
  must (named_file_rule_new (fd, &allow_dir, allow_dir ? 1 : 0, allow_none,
                             &rule, NULL) == 0, "named_file_rule_new");
  close (fd);
  return rule;
}

static void
opens (const struct named_file_rule *rule, enum named_file_use use,
       const char *filename, const char *path)
{
  struct qcow2_error error = { "" };
  char content[300] = "";
  int fd = named_file_open (rule, use, filename, false, &error);

  if (!ok (fd >= 0, "%.60s is opened", filename)) {
    printf ("#   %s\n", error.message);
    return;
  }
  must (read (fd, content, sizeof content - 1) > 0, "read");
  is_str (content, path, "... and is %s", path);
  ok (fcntl (fd, F_GETFD) == FD_CLOEXEC &&
      (fcntl (fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_PATH)) == O_RDONLY,
      "... read-only and close-on-exec");
  close (fd);
}

static void
refuses (const struct named_file_rule *rule, enum named_file_use use,
         const char *filename, int err, const char *text)
{
  struct qcow2_error error = { "" };
  int r = named_file_open (rule, use, filename, false, &error);

  if (!ok (r == -err, "%.60s is refused: %s", filename, strerror (err)))
    printf ("#   %d %s\n", r, error.message);
  if (!ok (strstr (error.message, text) != NULL, "... says: %.200s", text))
    printf ("#   %s\n", error.message);
  ok (strncmp (error.message, filename, strcspn (filename, "\n")) == 0,
      "... and names the file");
}

/*----- Tests -----*/

static void
in_the_directory_of_the_image (void)
{
  struct named_file_rule *rule = rule_of ("images/top", NULL, false);
  char hint[2 * sizeof dir + 100];

  opens (rule, NAMED_FILE_BACKING, "images/base", "images/base");
  opens (rule, NAMED_FILE_BACKING, "images/sub/base", "images/sub/base");
  opens (rule, NAMED_FILE_BACKING, "images/a (deleted)",
         "images/a (deleted)");
  opens (rule, NAMED_FILE_BACKING, absolute ("images/base"), "images/base");
  opens (rule, NAMED_FILE_BACKING, "store/../images/base", "images/base");
  opens (rule, NAMED_FILE_BACKING, "elsewhere/to-images", "images/base");

  snprintf (hint, sizeof hint, "add allow-dir=%s/elsewhere (the file is "
            "%s/elsewhere/base)", dir, dir);
  refuses (rule, NAMED_FILE_BACKING, "elsewhere/base", EACCES, hint);
  refuses (rule, NAMED_FILE_BACKING, "images/to-elsewhere", EACCES, hint);
  refuses (rule, NAMED_FILE_BACKING, "images/elsewhere/base", EACCES, hint);
  refuses (rule, NAMED_FILE_BACKING, "images/../elsewhere/base", EACCES,
           hint);
  refuses (rule, NAMED_FILE_BACKING, absolute ("elsewhere/base"), EACCES,
           absolute ("elsewhere"));
  refuses (rule, NAMED_FILE_BACKING, "images2/base", EACCES, "allow-dir=");
  refuses (rule, NAMED_FILE_BACKING, "base", EACCES, "allow-dir=");
  refuses (rule, NAMED_FILE_BACKING, "/etc/passwd", EACCES,
           "add allow-dir=/etc");

  snprintf (hint, sizeof hint, "add data-file=images/base or "
            "allow-dir=%s/images ", dir);
  refuses (rule, NAMED_FILE_DATA, "images/base", EACCES, hint);
  named_file_rule_free (rule);

  rule = rule_of ("to-top", NULL, false);
  opens (rule, NAMED_FILE_BACKING, "images/base", "images/base");
  refuses (rule, NAMED_FILE_BACKING, "base", EACCES, "allow-dir=");
  named_file_rule_free (rule);

  rule = rule_of ("images/top", NULL, true);
  refuses (rule, NAMED_FILE_BACKING, "images/base", EACCES, "allow-dir=");
  named_file_rule_free (rule);
}

static void
in_allowed_directories (void)
{
  struct named_file_rule *rule = rule_of ("images/top", "to-store", false);

  opens (rule, NAMED_FILE_BACKING, "images/base", "images/base");
  opens (rule, NAMED_FILE_BACKING, "store/base", "store/base");
  opens (rule, NAMED_FILE_BACKING, "to-store/sub/base", "store/sub/base");
  opens (rule, NAMED_FILE_DATA, "store/base", "store/base");
  refuses (rule, NAMED_FILE_DATA, "images/base", EACCES, "data-file=");
  refuses (rule, NAMED_FILE_BACKING, "elsewhere/base", EACCES, "allow-dir=");
  named_file_rule_free (rule);

  rule = rule_of ("images/top", "store/sub/", true);
  opens (rule, NAMED_FILE_BACKING, "store/sub/base", "store/sub/base");
  refuses (rule, NAMED_FILE_BACKING, "store/base", EACCES, "allow-dir=");
  refuses (rule, NAMED_FILE_BACKING, "images/base", EACCES, "allow-dir=");
  named_file_rule_free (rule);

  rule = rule_of ("images/top", "/", true);
  opens (rule, NAMED_FILE_DATA, "elsewhere/base", "elsewhere/base");
  named_file_rule_free (rule);

  /* An image that is no regular file has no directory. */
  rule = rule_of ("/dev/null", NULL, false);
  refuses (rule, NAMED_FILE_BACKING, "images/base", EACCES,
           "no directory of its own");
  named_file_rule_free (rule);
  rule = rule_of ("images", NULL, false);
  refuses (rule, NAMED_FILE_BACKING, "images/base", EACCES,
           "no directory of its own");
  named_file_rule_free (rule);
}

static void
in_directories_of_the_environment (void)
{
  char value[4 * sizeof dir];
  struct named_file_rule *rule;

  snprintf (value, sizeof value, ":%s/store/sub::%s/images2:", dir, dir);
  setenv ("QCOW2_ALLOW_DIR", value, 1);
  rule = rule_of ("images/top", "elsewhere", false);
  opens (rule, NAMED_FILE_BACKING, "images/base", "images/base");
  opens (rule, NAMED_FILE_BACKING, "images2/base", "images2/base");
  opens (rule, NAMED_FILE_DATA, "store/sub/base", "store/sub/base");
  opens (rule, NAMED_FILE_DATA, "elsewhere/base", "elsewhere/base");
  refuses (rule, NAMED_FILE_BACKING, "store/base", EACCES, "allow-dir=");
  named_file_rule_free (rule);

  snprintf (value, sizeof value, "%s/images2:none", dir);
  setenv ("QCOW2_ALLOW_DIR", value, 1);
  rule = rule_of ("images/top", NULL, false);
  opens (rule, NAMED_FILE_BACKING, "images2/base", "images2/base");
  refuses (rule, NAMED_FILE_BACKING, "images/base", EACCES, "allow-dir=");
  named_file_rule_free (rule);

  setenv ("QCOW2_ALLOW_DIR", "::", 1);
  rule = rule_of ("images/top", NULL, false);
  opens (rule, NAMED_FILE_BACKING, "images/base", "images/base");
  refuses (rule, NAMED_FILE_BACKING, "base", EACCES, "allow-dir=");
  named_file_rule_free (rule);
  unsetenv ("QCOW2_ALLOW_DIR");
}

static void
bad_rules (void)
{
  static const struct {
    const char *allow_dir, *variable;
    int err;
    const char *text;
  } bad[] = {
    { "nowhere", "", ENOENT, "allow-dir=nowhere: No such file" },
    { "base", "", ENOTDIR, "allow-dir=base: Not a directory" },
    { "", "", ENOENT, "allow-dir=: No such file" },
    { "store", "/nowhere", ENOENT, "QCOW2_ALLOW_DIR: /nowhere: No such" },
    { "store", "/:store", EINVAL, "QCOW2_ALLOW_DIR: store: must be an abs" },
    { "store", "/dev/null:/", ENOTDIR, "QCOW2_ALLOW_DIR: /dev/null: Not a" },
    { "store", "~/x", EINVAL, "QCOW2_ALLOW_DIR: ~/x: must be an absolute" },
  };
  int fd = open ("images/top", O_RDONLY | O_CLOEXEC);

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
    struct named_file_rule *rule = NULL;
    struct qcow2_error error = { "" };
    const char *dirs[] = { "images2", bad[i].allow_dir };

    setenv ("QCOW2_ALLOW_DIR", bad[i].variable, 1);
    is_int (named_file_rule_new (fd, dirs, 2, false, &rule, &error),
            -bad[i].err, "bad rule: %s", bad[i].text);
    if (!ok (strncmp (error.message, bad[i].text, strlen (bad[i].text)) == 0,
             "... so it says"))
      printf ("#   %s\n", error.message);
  }
  unsetenv ("QCOW2_ALLOW_DIR");
  close (fd);
}

static void
kinds_of_files (void)
{
  struct named_file_rule *rule = rule_of ("images/top", "/", false);
  enum named_file_use uses[] = { NAMED_FILE_BACKING, NAMED_FILE_DATA };

  for (int i = 0; i < 2; ++i) {
    refuses (rule, uses[i], "images/fifo", EINVAL, "is a FIFO");
    refuses (rule, uses[i], "images/socket", EINVAL, "is a socket");
    refuses (rule, uses[i], "images/is a dir", EINVAL, "is a directory");
    refuses (rule, uses[i], "/dev/null", EINVAL, "is a character device");
    refuses (rule, uses[i], "/dev/tty", EINVAL, "is a character device");
    refuses (rule, uses[i], "images/nowhere", ENOENT, "No such file");
    refuses (rule, uses[i], "images/dangling", ENOENT, "No such file");
    refuses (rule, uses[i], "images/loop", ELOOP, strerror (ELOOP));
    refuses (rule, uses[i], "images/base/x", ENOTDIR, "Not a directory");
    refuses (rule, uses[i], "", ENOENT, "No such file");
  }
  named_file_rule_free (rule);

  rule = rule_of ("images/top", NULL, true);
  refuses (rule, NAMED_FILE_BACKING, "images/a\nb", EACCES,
           "images/a\\x0ab: ");
  named_file_rule_free (rule);
}

/* A block device (it need not be there to be one) in the directory of
 * the image, and in an allowed one.
 */
static void
block_devices (void)
{
  struct named_file_rule *rule = rule_of ("images/top", NULL, false);

  must (mknod ("images/disk", S_IFBLK | 0600, 0xfff << 8) == 0, "mknod");
  refuses (rule, NAMED_FILE_BACKING, "images/disk", EACCES,
           "block devices that an image names are opened only where");
  named_file_rule_free (rule);
  rule = rule_of ("images/top", "images", false);
  refuses (rule, NAMED_FILE_BACKING, "images/disk", ENXIO,
           strerror (ENXIO));
  named_file_rule_free (rule);
}

static void
files_that_are_gone (void)
{
  struct named_file_rule *rule = rule_of ("images/top", "/", false);
  char link[40];
  int fd;

  make_file ("images/gone");
  fd = open ("images/gone", O_RDONLY | O_CLOEXEC);
  must (fd != -1 && unlink ("images/gone") == 0, "images/gone");
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  refuses (rule, NAMED_FILE_BACKING, link, EACCES,
           "cannot find out where this file is");

  /* Another file in the place that the link tells. */
  make_file ("images/gone (deleted)");
  refuses (rule, NAMED_FILE_BACKING, link, EACCES,
           "cannot find out where this file is");
  close (fd);

  fd = memfd_create ("x", MFD_CLOEXEC);
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  refuses (rule, NAMED_FILE_BACKING, link, EACCES,
           "cannot find out where this file is");
  close (fd);
  named_file_rule_free (rule);
}

static void
no_side_effect (void)
{
  struct named_file_rule *rule = rule_of ("images/top", NULL, false);
  int notify = inotify_init1 (IN_NONBLOCK | IN_CLOEXEC);
  char events[4096];

  must (inotify_add_watch (notify, "elsewhere/base", IN_ALL_EVENTS) != -1,
        "inotify");
  refuses (rule, NAMED_FILE_BACKING, "elsewhere/base", EACCES, "allow-dir=");
  ok (read (notify, events, sizeof events) == -1 && errno == EAGAIN,
      "a file that is refused is not opened");
  close (open ("elsewhere/base", O_RDONLY | O_CLOEXEC));
  ok (read (notify, events, sizeof events) > 0,
      "... which would have been seen");
  close (notify);
  named_file_rule_free (rule);
}

/* The worst moment to exchange a link: the file has been found, and is
 * being judged.
 */
static void
exchanged_links (void)
{
  struct named_file_rule *rule = rule_of ("images/top", NULL, false);

  must (symlink ("base", "images/link") == 0, "symlink");
  exchange_for = "../elsewhere/base";
  opens (rule, NAMED_FILE_BACKING, "images/link", "images/base");
  ok (!exchange_for, "... though the link was exchanged meanwhile");
  exchange_for = "base";
  refuses (rule, NAMED_FILE_BACKING, "images/link", EACCES, "elsewhere");
  ok (!exchange_for, "... though the link was exchanged meanwhile");
  named_file_rule_free (rule);
}

/* Directories within directories, up to LENGTH bytes of path; the last
 * one is the current directory then.
 */
static void
go_down (size_t length)
{
  char name[201];

  memset (name, 'd', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  must (chdir (dir) == 0, dir);
  for (size_t len = strlen (dir); len < length; len += sizeof name) {
    must (mkdir (name, 0700) == 0 || errno == EEXIST, "mkdir");
    must (chdir (name) == 0, "chdir");
  }
  close (open ("top", O_RDONLY | O_CREAT | O_CLOEXEC, 0600));
  make_file ("base");
}

static void
long_paths (void)
{
  struct named_file_rule *rule;

  go_down (3000);
  rule = rule_of ("top", NULL, false);
  opens (rule, NAMED_FILE_BACKING, "base", "base");
  refuses (rule, NAMED_FILE_BACKING, absolute ("elsewhere/base"), EACCES,
           "allow-dir=");
  named_file_rule_free (rule);

  go_down (6000);
  rule = rule_of ("top", "/", false);
  refuses (rule, NAMED_FILE_BACKING, "base", EACCES, strerror (ENAMETOOLONG));
  named_file_rule_free (rule);
  must (chdir (dir) == 0, dir);
}

static void
what_the_operator_names (void)
{
  struct qcow2_error error = { "" };
  int fd = named_file_open_operator ("images/to-elsewhere", false, &error);

  ok (fd >= 0, "the operator's word is enough for any file");
  ok (fcntl (fd, F_GETFD) == FD_CLOEXEC &&
      (fcntl (fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDONLY,
      "... which is opened read-only and close-on-exec");
  close (fd);
  fd = named_file_open_operator ("images/fifo", false, &error);
  ok (fd >= 0, "a FIFO is not waited for");
  close (fd);
  is_int (named_file_open_operator ("images/a\tnowhere", false, &error),
          -ENOENT, "a file that is not there is an error");
  is_str (error.message, "images/a\\x09nowhere: No such file or directory",
          "... with a message");
}

/* In a child, where the root directory is DIR and so has no /proc. */
static int
without_proc_in_child (void)
{
  const char *all = "/";
  struct named_file_rule *rule;
  struct qcow2_error error = { "" };
  int fd;

  if (chroot (dir) == -1 &&
      (unshare (CLONE_NEWUSER) == -1 || chroot (dir) == -1))
    return 1;
  if (chdir ("/") == -1)
    return 2;
  fd = named_file_open_operator ("/images/top", false, NULL);
  if (fd < 0)
    return 3;
  if (named_file_rule_new (fd, &all, 1, false, &rule, NULL) != 0)
    return 4;
  close (fd);
  fd = named_file_open (rule, NAMED_FILE_BACKING, "/images/base", false,
                        &error);
  named_file_rule_free (rule);
  if (fd != -EACCES)
    return 5;
  return strstr (error.message, "/proc is not mounted") ? 0 : 6;
}

static void
without_proc (void)
{
  pid_t pid = fork ();
  int status;

  must (pid != -1, "fork");
  if (pid == 0)
    _exit (without_proc_in_child ());
  must (waitpid (pid, &status, 0) == pid, "waitpid");
  is_int (status, 0, "without /proc the operator's files are opened, and "
          "none that an image names");
}

int
main (void)
{
  char remove[sizeof dir + 20], made[sizeof dir];
  const char *tmp = getenv ("TMPDIR");

  alarm (250);                  /* a FIFO that is waited for */
  unsetenv ("QCOW2_ALLOW_DIR");
  snprintf (made, sizeof made, "%s/named-file.XXXXXX", tmp ? tmp : "/tmp");
  must (mkdtemp (made) != NULL && chdir (made) == 0 &&
        getcwd (dir, sizeof dir) != NULL, made);
  make_tree ();

  in_the_directory_of_the_image ();
  in_allowed_directories ();
  in_directories_of_the_environment ();
  bad_rules ();
  kinds_of_files ();
  block_devices ();
  files_that_are_gone ();
  no_side_effect ();
  exchanged_links ();
  long_paths ();
  what_the_operator_names ();
  without_proc ();

  snprintf (remove, sizeof remove, "rm -rf '%s'", dir);
  must (chdir ("/") == 0 && system (remove) == 0, remove);
  return tap_done ();
}
