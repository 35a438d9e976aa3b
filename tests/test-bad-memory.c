/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that claim much but hold little cost no memory: neither address
 * space nor pages that are touched.  Each is opened in a process of its
 * own, which measures itself.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image-builder.h"
#include "scratch-dir.h"
#include "verdict.h"

#define IMAGE "disk.qcow2"
#define MIB (1 << 20)
#define KIB400 (400 << 10)

/* What the caches and the reading itself may take, and allocators of
 * sanitizers with their habit of taking more at once.
 */
#define SLACK_BYTES (24 * MIB)

struct cost {
  int err;
  int64_t address_space_bytes;
  int64_t touched_bytes;
};

/* A number in kilobytes from /proc/self/status. */
static int64_t
status_bytes (const char *field)
{
  FILE *fp = fopen ("/proc/self/status", "r");
  char line[200];
  long long kb = -1;

  while (fp && fgets (line, sizeof line, fp))
    if (strncmp (line, field, strlen (field)) == 0)
      kb = atoll (line + strlen (field) + 1);
  if (fp)
    fclose (fp);
  return kb * 1024;
}

static void
measure (const char *snapshot, struct cost *cost)
{
  struct qcow2_options options;
  struct verdict v;
  int64_t peak = status_bytes ("VmPeak"), hwm = status_bytes ("VmHWM");

  verdict_options (&v, &options);
  verdict_ours (&v, IMAGE, snapshot, &options);
  cost->err = v.err;
  cost->address_space_bytes = status_bytes ("VmPeak") - peak;
  cost->touched_bytes = status_bytes ("VmHWM") - hwm;
  verdict_clear (&v);
}

static void
expect_costs (const char *what, const char *snapshot, int err,
              int64_t max_bytes, int64_t max_touched_bytes)
{
  struct cost cost = { 0 };
  int fds[2], status = -1;
  pid_t pid;

  fflush (stdout);
  if (pipe (fds) == -1 || (pid = fork ()) == -1) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
  if (pid == 0) {
    measure (snapshot, &cost);
    _exit (write (fds[1], &cost, sizeof cost) != sizeof cost);
  }
  ok (read (fds[0], &cost, sizeof cost) == sizeof cost &&
      waitpid (pid, &status, 0) == pid && status == 0, "%s: measured", what);
  close (fds[0]);
  close (fds[1]);

  is_int (-cost.err, err, "%s: errno", what);
  ok (cost.address_space_bytes <= max_bytes + SLACK_BYTES,
      "%s: %" PRId64 " KiB of address space", what,
      cost.address_space_bytes >> 10);
  ok (cost.touched_bytes <= max_touched_bytes + SLACK_BYTES,
      "%s: %" PRId64 " KiB touched", what, cost.touched_bytes >> 10);
}

static void
expect_cost (const char *what, const char *snapshot, int err,
             int64_t max_bytes)
{
  expect_costs (what, snapshot, err, max_bytes, max_bytes);
}

static void
make (struct image *img, unsigned cluster_bits, uint64_t size_bytes)
{
  image_create (img, IMAGE, &(struct image_options) {
      .cluster_bits = cluster_bits, .size_bytes = size_bytes });
  image_add_data (img, 0, 0x11);
}

/*----- Small files -----*/

static void
test_claims (void)
{
  struct image img;

  make (&img, 16, UINT64_C (1) << 40);
  image_close (&img);
  image_reopen (&img);
  image_truncate (&img, KIB400);
  close (img.fd);
  expect_cost ("400 KiB with a disk of 1 TiB", NULL, 0, 0);

  image_reopen (&img);
  image_put_header (&img, l1_size, MAX_L1_BYTES / 8);
  close (img.fd);
  expect_cost ("400 KiB with an L1 table of 32 MiB", NULL, EINVAL, 0);

  image_reopen (&img);
  image_put_header (&img, l1_size, UINT32_MAX);
  close (img.fd);
  expect_cost ("400 KiB with an L1 table of 32 GiB", NULL, EFBIG, 0);

  make (&img, 16, MIB);
  image_put_header (&img, refcount_table_clusters,
                    MAX_REFCOUNT_TABLE_BYTES >> 16);
  image_close (&img);
  expect_cost ("400 KiB with a refcount table of 8 MiB", NULL, EINVAL, 0);

  make (&img, 16, MIB);
  image_put_header (&img, nb_snapshots, MAX_SNAPSHOTS);
  image_put_header (&img, snapshots_offset, 3 * 65536);
  image_close (&img);
  expect_cost ("400 KiB with 65536 snapshots", NULL, EINVAL, 0);
}

/*----- Sparse files -----*/

static void
test_sparse (void)
{
  struct image img;

  make (&img, 21, UINT64_C (1) << 61);
  image_close (&img);
  expect_costs ("sparse, an L1 table of 32 MiB", NULL, 0, MAX_L1_BYTES, 0);

  make (&img, 16, MIB);
  image_put_header (&img, refcount_table_offset,
                    image_alloc (&img, MAX_REFCOUNT_TABLE_BYTES));
  image_put_header (&img, refcount_table_clusters,
                    MAX_REFCOUNT_TABLE_BYTES >> 16);
  image_close (&img);
  expect_cost ("sparse, a refcount table of 8 MiB", NULL, 0, 0);

  make (&img, 16, MIB);
  image_put_header (&img, nb_snapshots, MAX_SNAPSHOTS);
  image_put_header (&img, snapshots_offset, image_alloc (&img, 4 * MIB));
  image_close (&img);
  /* What a snapshot takes in memory, with its empty id and name. */
  expect_cost ("sparse, 65536 snapshots", NULL, 0, MAX_SNAPSHOTS * 256);
}

/* A snapshot's L1 table is read when the snapshot is looked at. */
static void
test_snapshot (void)
{
  struct image_snapshot sn = { .id = "1", .name = "one", .extra_bytes = 16,
                               .disk_size = MIB,
                               .l1_size = MAX_L1_BYTES / 8 };
  struct image img;

  make (&img, 16, MIB);
  sn.l1_offset = image_alloc (&img, MAX_L1_BYTES);
  image_set_snapshots (&img, &sn, 1);
  image_close (&img);
  expect_cost ("a snapshot's L1 table of 32 MiB, not used", NULL, 0, 0);
  expect_costs ("a snapshot's L1 table of 32 MiB", "one", 0, MAX_L1_BYTES,
                0);
}

/* The largest first cluster, full of empty extensions. */
static void
test_extensions (void)
{
  struct image img;
  uint64_t i;

  make (&img, 21, MIB);
  for (i = 112; i < 2 * MIB; i += 8)
    image_put (&img, i, 4, 0x12345678);
  image_close (&img);
  /* An extension of 8 bytes takes a few times as much in memory. */
  expect_cost ("262130 header extensions", NULL, 0, 262130 * 160);
}

/* Many L2 tables, all of them the same one: no more than the cache. */
static void
test_l2_tables (void)
{
  struct image img;
  uint64_t l2;
  unsigned i;

  make (&img, 9, VERDICT_MAX_BYTES);
  l2 = image_get (&img, img.l1_offset, 8);
  for (i = 0; i < img.l1_entries; ++i)
    image_put (&img, img.l1_offset + 8 * i, 8, l2);
  image_close (&img);
  expect_cost ("one L2 table everywhere", NULL, 0, 0);
}

int
main (void)
{
  scratch_dir_enter ();
  test_claims ();
  test_sparse ();
  test_snapshot ();
  test_extensions ();
  test_l2_tables ();
  return tap_done ();
}
