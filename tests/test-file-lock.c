/* SPDX-License-Identifier: BSD-3-Clause */

/* QEMU's locks, held against QEMU's own programs: who reads is let in
 * beside a reader, who writes is kept out, and keeps all others out, in
 * both directions.
 */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qcow2/file-lock.h"
#include "qcow2/io-file.h"
#include "qcow2/qcow2.h"
#include "tap.h"

/*----- fcntl that can be made to fail -----*/

static int lock_errno;          /* of any use of locks, but 0 */
static int set_errno;           /* of taking or dropping one, but 0 */

int
fcntl (int fd, int command, ...)
{
  va_list args;
  void *arg;

  va_start (args, command);
  arg = va_arg (args, void *);
  va_end (args);
  if (lock_errno && (command == F_OFD_SETLK || command == F_OFD_GETLK)) {
    errno = lock_errno;
    return -1;
  }
  if (set_errno && command == F_OFD_SETLK) {
    errno = set_errno;
    return -1;
  }
  return syscall (SYS_fcntl, fd, command, arg);
}

/*----- Files and processes -----*/

static char dir[200], image[sizeof dir + 20];

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

static int
open_image (int flags)
{
  int fd = open (image, flags | O_CLOEXEC);

  must (fd != -1, "open");
  return fd;
}

/* Run a command in the directory of the image; its exit status.  OUTPUT
 * is what it says, up to 4 KiB.
 */
static char output[4096];

static int
run (const char *command)
{
  char all[1024];
  FILE *pipe;
  size_t len;
  int status;

  snprintf (all, sizeof all, "cd '%s' && { %s; } 2>&1", dir, command);
  pipe = popen (all, "re");
  must (pipe != NULL, command);
  len = fread (output, 1, sizeof output - 1, pipe);
  output[len] = '\0';
  status = pclose (pipe);
  return WIFEXITED (status) ? WEXITSTATUS (status) : -1;
}

/* Returns when qemu-nbd has opened the image, which it does before it
 * writes its process id.
 */
static pid_t
start_qemu_nbd (const char *option)
{
  char socket_option[sizeof dir + 20];
  pid_t pid;

  snprintf (socket_option, sizeof socket_option, "--socket=%s/socket", dir);
  pid = fork ();
  must (pid != -1, "fork");
  if (pid == 0) {
    prctl (PR_SET_PDEATHSIG, SIGKILL);
    if (chdir (dir) == 0)
      execlp ("qemu-nbd", "qemu-nbd", "-t", socket_option, "--pid-file=pid",
              "-f", "qcow2", option, "image", NULL);
    _exit (127);
  }
  must (run ("for i in $(seq 200); do"
             " [ -s pid ] && exit 0; sleep 0.05; done; exit 1") == 0,
        "qemu-nbd");
  return pid;
}

static void
stop (pid_t pid)
{
  kill (pid, SIGTERM);
  must (waitpid (pid, NULL, 0) == pid, "waitpid");
  run ("rm -f pid socket");
}

/* Would any lock be in the way of an exclusive one on BYTE? */
static bool
is_locked (int byte)
{
  struct flock lock = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };
  int fd = open_image (O_RDWR);

  must (fcntl (fd, F_OFD_GETLK, &lock) == 0, "F_OFD_GETLK");
  close (fd);
  return lock.l_type != F_UNLCK;
}

/* As another program would; a descriptor that holds the lock. */
static int
hold (int byte, short type)
{
  struct flock lock = {
    .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };
  int fd = open_image (O_RDWR);

  must (fcntl (fd, F_OFD_SETLK, &lock) == 0, "F_OFD_SETLK");
  return fd;
}

static void
qemu_may_write (bool may, const char *when)
{
  int status = run ("qemu-io -f qcow2 -c 'write 0 64k' image");

  if (!ok ((status == 0) == may, "%s: qemu-io %s", when,
           may ? "writes" : "does not write"))
    printf ("#   %d %s\n", status, output);
  if (!may)
    ok (strstr (output, "Failed to get \"write\" lock") != NULL,
        "... for want of the write lock");
}

/*----- Tests -----*/

