/* SPDX-License-Identifier: BSD-3-Clause */

/* Options of new images: what is taken and what is refused, beside
 * qemu-img, and that a refusal leaves no file.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2/qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

#define MiB (UINT64_C (1) << 20)
#define LONG_NAME_BYTES 1024

static int
parse_and_create (const char *filename, uint64_t size_bytes, const char *text,
                  struct qcow2_error *error)
{
  struct qcow2_create_options options;
  int r;

  error->message[0] = '\0';
  qcow2_create_options_init (&options);
  r = qcow2_create_option_parse (&options, text, error);
  if (r == 0)
    r = qcow2_create (filename, size_bytes, &options, error);
  qcow2_create_options_clear (&options);
  return r;
}

static bool
qemu_creates (uint64_t size_bytes, const char *text)
{
  char command[4096];

  snprintf (command, sizeof command, "qemu-img create -q -f qcow2 -o '%s' "
            "x.qcow2 %" PRIu64 " > qemu.log 2>&1", text, size_bytes);
  return system (command) == 0;
}

/* No file but those that were there before. */
static bool
nothing_left (void)
{
  return system ("rm -f qemu.log; test \"$(ls)\" = \"$(printf "
                 "'base.qcow2\\nbase.raw\\ndir')\"") == 0;
}

static void
clean (void)
{
  run_command ("rm -f x.* x");
}

/*----- What is refused -----*/

#define COMPAT "compatibility level 1.1 and above (use compat=1.1)"
#define BASE "backing_file=base.raw,backing_fmt=raw"

struct refusal {
  const char *text;
  int err;
  const char *message;          /* a part of it */
};

