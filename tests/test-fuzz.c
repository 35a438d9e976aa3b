/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that QEMU made, with their metadata mutated at random: whatever
 * stands there, the engine neither crashes nor hangs nor eats memory, and
 * its extents never call data zero.
 *
 * Mutants live in memory, behind the storage hook; only the pristine
 * files are on disk.  A child process goes through them, so that the
 * parent can tell which one killed it.  Mutant N is made from seed
 * FUZZ_SEED + N alone: FUZZ_RUNS=1 FUZZ_SEED=that runs it again.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "qcow2/format.h"
#include "qcow2/qcow2.h"
#include "scratch-dir.h"
#include "tap.h"

#define DEFAULT_RUNS 6000
#define DEFAULT_SECONDS 15      /* no further mutants after that */
#define MUTANT_SECONDS 20       /* for one of them; sanitizers are slow */
#ifdef __SANITIZE_ADDRESS__
#define MAX_MEMORY_BYTES (INT64_C (768) << 20) /* it keeps what is freed */
#else
#define MAX_MEMORY_BYTES (INT64_C (256) << 20)
#endif
#define READ_BYTES (256 << 10)
#define MAX_RANGES 64

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

/*----- Random numbers -----*/

static uint64_t rng_state;

static uint64_t
rng (void)
{
  uint64_t z = rng_state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return z ^ z >> 31;
}

static uint64_t
rng_below (uint64_t n)
{
  return rng () % n;
}

/*----- The pristine images -----*/

struct range {
  uint64_t offset, bytes;
};

struct base {
  const char *path;
  uint8_t *bytes;
  size_t nr_bytes;
  struct range ranges[MAX_RANGES]; /* metadata */
  unsigned nr_ranges;
};

static struct base bases[] = {
  { .path = "v2" }, { .path = "tiny" }, { .path = "zlib" },
  { .path = "zstd" }, { .path = "extended" }, { .path = "data" },
  { .path = "overlay" },
};
#define NR_BASES (sizeof bases / sizeof bases[0])

static const char script[] =
  "set -e\n"
  "w () { i=$1; shift; qemu-io -f qcow2 \"$@\" $i; }\n"
  "c () { qemu-img create -q -f qcow2 \"$@\"; }\n"
  "c -o compat=0.10,cluster_size=4k v2 256k\n"
  "w v2 -c 'write -P 1 0 64k' -c 'write -P 2 100k 5k'\n"
  "qemu-img snapshot -c one v2\n"
  "w v2 -c 'write -P 3 32k 64k'\n"
  "qemu-img snapshot -c two v2\n"
  "w v2 -c 'write -P 4 60k 8k'\n"
  "c -o cluster_size=512,lazy_refcounts=on tiny 256k\n"
  "w tiny -c 'write -P 5 1000 60000' -c 'write -z 8k 8k'\n"
  "qemu-img snapshot -c small tiny\n"
  "w tiny -c 'write -P 6 200k 3k'\n"
  "qemu-img bitmap --add tiny bits\n"
  "head -c 200000 /dev/zero | tr '\\0' x > text\n"
  "seq 1 20000 >> text\n"
  "qemu-img convert -c -f raw -O qcow2 -o cluster_size=8k text zlib\n"
  "w zlib -c 'write -P 7 40k 20k'\n"
  "qemu-img convert -c -f raw -O qcow2 "
  "  -o cluster_size=16k,compression_type=zstd text zstd\n"
  "c -o extended_l2=on,cluster_size=16k extended 256k\n"
  "w extended -c 'write -P 8 3k 7k' -c 'write -P 9 40k 60k' "
  "  -c 'write -z 50k 4k' -c 'write -c -P 10 128k 16k'\n"
  "c -o data_file=data.raw,cluster_size=4k data 256k\n"
  "w data -c 'write -P 11 8k 30k' -c 'write -z 16k 4k'\n"
  "c -o cluster_size=4k -b zlib -F qcow2 overlay 256k\n"
  "w overlay -c 'write -P 12 12k 40k' -c 'write -z 64k 16k'\n";

