/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that take little space and claim much: repairing them when they
 * are opened takes little time, and checking them does.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2/format.h"
#include "qcow2/qcow2.h"
#include "scratch-dir.h"
#include "tap.h"

#define IMAGE "disk.qcow2"
#define CLUSTER_BITS 16
#define CLUSTER (UINT64_C (1) << CLUSTER_BITS)
#define L1_BYTES (UINT64_C (32) << 20)
#define MAX_CPU_SEC 15          /* it takes 3, with sanitizers 6 */

struct claim {
  const char *name;
  uint32_t l1_entries;
  uint64_t l1_step;             /* from one's L2 table to the next one's */
  uint64_t refcount_blocks;
  uint64_t refcount_order;
  uint64_t data_step;           /* so many L2 tables, and one has a block that
                                   is no hole; 0: none has */
  uint32_t snapshots;           /* each has an L1 table of 32 MiB */
  uint64_t snapshot_step;       /* from one's to the next one's */
};

/* Only the L1 and the refcount table are really there; what they name is
 * behind them, in holes.
 */
static const struct claim claims[] = {
  { "an L1 table that names one L2 table 4194304 times", 4 << 20, 0, 0, 6,
    0, 0, 0 },
  { "1048576 refcount blocks in holes", 1, CLUSTER, 1 << 20, 0, 0, 0,
    0 },
  { "1048576 L2 tables in holes", 1 << 20, CLUSTER, 0, 4, 0, 0, 0 },
  { "1048576 L2 tables, few of which are no holes", 1 << 20, CLUSTER, 0, 4,
    64, 0, 0 },
  { "4096 snapshots with L1 tables of 32 MiB in holes", 1, CLUSTER, 0, 0, 0,
    4096, L1_BYTES },
};

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

static void
put_words (int fd, uint64_t offset, uint64_t nr, uint64_t value,
           uint64_t step)
{
  uint64_t *words = malloc (nr * 8 + 1), i;

  must (words != NULL, "memory");
  for (i = 0; i < nr; ++i)
    words[i] = htobe64 (value + i * step);
  must (pwrite (fd, words, nr * 8, (off_t) offset) == (ssize_t) (nr * 8),
        "writing a table");
  free (words);
}

static uint64_t
clusters_of (uint64_t nr_words)
{
  return (nr_words * 8 + CLUSTER - 1) / CLUSTER;
}

/* At OFFSET; their L1 tables follow.  Returns the end. */
static uint64_t
put_snapshots (int fd, const struct claim *claim, uint64_t offset)
{
  uint64_t bytes = claim->snapshots * UINT64_C (64), i;
  uint64_t l1 = offset + (bytes + CLUSTER - 1) / CLUSTER * CLUSTER;
  char *table = calloc (1, bytes + 1);

  must (table != NULL, "memory");
  for (i = 0; i < claim->snapshots; ++i) {
    struct disk_snapshot d = {
      .l1_table_offset = htobe64 (l1 + i * claim->snapshot_step),
      .l1_size = htobe32 (L1_BYTES / 8),
      .id_str_size = htobe16 (4),
      .extra_data_size = htobe32 (16),
    };
    char id[12];

    memcpy (table + i * 64, &d, sizeof d);
    table[i * 64 + 53] = 16;    /* of a disk of 1 MiB */
    snprintf (id, sizeof id, "%04u", (unsigned) i);
    memcpy (table + i * 64 + 56, id, 4);
  }
  must (pwrite (fd, table, bytes, (off_t) offset) == (ssize_t) bytes,
        "writing the snapshot table");
  free (table);
  return l1 + (claim->snapshots - 1) * claim->snapshot_step + L1_BYTES;
}