static void
while_we_read (void)
{
  int fd = open_image (O_RDONLY), second = open_image (O_RDONLY);
  int nr_locked = 0;
  pid_t pid;

  is_int (qcow2_file_lock_read (fd, image, NULL), 0,
          "an image that nobody uses is locked");
  for (int byte = 0; byte < 400; ++byte)
    nr_locked += is_locked (byte);
  ok (nr_locked == 3 && is_locked (100) && is_locked (201) &&
      is_locked (203), "... on the three bytes of a reader");

  qemu_may_write (false, "while it is locked");
  is_int (run ("qemu-img info image && qemu-io -r -f qcow2 -c 'read 0 64k'"
               " image && qemu-img check -q image"), 0,
          "QEMU's programs may read meanwhile");
  is_int (run ("qemu-img create -q -f qcow2 -b image -F qcow2 overlay &&"
               " qemu-io -f qcow2 -c 'write 0 64k' overlay"), 0,
          "... and write to an overlay");
  is_int (qcow2_file_lock_read (second, image, NULL), 0,
          "a second reader locks it, too");
  pid = start_qemu_nbd ("-r");
  ok (pid > 0, "and qemu-nbd -r serves it");
  stop (pid);

  close (fd);
  qemu_may_write (false, "when one reader of two is gone");
  close (second);
  qemu_may_write (true, "when all are gone");
}

/* The locked bytes as text. */
static const char *
locked_bytes (void)
{
  static char text[200];
  size_t len = 0;

  text[0] = '\0';
  for (int byte = 0; byte < 400; ++byte)
    if (is_locked (byte) && len < sizeof text - 5)
      len += (size_t) snprintf (text + len, sizeof text - len, " %d", byte);
  return text;
}

static void
while_we_write (void)
{
  struct qcow2_error error = { "" };
  struct qcow2_storage *s = NULL;
  int fd = open_image (O_RDWR), second = open_image (O_RDWR);
  char ours[200];
  pid_t pid;

  is_int (qcow2_file_lock_write (fd, image, NULL), 0,
          "an image that nobody uses is locked by a writer");
  strcpy (ours, locked_bytes ());
  is_str (ours, " 100 101 103 201 203", "... on the bytes of a writer");
  qemu_may_write (false, "while it is");
  ok (run ("qemu-io -r -f qcow2 -c 'read 0 64k' image") != 0 &&
      strstr (output, "Failed to get shared \"write\" lock"),
      "QEMU does not read it, either");
  ok (run ("qemu-img check image") != 0, "... nor check it");
  ok (run ("qemu-img create -q -f qcow2 -u -b image -F qcow2 overlay 1M &&"
           " qemu-io -f qcow2 -c 'write 0 64k' overlay") != 0,
      "... nor write to an overlay of it");
  is_int (run ("qemu-img info -U image"), 0, "... unless it is forced to");
  is_int (qcow2_file_lock_write (second, image, &error), -EAGAIN,
          "a second writer is kept out");
  ok (strstr (error.message, "Failed to get \"write\" lock") != NULL &&
      strstr (error.message, "destroy the image") != NULL,
      "... and is told why");
  is_int (qcow2_file_lock_read (second, image, &error), -EAGAIN,
          "so is a reader");
  ok (strstr (error.message, "shared \"write\" lock") != NULL,
      "... and is told why");
  is_str (locked_bytes (), ours, "neither takes a lock away");
  close (fd);
  qemu_may_write (true, "when the writer is gone");
  close (second);

  must (qcow2_io_file_new (open_image (O_RDWR), image,
                           QCOW2_IO_FILE_WRITE | QCOW2_IO_FILE_LOCK, &s,
                           NULL) == 0, "new");
  is_str (locked_bytes (), ours, "a storage that is written has these locks");
  qcow2_storage_close (s);

  pid = start_qemu_nbd ("--discard=unmap");
  is_str (locked_bytes (), ours, "so has a qemu-nbd that may write");
  fd = open_image (O_RDWR);
  is_int (qcow2_file_lock_write (fd, image, &error), -EAGAIN,
          "which keeps writers out");
  ok (strstr (error.message, "Failed to get \"write\" lock") != NULL,
      "... for want of the write lock");
  stop (pid);
  is_int (qcow2_file_lock_write (fd, image, &error), 0, "while it runs");
  close (fd);

  pid = start_qemu_nbd ("-r");
  fd = open_image (O_RDWR);
  is_int (qcow2_file_lock_write (fd, image, &error), -EAGAIN,
          "qemu-nbd -r keeps writers out");
  ok (strstr (error.message, "Failed to get \"write\" lock") != NULL,
      "... for want of the write lock");
  stop (pid);
  close (fd);
}