static void
make_bases (void)
{
  int fd = open ("script", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

  must (write (fd, script, sizeof script - 1) == sizeof script - 1, "script");
  close (fd);
  must (system ("sh script > script.log 2>&1") == 0,
        "making the pristine images");
}

static uint64_t
load (const struct base *b, uint64_t offset, unsigned width)
{
  uint64_t be = 0;

  if (offset + width > b->nr_bytes)
    return 0;
  memcpy ((char *) &be + 8 - width, b->bytes + offset, width);
  return be64toh (be);
}

static void
add_range (struct base *b, uint64_t offset, uint64_t bytes)
{
  if (bytes == 0 || offset + bytes > b->nr_bytes ||
      b->nr_ranges == MAX_RANGES)
    return;
  b->ranges[b->nr_ranges++] = (struct range) { offset, bytes };
}

#define HEADER(field) \
  load (b, offsetof (struct disk_header, field), \
        sizeof (((struct disk_header *) NULL)->field))

/* The header with its extensions, the L1 table, the used part of L2
 * tables, the snapshot table and the compressed data.
 */
static void
find_ranges (struct base *b)
{
  uint64_t cluster_bytes = UINT64_C (1) << HEADER (cluster_bits);
  uint64_t l1 = HEADER (l1_table_offset), l1_size = HEADER (l1_size);
  uint64_t i, n;

  add_range (b, 0, sizeof (struct disk_header));
  add_range (b, 0, cluster_bytes < 600 ? cluster_bytes : 600);
  add_range (b, l1, l1_size * 8);
  if (HEADER (nb_snapshots) > 0)
    add_range (b, HEADER (snapshots_offset), 160);
  for (i = 0; i < l1_size; ++i) {
    uint64_t l2 = load (b, l1 + 8 * i, 8) & ENTRY_OFFSET_MASK;

    if (l2 == 0)
      continue;
    add_range (b, l2, cluster_bytes < 512 ? cluster_bytes : 512);
    for (n = 0; n < 8; ++n) {
      uint64_t entry = load (b, l2 + 8 * n, 8);

      if (entry & ENTRY_COMPRESSED)
        add_range (b, compressed_offset (entry, HEADER (cluster_bits)), 64);
    }
  }
}

static void
load_base (struct base *b)
{
  struct stat st;
  int fd = open (b->path, O_RDONLY | O_CLOEXEC);

  must (fd != -1 && fstat (fd, &st) == 0, b->path);
  b->nr_bytes = (size_t) st.st_size;
  b->bytes = malloc (b->nr_bytes);
  must (b->bytes && read (fd, b->bytes, b->nr_bytes) == st.st_size, b->path);
  close (fd);
  find_ranges (b);
}

/*----- Mutation -----*/

static uint8_t *mutant;         /* room for the largest base */
static size_t mutant_bytes;

static void
store (uint64_t offset, unsigned width, uint64_t value)
{
  uint64_t be = htobe64 (value);

  if (offset + width <= mutant_bytes)
    memcpy (mutant + offset, (char *) &be + 8 - width, width);
}

/* A number that is likely to be a limit of something. */
static uint64_t
interesting (void)
{
  uint64_t power = UINT64_C (1) << rng_below (64);

  switch (rng_below (8)) {
  case 0: return 0;
  case 1: return UINT64_MAX;
  case 2: return power - 1;
  case 3: return power + 1;
  case 4: return mutant_bytes & ~UINT64_C (511);
  case 5: return rng_below (mutant_bytes) & ~UINT64_C (4095);
  case 6: return rng ();
  default: return power;
  }
}

static void
mutate_once (const struct base *b)
{
  const struct range *range = &b->ranges[rng_below (b->nr_ranges)];
  uint64_t offset = range->offset + rng_below (range->bytes);
  unsigned width = 1u << rng_below (4);
  uint64_t field = offset & ~(uint64_t) (width - 1);

  if (offset >= mutant_bytes)
    return;
  switch (rng_below (8)) {
  case 0:
    mutant[offset] = (uint8_t) rng ();
    break;
  case 1:
  case 2:
    mutant[offset] ^= (uint8_t) (1u << rng_below (8));
    break;
  case 3:
  case 4:
    store (field, width, interesting ());
    break;
  case 5:                       /* a little more or less */
    store (field, width, load (b, field, width) + rng_below (17) - 8);
    break;
  case 6:                       /* a copy from elsewhere */
    store (field, width, load (b, rng_below (b->nr_bytes) & ~UINT64_C (7),
                               width));
    break;
  default:                      /* the file is cut off */
    if (rng_below (4) == 0)
      mutant_bytes = rng_below (mutant_bytes) + 1;
  }
}

static const struct base *
make_mutant (uint64_t seed)
{
  const struct base *b;
  uint64_t n;

  rng_state = seed;
  b = &bases[rng_below (NR_BASES)];
  memcpy (mutant, b->bytes, b->nr_bytes);
  mutant_bytes = b->nr_bytes;
  for (n = 1 + rng_below (4); n > 0; --n)
    mutate_once (b);
  return b;
}

/*----- The mutant as a storage -----*/

struct mutant_storage {
  struct qcow2_storage storage;
  struct qcow2_storage *file;
};

static ssize_t
mutant_pread (struct qcow2_storage *s, void *buf, size_t count,
              uint64_t offset)
{
  if (offset >= mutant_bytes)
    return 0;
  if (count > mutant_bytes - offset)
    count = mutant_bytes - offset;
  memcpy (buf, mutant + offset, count);
  return (ssize_t) count;
}

static int64_t
mutant_size (struct qcow2_storage *s)
{
  return (int64_t) mutant_bytes;
}

static void
mutant_close (struct qcow2_storage *s)
{
  struct mutant_storage *m = (struct mutant_storage *) s;

  qcow2_storage_close (m->file);
  free (m);
}

static const struct qcow2_storage_ops mutant_ops = {
  .pread = mutant_pread,
  .size = mutant_size,
  .close = mutant_close,
};

/* The hook: OPAQUE is the base whose file stands for the mutant. */
static int
wrap (void *opaque, enum qcow2_storage_role role, const char *filename,
      struct qcow2_storage **s)
{
  const struct base *b = opaque;
  struct mutant_storage *m;

  if (role != QCOW2_STORAGE_IMAGE || strcmp (filename, b->path) != 0)
    return 0;
  m = malloc (sizeof *m);
  if (!m)
    return -ENOMEM;
  m->storage.ops = &mutant_ops;
  m->file = *s;
  *s = &m->storage;
  return 0;
}

/*----- What is done with each mutant -----*/

/* Shared with the parent. */
struct report {
  uint64_t seed;                /* of the mutant at work */
  unsigned nr_runs;
  unsigned nr_opened, nr_views, nr_read;
  unsigned nr_lies;             /* extents called data zero */
  unsigned nr_different;        /* a second read gave something else */
  unsigned nr_odd_errors;
  uint64_t first_bad_seed;
};

static struct report *report;
static uint8_t content[READ_BYTES], again[READ_BYTES];

static void
bad (unsigned *counter)
{
  if (report->first_bad_seed == 0)
    report->first_bad_seed = report->seed;
  ++*counter;
}

static void
check_error (int r)
{
  /* What a bad image may lead to, and a name that it gives. */
  static const int usual[] = {
    EINVAL, EIO, ENOTSUP, EFBIG, ENOENT, EACCES, ELOOP, ENAMETOOLONG, ENOTDIR,
  };
  size_t i;

  for (i = 0; i < sizeof usual / sizeof usual[0]; ++i)
    if (r == -usual[i])
      return;
  bad (&report->nr_odd_errors);
}

struct extent_check {
  uint64_t next, end;
  bool lie;
};

/* qcow2_extent_fn: OPAQUE is a struct extent_check; content is that of
 * the range from offset 0 on.
 */
static int
check_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
              uint64_t count)
{
  struct extent_check *c = opaque;
  uint64_t i;

  if (offset != c->next || count == 0 || count > c->end - offset)
    c->lie = true;
  else if (type != QCOW2_EXTENT_DATA)
    for (i = offset; i < offset + count; ++i)
      c->lie |= content[i] != 0;
  c->next = offset + count;
  return 0;
}

