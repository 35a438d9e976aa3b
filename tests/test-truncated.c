/* SPDX-License-Identifier: BSD-3-Clause */

/* Files cut off at each byte: either an error, or the right data, where
 * data past the end of the file is zeros.
 */

#include <fcntl.h>
#include <unistd.h>

#include "image-builder.h"
#include "scratch-dir.h"
#include "verdict.h"

#define CLUSTER 512
#define DISK 8192
#define IMAGE "disk.qcow2"

/* Where the guest's clusters are in the file; 0: nowhere. */
static uint64_t host_of[DISK / CLUSTER];

static uint8_t
fill_of (size_t i)
{
  return (uint8_t) (0x80 + i);
}

static void
add (struct image *img, size_t i)
{
  host_of[i] = image_add_data (img, i * CLUSTER, fill_of (i));
}

static void
make (struct image *img, unsigned version, const char *backing)
{
  struct image_snapshot sn = { .id = "1", .name = "one", .extra_bytes = 16,
                               .disk_size = DISK };

  image_create (img, IMAGE, &(struct image_options) {
      .version = version, .cluster_bits = 9, .size_bytes = DISK });
  image_add_extension (img, EXTENSION_BACKING_FORMAT, "raw", 3);
  image_add_extension (img, EXTENSION_FEATURE_NAMES, "", 0);
  image_add_extension (img, 0x12345678, "something", 9);
  if (backing)
    image_set_backing (img, backing);
  memset (host_of, 0, sizeof host_of);
  add (img, 0);
  sn.l1_offset = image_copy_tables (img);
  sn.l1_size = img->l1_entries;
  image_set_snapshots (img, &sn, 1);
  add (img, 3);
  add (img, 4);
  add (img, 15);
}

/* How many bytes of cluster I are not as they must be in a file of
 * LENGTH bytes.
 */
static unsigned
count_wrong (const uint8_t *content, size_t i, uint64_t length)
{
  unsigned n, nr_wrong = 0;

  for (n = 0; n < CLUSTER; ++n) {
    bool there = host_of[i] != 0 && host_of[i] + n < length;

    nr_wrong += content[i * CLUSTER + n] != (there ? fill_of (i) : 0);
  }
  return nr_wrong;
}

static void
test_lengths (const char *what, struct image *img)
{
  struct qcow2_options options;
  struct verdict v;
  unsigned nr_opened = 0, nr_wrong = 0, nr_odd = 0, nr_lies = 0;
  uint64_t length;
  size_t i;

  image_close (img);
  image_reopen (img);
  for (length = img->end; length-- > 0; ) {
    image_truncate (img, length);
    verdict_options (&v, &options);
    options.cache_bytes = options.compressed_cache_bytes = 0;
    verdict_ours (&v, IMAGE, NULL, &options);
    if (v.err == 0) {
      nr_opened++;
      for (i = 0; i < DISK / CLUSTER; ++i)
        nr_wrong += count_wrong (v.content, i, length);
      nr_lies += v.extents_lie;
    }
    else if ((v.err != -EINVAL && v.err != -EIO) || !strstr (v.message, IMAGE))
      nr_odd++;
    verdict_clear (&v);
  }
  close (img->fd);
  ok (nr_opened > CLUSTER, "%s: opened with %u lengths of %u", what,
      nr_opened, (unsigned) img->end);
  is_int (nr_wrong, 0, "%s: wrong bytes", what);
  is_int (nr_odd, 0, "%s: errors of other kinds", what);
  is_int (nr_lies, 0, "%s: extents of data called zero", what);
}

/* The same for the snapshot, of which nothing lies at the end: it is
 * there while its tables are.
 */
static void
test_snapshot (void)
{
  struct qcow2_options options;
  struct verdict v;
  struct image img;
  uint64_t length;
  unsigned nr_opened = 0, nr_wrong = 0;

  make (&img, 3, NULL);
  image_close (&img);
  image_reopen (&img);
  for (length = img.end; length > host_of[3]; length -= 8) {
    image_truncate (&img, length);
    verdict_options (&v, &options);
    verdict_ours (&v, IMAGE, "one", &options);
    nr_opened += v.err == 0;
    if (v.err == 0)
      nr_wrong += count_wrong (v.content, 0, length);
    verdict_clear (&v);
  }
  close (img.fd);
  is_int (nr_opened, (int64_t) (img.end - host_of[3]) / 8,
          "snapshot: always there");
  is_int (nr_wrong, 0, "snapshot: wrong bytes");
}

int
main (void)
{
  struct image img;
  int fd;

  scratch_dir_enter ();
  fd = open ("base", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  close (fd);

  make (&img, 2, NULL);
  test_lengths ("version 2", &img);
  make (&img, 3, NULL);
  test_lengths ("version 3", &img);
  make (&img, 3, "base");
  test_lengths ("with a backing file", &img);
  test_snapshot ();
  return tap_done ();
}
