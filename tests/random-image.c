/* SPDX-License-Identifier: BSD-3-Clause */

/* Images of all kinds for writers. */

#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemu-image.h"
#include "random-image.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)

static bool
one_in (unsigned n, uint64_t *seed)
{
  return random_below (seed, n) == 0;
}

/*----- Drawing -----*/

static bool
is_extended (enum image_trait trait)
{
  return trait >= TRAIT_EXTENDED && trait <= TRAIT_EXTENDED_DATA_FILE;
}

static void
draw_clusters (struct random_image *image, enum image_trait trait,
               uint64_t *seed)
{
  static const unsigned bits[] = { 9, 10, 12, 12, 14, 16, 16, 16, 18, 21 };
  static const unsigned extended_bits[] = { 14, 14, 15, 16, 17, 18, 21 };

  image->extended = is_extended (trait);
  if (trait == TRAIT_SMALL_CLUSTERS)
    image->cluster_bytes = 512;
  else if (trait == TRAIT_LARGE_CLUSTERS)
    image->cluster_bytes = 2 * MiB;
  else if (image->extended)
    image->cluster_bytes = 1u << extended_bits[random_below (seed, 7)];
  else
    image->cluster_bytes = 1u << bits[random_below (seed, 10)];
}

/* So many clusters that some meet and some don't, and several L2 tables
 * where they are small.
 */
static void
draw_size (struct random_image *image, uint64_t *seed)
{
  uint64_t bytes = image->cluster_bytes * (300 + random_below (seed, 2000));

  if (bytes > 6 * MiB)
    bytes = 5 * MiB + random_below (seed, 2 * MiB);
  if (bytes < 6 * image->cluster_bytes)
    bytes = image->cluster_bytes * 6 + random_below (seed, 2 * MiB);
  image->size_bytes = bytes & ~UINT64_C (511);
}

static void
draw_features (struct random_image *image, enum image_trait trait,
               uint64_t *seed)
{
  bool zstd = trait == TRAIT_ZSTD ||
    (trait == TRAIT_EXTENDED_COMPRESSED && one_in (2, seed));

  image->version = trait == TRAIT_VERSION_2 ? 2 : 3;
  image->refcount_bits = 16;
  if (image->version == 3 && one_in (2, seed))
    image->refcount_bits = 1u << random_below (seed, 7);
  image->lazy_refcounts = image->version == 3 &&
    (trait == TRAIT_LAZY_REFCOUNTS || one_in (4, seed));
  image->preallocation = "off";
  if (trait == TRAIT_PREALLOCATED || (trait == TRAIT_EXTENDED &&
                                      one_in (2, seed)))
    image->preallocation = one_in (2, seed) ? "metadata" : "falloc";

  if (trait == TRAIT_DATA_FILE || trait == TRAIT_DATA_FILE_RAW ||
      trait == TRAIT_EXTENDED_DATA_FILE) {
    image->data_file = "disk.data";
    image->data_file_raw = trait == TRAIT_DATA_FILE_RAW ||
      (trait == TRAIT_EXTENDED_DATA_FILE && one_in (2, seed));
  }
  else if (zstd)
    image->compression = "zstd";
  else if (trait == TRAIT_ZLIB || trait == TRAIT_EXTENDED_COMPRESSED ||
           (strcmp (image->preallocation, "off") == 0 && one_in (4, seed)))
    image->compression = "zlib";

  if (!image->data_file && (trait == TRAIT_SNAPSHOTS ||
                            trait == TRAIT_EXTENDED_SNAPSHOTS ||
                            one_in (6, seed)))
    image->nr_snapshots = 1 + random_below (seed, 2);
  /* Each of many compressed clusters in a host cluster counts, too. */
  if (image->nr_snapshots > 0 && image->refcount_bits < 16)
    image->refcount_bits = image->compression ? 16 : 4;
}

static void
draw_backing (struct random_image *image, enum image_trait trait,
              uint64_t *seed)
{
  if (strcmp (image->preallocation, "off") != 0 || image->data_file_raw)
    return;
  if (trait == TRAIT_BACKING || trait == TRAIT_EXTENDED_BACKING)
    image->depth = 1 + random_below (seed, 3);
  else if (one_in (4, seed))
    image->depth = 1;
}