/* In one piece, then in pieces that no boundary knows of. */
static void
read_twice (struct qcow2_view *view, size_t count)
{
  struct extent_check c = { .end = count };
  int r = qcow2_pread (view, content, count, 0);
  size_t done, n;

  if (r < 0)
    check_error (r);
  for (done = 0; done < count; done += n) {
    int r2;

    n = 1 + rng_below (50000);
    if (n > count - done)
      n = count - done;
    r2 = qcow2_pread (view, again + done, n, done);
    if (r2 < 0)
      check_error (r2);
    if (r == 0 && (r2 < 0 || memcmp (again + done, content + done, n) != 0))
      bad (&report->nr_different);
  }
  if (r < 0)
    return;
  report->nr_read++;
  if (qcow2_extents (view, count, 0, check_extent, &c) < 0 || c.lie)
    bad (&report->nr_lies);
}

/* qcow2_extent_fn */
static int
ignore_extent (void *opaque, enum qcow2_extent type, uint64_t offset,
               uint64_t count)
{
  return 0;
}

static void
use_view (struct qcow2_view *view)
{
  uint64_t size = qcow2_view_size (view);
  uint64_t max = size < UINT32_MAX ? size : UINT32_MAX;
  unsigned i;

  report->nr_views++;
  if (size == 0)
    return;
  read_twice (view, size < READ_BYTES ? (size_t) size : READ_BYTES);
  qcow2_extents (view, max, size - max, ignore_extent, NULL);
  qcow2_prefetch (view, max, 0);
  for (i = 0; i < 8; ++i) {
    uint64_t offset = rng_below (size);
    uint64_t left = size - offset;

    qcow2_pread (view, content, left < 5000 ? (size_t) left : 5000, offset);
  }
}

