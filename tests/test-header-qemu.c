/* SPDX-License-Identifier: BSD-3-Clause */

/* The header as we write it, read by QEMU: each field, each name, and
 * every state in which a power failure may leave a disk between them.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qcow2/format.h"
#include "qcow2/header-write.h"
#include "qcow2/header.h"
#include "qcow2/io-file.h"
#include "storage-place.h"
#include "tap.h"

#define SECTOR 512

/*----- QEMU's programs -----*/

static char output[65536];

/* Run a command in the directory of the image; its exit status. */
static int __attribute__ ((format (printf, 1, 2)))
run (const char *fmt, ...)
{
  char command[4096], all[5000];
  va_list args;
  FILE *pipe;
  int status;

  va_start (args, fmt);
  vsnprintf (command, sizeof command, fmt, args);
  va_end (args);
  snprintf (all, sizeof all, "cd '%s' && { %s; } 2>&1", place_dir, command);
  pipe = popen (all, "re");
  must (pipe != NULL, "popen");
  output[fread (output, 1, sizeof output - 1, pipe)] = '\0';
  status = pclose (pipe);
  return WIFEXITED (status) ? WEXITSTATUS (status) : -1;
}

static void __attribute__ ((format (printf, 1, 2)))
says (const char *fmt, ...)
{
  char text[2048];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  if (!ok (strstr (output, text) != NULL, "... QEMU reads %.80s", text))
    printf ("#   %s\n", output);
}

/*----- A storage that keeps a log -----*/

struct logged {
  struct qcow2_storage storage;
  struct qcow2_storage *file;
  struct {
    uint64_t offset;
    size_t nr_bytes;
    uint8_t *data;
  } log[16];
  unsigned nr_writes;
};

static ssize_t
logged_pread (struct qcow2_storage *s, void *buf, size_t count,
              uint64_t offset)
{
  struct qcow2_storage *file = ((struct logged *) s)->file;

  return file->ops->pread (file, buf, count, offset);
}

static int64_t
logged_size (struct qcow2_storage *s)
{
  return qcow2_storage_size (((struct logged *) s)->file);
}

static int
logged_pwritev (struct qcow2_storage *s, const struct iovec *iov, int iovcnt,
                uint64_t offset, bool durable)
{
  struct logged *l = (struct logged *) s;
  uint8_t *data = malloc (iov->iov_len);

  must (data && iovcnt == 1 && durable && l->nr_writes < 16,
        "a few durable writes");
  memcpy (data, iov->iov_base, iov->iov_len);
  l->log[l->nr_writes].offset = offset;
  l->log[l->nr_writes].nr_bytes = iov->iov_len;
  l->log[l->nr_writes++].data = data;
  return qcow2_storage_writev (l->file, iov, iovcnt, offset, durable);
}

static void
forget_log (struct logged *l)
{
  while (l->nr_writes > 0)
    free (l->log[--l->nr_writes].data);
}

/* An image that is open, under the name by which QEMU knows it. */
struct image {
  struct logged logged;
  struct header_writer *w;
  const char *name;
};

static void
open_image (struct image *i, int fd, const char *name)
{
  static const struct qcow2_storage_ops ops = {
    .pread = logged_pread, .size = logged_size, .pwritev = logged_pwritev,
  };
  struct header h;

  memset (i, 0, sizeof *i);
  i->logged.storage.ops = &ops;
  i->logged.file = storage_of (fd);
  i->name = name;
  must (header_read (&i->logged.storage, &h, NULL) == 0 &&
        header_writer_new (&i->logged.storage, &h, &i->w, NULL) == 0,
        "a header");
  header_clear (&h);
}

static void
create_image (struct image *i, const char *options)
{
  char path[sizeof place_dir + 20];
  int fd;

  must (run ("rm -f image data data2; qemu-img create -q -f qcow2 %s image 64M",
             options) == 0, output);
  snprintf (path, sizeof path, "%s/image", place_dir);
  fd = open (path, O_RDWR | O_CLOEXEC);
  must (fd != -1, path);
  open_image (i, fd, "image");
}

