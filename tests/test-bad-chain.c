/* SPDX-License-Identifier: BSD-3-Clause */

/* Backing chains and data files that an image can't have: loops, too many
 * files, formats that are not told or not known, files that are missing,
 * forbidden or no images.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image-builder.h"
#include "scratch-dir.h"
#include "verdict.h"

#define CLUSTER 512
#define DISK 8192

static const char *dir;         /* the current directory */

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

/* An overlay of NAME; without a FORMAT the header tells none. */
static void
make_overlay (const char *path, const char *name, const char *format)
{
  struct image img;

  image_create (&img, path, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = DISK });
  if (format)
    image_add_extension (&img, EXTENSION_BACKING_FORMAT, format,
                         strlen (format));
  image_set_backing (&img, name);
  image_close (&img);
}

static void
make_base (const char *path)
{
  struct image img;

  image_create (&img, path, &(struct image_options) {
      .cluster_bits = 9, .size_bytes = DISK });
  image_add_data (&img, 0, 0x5a);
  image_close (&img);
}

static void
make_raw (const char *path)
{
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  char buf[DISK];

  memset (buf, 0x5a, sizeof buf);
  must (write (fd, buf, sizeof buf) == sizeof buf, path);
  close (fd);
}

/* Judged without QEMU, which looks for loops when it makes an overlay,
 * opens whatever an image names, and guesses formats.
 */
static void
judge (const struct expectation *e, const struct qcow2_options *options,
       struct verdict *v)
{
  verdict_ours (v, e->path, NULL, options);
  expect_ours (e, v);
  if (e->err == 0)
    ok (v->content_bytes == DISK && v->content[0] == 0x5a,
        "%s: the base is read", e->what);
  verdict_clear (v);
}

static void
judge_alone (const struct expectation *e)
{
  struct qcow2_options options;
  struct verdict v;

  verdict_options (&v, &options);
  judge (e, &options, &v);
}

/*----- Loops -----*/

static void
test_loops (void)
{
  static const char loop[] = "the backing chain has a loop: this is the "
    "same file as";

  make_overlay ("self", "self", "qcow2");
  judge_alone (&(struct expectation) {
      .what = "an image over itself", .path = "self", .err = ELOOP,
      .message = loop });

  make_overlay ("a", "b", "qcow2");
  make_overlay ("b", "a", "qcow2");
  judge_alone (&(struct expectation) {
      .what = "two images over each other", .path = "a", .err = ELOOP,
      .message = loop });

  make_overlay ("top", "a", "qcow2");
  judge_alone (&(struct expectation) {
      .what = "a loop below", .path = "b", .err = ELOOP, .message = loop });

  make_overlay ("c", "symlink", "qcow2");
  must (symlink ("c", "symlink") == 0, "symlink");
  judge_alone (&(struct expectation) {
      .what = "over a symbolic link to itself", .path = "c", .err = ELOOP,
      .message = loop });

  make_overlay ("d", "hardlink", "qcow2");
  must (link ("d", "hardlink") == 0, "hardlink");
  judge_alone (&(struct expectation) {
      .what = "over a hard link to itself", .path = "d", .err = ELOOP,
      .message = loop });

  make_overlay ("e", "e", "raw");
  judge_alone (&(struct expectation) {
      .what = "over itself as raw", .path = "e", .err = ELOOP,
      .message = loop });
}

/*----- Depth -----*/

/* "0" is the base, N is over N - 1. */
static void
make_chain (unsigned nr_backing)
{
  char path[20], below[20];
  unsigned i;

  make_base ("0");
  for (i = 1; i <= nr_backing; ++i) {
    snprintf (path, sizeof path, "%u", i);
    snprintf (below, sizeof below, "%u", i - 1);
    make_overlay (path, below, "qcow2");
  }
}

static void
test_depth (void)
{
  struct qcow2_options options;
  struct verdict v;

  make_chain (QCOW2_MAX_CHAIN_DEPTH + 1);
  judge_alone (&(struct expectation) {
      .what = "200 backing files", .path = "200" });
  judge_alone (&(struct expectation) {
      .what = "201 backing files", .path = "201", .named = "1", .err = ELOOP,
      .message = "the backing chain is longer than 200 files" });

  verdict_options (&v, &options);
  options.max_chain_depth = QCOW2_MAX_CHAIN_DEPTH;
  judge (&(struct expectation) {
      .what = "250 of 250", .path = "250" }, &options, &v);
  verdict_options (&v, &options);
  options.max_chain_depth = QCOW2_MAX_CHAIN_DEPTH;
  judge (&(struct expectation) {
      .what = "251 of 250", .path = "251", .named = "1", .err = ELOOP,
      .message = "the backing chain is longer than 250 files" },
    &options, &v);
  verdict_options (&v, &options);
  options.max_chain_depth = 1;
  judge (&(struct expectation) {
      .what = "1 of 1", .path = "1" }, &options, &v);
  verdict_options (&v, &options);
  options.max_chain_depth = 0;
  judge (&(struct expectation) {
      .what = "1 of 0", .path = "1", .err = ELOOP,
      .message = "the backing chain is longer than 0 files" }, &options, &v);
}