static void
use_image (struct qcow2 *image)
{
  size_t i, n = qcow2_nr_snapshots (image);
  struct qcow2_error error;
  struct qcow2_view *view;
  int r;

  report->nr_opened++;
  for (i = 0; i <= n && i < 5; ++i) {
    struct qcow2_snapshot_info info;

    r = qcow2_view_open (image, i == n ? QCOW2_ACTIVE : i, &view, &error);
    if (i < n) {
      qcow2_snapshot_get (image, i, &info);
      qcow2_snapshot_find (image, info.name);
    }
    if (r < 0) {
      check_error (r);
      continue;
    }
    use_view (view);
    qcow2_view_close (view);
  }
}

static void
log_nothing (void *opaque, enum qcow2_log_level level, const char *text)
{
}

static void
run_mutant (uint64_t seed)
{
  const struct base *b = make_mutant (seed);
  const char *allowed = ".";
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;
  int r;

  qcow2_options_init (&options);
  options.lock = false;
  options.cache_bytes = options.compressed_cache_bytes = 128 << 10;
  options.allow_dirs = &allowed;
  options.nr_allow_dirs = 1;
  options.log = log_nothing;
  options.wrap = wrap;
  options.opaque = (void *) b;
  r = qcow2_open (b->path, &options, &image, &error);
  if (r < 0)
    check_error (r);
  else {
    use_image (image);
    qcow2_close (image);
  }
}

/*----- Running -----*/

static uint64_t
number_of (const char *variable, uint64_t otherwise)
{
  const char *value = getenv (variable);

  return value ? strtoull (value, NULL, 0) : otherwise;
}

static void
run_all (uint64_t seed, uint64_t nr_runs, bool limited)
{
  time_t start = time (NULL);
  uint64_t i;

  for (i = 0; i < nr_runs; ++i) {
    if (limited && time (NULL) - start > DEFAULT_SECONDS)
      break;
    report->seed = seed + i;
    alarm (MUTANT_SECONDS);
    run_mutant (seed + i);
    report->nr_runs++;
  }
}

static int
run_in_child (uint64_t seed, uint64_t nr_runs, bool limited,
              struct rusage *usage)
{
  pid_t pid;
  int status;

  fflush (stdout);
  pid = fork ();
  must (pid != -1, "fork");
  if (pid == 0) {
    run_all (seed, nr_runs, limited);
    exit (0);                   /* not _exit, for the leak checkers */
  }
  must (wait4 (pid, &status, 0, usage) == pid, "wait4");
  return status;
}

int
main (void)
{
  uint64_t seed = number_of ("FUZZ_SEED", 20240607);
  uint64_t nr_runs = number_of ("FUZZ_RUNS", DEFAULT_RUNS);
  bool limited = !getenv ("FUZZ_RUNS");
  struct rusage usage;
  size_t i, largest = 0;
  int status;

  scratch_dir_enter ();
  make_bases ();
  for (i = 0; i < NR_BASES; ++i) {
    load_base (&bases[i]);
    if (bases[i].nr_bytes > largest)
      largest = bases[i].nr_bytes;
  }
  mutant = malloc (largest);
  report = mmap (NULL, sizeof *report, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  must (mutant && report != MAP_FAILED, "memory");

  status = run_in_child (seed, nr_runs, limited, &usage);
  printf ("# FUZZ_SEED=%" PRIu64 ": %u mutants, %u opened, %u disks, of "
          "which %u were read whole\n", seed, report->nr_runs,
          report->nr_opened, report->nr_views, report->nr_read);
  if (!ok (status == 0, "nothing crashed, hung or leaked"))
    printf ("# status %#x, at work: FUZZ_RUNS=1 FUZZ_SEED=%" PRIu64 "\n",
            (unsigned) status, report->seed);
  is_int (report->nr_lies, 0, "extents tell the truth");
  is_int (report->nr_different, 0, "what is read once is read again");
  is_int (report->nr_odd_errors, 0, "errors are those of bad images");
  ok (usage.ru_maxrss * INT64_C (1024) < MAX_MEMORY_BYTES,
      "at most %ld KiB of memory", usage.ru_maxrss);
  if (report->first_bad_seed)
    printf ("# first bad one: FUZZ_RUNS=1 FUZZ_SEED=%" PRIu64 "\n",
            report->first_bad_seed);
  return tap_done ();
}
