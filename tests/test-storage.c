/* SPDX-License-Identifier: BSD-3-Clause */

/* Reads through the storage vtable: short reads are completed, zeros are
 * made up for nothing but what lies past the end, and holes are claimed
 * only where there is no data; over a made-up storage, files, and a block
 * device.  And the messages of the engine, which no text from an image
 * can make harmful.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "qcow2/error.h"
#include "qcow2/io-file.h"
#include "qcow2/storage.h"
#include "tap.h"

/*----- System calls that can be made to fail -----*/

static int lseek_errno;         /* for SEEK_DATA and SEEK_HOLE */
static int interrupts;          /* how many times pread gives EINTR */

off_t
lseek (int fd, off_t offset, int whence)
{
  if (lseek_errno && (whence == SEEK_DATA || whence == SEEK_HOLE)) {
    errno = lseek_errno;
    return -1;
  }
  return syscall (SYS_lseek, fd, offset, whence);
}

ssize_t
pread (int fd, void *buf, size_t count, off_t offset)
{
  if (interrupts > 0) {
    interrupts--;
    errno = EINTR;
    return -1;
  }
  return syscall (SYS_pread64, fd, buf, count, offset);
}

/*----- A made-up storage -----*/

struct fake {
  struct qcow2_storage storage;
  const char *content;
  int64_t size_bytes;           /* or an error */
  size_t most;                  /* what a read gives at the most */
  unsigned zero_reads;          /* how many more reads give nothing */
  unsigned zero_at;             /* from this read on */
  int pread_error;
  unsigned nr_reads;
};

static ssize_t
fake_pread (struct qcow2_storage *s, void *buf, size_t count,
            uint64_t offset)
{
  struct fake *fake = (struct fake *) s;

  fake->nr_reads++;
  if (fake->pread_error)
    return fake->pread_error;
  if (fake->nr_reads > fake->zero_at && fake->zero_reads > 0) {
    fake->zero_reads--;
    return 0;
  }
  if (offset >= strlen (fake->content))
    return 0;
  if (count > strlen (fake->content) - offset)
    count = strlen (fake->content) - offset;
  if (count > fake->most)
    count = fake->most;
  memcpy (buf, fake->content + offset, count);
  return count;
}

static int64_t
fake_size (struct qcow2_storage *s)
{
  return ((struct fake *) s)->size_bytes;
}

static const struct qcow2_storage_ops fake_ops = {
  .pread = fake_pread,
  .size = fake_size,
};

static struct fake
fake_of (const char *content, size_t most)
{
  return (struct fake) {
    .storage.ops = &fake_ops,
    .content = content,
    .size_bytes = strlen (content),
    .most = most,
  };
}

static void
short_reads (void)
{
  struct fake fake = fake_of ("abcdefghij", 3);
  char buf[16];

  memset (buf, 'x', sizeof buf);
  is_int (qcow2_storage_read_data (&fake.storage, buf, 10, 0), 0,
          "short reads of data are completed");
  ok (memcmp (buf, "abcdefghijxxxxxx", 16) == 0, "... with the content");
  is_int (qcow2_storage_read_meta (&fake.storage, buf, 10, 0), 0,
          "short reads of metadata are completed");

  is_int (qcow2_storage_read_data (&fake.storage, buf, 6, 7), 0,
          "data may lie partly past the end");
  ok (memcmp (buf, "hij\0\0\0ghijxxxxxx", 16) == 0, "... and is zero there");
  is_int (qcow2_storage_read_data (&fake.storage, buf, 16, 1000), 0,
          "data may lie wholly past the end");
  ok (memcmp (buf, (char[16]) { 0 }, 16) == 0, "... and is zero there");
  is_int (qcow2_storage_read_meta (&fake.storage, buf, 4, 7), -EIO,
          "metadata partly past the end is an error");
  is_int (qcow2_storage_read_meta (&fake.storage, buf, 1, 10), -EIO,
          "metadata at the end is an error");
  is_int (qcow2_storage_read_meta (&fake.storage, buf, 0, 10), 0,
          "no metadata at the end is none");
}