static void
test_limit_itself (void)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;

  qcow2_options_init (&options);
  options.max_chain_depth = QCOW2_MAX_CHAIN_DEPTH + 1;
  is_int (qcow2_open ("0", &options, &image, &error), -EINVAL,
          "a limit of 251 is refused");
  ok (strstr (error.message, "may be at most 250") != NULL, "and why");
}

/*----- Formats -----*/

static void
test_formats (void)
{
  static const char *const others[] = {
    "qcow", "vmdk", "QCOW2", "raw ", "luks", "\033[2J", "nbd",
  };
  struct qcow2_options options;
  struct verdict v;
  char what[100];
  size_t i;

  make_raw ("base.raw");
  make_overlay ("top", "base.raw", NULL);
  judge_alone (&(struct expectation) {
      .what = "no format", .path = "top", .err = EINVAL,
      .message = "\"base.raw\", and formats are never guessed; use "
      "backing-format=qcow2 or" });
  verdict_options (&v, &options);
  options.backing_format = "raw";
  judge (&(struct expectation) {
      .what = "no format, backing-format=raw", .path = "top" }, &options, &v);
  verdict_options (&v, &options);
  options.backing_format = "qcow2";
  judge (&(struct expectation) {
      .what = "no format, backing-format=qcow2", .path = "top",
      .named = "base.raw", .err = EINVAL,
      .message = "not in qcow2 format" }, &options, &v);

  make_overlay ("top", "base.raw", "");
  judge_alone (&(struct expectation) {
      .what = "an empty format", .path = "top", .err = EINVAL,
      .message = "formats are never guessed" });
  make_overlay ("top", "base.raw", "raw");
  judge_alone (&(struct expectation) { .what = "raw", .path = "top" });
  make_overlay ("top", "base.raw", "file");
  judge_alone (&(struct expectation) { .what = "file", .path = "top" });

  for (i = 0; i < sizeof others / sizeof others[0]; ++i) {
    make_overlay ("top", "base.raw", others[i]);
    snprintf (what, sizeof what, "format %zu", i);
    judge_alone (&(struct expectation) {
        .what = what, .path = "top", .err = ENOTSUP,
        .message = "is not supported, only qcow2 and raw are" });
  }
}

/* The message names the file that is bad, not the one over it. */
static void
test_bad_base (void)
{
  struct image img;

  make_overlay ("top", "base.raw", "qcow2");
  judge_alone (&(struct expectation) {
      .what = "a raw file called qcow2", .path = "top", .err = EINVAL,
      .named = "base.raw",
      .message = "base.raw: the image is not in qcow2 format" });

  make_base ("base");
  make_overlay ("middle", "base", "qcow2");
  make_overlay ("top", "middle", "qcow2");
  image_create (&img, "base", &(struct image_options) {
      .cluster_bits = 9, .size_bytes = DISK, .incompatible = 1 });
  image_add_data (&img, 0, 0x5a);
  image_close (&img);
  judge_alone (&(struct expectation) {
      .what = "a dirty base", .path = "top",
      .warning = "base: the image was not closed properly (dirty bit)" });
  image_reopen (&img);
  image_put_header (&img, incompatible_features, UINT64_C (1) << 40);
  close (img.fd);
  judge_alone (&(struct expectation) {
      .what = "a base with an unknown feature", .path = "top",
      .named = "base", .err = ENOTSUP,
      .message = "base: unsupported incompatible feature" });
  image_reopen (&img);
  image_put_header (&img, incompatible_features, 0);
  image_put_header (&img, crypt_method, 2);
  close (img.fd);
  judge_alone (&(struct expectation) {
      .what = "an encrypted base", .path = "top", .err = ENOTSUP,
      .named = "base",
      .message = "base: the image is encrypted (crypt_method 2, LUKS)" });
  image_reopen (&img);
  image_put_header (&img, crypt_method, 0);
  image_put (&img, img.l1_offset, 8, UINT64_C (1) << 40);
  close (img.fd);
  judge_alone (&(struct expectation) {
      .what = "a base with a bad L1 entry", .path = "top", .err = EIO,
      .named = "base",
      .message = "base: can't read the L2 table" });
}

/*----- Names -----*/