static void
close_image (struct image *i)
{
  forget_log (&i->logged);
  header_writer_free (i->w);
  qcow2_storage_close (i->logged.file);
}

/*----- Power failures -----*/

static char *
info (const struct image *i)
{
  int status = run ("qemu-img info --output=json -f qcow2 %s | grep -v"
                    " actual-size", i->name);

  must (status == 0, "qemu-img");
  return strdup (output);
}

/* Put back what the log begins with, and what of it has been written by
 * the time that power fails in write K.  STATE tells which sectors.
 */
static void
make_state (struct image *i, const uint8_t *before, size_t nr_bytes,
            unsigned k, unsigned state)
{
  struct logged *l = &i->logged;
  unsigned n, sector;

  must (qcow2_storage_write (l->file, before, nr_bytes, 0, false) == 0,
        "write");
  for (n = 0; n <= k && n < l->nr_writes; ++n)
    for (sector = 0; sector < l->log[n].nr_bytes / SECTOR; ++sector)
      if (n < k || state >> (sector % 8) & 1)
        must (qcow2_storage_write (l->file,
                                   l->log[n].data + sector * SECTOR, SECTOR,
                                   l->log[n].offset + sector * SECTOR,
                                   false) == 0, "write");
}

/* Make the change and look at all that QEMU may find on the way. */
static void
rewrite (struct image *i, const struct header_parts *parts,
         const struct header_change *change, const char *what)
{
  static const unsigned states[] = { 0, 1, 2, 0x55, 0xaa, 0xfd };
  static uint8_t before[65536];
  int64_t size_bytes = qcow2_storage_size (i->logged.file);
  size_t nr_bytes = size_bytes < (int64_t) sizeof before ?
    (size_t) size_bytes : sizeof before;
  unsigned k, s, nr_bad = 0, nr_states = 0;
  char *info_before = info (i), *info_after, *info_now;
  struct qcow2_error error = { "" };
  int r;

  forget_log (&i->logged);
  must (qcow2_storage_read_meta (i->logged.file, before, nr_bytes, 0) == 0,
        "read");
  r = header_writer_rewrite (i->w, parts, change, &error);
  if (!is_int (r, 0, "%s: %s", where, what))
    printf ("# %s\n", error.message);
  info_after = info (i);
  ok (strcmp (info_before, info_after) != 0, "... QEMU sees a change");
  for (k = 0; k < i->logged.nr_writes; ++k)
    for (s = 0; s < sizeof states / sizeof states[0]; ++s) {
      make_state (i, before, nr_bytes, k, states[s]);
      info_now = info (i);
      nr_states++;
      if (strcmp (info_now, info_before) && strcmp (info_now, info_after)) {
        printf ("# write %u, state %x: %s\n", k, states[s], info_now);
        nr_bad++;
      }
      free (info_now);
    }
  make_state (i, before, nr_bytes, k, 0);
  is_int (nr_bad, 0, "... and before or after in %u states of the disk",
          nr_states);
  free (info (i));              /* leaves it in OUTPUT for says */
  free (info_before);
  free (info_after);
}

/*----- Names -----*/

/* NAME, about LENGTH bytes long: the same file after many "./". */
static const char *
long_name (const char *name, size_t length)
{
  static char text[1100];
  size_t len = (size_t) snprintf (text, sizeof text, "%s/", place_dir);

  while (len + 2 + strlen (name) <= length) {
    memcpy (text + len, "./", 2);
    len += 2;
  }
  strcpy (text + len, name);
  return text;
}

static void
is_sound (const struct image *i)
{
  if (!is_int (run ("qemu-img check -f qcow2 %s", i->name), 0,
               "... its check is clean"))
    printf ("# %s\n", output);
}