/* An external data file has the same locks. */
static void
data_files (void)
{
  char name[sizeof dir + 10];
  int fd;

  must (run ("qemu-img create -q -f qcow2 -o data_file=data ext 1M") == 0,
        "qemu-img");
  snprintf (name, sizeof name, "%s/data", dir);
  fd = open (name, O_RDWR | O_CLOEXEC);
  must (fd != -1, "open");
  is_int (qcow2_file_lock_write (fd, name, NULL), 0,
          "a data file is locked by a writer");
  ok (run ("qemu-io -f qcow2 -c 'write 0 64k' ext") != 0 &&
      strstr (output, "lock"), "... and QEMU does not write to it");
  ok (run ("qemu-io -r -f qcow2 -c 'read 0 64k' ext") != 0 &&
      strstr (output, "lock"), "... nor read it");
  close (fd);
  is_int (run ("qemu-io -f qcow2 -c 'write 0 64k' ext"), 0,
          "until the writer is gone");
}

static void
while_qemu_uses_it (void)
{
  struct qcow2_error error = { "" };
  struct qcow2_storage *s = NULL;
  char named[sizeof image + 10];
  pid_t pid = start_qemu_nbd ("-r");
  int fd = open_image (O_RDONLY);

  is_int (qcow2_file_lock_read (fd, image, &error), 0,
          "beside qemu-nbd -r an image is locked");
  stop (pid);
  qemu_may_write (false, "when qemu-nbd is gone");
  close (fd);

  pid = start_qemu_nbd ("--discard=unmap");
  fd = open_image (O_RDONLY);
  is_int (qcow2_file_lock_read (fd, image, &error), -EAGAIN,
          "beside a qemu-nbd that may write it is not");
  ok (strstr (error.message, "Failed to get shared \"write\" lock") != NULL,
      "... for want of the write lock");
  snprintf (named, sizeof named, "[%s]", image);
  ok (strstr (error.message, named) != NULL, "... on the file it names");
  ok (strstr (error.message, "lock=off") != NULL, "... and how to go on");

  is_int (qcow2_io_file_new (fd, image, QCOW2_IO_FILE_LOCK, &s, &error),
          -EAGAIN,
          "no storage is made of it");
  ok (fcntl (fd, F_GETFD) == -1 && !s, "... and the descriptor is closed");
  fd = open_image (O_RDONLY);
  is_int (qcow2_io_file_new (fd, image, 0, &s, &error), 0,
          "... but without locks it is");
  qcow2_storage_close (s);
  stop (pid);

  fd = open_image (O_RDONLY);
  must (qcow2_io_file_new (fd, image, QCOW2_IO_FILE_LOCK, &s, NULL) == 0,
        "new");
  qemu_may_write (false, "while a storage is open");
  qcow2_storage_close (s);
  qemu_may_write (true, "after a storage was closed");
}

/* Another program's lock, and what we say to it. */
struct other {
  int byte;
  short type;
  const char *to_reader;        /* NULL: no conflict */
  const char *to_writer;
};

static void
conflict (const struct other *other, bool write)
{
  struct qcow2_error error = { "" };
  const char *text = write ? other->to_writer : other->to_reader;
  int other_fd = hold (other->byte, other->type);
  int fd = open_image (O_RDWR), r;

  r = write ? qcow2_file_lock_write (fd, image, &error) :
    qcow2_file_lock_read (fd, image, &error);
  is_int (r, text ? -EAGAIN : 0, "a %s beside a %s lock on byte %d",
          write ? "writer" : "reader",
          other->type == F_RDLCK ? "shared" : "exclusive", other->byte);
  close (other_fd);
  if (text) {
    ok (strstr (error.message, text) != NULL, "... says: %s", text);
    is_str (locked_bytes (), "", "... and leaves no lock");
  }
  close (fd);
}

static void
each_conflict (void)
{
  static const struct other others[] = {
    { 100, F_RDLCK, NULL, NULL },
    { 101, F_RDLCK, "shared \"write\" lock", "shared \"write\" lock" },
    { 102, F_RDLCK, NULL, NULL },       /* "write unchanged" */
    { 103, F_RDLCK, "shared \"resize\" lock", "shared \"resize\" lock" },
    { 200, F_RDLCK, "\"consistent read\" lock",
      "\"consistent read\" lock" },
    { 201, F_RDLCK, NULL, "get \"write\" lock" },
    { 202, F_RDLCK, NULL, NULL },
    { 203, F_RDLCK, NULL, "get \"resize\" lock" },
    { 100, F_WRLCK, "lock byte 100", "lock byte 100" },
    { 101, F_WRLCK, "shared \"write\" lock", "lock byte 101" },
    { 103, F_WRLCK, "shared \"resize\" lock", "lock byte 103" },
    { 201, F_WRLCK, "lock byte 201", "lock byte 201" },
    { 203, F_WRLCK, "lock byte 203", "lock byte 203" },
  };

  for (size_t i = 0; i < sizeof others / sizeof others[0]; ++i) {
    conflict (&others[i], false);
    conflict (&others[i], true);
  }
}