static void
reads_of_nothing (void)
{
  struct fake fake;
  char buf[10];

  fake = fake_of ("abcdefghij", 4);
  fake.zero_at = 1;
  fake.zero_reads = 1;
  is_int (qcow2_storage_read_data (&fake.storage, buf, 10, 0), 0,
          "a read that gives nothing before the end is tried again");
  ok (memcmp (buf, "abcdefghij", 10) == 0, "... and the content is right");

  fake = fake_of ("abcdefghij", 4);
  fake.zero_at = 1;
  fake.zero_reads = 1000;
  is_int (qcow2_storage_read_data (&fake.storage, buf, 10, 0), -EIO,
          "two in a row are an error for data");
  is_int (fake.nr_reads, 3, "... and no more are tried");

  fake = fake_of ("abcdefghij", 4);
  fake.zero_reads = 1000;
  is_int (qcow2_storage_read_meta (&fake.storage, buf, 10, 0), -EIO,
          "two in a row are an error for metadata");
  is_int (qcow2_storage_read_data (&fake.storage, buf, 5, 5), -EIO,
          "the same just before the end");

  fake = fake_of ("abcdefghij", 4);
  fake.size_bytes = 12;
  is_int (qcow2_storage_read_data (&fake.storage, buf, 10, 5), -EIO,
          "an end that is not where the size says is an error");
  fake.size_bytes = -ENXIO;
  is_int (qcow2_storage_read_data (&fake.storage, buf, 10, 5), -ENXIO,
          "a size that cannot be known is an error");
  fake.pread_error = -ETIMEDOUT;
  is_int (qcow2_storage_read_data (&fake.storage, buf, 1, 0), -ETIMEDOUT,
          "an error of a read of data is passed on");
  is_int (qcow2_storage_read_meta (&fake.storage, buf, 1, 0), -ETIMEDOUT,
          "an error of a read of metadata is passed on");
}

static void
without_the_optional_members (void)
{
  struct fake fake = fake_of ("abcdefghij", 3);
  uint64_t length_bytes;
  bool hole;

  is_int (qcow2_storage_hole (&fake.storage, 4, &hole, &length_bytes), 0,
          "a storage may know nothing of holes");
  ok (!hole && length_bytes == 6, "... all is data then");
  is_int (qcow2_storage_hole (&fake.storage, 10, &hole, &length_bytes), 0,
          "the end can be asked about");
  ok (hole && length_bytes > INT64_MAX, "... and is a hole");
  is_int (qcow2_storage_hole (&fake.storage, UINT64_MAX, &hole,
                              &length_bytes), 0,
          "so can the last byte there can be");
  ok (hole && length_bytes == 1, "... and is a hole of one byte");
  fake.size_bytes = -EIO;
  is_int (qcow2_storage_hole (&fake.storage, 0, &hole, &length_bytes), -EIO,
          "holes cannot be known where the size is not");
  qcow2_storage_prefetch (&fake.storage, 0, 10);
  qcow2_storage_close (NULL);
  ok (true, "prefetch may be missing, closing nothing is allowed");
}

/*----- Files -----*/

static char dir[200];

static const char *
in_dir (const char *name)
{
  static char path[sizeof dir + 100];

  snprintf (path, sizeof path, "%s/%s", dir, name);
  return path;
}

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

