/* SPDX-License-Identifier: BSD-3-Clause */

/* Whatever many threads write to an image at once, it holds what they
 * wrote.
 *
 * For each seed: an image of a random kind, and three times random
 * requests of all kinds, 16 in flight on 4 connections, against a model
 * in memory, behind storage that dawdles, so that they meet.  Then the
 * content is as the model has it, also after closing and for QEMU;
 * qemu-img check finds nothing, not even a leak; snapshots and backing
 * files are as before.
 *
 * Over all seeds, each type of cluster has met each operation.
 *
 *   WRITE_SEEDS     how many seeds (default 50)
 *   WRITE_SEED      the first one (default 1)
 *   WRITE_REQUESTS  for each seed (default 3000)
 */

#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dawdling-storage.h"
#include "image.h"
#include "qemu-image.h"
#include "random-image.h"
#include "scratch-dir.h"
#include "tap.h"
#include "watchdog.h"
#include "write-load.h"
#include "writer.h"

/* A round takes less than a second; with sanitizers, on a busy machine, some
 * more.
 */
#define PATIENCE_SECONDS 200

/* As many as it takes to be sure that the census is complete. */
#define CENSUS_SEEDS 50

/* The image is closed, and a snapshot taken if it has some, in between. */
#define ROUNDS 3

static struct census census;

static uint64_t
from_environment (const char *name, uint64_t otherwise)
{
  const char *value = getenv (name);

  return value && value[0] ? strtoull (value, NULL, 0) : otherwise;
}

static void
print_message (void *opaque, enum qcow2_log_level level, const char *text)
{
  printf ("# log: %s\n", text);
}

static void
random_options (struct qcow2_options *options, uint64_t *seed)
{
  static const uint64_t cache_bytes[] = { 0, 65536, 1 << 20, 32 << 20 };

  qcow2_options_init (options);
  options->writable = true;
  options->cache_bytes = cache_bytes[random_below (seed, 4)];
  options->discard = random_below (seed, 2);
  options->cache = (enum qcow2_cache_mode)
    random_below (seed, QCOW2_CACHE_UNSAFE + 1);
  options->detect_zeroes = (enum qcow2_detect_zeroes)
    random_below (seed, options->discard ? QCOW2_DETECT_ZEROES_UNMAP + 1 :
                  QCOW2_DETECT_ZEROES_ON + 1);
}

static struct qcow2 *
open_image (const struct random_image *image, struct qcow2_options *options)
{
  struct qcow2_error error;
  struct qcow2 *q;

  options->data_file = image->data_file;
  options->log = print_message;
  if (qcow2_open (image->filename, options, &q, &error) < 0) {
    printf ("# %s\n", error.message);
    return NULL;
  }
  return q;
}

/* The whole disk, or NULL. */
static uint8_t *
read_disk (struct qcow2 *q, uint64_t bytes)
{
  uint8_t *buf = malloc (bytes);
  struct qcow2_view *view;
  struct qcow2_error error;
  int r = qcow2_view_open (q, QCOW2_ACTIVE, &view, &error);

  if (r == 0) {
    r = qcow2_pread (view, buf, bytes, 0);
    qcow2_view_close (view);
  }
  if (r == 0)
    return buf;
  printf ("# can't read the disk: %s\n", strerror (-r));
  free (buf);
  return NULL;
}

/* Room for the disk once more, and for requests in flight. */
static void
make_device (const struct random_image *image)
{
  struct stat st;

  if (stat (image->filename, &st) == -1 ||
      truncate (image->filename,
                st.st_size + (off_t) (image->size_bytes + (16 << 20) +
                                      32 * image->cluster_bytes)) == -1) {
    printf ("Bail out! %s: %m\n", image->filename);
    exit (1);
  }
}