static void
describe (struct random_image *image)
{
  snprintf (image->description, sizeof image->description,
            "v%u, clusters of %" PRIu64 ", %" PRIu64 " bytes, "
            "%u refcount bits%s, preallocation %s%s%s%s%s%s, %u snapshots, "
            "%u backing files", image->version, image->cluster_bytes,
            image->size_bytes, image->refcount_bits,
            image->lazy_refcounts ? " (lazy)" : "", image->preallocation,
            image->extended ? ", extended L2" : "",
            image->data_file ? ", data file" : "",
            image->data_file_raw ? " (raw)" : "",
            image->compression ? ", " : "",
            image->compression ? image->compression : "",
            image->nr_snapshots, image->depth);
}

/*----- Making -----*/

static uint64_t
longest_write (const struct random_image *image)
{
  uint64_t bytes = 3 * image->cluster_bytes;

  return bytes < 256 * KiB ? bytes : 256 * KiB;
}

static void
keep (struct random_image *image, const char *file, const char *snapshot)
{
  struct kept *kept = &image->kept[image->nr_kept++];

  snprintf (kept->file, sizeof kept->file, "%s", file);
  snprintf (kept->snapshot, sizeof kept->snapshot, "%s", snapshot);
  if (snapshot[0])
    kept->content = qemu_content (file, snapshot, &kept->bytes);
  else
    kept->content = file_content (file, &kept->bytes);
}

void
random_image_take_snapshot (struct random_image *image)
{
  char name[16];

  snprintf (name, sizeof name, "s%u", image->nr_kept);
  run_command ("qemu-img snapshot -c %s %s", name, image->filename);
  keep (image, image->filename, name);
}

/* Shorter or longer than the disk above it, or as long. */
static uint64_t
draw_backing_size (uint64_t above, uint64_t *seed)
{
  switch (random_below (seed, 3)) {
  case 0: return above / 2 + random_below (seed, above / 2);
  case 1: return above + random_below (seed, above / 4);
  }
  return above;
}

/* Backing file NR; the last one of the chain may be raw. */
static void
make_backing (struct random_image *image, unsigned nr, char *option,
              size_t option_bytes, uint64_t *seed)
{
  uint64_t bytes = draw_backing_size (image->size_bytes, seed) &
    ~UINT64_C (511);
  const char *format = one_in (2, seed) && nr == 0 ? "raw" : "qcow2";
  char file[16];

  snprintf (file, sizeof file, "base%u", nr);
  if (strcmp (format, "raw") == 0) {
    run_command ("truncate -s %" PRIu64 " %s", bytes, file);
    random_writes ("raw", file, bytes, bytes / 5, 512, 15, 0, seed);
  }
  else {
    uint64_t cluster = 1u << (9 + random_below (seed, 9));

    run_command ("qemu-img create -q -f qcow2 -o cluster_size=%" PRIu64
                 " %s %s %" PRIu64, cluster, option, file, bytes);
    random_writes ("qcow2", file, bytes, bytes / 20, cluster, 30,
                   WRITE_ZEROES | WRITE_UNMAP | WRITE_COMPRESSED, seed);
  }
  keep (image, file, "");
  snprintf (option, option_bytes, "-F %s -b %s", format, file);
}

static void
make_options (const struct random_image *image, char *options, size_t bytes)
{
  int n = snprintf (options, bytes, "cluster_size=%" PRIu64,
                    image->cluster_bytes);

#define ADD(...) \
  (n += snprintf (options + n, bytes - (size_t) n, __VA_ARGS__))
  if (image->version == 2)
    ADD (",compat=0.10");
  else
    ADD (",refcount_bits=%u,lazy_refcounts=%s", image->refcount_bits,
         image->lazy_refcounts ? "on" : "off");
  if (image->extended)
    ADD (",extended_l2=on");
  if (image->compression && strcmp (image->compression, "zstd") == 0)
    ADD (",compression_type=zstd");
  if (strcmp (image->preallocation, "off") != 0)
    ADD (",preallocation=%s", image->preallocation);
  if (image->data_file)
    ADD (",data_file=%s", image->data_file);
  if (image->data_file_raw)
    ADD (",data_file_raw=on");
#undef ADD
}

