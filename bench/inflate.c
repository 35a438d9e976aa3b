/* SPDX-License-Identifier: BSD-3-Clause */

/* Which library inflates clusters fastest?
 *
 *   inflate [FILE...]
 *
 * Deflates data as qcow2 writers do (raw stream, window of 4 KiB, each
 * cluster on its own) and measures the libraries that it was built with
 * on inflating single clusters of 4 KiB, 64 KiB and 2 MiB: from memory
 * to memory, many different clusters in turn, so that neither data nor
 * branches are learned by heart.
 *
 * The data is that of each FILE.  Without one there are two kinds: text,
 * made of words as frequent as in a natural language; and the machine
 * code and tables of this program's shared libraries.
 *
 * Prints MiB/s of decompressed data: the median of several rounds, in
 * which the libraries take turns.
 */

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <zlib.h>

#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef HAVE_ISAL
#include <isa-l.h>
#endif

#define ROUNDS 7
#define ROUND_NSEC 60000000     /* for one library in one round */
#define MAX_DATA_BYTES ((size_t) 8 << 20)

static void
die (const char *what)
{
  fprintf (stderr, "inflate: %s: %s\n", what, strerror (errno));
  exit (1);
}

static void *
xmalloc (size_t bytes)
{
  void *p = malloc (bytes);

  if (!p)
    die ("malloc");
  return p;
}