static int
make_file (const char *name, off_t size)
{
  int fd = open (in_dir (name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  must (fd != -1, "open");
  must (ftruncate (fd, size) == 0, "ftruncate");
  return fd;
}

/* Walk over FILE: what is called a hole is zero, the walk ends at the
 * end.  Returns how many bytes were called holes, or -1.
 */
static int64_t
walk (struct qcow2_storage *s, uint64_t offset, uint64_t size,
      uint64_t data_offset, uint64_t data_bytes)
{
  uint64_t length_bytes, holes = 0;
  unsigned steps = 0;
  bool hole;

  for (; offset < size; offset += length_bytes) {
    if (++steps > 1000 ||
        qcow2_storage_hole (s, offset, &hole, &length_bytes) != 0 ||
        length_bytes == 0 || length_bytes > size - offset)
      return -1;
    if (hole && offset < data_offset + data_bytes &&
        data_offset < offset + length_bytes)
      return -1;
    if (hole)
      holes += length_bytes;
  }
  return holes;
}

static void
holes_of_files (void)
{
  const uint64_t size = (8 << 20) + 123, at = (4 << 20) + 7;
  int fd = make_file ("sparse", size);
  struct qcow2_storage *s;
  uint64_t length_bytes;
  bool hole;

  must (pwrite (fd, "data", 4, at) == 4, "pwrite");
  is_int (qcow2_io_file_new (fd, "sparse", 0, &s, NULL), 0,
          "a sparse file of %" PRIu64 " bytes is opened", size);
  is_int (qcow2_storage_size (s), size, "... its size is right");
  ok (walk (s, 0, size, at, 4) >= 4 << 20,
      "its holes are found, and none where the data is");
  ok (walk (s, 4097, size, at, 4) >= 4 << 20, "the same from an odd offset");
  is_int (qcow2_storage_hole (s, size - 1, &hole, &length_bytes), 0,
          "the last byte can be asked about");
  ok (hole && length_bytes == 1, "... and is a hole up to the end");
  is_int (qcow2_storage_hole (s, at, &hole, &length_bytes), 0,
          "the data can be asked about");
  ok (!hole, "... and is data");

  for (int i = 0; i < 2; ++i) {
    lseek_errno = (int[]) { EINVAL, EOPNOTSUPP }[i];
    is_int (walk (s, 0, size, 0, size), 0,
            "all is data where lseek says: %s", strerror (lseek_errno));
  }
  lseek_errno = 0;

  must (ftruncate (fd, 2 * size) == 0, "ftruncate");
  is_int (qcow2_storage_size (s), 2 * size, "a file that grows is followed");
  qcow2_storage_close (s);
  ok (fcntl (fd, F_GETFD) == -1, "closing closes the descriptor");

  fd = make_file ("full", 0);
  for (int i = 0; i < 300; ++i)
    must (write (fd, dir, sizeof dir) == sizeof dir, "write");
  must (qcow2_io_file_new (fd, "full", 0, &s, NULL) == 0, "new");
  is_int (walk (s, 0, 300 * sizeof dir, 0, 300 * sizeof dir), 0,
          "a file full of data has no hole");
  qcow2_storage_close (s);

  must (qcow2_io_file_new (make_file ("empty", 0), "empty", 0, &s,
                           NULL) == 0, "new");
  is_int (qcow2_storage_hole (s, 0, &hole, &length_bytes), 0,
          "an empty file can be asked about");
  ok (hole && length_bytes > 0, "... and is a hole");
  qcow2_storage_close (s);
}

static void
reads_of_files (void)
{
  const uint64_t far = UINT64_C (9) << 40;
  int fd = make_file ("far", far);
  struct qcow2_storage *s;
  char buf[8];

  must (pwrite (fd, "far away", 8, far) == 8, "pwrite");
  must (qcow2_io_file_new (fd, "far", 0, &s, NULL) == 0, "new");
  is_int (qcow2_storage_read_meta (s, buf, 8, far), 0,
          "a file is read past 8 TiB");
  ok (memcmp (buf, "far away", 8) == 0, "... and the content is right");
  is_int (qcow2_storage_read_data (s, buf, 8, far + 4), 0,
          "the end of a file is read");
  ok (memcmp (buf, "away\0\0\0\0", 8) == 0, "... and zeros past it");
  interrupts = 3;
  is_int (qcow2_storage_read_meta (s, buf, 8, far), 0,
          "a read that a signal interrupts goes on");
  is_int (interrupts, 0, "... after it was interrupted");

  for (int i = 0; i < 4; ++i) {
    uint64_t offset = (uint64_t[]) { INT64_MAX - 3, INT64_MAX,
                                     (uint64_t) INT64_MAX + 1,
                                     UINT64_MAX - 8 }[i];
    memset (buf, 'x', 8);
    is_int (qcow2_storage_read_data (s, buf, 8, offset), 0,
            "data at %" PRIu64 " is read", offset);
    ok (memcmp (buf, (char[8]) { 0 }, 8) == 0, "... as zeros");
    is_int (qcow2_storage_read_meta (s, buf, 8, offset), -EIO,
            "... but is no metadata");
    qcow2_storage_prefetch (s, offset, 100);
  }
  qcow2_storage_prefetch (s, 0, UINT64_MAX);
  qcow2_storage_close (s);
}

static void
wrong_descriptors (void)
{
  static const struct {
    const char *path;
    int flags;
    const char *text;
  } wrong[] = {
    { "/", O_RDONLY, "NAME: not a regular file" },
    { "/dev/null", O_RDONLY, "NAME: not a regular file" },
    { NULL, O_WRONLY, "NAME: not open for reading" },
    { NULL, O_PATH, "NAME: not open for reading" },
  };
  struct qcow2_storage *s = NULL;

  close (make_file ("some", 100));
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
    struct qcow2_error error = { "" };
    int fd = open (wrong[i].path ? wrong[i].path : in_dir ("some"),
                   wrong[i].flags | O_CLOEXEC);

    must (fd != -1, "open");
    is_int (qcow2_io_file_new (fd, "NAME", QCOW2_IO_FILE_LOCK, &s, &error),
            -EINVAL,
            "refused: %s", wrong[i].text);
    ok (strstr (error.message, wrong[i].text) != NULL, "... so it says");
    ok (fcntl (fd, F_GETFD) == -1 && !s, "... and closes the descriptor");
  }
}

/* A loop device over FD; its descriptor. */
static int
make_loop_device (int fd)
{
  int control = open ("/dev/loop-control", O_RDWR | O_CLOEXEC);
  char path[40];

  must (control != -1, "/dev/loop-control");
  for (int tries = 0; tries < 20; ++tries) {
    struct loop_config config = {
      .fd = fd,
      .info.lo_flags = LO_FLAGS_AUTOCLEAR,
    };
    int nr = ioctl (control, LOOP_CTL_GET_FREE), loop;

    must (nr >= 0, "LOOP_CTL_GET_FREE");
    snprintf (path, sizeof path, "/dev/loop%d", nr);
    loop = open (path, O_RDWR | O_CLOEXEC);
    must (loop != -1, path);
    if (ioctl (loop, LOOP_CONFIGURE, &config) == 0) {
      close (control);
      return loop;
    }
    must (errno == EBUSY, "LOOP_CONFIGURE");    /* another was faster */
    close (loop);
  }
  must (false, "loop device");
  return -1;
}

static void
block_devices (void)
{
  int file = make_file ("disk", 1 << 20), loop;
  struct qcow2_storage *s;
  char buf[1024];

  must (pwrite (file, "device", 6, 512) == 6, "pwrite");
  loop = make_loop_device (file);
  is_int (qcow2_io_file_new (loop, "loop", QCOW2_IO_FILE_LOCK, &s, NULL), 0,
          "a block device is opened");
  is_int (qcow2_storage_size (s), 1 << 20, "... its size is right");
  is_int (qcow2_storage_read_meta (s, buf, 7, 511), 0, "... it is read");
  ok (memcmp (buf, "\0device", 7) == 0, "... and the content is right");
  is_int (walk (s, 0, 1 << 20, 0, 1 << 20), 0, "... all of it is data");
  is_int (qcow2_storage_read_data (s, buf, sizeof buf, (1 << 20) - 512), 0,
          "data past its end is read");
  ok (memcmp (buf, (char[1024]) { 0 }, sizeof buf) == 0, "... as zeros");
  is_int (qcow2_storage_read_meta (s, buf, 513, (1 << 20) - 512), -EIO,
          "metadata past its end is an error");
  must (ftruncate (file, 2 << 20) == 0, "ftruncate");
  must (ioctl (loop, LOOP_SET_CAPACITY, 0) == 0, "LOOP_SET_CAPACITY");
  is_int (qcow2_storage_size (s), 2 << 20, "a device that grows is followed");
  qcow2_storage_close (s);
  close (file);
}

/*----- Messages -----*/

static void
messages (void)
{
  static const struct {
    const char *from, *to;
  } texts[] = {
    { "a name.qcow2", "a name.qcow2" },
    { "a\nb\tc\x7f", "a\\x0ab\\x09c\\x7f" },
    { "\x1b[2J", "\\x1b[2J" },
    { "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80",
      "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80" },
    { "\xc2\x9b\x31m", "\\xc2\\x9b1m" },
    { "\x9b" "1m \xff", "\\x9b1m \\xff" },
    { "\xc3", "\\xc3" },
    { "\xe2\x82", "\\xe2\\x82" },
    { "\xf0\x9f\x98", "\\xf0\\x9f\\x98" },
    { "\xc0\x8a", "\\xc0\\x8a" },
    { "\xe0\x80\x8a", "\\xe0\\x80\\x8a" },
    { "\xed\xa0\x80", "\\xed\\xa0\\x80" },
    { "\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80" },
    { "\xf8\x88\x80\x80\x80", "\\xf8\\x88\\x80\\x80\\x80" },
    { "txt\xe2\x80\xae" "exe", "txt\\xe2\\x80\\xaeexe" },
    { "a\xe2\x80\xa8" "b", "a\\xe2\\x80\\xa8b" },
  };
  struct qcow2_error error;
  char small[8], expected[sizeof error.message + 1];

  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; ++i) {
    is_int (qcow2_error_set (&error, EIO, "%s", texts[i].from), -EIO,
            "a message with text %zu is set", i);
    is_str (error.message, texts[i].to, "... and is harmless");
  }

  qcow2_error_set (&error, EIO, "it %s", "fails\n");
  qcow2_error_prefix (&error, "%s: ", "a\rb");
  is_str (error.message, "a\\x0db: it fails\\x0a", "so is a prefix");
  is_int (qcow2_error_set (NULL, EIO, "%s", "x"), -EIO,
          "nobody needs to want the message");
  qcow2_error_prefix (NULL, "%s", "x");

  qcow2_error_escape (small, sizeof small, "abc\n\n");
  is_str (small, "abc\\x0a", "an escape fits as a whole");
  qcow2_error_escape (small, sizeof small, "abcd\n");
  is_str (small, "abcd", "... or is left out");
  qcow2_error_escape (small, sizeof small, "abcdef\xc3\xa4");
  is_str (small, "abcdef", "a character fits as a whole, too");
  qcow2_error_escape (small, 1, "abc");
  is_str (small, "", "there may be no room at all");

  memset (expected, 'x', sizeof expected);
  expected[sizeof expected - 1] = '\0';
  qcow2_error_set (&error, EIO, "%s", expected);
  is_int (strlen (error.message), sizeof error.message - 1,
          "a message that is too long is cut");
  qcow2_error_prefix (&error, "y");
  ok (error.message[0] == 'y' &&
      strlen (error.message) == sizeof error.message - 1,
      "... so that a prefix is still seen");
}

int
main (void)
{
  char remove[sizeof dir + 20];
  const char *tmp = getenv ("TMPDIR");

  snprintf (dir, sizeof dir, "%s/storage.XXXXXX", tmp ? tmp : "/tmp");
  must (mkdtemp (dir) != NULL, "mkdtemp");

  short_reads ();
  reads_of_nothing ();
  without_the_optional_members ();
  holes_of_files ();
  reads_of_files ();
  wrong_descriptors ();
  block_devices ();
  messages ();

  snprintf (remove, sizeof remove, "rm -rf '%s'", dir);
  must (system (remove) == 0, remove);
  return tap_done ();
}