/* All that can be compressed is, before anything else. */
static void
make_top (struct random_image *image, const char *backing, uint64_t *seed)
{
  char options[300];
  bool all = image->compression && image->depth == 0 && one_in (2, seed);

  make_options (image, options, sizeof options);
  if (all) {
    run_command ("truncate -s %" PRIu64 " content", image->size_bytes);
    random_writes ("raw", "content", image->size_bytes,
                   image->size_bytes / 6, 512, 12, 0, seed);
    run_command ("qemu-img convert -c -f raw -O qcow2 -o %s content %s",
                 options, image->filename);
    unlink ("content");
  }
  else
    run_command ("qemu-img create -q -f qcow2 -o %s %s %s %" PRIu64,
                 options, backing, image->filename, image->size_bytes);
}

static void
write_history (const struct random_image *image, unsigned nr, uint64_t *seed)
{
  unsigned kinds = WRITE_UNMAP;

  if (image->version == 3)
    kinds |= WRITE_ZEROES;
  if (image->compression)
    kinds |= WRITE_COMPRESSED;
  random_writes ("qcow2", image->filename, image->size_bytes,
                 longest_write (image), image->cluster_bytes, nr, kinds,
                 seed);
}

/* qemu-img knows whole sectors only; the format knows bytes. */
static void
cut_size (struct random_image *image, uint64_t *seed)
{
  uint64_t be;
  int fd = open (image->filename, O_WRONLY | O_CLOEXEC);

  image->size_bytes -= 1 + random_below (seed, 511);
  be = htobe64 (image->size_bytes);
  if (fd == -1 || pwrite (fd, &be, sizeof be, 24) != sizeof be) {
    printf ("Bail out! %s: %m\n", image->filename);
    exit (1);
  }
  close (fd);
}

void
random_image_make (struct random_image *image, enum image_trait trait,
                   uint64_t *seed)
{
  char backing[100] = "";
  uint64_t bytes;
  unsigned i;

  memset (image, 0, sizeof *image);
  image->filename = "disk.qcow2";
  draw_clusters (image, trait, seed);
  draw_size (image, seed);
  draw_features (image, trait, seed);
  draw_backing (image, trait, seed);

  for (i = 0; i < image->depth; ++i)
    make_backing (image, i, backing, sizeof backing, seed);
  make_top (image, backing, seed);
  for (i = 0; i < image->nr_snapshots; ++i) {
    write_history (image, 15, seed);
    random_image_take_snapshot (image);
  }
  write_history (image, 15, seed);
  image->content = qemu_content (image->filename, NULL, &bytes);
  if (one_in (4, seed))
    cut_size (image, seed);
  describe (image);
}

/*----- Afterwards -----*/

/* For QEMU a disk that was cut has lost its last sector, and so have its
 * snapshots; of one that has grown they have the new size.
 */
bool
random_image_kept (const struct random_image *image)
{
  bool good = true;
  unsigned i;

  for (i = 0; i < image->nr_kept; ++i) {
    struct kept now = image->kept[i];

    if (now.snapshot[0])
      now.content = qemu_content (now.file, now.snapshot, &now.bytes);
    else
      now.content = file_content (now.file, &now.bytes);
    if (now.snapshot[0] && now.bytes > image->kept[i].bytes)
      now.bytes = image->kept[i].bytes;
    if (now.bytes + 512 < image->kept[i].bytes ||
        now.bytes > image->kept[i].bytes ||
        memcmp (now.content, image->kept[i].content, now.bytes) != 0) {
      printf ("# %s %s has changed\n", now.file, now.snapshot);
      good = false;
    }
    free (now.content);
  }
  return good;
}

void
random_image_remove (struct random_image *image)
{
  unsigned i;

  for (i = 0; i < image->nr_kept; ++i) {
    free (image->kept[i].content);
    unlink (image->kept[i].file);
  }
  free (image->content);
  unlink (image->filename);
  if (image->data_file)
    unlink (image->data_file);
}