static const struct refusal refused[] = {
  { "", EINVAL, "Invalid option list: " },
  { ",compat=v3", EINVAL, "Invalid option list: ,compat=v3" },
  { "compat=v3,", EINVAL, "Invalid option list: compat=v3," },
  { "foo=bar", EINVAL, "Invalid parameter 'foo'" },
  { "nofoo", EINVAL, "Invalid parameter 'foo'" },
  { "=x", EINVAL, "Invalid parameter ''" },
  { "cluster_size =512", EINVAL, "Invalid parameter 'cluster_size '" },
  { "Compat=v3", EINVAL, "Invalid parameter 'Compat'" },
  { "compat=0.11", EINVAL, "'compat' does not accept value '0.11'" },
  { "compat=V3", EINVAL, "'compat' does not accept value 'V3'" },
  { "compat=v3,,", EINVAL, "'compat' does not accept value 'v3,'" },
  { "compat", EINVAL, "'compat' does not accept value 'on'" },
  { "preallocation=foo", EINVAL, "does not accept value 'foo'" },
  { "preallocation", EINVAL, "does not accept value 'on'" },
  { "compression_type=lzo", EINVAL, "does not accept value 'lzo'" },

  { "cluster_size=", EINVAL, "'cluster_size' expects a non-negative number" },
  { "cluster_size=foo", EINVAL, "expects a non-negative number" },
  { "cluster_size=64kk", EINVAL, "expects a non-negative number" },
  { "cluster_size=64k,,foo", EINVAL, "expects a non-negative number" },
  { "cluster_size=-1", EINVAL, "expects a non-negative number" },
  { "cluster_size=1.5", EINVAL, "expects a non-negative number" },
  { "cluster_size=.5k", EINVAL, "expects a non-negative number" },
  { "cluster_size=1e3", EINVAL, "expects a non-negative number" },
  { "cluster_size=1kib", EINVAL, "expects a non-negative number" },
  { "cluster_size=512k ", EINVAL, "expects a non-negative number" },
  { "cluster_size=0x200.0", EINVAL, "expects a non-negative number" },
  { "nocluster_size", EINVAL, "expects a non-negative number" },
  { "cluster_size=99999999999999999999", EINVAL, "is out of range" },
  { "cluster_size=17179869184G", EINVAL, "is out of range" },
  { "cluster_size=16E", EINVAL, "is out of range" },
  { "cluster_size=0", EINVAL, "must be a power of two between 512 and 2048k" },
  { "cluster_size=256", EINVAL, "between 512 and 2048k" },
  { "cluster_size=768", EINVAL, "between 512 and 2048k" },
  { "cluster_size=4M", EINVAL, "between 512 and 2048k" },
  { "cluster_size=0.0005M", EINVAL, "between 512 and 2048k" },

  { "refcount_bits=foo", EINVAL, "'refcount_bits' expects a number" },
  { "refcount_bits=16k", EINVAL, "'refcount_bits' expects a number" },
  { "refcount_bits=-8", EINVAL, "'refcount_bits' expects a number" },
  { "refcount_bits=3", EINVAL, "Refcount width must be a power of two" },
  { "refcount_bits=0", EINVAL, "Refcount width must be a power of two" },
  { "refcount_bits=128", EINVAL, "may not exceed 64 bits" },
  { "lazy_refcounts=1", EINVAL, "'lazy_refcounts' expects 'on' or 'off'" },
  { "lazy_refcounts=ON", EINVAL, "'lazy_refcounts' expects 'on' or 'off'" },
  { "extended_l2=", EINVAL, "'extended_l2' expects 'on' or 'off'" },

  { "compat=0.10,lazy_refcounts=on", EINVAL, COMPAT },
  { "compat=0.10,refcount_bits=8", EINVAL, COMPAT },
  { "extended_l2=on,compat=0.10", EINVAL, COMPAT },
  { "compat=0.10,data_file=x.raw", EINVAL, COMPAT },
  { "compat=0.10,compression_type=zstd", EINVAL, COMPAT },
  { "cluster_size=8k,extended_l2=on", EINVAL, "at least 16384 bytes" },

  { "data_file_raw=on", EINVAL, "data_file_raw requires data_file" },
  { "data_file=x.raw,data_file_raw=on," BASE, EINVAL,
    "Backing file and data_file_raw cannot be used at the same time" },
  { "backing_fmt=raw", EINVAL, "cannot be used without backing file" },
  { "backing_file=base.raw", EINVAL, "without backing format" },
  { "backing_file=,backing_fmt=raw", EINVAL, "got empty string" },
  { "data_file=", EINVAL, "got empty string" },
  { "backing_file=missing,backing_fmt=raw", ENOENT,
    "x.qcow2: backing file: missing: No such file" },
  { "backing_file=base.raw,backing_fmt=qcow2", EINVAL,
    "base.raw: the image is not in qcow2 format" },
  { "backing_file=base.raw,backing_fmt=nonsense", ENOTSUP,
    "Backing file format 'nonsense' is not supported" },
  { "backing_file=x.qcow2,backing_fmt=qcow2", EINVAL,
    "same filename as the backing file" },
  { "backing_file=dir,backing_fmt=raw", EINVAL, "dir: not a regular file" },
  { BASE ",preallocation=metadata", EINVAL,
    "can only be used at the same time if extended_l2 is on" },
  { BASE ",preallocation=full", EINVAL, "if extended_l2 is on" },
  { "data_file=x.qcow2", EINVAL, "same filename as the data file" },
  { "data_file=missing/x.raw", ENOENT, "missing/x.raw: No such file" },
  { "size=2M", EINVAL, "The image size must be specified only once" },

  { "encryption=on", ENOTSUP, "'encryption': encryption is not supported" },
  { "encrypt.format=luks", ENOTSUP, "'encrypt.format': encryption is not" },
};

/* QEMU takes these. */
static const struct refusal refused_here[] = {
  { "cluster_size=0x1k", EINVAL, "expects a non-negative number" },
  { "nocow=on", ENOTSUP, "Parameter 'nocow' of QEMU's driver for files" },
  { "extent_size_hint=1M", ENOTSUP, "Parameter 'extent_size_hint' of" },
};

/* The largest sizes are in test-create. */
static const struct {
  uint64_t size_bytes;
  const char *text;
} too_large[] = {
  { (UINT64_C (128) << 30) + 512, "cluster_size=512" },
  { (UINT64_C (2) << 50) + 512, "cluster_size=64k" },
  { (UINT64_C (1) << 50) + 512, "extended_l2=on" },
  { INT64_MAX, "cluster_size=2M" },
  { UINT64_MAX - 512, "cluster_size=2M" },
  /* More refcount blocks than the table may name. */
  { UINT64_C (2) << 60,
    "cluster_size=2M,preallocation=metadata,refcount_bits=64" },
};

