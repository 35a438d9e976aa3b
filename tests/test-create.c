/* SPDX-License-Identifier: BSD-3-Clause */

/* New images beside those that qemu-img makes of the same options.
 *
 * Without preallocation, and with preallocation=metadata, both are the
 * same to the last byte as long as one refcount block is enough.  Beyond
 * that QEMU moves its refcount table around: then they are the same for
 * `qemu-img map' and `qemu-img check'.
 */

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "qcow2/qcow2.h"
#include "qemu-image.h"
#include "scratch-dir.h"
#include "tap.h"

/* Does the shell command succeed? */
static bool __attribute__ ((__format__ (__printf__, 1, 2)))
holds (const char *fs, ...)
{
  char command[8192];
  va_list args;

  va_start (args, fs);
  vsnprintf (command, sizeof command, fs, args);
  va_end (args);
  return system (command) == 0;
}

/* Make FILENAME with the engine. */
static int
create (const char *filename, uint64_t size_bytes, const char *text,
        struct qcow2_error *error)
{
  struct qcow2_create_options options;
  int r = 0;

  qcow2_create_options_init (&options);
  if (text[0] != '\0')
    r = qcow2_create_option_parse (&options, text, error);
  if (r == 0)
    r = qcow2_create (filename, size_bytes, &options, error);
  qcow2_create_options_clear (&options);
  return r;
}

/* Make ours/x.qcow2 and qemu/x.qcow2. */
static bool
create_both (uint64_t size_bytes, const char *text)
{
  struct qcow2_error error = { "" };
  char size[32] = "";
  int r;

  run_command ("rm -f ours/x.* qemu/x.*");
  if (size_bytes != QCOW2_NO_SIZE)
    snprintf (size, sizeof size, "%" PRIu64, size_bytes);
  r = create ("ours/x.qcow2", size_bytes, text, &error);
  if (r < 0)
    printf ("# %s\n", error.message);
  return r == 0 && holds ("cd qemu && qemu-img create -q -f qcow2 %s%s "
                          "x.qcow2 %s", text[0] ? "-o " : "", text, size);
}

/* The same for qemu-img's commands; FILTER is for its map. */
static bool
same_for_qemu (const char *filter)
{
  const char *names[] = { "ours", "qemu" };
  size_t i;

  for (i = 0; i < 2; ++i)
    if (!holds ("cd %s && "
                "qemu-img check -f qcow2 x.qcow2 > ../check.log 2>&1 && "
                "{ qemu-img info -f qcow2 --output=json x.qcow2 | "
                "grep -v actual-size; "
                "qemu-img check -f qcow2 x.qcow2 | grep -v end.offset; "
                "qemu-img map -f qcow2 --output=json x.qcow2 | %s; } "
                "> ../%s.facts", names[i], filter, names[i])) {
      printf ("# of %s\n", names[i]);
      run_command ("sed 's/^/# /' check.log");
      return false;
    }
  return holds ("diff ours.facts qemu.facts > diff || "
                "{ sed 's/^/# /' diff; false; }");
}

static const uint64_t MiB = UINT64_C (1) << 20;
static const uint64_t GiB = UINT64_C (1) << 30;

/*----- Equal bytes -----*/