static const struct {
  const char *name;
  int err;
  const char *message;
} names[] = {
  { "missing", ENOENT, "top: backing file: missing: No such file" },
  { "dir", EINVAL, "dir: is a directory" },
  { "fifo", EINVAL, "fifo: is a FIFO" },
  { "/dev/null", EINVAL, "/dev/null: is a character device" },
  { "/proc/self/mem", EACCES, "" },
  { "/etc/passwd", EACCES, "add allow-dir=/etc" },
  { "../outside", EACCES, "is not in the image's directory or below" },
  { "to-outside", EACCES, "is not in the image's directory or below" },
  { "dir/../../outside", EACCES, "is not in the image's directory or" },
  { "nbd:localhost:10809", ENOTSUP, "top: backing file: " },
  { "nbd://localhost/x", ENOTSUP, "top: backing file: " },
  { "http://localhost/base.raw", ENOTSUP, "top: backing file: " },
  { "json:", EINVAL, "top: backing file: " },
  { "json:{", EINVAL, "top: backing file: " },
  { "json:{}", EINVAL, "top: backing file: " },
  { "json:{\"driver\":\"nbd\",\"host\":\"localhost\"}", ENOTSUP,
    "top: backing file: " },
  { "json:{\"driver\":\"raw\",\"offset\":512,"
    "\"file.filename\":\"base.raw\"}", ENOTSUP, "top: backing file: " },
  { "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
    "\"filename\":\"/etc/passwd\"}}", EACCES, "add allow-dir=/etc" },
  { "file:", EINVAL, "top: backing file: \"file:\": the file name" },
  { "file:/etc/passwd", EACCES, "add allow-dir=/etc" },
  { "\033[2J\n", ENOENT, "top: backing file: \\x1b[2J\\x0a: No such" },
};

static void
test_names (void)
{
  char what[100];
  size_t i;

  must (mkdir ("dir", 0700) == 0 && mkfifo ("fifo", 0600) == 0, "mkfifo");
  must (symlink ("../outside", "to-outside") == 0, "symlink");
  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    make_overlay ("top", names[i].name, "raw");
    snprintf (what, sizeof what, "backing name %zu", i);
    judge_alone (&(struct expectation) {
        .what = what, .path = "top", .err = names[i].err,
        .message = names[i].message });
  }
}

static void
test_name_with_nul (void)
{
  struct image img;

  make_overlay ("top", "base.raw", "raw");
  img.path = "top";
  image_reopen (&img);
  image_put (&img, image_get (&img, 8, 8) + 2, 1, 0);
  close (img.fd);
  judge_alone (&(struct expectation) {
      .what = "NUL in the name", .path = "top", .err = EINVAL,
      .message = "backing file name contains a NUL" });
}

/*----- Rules -----*/

static void
test_allow (void)
{
  const char *outside[] = { "../" };
  struct qcow2_options options;
  struct verdict v;

  make_overlay ("top", "../outside", "raw");
  verdict_options (&v, &options);
  options.allow_dirs = outside;
  options.nr_allow_dirs = 1;
  judge (&(struct expectation) {
      .what = "a file outside, allowed", .path = "top" }, &options, &v);

  make_overlay ("top", "base.raw", "raw");
  verdict_options (&v, &options);
  options.allow_none = true;
  judge (&(struct expectation) {
      .what = "a file beside, nothing allowed", .path = "top", .err = EACCES,
      .message = "backing files are opened only where this is allowed" },
    &options, &v);

  make_overlay ("top", "missing", NULL);
  verdict_options (&v, &options);
  options.no_backing = true;
  verdict_ours (&v, "top", NULL, &options);
  is_int (v.err, 0, "backing=none: opens whatever the name is");
  verdict_clear (&v);
}

/*----- External data files -----*/

static void
make_with_data (const char *path, const char *name, uint64_t autoclear,
                const char *backing)
{
  struct image img;

  image_create (&img, path, &(struct image_options) {
      .cluster_bits = 12, .size_bytes = DISK,
      .incompatible = INCOMPAT_DATA_FILE, .autoclear = autoclear });
  if (name)
    image_add_extension (&img, EXTENSION_DATA_FILE, name, strlen (name));
  if (backing) {
    image_add_extension (&img, EXTENSION_BACKING_FORMAT, "raw", 3);
    image_set_backing (&img, backing);
  }
  image_map (&img, 0, ENTRY_COPIED, 0);
  image_close (&img);
}

static void
judge_data (const struct expectation *e, const char *data_file,
            const char *allow_dir)
{
  struct qcow2_options options;
  struct verdict v;

  verdict_options (&v, &options);
  options.data_file = data_file;
  options.allow_dirs = &allow_dir;
  options.nr_allow_dirs = allow_dir != NULL;
  judge (e, &options, &v);
}