static void
backing_files (struct image *i, size_t longest)
{
  struct header_parts parts = {
    .parts = HEADER_BACKING_NAME | HEADER_BACKING_FORMAT,
    .backing_name = long_name ("base", 0), .backing_format = "raw",
  };

  rewrite (i, &parts, NULL, "a backing file");
  says ("\"backing-filename\": \"%s\"", parts.backing_name);
  says ("\"backing-filename-format\": \"raw\"");
  is_sound (i);
  parts.parts = HEADER_BACKING_NAME;
  parts.backing_name = long_name ("base", longest);
  rewrite (i, &parts, NULL, "one with a long name");
  says ("\"backing-filename\": \"%s\"", parts.backing_name);
  says ("\"backing-filename-format\": \"raw\"");
  is_sound (i);
  parts.backing_name = long_name ("base2", longest);
  rewrite (i, &parts, NULL, "another with a long name");
  says ("base2\"");
  is_sound (i);
  parts.parts |= HEADER_BACKING_FORMAT;
  parts.backing_name = parts.backing_format = NULL;
  rewrite (i, &parts, NULL, "none");
  ok (strstr (output, "backing") == NULL, "... so QEMU says");
  is_sound (i);
}

static void
backing_files_of_all (void)
{
  static const char *const options[] = {
    "-o compat=1.1", "-o compat=0.10", "-o cluster_size=2M,extended_l2=on",
  };
  struct image i;
  char *device;
  int fd;

  must (run ("truncate -s 64M base base2") == 0, output);
  for (size_t n = 0; n < sizeof options / sizeof options[0]; ++n) {
    create_image (&i, options[n]);
    backing_files (&i, 1020);
    close_image (&i);
  }
  create_image (&i, "-o cluster_size=512");
  backing_files (&i, 370);
  close_image (&i);

  must (run ("qemu-img create -q -f qcow2 image 64M && truncate -s 1M image")
        == 0, output);
  snprintf (output, sizeof output, "%s/image", place_dir);
  fd = make_loop_device (open (output, O_RDWR | O_CLOEXEC), 4096);
  snprintf (output, sizeof output, "/proc/self/fd/%d", fd);
  device = realpath (output, NULL);
  must (device != NULL, "realpath");
  open_image (&i, fd, device);
  backing_files (&i, 1020);
  free (device);
  close_image (&i);
}

static void
data_files (void)
{
  struct header_parts parts = { .parts = HEADER_DATA_FILE };
  struct image i;

  create_image (&i, "-o data_file=data");
  parts.data_file = long_name ("data", 900);
  rewrite (&i, &parts, NULL, "a data file with a long name");
  says ("\"data-file\": \"%s\"", parts.data_file);
  must (run ("ln data data2") == 0, output);
  parts.data_file = long_name ("data2", 905);
  rewrite (&i, &parts, NULL, "another");
  ok (i.logged.nr_writes == 4, "... by a detour");
  says ("\"data-file\": \"%s\"", parts.data_file);
  is_sound (&i);
  close_image (&i);
}

static void
bitmaps (void)
{
  struct header_parts parts = { .parts = HEADER_BITMAPS };
  struct header_change change = { .clear.autoclear = AUTOCLEAR_BITMAPS };
  struct header h;
  struct image i;

  create_image (&i, "");
  close_image (&i);
  must (run ("qemu-img bitmap --add image b0") == 0, output);
  snprintf (output, sizeof output, "%s/image", place_dir);
  open_image (&i, open (output, O_RDWR | O_CLOEXEC), "image");
  must (header_read (&i.logged.storage, &h, NULL) == 0, "read");
  rewrite (&i, &parts, &change, "bitmaps are taken away");
  ok (strstr (output, "bitmaps") == NULL, "... so QEMU says");
  parts.nr_bitmaps = h.nr_bitmaps;
  parts.bitmap_directory_offset = h.bitmap_directory_offset;
  parts.bitmap_directory_bytes = h.bitmap_directory_bytes;
  change.set = change.clear;
  rewrite (&i, &parts, &change, "bitmaps are there again");
  says ("\"name\": \"b0\"");
  is_sound (&i);
  header_clear (&h);
  close_image (&i);
}