static void
over_a_fork (void)
{
  int fd = open_image (O_RDONLY), to_child[2];
  pid_t pid;
  char c;

  must (qcow2_file_lock_read (fd, image, NULL) == 0, "lock");
  must (pipe2 (to_child, O_CLOEXEC) == 0, "pipe");
  pid = fork ();
  must (pid != -1, "fork");
  if (pid == 0) {
    close (to_child[1]);
    _exit (read (to_child[0], &c, 1) != 0);
  }
  close (to_child[0]);
  close (fd);
  qemu_may_write (false, "while a child has the image");
  close (to_child[1]);
  must (waitpid (pid, NULL, 0) == pid, "waitpid");
  qemu_may_write (true, "when the child has ended");

  /* What would drop process-associated locks. */
  fd = open_image (O_RDONLY);
  must (qcow2_file_lock_read (fd, image, NULL) == 0, "lock");
  close (open_image (O_RDONLY));
  ok (is_locked (100) && is_locked (201),
      "closing another descriptor of the file keeps the locks");
  close (fd);
}

static int nr_warnings;

static void
count_warnings (void *opaque, enum qcow2_log_level level, const char *text)
{
  nr_warnings += level == QCOW2_LOG_WARNING &&
    strstr (text, "the filesystem has no locks") != NULL;
}

/* How many warnings opening the image gives; -1 if it fails. */
static int
warnings_when_opened (bool writable)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *opened;

  qcow2_options_init (&options);
  options.writable = writable;
  options.log = count_warnings;
  nr_warnings = 0;
  if (qcow2_open (image, &options, &opened, &error) < 0)
    return -1;
  qcow2_close (opened);
  return nr_warnings;
}

static void
filesystems_without_locks (void)
{
  static const int none[] = { EINVAL, ENOSYS, EOPNOTSUPP, ENOLCK };
  struct qcow2_error error = { "" };
  int fd = open_image (O_RDWR);

  for (size_t i = 0; i < sizeof none / sizeof none[0]; ++i) {
    bool unknown = none[i] == ENOLCK;

    lock_errno = none[i];
    is_int (qcow2_file_lock_read (fd, image, NULL), 0,
            "a filesystem that says \"%s\" is read without locks",
            strerror (none[i]));
    is_int (qcow2_file_lock_write (fd, image, &error), unknown ? -ENOLCK : 0,
            "... and %s", unknown ? "not written" : "written");
    is_int (warnings_when_opened (true), unknown ? -1 : 1,
            "... which gives %s", unknown ? "an error" : "a warning");
    is_int (warnings_when_opened (false), 0, "... as reading does not");
  }
  ok (strstr (error.message, image) != NULL &&
      strstr (error.message, "lock=off") != NULL,
      "the error names the file, and how to go on");
  lock_errno = EIO;
  is_int (qcow2_file_lock_read (fd, image, &error), -EIO,
          "any other error is one");
  ok (strstr (error.message, strerror (EIO)) != NULL &&
      strstr (error.message, image) != NULL, "... and says which");
  lock_errno = 0;
  close (fd);
}

/* No room for one more lock, where there are some. */
static void
locks_that_cannot_be_had (void)
{
  struct qcow2_error error = { "" };
  int fd = open_image (O_RDWR);

  set_errno = ENOLCK;
  is_int (qcow2_file_lock_write (fd, image, &error), -ENOLCK,
          "a writer that gets no lock is kept out");
  ok (strstr (error.message, "Failed to lock byte 100") != NULL &&
      strstr (error.message, "lock=off") != NULL,
      "... and is told how to go on");
  is_int (qcow2_file_lock_read (fd, image, &error), -ENOLCK,
          "so is a reader, as with QEMU");
  set_errno = 0;
  is_int (warnings_when_opened (true), 0,
          "where there are locks there is no warning");
  close (fd);
}

int
main (void)
{
  char command[sizeof dir + 20];
  const char *tmp = getenv ("TMPDIR");

  snprintf (dir, sizeof dir, "%s/file-lock.XXXXXX", tmp ? tmp : "/tmp");
  must (mkdtemp (dir) != NULL, "mkdtemp");
  snprintf (image, sizeof image, "%s/image", dir);
  must (run ("qemu-img create -q -f qcow2 image 1M") == 0, "qemu-img");

  while_we_read ();
  while_we_write ();
  data_files ();
  while_qemu_uses_it ();
  each_conflict ();
  over_a_fork ();
  filesystems_without_locks ();
  locks_that_cannot_be_had ();

  snprintf (command, sizeof command, "rm -rf '%s'", dir);
  must (system (command) == 0, command);
  return tap_done ();
}