static void
check_refused (uint64_t size_bytes, const struct refusal *refusal,
               bool by_qemu)
{
  struct qcow2_error error;

  is_int (parse_and_create ("x.qcow2", size_bytes, refusal->text, &error),
          -refusal->err, "\"%s\" is refused", refusal->text);
  if (!ok (strstr (error.message, refusal->message), "... because: %s",
           refusal->message))
    printf ("# got %s\n", error.message);
  ok (nothing_left (), "... and leaves nothing behind");
  ok (qemu_creates (size_bytes, refusal->text) == !by_qemu,
      "... QEMU %s it", by_qemu ? "refuses" : "takes");
  clean ();
}

static void
test_refused (void)
{
  size_t i;

  for (i = 0; i < sizeof refused / sizeof refused[0]; ++i)
    check_refused (MiB, &refused[i], true);
  for (i = 0; i < sizeof refused_here / sizeof refused_here[0]; ++i)
    check_refused (MiB, &refused_here[i], false);
  for (i = 0; i < sizeof too_large / sizeof too_large[0]; ++i) {
    struct refusal refusal = {
      too_large[i].text, EFBIG, "The image size is too large"
    };

    check_refused (too_large[i].size_bytes, &refusal, true);
  }
}

/*----- What is taken -----*/

static const char *const taken[] = {
  "compat=v2", "compat=0.10,compression_type=zlib",
  "compat=0.10,lazy_refcounts=off,extended_l2=off,refcount_bits=16",
  "cluster_size=512B", "cluster_size=1k", "cluster_size=2K",
  "cluster_size= 512", "cluster_size=+512", "cluster_size=0512",
  "cluster_size=4096.0", "cluster_size=1.k", "cluster_size=0X200",
  "cluster_size=0.001953125M", "cluster_size=2097152",
  "cluster_size=64k,cluster_size=128k", "cluster_size=1,cluster_size=4k",
  "refcount_bits=020", "refcount_bits=0x10", "refcount_bits= 16",
  "lazy_refcounts", "nolazy_refcounts", "lazy_refcounts=yes",
  "lazy_refcounts=true", "lazy_refcounts=y", "extended_l2=no",
  "extended_l2=false", "extended_l2=n", "data_file_raw=off",
  "encryption=off", "preallocation=off", BASE, BASE ",extended_l2=on",
  "backing_file=dir/../base.raw,backing_fmt=raw",
};

static void
test_taken (void)
{
  size_t i;

  for (i = 0; i < sizeof taken / sizeof taken[0]; ++i) {
    struct qcow2_error error;

    if (!ok (parse_and_create ("x.qcow2", MiB, taken[i], &error) == 0,
             "\"%s\" is taken", taken[i]))
      printf ("# got %s\n", error.message);
    run_command ("test ! -e x.qcow2 || mv x.qcow2 x.ours");
    ok (qemu_creates (MiB, taken[i]), "... by QEMU, too");
    ok (system ("cmp x.ours x.qcow2") == 0, "... and means the same");
    clean ();
  }
}

/*----- Files -----*/

static void
test_existing (void)
{
  struct qcow2_error error;

  run_command ("echo precious > x.qcow2");
  is_int (parse_and_create ("x.qcow2", MiB, "compat=v3", &error), -EEXIST,
          "an existing file is not overwritten");
  is_str (error.message, "x.qcow2: the file exists already, and is not "
          "overwritten", "... and the message says so");
  ok (system ("test \"$(cat x.qcow2)\" = precious") == 0, "... it is intact");
  clean ();

  run_command ("echo precious > x.raw");
  is_int (parse_and_create ("x.qcow2", MiB, "data_file=x.raw", &error),
          -EEXIST, "nor is an existing data file");
  ok (system ("test \"$(cat x.raw)\" = precious") == 0, "... it is intact");
  ok (access ("x.qcow2", F_OK) == -1, "... and there is no image");
  clean ();

  run_command ("ln -s missing x.qcow2");
  is_int (parse_and_create ("x.qcow2", MiB, "compat=v3", &error), -EEXIST,
          "nothing is made where a link leads to");
  ok (access ("missing", F_OK) == -1, "... indeed");
  clean ();

  run_command ("mkfifo x.fifo");
  is_int (parse_and_create ("x.fifo", MiB, "compat=v3", &error), -EEXIST,
          "a FIFO is refused, and not waited for");
  is_int (parse_and_create ("dir", MiB, "compat=v3", &error), -EEXIST,
          "a directory is refused");
  is_int (parse_and_create ("missing/x.qcow2", MiB, "compat=v3", &error),
          -ENOENT, "a missing directory is an error");
  clean ();
}