/*----- Fields -----*/

static void
features (void)
{
  static const struct {
    struct header_features bits;
    const char *text;
  } all[] = {
    { { .compatible = COMPAT_LAZY_REFCOUNTS }, "\"lazy-refcounts\": true" },
    { { .incompatible = INCOMPAT_CORRUPT }, "\"corrupt\": true" },
    { { .incompatible = INCOMPAT_DIRTY }, "\"dirty-flag\": true" },
  };
  struct image i;

  create_image (&i, "");
  for (size_t n = 0; n < sizeof all / sizeof all[0]; ++n) {
    is_int (header_writer_set_features (i.w, &all[n].bits, NULL), 0,
            "feature %zu is set", n);
    free (info (&i));
    says ("%s", all[n].text);
    is_int (header_writer_set_features (i.w, NULL, &all[n].bits), 0,
            "... and cleared");
    free (info (&i));
    ok (strstr (output, all[n].text) == NULL, "... so QEMU says");
    is_sound (&i);
  }
  is_int (header_writer_set_size (i.w, 12345 * 512), 0, "the size is set");
  free (info (&i));
  says ("\"virtual-size\": %d", 12345 * 512);
  is_sound (&i);
  close_image (&i);
}

/* Copy a table of one cluster to the end of the image; its offset. */
static uint64_t
copy_to_end (const struct image *i, uint64_t offset)
{
  static uint8_t buf[65536];
  uint64_t end = (uint64_t) qcow2_storage_size (i->logged.file);

  end = (end + sizeof buf - 1) / sizeof buf * sizeof buf;
  must (qcow2_storage_read_data (i->logged.file, buf, sizeof buf,
                                 offset) == 0 &&
        qcow2_storage_write (i->logged.file, buf, sizeof buf, end,
                             false) == 0, "copy");
  return end;
}

static void
tables (void)
{
  struct header h;
  struct image i;
  uint64_t l1, table;

  create_image (&i, "");
  close_image (&i);
  must (run ("qemu-io -c 'write -P 7 0 128k' image &&"
             " qemu-img snapshot -c s1 image") == 0, output);
  snprintf (output, sizeof output, "%s/image", place_dir);
  open_image (&i, open (output, O_RDWR | O_CLOEXEC), "image");
  must (header_read (&i.logged.storage, &h, NULL) == 0, "read");

  is_int (header_writer_set_snapshots (i.w, 0, 0), 0,
          "snapshots are taken away");
  free (info (&i));
  ok (strstr (output, "\"s1\"") == NULL, "... so QEMU says");
  is_int (header_writer_set_snapshots (i.w, h.snapshots_offset, 1), 0,
          "they are there again");
  free (info (&i));
  says ("\"name\": \"s1\"");
  is_sound (&i);

  l1 = copy_to_end (&i, h.l1_offset);
  is_int (header_writer_set_l1 (i.w, l1, h.l1_entries), 0,
          "the L1 table moves");
  must (qcow2_storage_zero (i.logged.file, h.l1_offset, 65536, true) == 0,
        "zero");
  is_int (run ("qemu-io -r -c 'read -P 7 0 128k' image"), 0,
          "... QEMU finds it there");
  table = copy_to_end (&i, h.refcount_table_offset);
  is_int (header_writer_set_refcount_table (i.w, table, 1), 0,
          "the refcount table moves");
  must (qcow2_storage_zero (i.logged.file, h.refcount_table_offset, 65536,
                            true) == 0, "zero");
  run ("qemu-img check image");
  says ("ERROR cluster %u refcount=0 reference=1", (unsigned) (l1 >> 16));
  says ("ERROR cluster %u refcount=0 reference=1", (unsigned) (table >> 16));
  says ("2 errors were found on the image.");
  header_clear (&h);
  close_image (&i);
}

static void
tests (void)
{
  backing_files_of_all ();
  data_files ();
  bitmaps ();
  features ();
  tables ();
}

int
main (void)
{
  in_each_place (tests);
  return tap_done ();
}