static uint64_t
now_nsec (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

/*----- The libraries -----*/

struct library {
  const char *name;
  bool (*inflate) (const void *in, size_t in_bytes,
                   void *out, size_t out_bytes);
};

static bool
with_zlib (const void *in, size_t in_bytes, void *out, size_t out_bytes)
{
  static z_stream z;
  static bool ready;

  if (ready ? inflateReset (&z) != Z_OK : inflateInit2 (&z, -12) != Z_OK)
    return false;
  ready = true;
  z.next_in = (Bytef *) in;
  z.avail_in = in_bytes;
  z.next_out = out;
  z.avail_out = out_bytes;
  return inflate (&z, Z_FINISH) == Z_STREAM_END && z.avail_out == 0;
}

#ifdef HAVE_LIBDEFLATE
static bool
with_libdeflate (const void *in, size_t in_bytes, void *out, size_t out_bytes)
{
  static struct libdeflate_decompressor *d;

  if (!d && !(d = libdeflate_alloc_decompressor ()))
    die ("libdeflate");
  return libdeflate_deflate_decompress (d, in, in_bytes, out, out_bytes,
                                        NULL) == LIBDEFLATE_SUCCESS;
}
#endif

#ifdef HAVE_ISAL
static bool
with_isal (const void *in, size_t in_bytes, void *out, size_t out_bytes)
{
  static struct inflate_state state;

  isal_inflate_init (&state);
  state.next_in = (uint8_t *) in;
  state.avail_in = in_bytes;
  state.next_out = out;
  state.avail_out = out_bytes;
  return isal_inflate_stateless (&state) == ISAL_DECOMP_OK &&
    state.total_out == out_bytes;
}
#endif

static const struct library libraries[] = {
  { "zlib", with_zlib },
#ifdef HAVE_LIBDEFLATE
  { "libdeflate", with_libdeflate },
#endif
#ifdef HAVE_ISAL
  { "isa-l", with_isal },
#endif
};
#define NR_LIBRARIES (sizeof libraries / sizeof libraries[0])

/*----- The data -----*/

struct data {
  unsigned char *bytes;
  size_t size;
};

static void
append_file (struct data *data, const char *filename)
{
  FILE *fp = fopen (filename, "rb");

  if (!fp)
    die (filename);
  data->size += fread (data->bytes + data->size, 1,
                       MAX_DATA_BYTES - data->size, fp);
  if (ferror (fp))
    die (filename);
  fclose (fp);
}

/* The files that are mapped into this process as code. */
static struct data
binary_data (void)
{
  struct data data = { xmalloc (MAX_DATA_BYTES), 0 };
  FILE *maps = fopen ("/proc/self/maps", "r");
  char line[4096], *name;

  if (!maps)
    die ("/proc/self/maps");
  while (fgets (line, sizeof line, maps)) {
    line[strcspn (line, "\n")] = 0;
    name = strchr (line, '/');
    if (name && strstr (line, " r-xp "))
      append_file (&data, name);
  }
  fclose (maps);
  return data;
}

/* The word of rank R comes up in proportion to 1/R. */
static struct data
text_data (void)
{
  enum { NR_WORDS = 4096, MAX_WORD = 12 };
  static const char letters[] = "eeeeetttaaaooiiinnsshhrrddllucmfwygpbvk";
  struct data data = { xmalloc (MAX_DATA_BYTES), 0 };
  char (*words)[MAX_WORD + 1] = xmalloc (NR_WORDS * sizeof *words);
  double *sums = xmalloc (NR_WORDS * sizeof *sums), sum = 0;
  unsigned short seed[3] = { 1, 2, 3 };
  size_t i, j, len, low, high, mid;
  double x;

  for (i = 0; i < NR_WORDS; i++) {
    len = 1 + nrand48 (seed) % MAX_WORD;
    for (j = 0; j < len; j++)
      words[i][j] = letters[nrand48 (seed) % (sizeof letters - 1)];
    words[i][len] = 0;
    sums[i] = sum += 1.0 / (i + 1);
  }
  while (data.size + MAX_WORD + 1 < MAX_DATA_BYTES) {
    x = erand48 (seed) * sum;
    for (low = 0, high = NR_WORDS - 1; low < high; ) {
      mid = (low + high) / 2;
      if (sums[mid] < x)
        low = mid + 1;
      else
        high = mid;
    }
    len = strlen (words[low]);
    memcpy (data.bytes + data.size, words[low], len);
    data.size += len;
    data.bytes[data.size++] = nrand48 (seed) % 12 ? ' ' : '\n';
  }
  free (words);
  free (sums);
  return data;
}

/*----- Measuring -----*/

/* DATA cut into clusters, each deflated; what is left over is dropped. */
struct clusters {
  size_t cluster_bytes, count;
  unsigned char **in;
  size_t *in_bytes, total_in;
};

static struct clusters
deflate_clusters (const struct data *data, size_t cluster_bytes)
{
  struct clusters c = { .cluster_bytes = cluster_bytes,
                        .count = data->size / cluster_bytes };
  z_stream z = { 0 };
  size_t i, bound;

  if (deflateInit2 (&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9,
                    Z_DEFAULT_STRATEGY) != Z_OK)
    die ("deflateInit2");
  bound = deflateBound (&z, cluster_bytes);
  c.in = xmalloc (c.count * sizeof *c.in + 1);
  c.in_bytes = xmalloc (c.count * sizeof *c.in_bytes + 1);

  for (i = 0; i < c.count; i++) {
    c.in[i] = xmalloc (bound);
    deflateReset (&z);
    z.next_in = data->bytes + i * cluster_bytes;
    z.avail_in = cluster_bytes;
    z.next_out = c.in[i];
    z.avail_out = bound;
    if (deflate (&z, Z_FINISH) != Z_STREAM_END)
      die ("deflate");
    c.in_bytes[i] = bound - z.avail_out;
    c.total_in += c.in_bytes[i];
  }
  deflateEnd (&z);
  return c;
}

static void
free_clusters (struct clusters *c)
{
  size_t i;

  for (i = 0; i < c->count; i++)
    free (c->in[i]);
  free (c->in);
  free (c->in_bytes);
}

/* Does the library give the data back?  Then its speed is worth knowing. */
static void
verify (const struct library *library, const struct clusters *c,
        const struct data *data, unsigned char *out)
{
  size_t i, n = c->cluster_bytes;

  for (i = 0; i < c->count; i++) {
    if (!library->inflate (c->in[i], c->in_bytes[i], out, n) ||
        memcmp (out, data->bytes + i * n, n) != 0) {
      fprintf (stderr, "inflate: %s: wrong result\n", library->name);
      exit (1);
    }
  }
}

static double
mib_per_second (const struct library *library, const struct clusters *c,
                unsigned char *out)
{
  uint64_t start = now_nsec (), elapsed;
  size_t i = 0, done = 0;

  do {
    library->inflate (c->in[i], c->in_bytes[i], out, c->cluster_bytes);
    done += c->cluster_bytes;
    i = (i + 1) % c->count;
    elapsed = now_nsec () - start;
  } while (elapsed < ROUND_NSEC);
  return done / 1048576.0 / (elapsed / 1e9);
}

static int
compare (const void *a, const void *b)
{
  double x = *(const double *) a, y = *(const double *) b;

  return (x > y) - (x < y);
}

static void
measure (const char *what, const struct data *data, size_t cluster_bytes)
{
  struct clusters c = deflate_clusters (data, cluster_bytes);
  unsigned char *out = xmalloc (cluster_bytes);
  double rates[NR_LIBRARIES][ROUNDS];
  size_t i, round;

  if (c.count == 0) {
    fprintf (stderr, "inflate: %s: too small for clusters of %zu bytes\n",
             what, cluster_bytes);
    exit (1);
  }
  for (i = 0; i < NR_LIBRARIES; i++)
    verify (&libraries[i], &c, data, out);
  for (round = 0; round < ROUNDS; round++)
    for (i = 0; i < NR_LIBRARIES; i++)
      rates[i][round] = mib_per_second (&libraries[i], &c, out);

  printf ("%-8s %7zu KiB  to %3.0f%%", what, cluster_bytes / 1024,
          100.0 * c.total_in / (c.count * cluster_bytes));
  for (i = 0; i < NR_LIBRARIES; i++) {
    qsort (rates[i], ROUNDS, sizeof rates[i][0], compare);
    printf ("  %11.0f", rates[i][ROUNDS / 2]);
  }
  putchar ('\n');
  fflush (stdout);
  free (out);
  free_clusters (&c);
}

static void
measure_sizes (const char *what, struct data data)
{
  measure (what, &data, 4096);
  measure (what, &data, 65536);
  measure (what, &data, 2 << 20);
  free (data.bytes);
}

int
main (int argc, char *argv[])
{
  struct data data;
  size_t i;
  int arg;

  printf ("%-8s %11s  %7s", "data", "cluster", "");
  for (i = 0; i < NR_LIBRARIES; i++)
    printf ("  %11s", libraries[i].name);
  printf ("   MiB/s\n");

  if (argc == 1) {
    measure_sizes ("text", text_data ());
    measure_sizes ("binary", binary_data ());
  }
  for (arg = 1; arg < argc; arg++) {
    data = (struct data) { xmalloc (MAX_DATA_BYTES), 0 };
    append_file (&data, argv[arg]);
    measure_sizes (argv[arg], data);
  }
  return 0;
}