static const struct {
  uint64_t size_bytes;
  const char *text;
} equal[] = {
  { 1 << 20, "" },
  { 0, "" },
  { 0, "preallocation=metadata" },
  { 512, "" },
  { 100, "" },
  { 1000001, "cluster_size=512" },
  { 1 << 20, "compat=0.10" },
  { 1 << 20, "compat=v2,cluster_size=4k" },
  { 1 << 20, "compat=v3,lazy_refcounts" },
  { 1 << 20, "lazy_refcounts=on,nolazy_refcounts" },
  { 1 << 20, "cluster_size=4k" },
  { 1 << 20, "cluster_size=8k" },
  { 1 << 20, "cluster_size=2M" },
  { 1 << 20, "cluster_size=0x800" },
  { 1 << 20, "cluster_size=0.5k" },
  { 1 << 20, "refcount_bits=1" },
  { 1 << 20, "refcount_bits=2" },
  { 1 << 20, "refcount_bits=4" },
  { 1 << 20, "refcount_bits=8" },
  { 1 << 20, "refcount_bits=32" },
  { 1 << 20, "refcount_bits=64" },
  { 1 << 20, "extended_l2=on" },
  { 1 << 20, "extended_l2=on,cluster_size=16k" },
  { 1 << 20, "compression_type=zstd" },
  { 1 << 20, "compression_type=zlib,encryption=off" },
  { UINT64_C (1) << 40, "" },
  { UINT64_C (2) << 50, "" },
  { QCOW2_NO_SIZE, "size=1.5M" },
  { QCOW2_NO_SIZE, "backing_file=base.raw,backing_fmt=raw" },
  { QCOW2_NO_SIZE, "backing_file=base.qcow2,backing_fmt=qcow2" },
  { 1 << 20, "backing_file=base.qcow2,backing_fmt=qcow2" },
  { 1 << 20, "backing_file=base.qcow2,backing_fmt=qcow2,compat=0.10" },
  { 1 << 20, "backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=512" },
  { QCOW2_NO_SIZE, "backing_file=odd,,name.raw,backing_fmt=raw" },
  { 1 << 20, "data_file=x.raw" },
  { 1 << 20, "data_file=x.raw,data_file_raw=on" },
  { 100000, "data_file=x.raw,data_file_raw=on,extended_l2=on" },
  { 1 << 20, "data_file=x.raw,preallocation=metadata" },
  { 1 << 20, "data_file=x.raw,preallocation=falloc" },
  { 1 << 20, "data_file=x.raw,data_file_raw=on,preallocation=full" },
  { 5 << 20, "data_file=x.raw,preallocation=full,cluster_size=4k" },
  { 1 << 20, "data_file=x.raw,backing_file=base.raw,backing_fmt=raw" },
  { 1 << 20, "preallocation=off" },
  { 1 << 20, "preallocation=metadata" },
  { 1000001, "preallocation=metadata,cluster_size=4k,compat=0.10" },
  { 5 << 20, "preallocation=metadata,cluster_size=4k" },
  { 6 << 20, "preallocation=metadata,cluster_size=4k,refcount_bits=1" },
  { 6 << 20, "preallocation=metadata,cluster_size=4k,refcount_bits=2" },
  { 6 << 20, "preallocation=metadata,cluster_size=4k,refcount_bits=4" },
  { 2 << 20, "preallocation=metadata,cluster_size=4k,refcount_bits=32" },
  { 5 << 20, "preallocation=metadata,extended_l2=on" },
  { 100 << 20, "preallocation=metadata,extended_l2=on,cluster_size=16k" },
  { 1 << 20, "preallocation=metadata,extended_l2=on,"
             "backing_file=base.qcow2,backing_fmt=qcow2" },
  { 100 << 20, "preallocation=metadata" },
};

static void
test_equal (void)
{
  size_t i;

  for (i = 0; i < sizeof equal / sizeof equal[0]; ++i) {
    const char *text = equal[i].text;

    if (!ok (create_both (equal[i].size_bytes, text), "\"%s\", %" PRIu64
             " bytes: made", text, equal[i].size_bytes))
      continue;
    ok (holds ("cmp ours/x.qcow2 qemu/x.qcow2"), "... the same bytes");
    ok (holds ("cd ours && qemu-img check -q -f qcow2 x.qcow2"),
        "... the check is clean");
    /* Ours ends where the disk does, QEMU's sometimes with its cluster. */
    if (holds ("test -e qemu/x.raw"))
      ok (holds ("truncate -s $(stat -c %%s ours/x.raw) qemu/x.raw && "
                 "cmp ours/x.raw qemu/x.raw"), "... the same data file");
  }
}

/*----- The same for qemu-img -----*/

/* Where the data lies is the same until QEMU needs a second refcount block
 * for preallocation=metadata.
 */
#define WITH_OFFSETS "cat"
#define WITHOUT_OFFSETS "sed 's/, \"offset\": [0-9]*//'"
/* In small clusters it is in pieces between other refcount blocks. */
#define NOTHING "cat > /dev/null"