static void
make_image (const struct claim *claim)
{
  uint64_t table_clusters = claim->refcount_blocks > 0 ?
    clusters_of (claim->refcount_blocks) : 1;
  uint64_t l1 = (1 + table_clusters) * CLUSTER;
  uint64_t l2 = l1 + clusters_of (claim->l1_entries) * CLUSTER;
  uint64_t nr_l2 = claim->l1_step > 0 ? claim->l1_entries : 1;
  uint64_t blocks = l2 + nr_l2 * CLUSTER;
  uint64_t end = blocks + (claim->refcount_blocks + 4) * CLUSTER;
  struct disk_header h = {
    .magic = htobe32 (QCOW_MAGIC), .version = htobe32 (3),
    .cluster_bits = htobe32 (CLUSTER_BITS), .size = htobe64 (1 << 20),
    .l1_size = htobe32 (claim->l1_entries),
    .l1_table_offset = htobe64 (l1),
    .refcount_table_offset = htobe64 (CLUSTER),
    .refcount_table_clusters = htobe32 ((uint32_t) table_clusters),
    .incompatible_features = htobe64 (INCOMPAT_DIRTY),
    .refcount_order = htobe32 ((uint32_t) claim->refcount_order),
    .header_length = htobe32 (104),
    .nb_snapshots = htobe32 (claim->snapshots),
    .snapshots_offset = htobe64 (claim->snapshots > 0 ? end : 0),
  };
  static const uint8_t zeros[4096];
  int fd = open (IMAGE, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  uint64_t i;

  must (fd != -1 && pwrite (fd, &h, 104, 0) == 104, "writing the header");
  put_words (fd, CLUSTER, claim->refcount_blocks, blocks, CLUSTER);
  put_words (fd, l1, claim->l1_entries, l2, claim->l1_step);
  if (claim->snapshots > 0)
    end = put_snapshots (fd, claim, end);
  must (ftruncate (fd, (off_t) end) == 0, "growing the file");
  for (i = 0; claim->data_step > 0 && i < nr_l2; i += claim->data_step)
    must (pwrite (fd, zeros, sizeof zeros, (off_t) (l2 + i * CLUSTER)) ==
          sizeof zeros, "writing a block");
  close (fd);
}

static double
cpu_sec (void)
{
  struct rusage u;

  getrusage (RUSAGE_SELF, &u);
  return (double) (u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
    (double) (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void
log_repair (void *opaque, enum qcow2_log_level level, const char *text)
{
  bool *repaired = opaque;

  printf ("# %s\n", text);
  *repaired = *repaired || strstr (text, "has been repaired");
}

static void
test_claim (const struct claim *claim)
{
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;
  bool repaired = false;
  double before;

  make_image (claim);
  qcow2_options_init (&options);
  options.writable = true;
  options.log = log_repair;
  options.opaque = &repaired;
  before = cpu_sec ();
  if (!ok (qcow2_open (IMAGE, &options, &image, &error) == 0, "%s: opened",
           claim->name))
    return;
  is_int (qcow2_close (image), 0, "closed");
  ok (repaired, "repaired");
  ok (cpu_sec () - before < MAX_CPU_SEC, "in %.1f seconds of CPU time",
      cpu_sec () - before);
}

static void
count_texts (void *opaque, const char *text)
{
  unsigned *nr = opaque;

if (*nr == 0) printf ("# %s\n", text);
  *nr += strstr (text, "refcount=0 reference=4096") != NULL;
}

/* Of which 32 MiB are there. */
static void
test_shared_l1 (void)
{
  const struct claim claim = {
    .l1_entries = 1, .l1_step = CLUSTER, .snapshots = 4096,
  };
  unsigned nr_texts = 0;
  const struct qcow2_check_options check_options = {
    .found = count_texts, .opaque = &nr_texts,
  };
  struct qcow2_check_result result;
  struct qcow2_options options;
  struct qcow2_error error;
  struct qcow2 *image;
  struct stat st;
  double before;
  char *zeros = calloc (1, L1_BYTES);
  int fd, r;

  make_image (&claim);
  fd = open (IMAGE, O_RDWR | O_CLOEXEC);
  must (zeros && fd != -1 && fstat (fd, &st) == 0 &&
        pwrite (fd, zeros, L1_BYTES, st.st_size - (off_t) L1_BYTES) ==
        (ssize_t) L1_BYTES, "writing an L1 table");
  close (fd);
  free (zeros);
  qcow2_options_init (&options);
  options.check = true;
  must (qcow2_open (IMAGE, &options, &image, &error) == 0, error.message);
  before = cpu_sec ();
  r = qcow2_check (image, &check_options, &result, &error);
  is_int (r, 0, "4096 snapshots with one L1 table of 32 MiB: checked");
  is_int (nr_texts, 512, "each of its clusters is referenced as often");
  ok (cpu_sec () - before < MAX_CPU_SEC, "in %.1f seconds of CPU time",
      cpu_sec () - before);
  qcow2_close (image);
}

int
main (void)
{
  size_t i;

  scratch_dir_enter ();
  for (i = 0; i < sizeof claims / sizeof claims[0]; ++i)
    test_claim (&claims[i]);
  test_shared_l1 ();
  return tap_done ();
}