/* Names are relative to the image, as when it is opened. */
static void
test_relative (void)
{
  struct qcow2_error error;
  struct qcow2_options options;
  struct qcow2 *image;

  is_int (parse_and_create ("dir/x.qcow2", QCOW2_NO_SIZE,
                            "backing_file=../base.qcow2,backing_fmt=qcow2,"
                            "data_file=x,,y.raw", &error), 0,
          "an image in another directory");
  ok (access ("dir/x,y.raw", F_OK) == 0, "... with its data file");
  qcow2_options_init (&options);
  options.allow_dirs = (const char *const []) { "." };
  options.nr_allow_dirs = 1;
  if (ok (qcow2_open ("dir/x.qcow2", &options, &image, &error) == 0,
          "... can be opened")) {
    struct qcow2_view *view;

    qcow2_view_open (image, QCOW2_ACTIVE, &view, &error);
    is_int ((int64_t) qcow2_view_size (view), 3 * MiB,
            "... and has the size of the backing file");
    qcow2_view_close (view);
    qcow2_close (image);
  }
  run_command ("rm dir/*");
}

static void
test_long_names (void)
{
  char name[LONG_NAME_BYTES + 1], text[2 * LONG_NAME_BYTES];
  struct qcow2_create_options options;
  struct qcow2_error error;

  memset (name, 'n', LONG_NAME_BYTES);
  name[LONG_NAME_BYTES] = '\0';
  snprintf (text, sizeof text, "backing_file=%s,backing_fmt=raw", name);
  is_int (parse_and_create ("x.qcow2", MiB, text, &error), -EINVAL,
          "a name of %d bytes is refused", LONG_NAME_BYTES);
  ok (strstr (error.message, "longer than 1023 bytes"),
      "... and the message says why");

  name[LONG_NAME_BYTES - 1] = '\0';
  snprintf (text, sizeof text, "backing_file=%s,backing_fmt=raw,"
            "cluster_size=1k", name);
  qcow2_create_options_init (&options);
  options.unchecked_backing = true;
  ok (qcow2_create_option_parse (&options, text, &error) == 0, "one less");
  is_int (qcow2_create ("x.qcow2", MiB, &options, &error), -EINVAL,
          "... is refused for small clusters");
  ok (strstr (error.message, "too long for a cluster size of 1024"),
      "... and the message says why");
  ok (nothing_left (), "... nothing is left behind");
  options.cluster_bytes = 2048;
  is_int (qcow2_create ("x.qcow2", MiB, &options, &error), 0,
          "... and is taken for larger ones, unchecked");
  ok (system ("qemu-img info -f qcow2 x.qcow2 | grep -q 'backing file: n'")
      == 0, "... as QEMU sees");
  qcow2_create_options_clear (&options);
  clean ();
}

static void
test_no_size (void)
{
  struct qcow2_create_options options;
  struct qcow2_error error;

  qcow2_create_options_init (&options);
  is_int (qcow2_create ("x.qcow2", QCOW2_NO_SIZE, &options, &error), -EINVAL,
          "no size at all is an error");
  ok (strstr (error.message, "needs a size"), "... and the message says so");
  ok (nothing_left (), "... nothing is left behind");
}

int
main (void)
{
  scratch_dir_enter ();
  run_command ("mkdir dir && truncate -s 1M base.raw && "
               "qemu-img create -q -f qcow2 base.qcow2 3M");
  test_refused ();
  test_taken ();
  test_existing ();
  test_relative ();
  test_long_names ();
  test_no_size ();
  return tap_done ();
}