static const struct {
  uint64_t size_bytes;
  const char *text;
  const char *filter;
} alike[] = {
  { 1 << 20, "preallocation=falloc", WITH_OFFSETS },
  { 1 << 20, "preallocation=full", WITH_OFFSETS },
  { 5000 << 10, "preallocation=falloc,cluster_size=4k", WITH_OFFSETS },
  { 5000 << 10, "preallocation=full,cluster_size=4k", WITH_OFFSETS },
  { 20 << 20, "preallocation=falloc,cluster_size=4k", WITH_OFFSETS },
  { 20 << 20, "preallocation=full,cluster_size=4k,refcount_bits=64",
    WITH_OFFSETS },
  { 200 << 10, "preallocation=full,cluster_size=512", WITH_OFFSETS },
  { 3 << 20, "preallocation=falloc,extended_l2=on", WITH_OFFSETS },
  { 3 << 20, "preallocation=full,extended_l2=on,"
             "backing_file=base.qcow2,backing_fmt=qcow2", WITH_OFFSETS },
  { 1 << 20, "preallocation=falloc,compat=0.10", WITH_OFFSETS },
  { 20 << 20, "preallocation=metadata,cluster_size=4k", WITHOUT_OFFSETS },
  { 4 << 20, "preallocation=metadata,cluster_size=512,refcount_bits=64",
    NOTHING },
  { UINT64_C (5) << 30, "preallocation=metadata", WITHOUT_OFFSETS },
  { UINT64_C (5) << 30, "preallocation=metadata,extended_l2=on",
    WITHOUT_OFFSETS },
  { UINT64_C (16) << 30, "cluster_size=512", NOTHING },
};

static void
test_alike (void)
{
  size_t i;

  for (i = 0; i < sizeof alike / sizeof alike[0]; ++i) {
    const char *text = alike[i].text;

    if (!ok (create_both (alike[i].size_bytes, text), "\"%s\", %" PRIu64
             " bytes: made", text, alike[i].size_bytes))
      continue;
    ok (same_for_qemu (alike[i].filter), "... the same for qemu-img");
    ok (holds ("test $(stat -c %%s ours/x.qcow2) -le "
               "$(stat -c %%s qemu/x.qcow2)"), "... no larger");
  }
}

/*----- Space -----*/

/* Bytes of the file that take space. */
static int64_t
space_bytes (const char *filename)
{
  struct stat st;

  return stat (filename, &st) == 0 ? (int64_t) st.st_blocks * 512 : -1;
}

static void
test_space (void)
{
  ok (create_both (64 * MiB, "preallocation=metadata"), "metadata: made");
  ok (space_bytes ("ours/x.qcow2") < (int64_t) MiB, "... takes no space");
  ok (create_both (64 * MiB, "preallocation=falloc"), "falloc: made");
  ok (space_bytes ("ours/x.qcow2") >= (int64_t) (64 * MiB),
      "... has all its space");
  ok (create_both (64 * MiB, "preallocation=full"), "full: made");
  ok (space_bytes ("ours/x.qcow2") >= (int64_t) (64 * MiB),
      "... has all its space");
  ok (create_both (64 * MiB, "preallocation=falloc,data_file=x.raw"),
      "falloc, data file: made");
  ok (space_bytes ("ours/x.raw") >= (int64_t) (64 * MiB),
      "... the data file has its space");
  ok (space_bytes ("ours/x.qcow2") < (int64_t) MiB,
      "... the image takes none");
}

/* Tables of 32 MiB, of few large clusters and of many small ones. */
static void
test_memory (void)
{
  struct rusage before, after;
  struct qcow2_error error;

  run_command ("rm -f ours/x.*");
  getrusage (RUSAGE_SELF, &before);
  is_int (create ("ours/x.qcow2", 8 * 1024 * GiB,
                  "preallocation=metadata,cluster_size=2M", &error), 0,
          "8 TiB with preallocation=metadata");
  run_command ("rm -f ours/x.*");
  is_int (create ("ours/x.qcow2", 16 * GiB,
                  "preallocation=metadata,cluster_size=4k", &error), 0,
          "16 GiB with small clusters");
  getrusage (RUSAGE_SELF, &after);
  ok (after.ru_maxrss - before.ru_maxrss < 8 * 1024,
      "take %ld KiB of memory", after.ru_maxrss - before.ru_maxrss);
  ok (holds ("cd ours && qemu-img check -q -f qcow2 x.qcow2"),
      "the check is clean");
}

int
main (void)
{
  scratch_dir_enter ();
  run_command ("mkdir ours qemu && "
               "qemu-img create -q -f qcow2 base.qcow2 3M && "
               "truncate -s 3000000 base.raw && cp base.raw odd,name.raw && "
               "for d in ours qemu; do cp base.* odd* $d; done");
  test_equal ();
  test_alike ();
  test_space ();
  test_memory ();
  return tap_done ();
}