static bool
write_and_check (const struct random_image *image, struct model *model,
                 uint64_t *seed, uint8_t **content)
{
  struct qcow2_options options;
  struct dawdling dawdling = {
    .per_1024 = (unsigned) random_below (seed, 500), .max_usec = 200,
    .fixed_size = random_below (seed, 3) == 0,
    .queued = random_below (seed, 4) == 0,
  };
  struct write_load load = {
    .model = model, .census = &census, .nr_threads = 16,
    .nr_requests = (unsigned)
      (from_environment ("WRITE_REQUESTS", 3000) / ROUNDS),
    .seed = random_next (seed) | 1,
  };
  bool good;

  if (dawdling.fixed_size)
    make_device (image);
  random_options (&options, seed);
  dawdling_init (&dawdling, &options);
  load.image = open_image (image, &options);
  if (!load.image)
    return false;
  if (random_below (seed, 2))   /* of one slice or two, in a commit */
    load.image->writer->committer.sealed_l2.max_sectors = 16;
  good = write_load_run (&load);
  if (good) {
    *content = read_disk (load.image, image->size_bytes);
    good = *content && model_check (model, *content, 0, image->size_bytes,
                                    model_clock (model));
  }
  if (qcow2_close (load.image) < 0) {
    printf ("# can't be closed\n");
    good = false;
  }
  return good;
}

static bool
same (const char *what, const uint8_t *content, uint64_t bytes, uint8_t *got)
{
  uint64_t i = 0;

  if (!got)
    return false;
  while (i < bytes && got[i] == content[i])
    i++;
  free (got);
  if (i < bytes)
    printf ("# %s differs from byte %" PRIu64 " on\n", what, i);
  return i == bytes;
}

static bool
same_afterwards (const struct random_image *image, const uint8_t *content)
{
  struct qcow2_options options;
  bool good = false;
  struct qcow2 *q;
  uint64_t bytes;
  uint8_t *got;

  qcow2_options_init (&options);
  q = open_image (image, &options);
  if (q) {
    good = same ("what is read after opening it again", content,
                 image->size_bytes, read_disk (q, image->size_bytes));
    qcow2_close (q);
  }
  got = qemu_content (image->filename, NULL, &bytes);
  if (bytes > image->size_bytes)
    bytes = image->size_bytes;
  good = same ("what QEMU reads", content, bytes, got) && good;
  if (image->data_file_raw) {
    got = file_content (image->data_file, &bytes);
    if (bytes > image->size_bytes)
      bytes = image->size_bytes;
    good = same ("the raw data file", content, bytes, got) && good;
  }
  return good;
}

static bool
qemu_finds_nothing (const struct random_image *image)
{
  char command[200];

  snprintf (command, sizeof command,
            "qemu-img check -q -f qcow2 %s > check 2>&1 || "
            "{ sed 's/^/# check: /' check | head -20; false; }",
            image->filename);
  fflush (stdout);
  return system (command) == 0;
}

/* Write for a while, close, and compare. */
static bool
test_round (const struct random_image *image, uint64_t *seed,
            uint8_t **content)
{
  struct model model;
  bool good;

  watchdog (PATIENCE_SECONDS);
  model_init (&model, *content, image->size_bytes);
  *content = NULL;
  good = write_and_check (image, &model, seed, content);
  model_destroy (&model);
  good = qemu_finds_nothing (image) && good;
  if (*content)
    good = same_afterwards (image, *content) && good;
  return random_image_kept (image) && good;
}

static void
test_seed (uint64_t number)
{
  uint64_t seed = number * UINT64_C (0x9e3779b97f4a7c15) | 1;
  struct random_image image;
  uint8_t *content;
  bool good = true;
  unsigned i;

  random_image_make (&image, number % NR_TRAITS, &seed);
  content = image.content;
  image.content = NULL;
  for (i = 0; i < ROUNDS && good; ++i) {
    if (i > 0 && image.nr_snapshots > 0)
      random_image_take_snapshot (&image);
    good = test_round (&image, &seed, &content);
  }
  ok (good, "seed %" PRIu64 ": %s", number, image.description);
  free (content);
  random_image_remove (&image);
}

int
main (void)
{
  uint64_t first = from_environment ("WRITE_SEED", 1);
  uint64_t nr = from_environment ("WRITE_SEEDS", 50), i;
  unsigned missing;

  scratch_dir_enter ();
  for (i = 0; i < nr; ++i)
    test_seed (first + i);
  missing = census_print (&census);
  if (nr >= CENSUS_SEEDS)
    is_int (missing, 0, "each type of cluster has met each operation");
  return tap_done ();
}
