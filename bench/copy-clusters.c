/* SPDX-License-Identifier: BSD-3-Clause */

/* How many clusters a second can be copied at all?
 *
 *   copy-clusters FROM TO [CLUSTERS [CLUSTER_BYTES]]
 *
 * A copy-on-write is at least a pread of a cluster and a pwrite of it to a
 * new place.  This program does that and nothing else: it copies randomly
 * chosen clusters of FROM to TO, a new file, with 1, 2, 4 and 16 threads.
 * What it prints is the limit for any server that copies by system calls, be
 * it ever so cheap otherwise: the kernel lets one thread at a time write to a
 * file.
 *
 * The last column is CPU time for a cluster, waiting threads that spin in the
 * kernel included.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 16

static int from_fd, to_fd;
static uint64_t clusters = 8192, from_clusters;
static size_t cluster_bytes = 65536;
static _Atomic uint64_t next_cluster;

static void
die (const char *what)
{
  fprintf (stderr, "copy-clusters: %s: %s\n", what, strerror (errno));
  exit (1);
}

static double
seconds_of (clockid_t clock)
{
  struct timespec t;

  clock_gettime (clock, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

/* The clusters of FROM in an order that no read-ahead can guess. */
static uint64_t
source_of (uint64_t i)
{
  return i * UINT64_C (2654435761) % from_clusters;
}

static void *
copy (void *unused)
{
  char *buf = malloc (cluster_bytes);
  uint64_t i;

  (void) unused;
  if (!buf)
    die ("malloc");
  while ((i = atomic_fetch_add (&next_cluster, 1)) < clusters) {
    ssize_t bytes = (ssize_t) cluster_bytes;

    if (pread (from_fd, buf, cluster_bytes,
               (off_t) (source_of (i) * cluster_bytes)) != bytes)
      die ("pread");
    if (pwrite (to_fd, buf, cluster_bytes,
                (off_t) (i * cluster_bytes)) != bytes)
      die ("pwrite");
  }
  free (buf);
  return NULL;
}

static void
measure (const char *to, unsigned nr_threads)
{
  pthread_t threads[MAX_THREADS];
  double wall, cpu;
  unsigned i;

  to_fd = open (to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (to_fd == -1)
    die (to);
  next_cluster = 0;
  wall = seconds_of (CLOCK_MONOTONIC);
  cpu = seconds_of (CLOCK_PROCESS_CPUTIME_ID);
  for (i = 0; i < nr_threads; ++i) {
    errno = pthread_create (&threads[i], NULL, copy, NULL);
    if (errno)
      die ("pthread_create");
  }
  for (i = 0; i < nr_threads; ++i)
    pthread_join (threads[i], NULL);
  wall = seconds_of (CLOCK_MONOTONIC) - wall;
  cpu = seconds_of (CLOCK_PROCESS_CPUTIME_ID) - cpu;
  printf ("%2u threads: %6.0f clusters/s, CPU us: %.1f\n", nr_threads,
          (double) clusters / wall, cpu / (double) clusters * 1e6);
  close (to_fd);
  if (unlink (to) == -1)
    die (to);
}

int
main (int argc, char *argv[])
{
  static const unsigned nr_threads[] = { 1, 2, 4, MAX_THREADS };
  struct stat st;
  unsigned i;

  if (argc < 3 || argc > 5) {
    fprintf (stderr,
             "usage: copy-clusters FROM TO [CLUSTERS [CLUSTER_BYTES]]\n");
    return 2;
  }
  if (argc > 3)
    clusters = strtoull (argv[3], NULL, 0);
  if (argc > 4)
    cluster_bytes = strtoull (argv[4], NULL, 0);
  from_fd = open (argv[1], O_RDONLY | O_CLOEXEC);
  if (from_fd == -1 || fstat (from_fd, &st) == -1)
    die (argv[1]);
  if (clusters == 0 || cluster_bytes == 0 ||
      (uint64_t) st.st_size < cluster_bytes) {
    fprintf (stderr, "copy-clusters: nothing to copy\n");
    return 2;
  }
  from_clusters = (uint64_t) st.st_size / cluster_bytes;
  for (i = 0; i < sizeof nr_threads / sizeof nr_threads[0]; ++i)
    measure (argv[2], nr_threads[i]);
  return 0;
}