static void
test_data_files (void)
{
  make_raw ("data");
  make_with_data ("top", "data", 0, NULL);
  judge_data (&(struct expectation) {
      .what = "a data file beside the image", .path = "top", .err = EACCES,
      .message = "data file: data: data files that an image names are opened "
      "only where this is allowed: add data-file=data or" }, NULL, NULL);
  judge_data (&(struct expectation) {
      .what = "the operator's data file", .path = "top" }, "data", NULL);
  judge_data (&(struct expectation) {
      .what = "a data file in an allowed directory", .path = "top" },
    NULL, dir);
  judge_data (&(struct expectation) {
      .what = "the operator's data file is missing", .path = "top",
      .err = ENOENT, .named = "missing",
      .message = "missing: No such file" }, "missing", NULL);

  make_with_data ("top", "missing", 0, NULL);
  judge_data (&(struct expectation) {
      .what = "the data file is missing", .path = "top", .err = ENOENT,
      .message = "top: data file: missing: No such file" }, NULL, dir);
  make_with_data ("top", "/etc/passwd", 0, NULL);
  judge_data (&(struct expectation) {
      .what = "a data file elsewhere", .path = "top", .err = EACCES,
      .message = "allow-dir=/etc" }, NULL, dir);
  make_with_data ("top", NULL, 0, NULL);
  judge_data (&(struct expectation) {
      .what = "a data file without name", .path = "top", .err = EINVAL,
      .message = "does not name it; use data-file=FILE" }, NULL, dir);
  judge_data (&(struct expectation) {
      .what = "the operator's data file for it", .path = "top" },
    "data", NULL);

  make_base ("base");
  judge_data (&(struct expectation) {
      .what = "data-file for an image without", .path = "base", .err = EINVAL,
      .message = "data-file was given, but the image has no external" },
    "data", NULL);
}

/* The operator's data file is the top image's, not that of the backing
 * files, which need to be allowed.
 */
static void
test_data_file_below (void)
{
  make_with_data ("base", "data", 0, NULL);
  make_overlay ("top", "base", "qcow2");
  judge_data (&(struct expectation) {
      .what = "a backing file with a data file", .path = "top",
      .named = "base", .err = EACCES,
      .message = "base: data file: data: data files" },
    NULL, NULL);
  judge_data (&(struct expectation) {
      .what = "a backing file with a data file, allowed", .path = "top" },
    NULL, dir);
}

/* Combinations of which QEMU is asked, too. */
static void
expect_data (const struct expectation *e)
{
  struct qcow2_options options;
  struct verdict v;

  verdict_options (&v, &options);
  options.data_file = "data";
  expect_with (e, &v, &options);
}

static void
test_data_file_combinations (void)
{
  struct image_snapshot sn = { .id = "1", .name = "one", .extra_bytes = 16,
                               .disk_size = DISK };
  struct image img;

  make_with_data ("top", "data", AUTOCLEAR_RAW_DATA, NULL);
  expect_data (&(struct expectation) { .what = "raw data", .path = "top" });
  make_with_data ("top", "data", 0, "base.raw");
  expect_data (&(struct expectation) {
      .what = "data file and backing file", .path = "top" });
  make_with_data ("top", "data", AUTOCLEAR_RAW_DATA, "base.raw");
  expect_data (&(struct expectation) {
      .what = "raw data and a backing file", .path = "top", .err = EINVAL,
      .message = "raw external data bit is set, but the image has a backing",
      .stricter = "the specification: the bit conflicts with backing files"
    });

  image_create (&img, "top", &(struct image_options) {
      .cluster_bits = 12, .size_bytes = DISK,
      .incompatible = INCOMPAT_DATA_FILE });
  image_add_extension (&img, EXTENSION_DATA_FILE, "data", 4);
  sn.l1_offset = image_copy_tables (&img);
  sn.l1_size = img.l1_entries;
  image_set_snapshots (&img, &sn, 1);
  image_close (&img);
  expect_data (&(struct expectation) {
      .what = "data file and snapshots", .path = "top", .err = EINVAL,
      .message = "nb_snapshots is 1, but an image with an external data",
      .stricter = "the specification: they are not supported together" });
}

int
main (void)
{
  static char path[4096];

  scratch_dir_enter ();
  make_raw ("outside");
  must (mkdir ("images", 0700) == 0 && chdir ("images") == 0 &&
        getcwd (path, sizeof path), "images");
  dir = path;
  test_loops ();
  test_depth ();
  test_limit_itself ();
  test_formats ();
  test_bad_base ();
  test_names ();
  test_name_with_nul ();
  test_allow ();
  test_data_files ();
  test_data_file_below ();
  test_data_file_combinations ();
  return tap_done ();
}
