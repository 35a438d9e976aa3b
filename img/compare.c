/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img compare: do two images hold the same disk?
 *
 * One thread goes through the maps of both: where both read as zeros there is
 * nothing to be read, where one does the other must hold zeros.  What has to
 * be read goes to a pool of threads, in pieces.  The first difference, or
 * error, by offset is what counts, whoever finds it.
 */

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "extent-reader.h"
#include "message.h"
#include "options.h"
#include "piece-pool.h"
#include "progress.h"

/* Differences are told in sectors. */
#define SECTOR_BYTES 512

enum exit_status {
  IDENTICAL = 0,
  DIFFERENT = 1,
  CANNOT_OPEN = 2,
  CANNOT_MAP = 3,
  CANNOT_READ = 4,
};

enum finding_kind {
  NOTHING,
  CONTENT_DIFFERS,
  STATUS_DIFFERS,
  MAP_FAILED,
  READ_FAILED,
};

struct finding {
  enum finding_kind kind;
  uint64_t offset;
  int side;                     /* of what failed */
  int err;
};

struct comparison {
  struct img_image images[2];
  uint64_t disk_bytes[2];
  struct img_extent_reader readers[2];
  bool strict;

  pthread_mutex_t lock;
  struct finding first;         /* under lock */
};

/* Kinds of pieces: both images are read, or one of them, which must hold
 * zeros.
 */
enum { BOTH = 2 };              /* else the number of the one */

static void
found (struct comparison *c, struct finding finding)
{
  pthread_mutex_lock (&c->lock);
  if (c->first.kind == NOTHING || finding.offset < c->first.offset)
    c->first = finding;
  pthread_mutex_unlock (&c->lock);
}

/* Is what lies from OFFSET on of no interest any more? */
static bool
is_over (struct comparison *c, uint64_t offset)
{
  bool over;

  pthread_mutex_lock (&c->lock);
  over = c->first.kind != NOTHING && c->first.offset <= offset;
  pthread_mutex_unlock (&c->lock);
  return over;
}

/*----- Pieces -----*/

/* The disk of a raw file may end within its last sector. */
static int
read_disk (const struct img_image *image, uint8_t *buf, size_t count,
           uint64_t offset)
{
  uint64_t size_bytes = qcow2_view_size (image->view);
  size_t there = count;

  if (offset >= size_bytes)
    there = 0;
  else if (count > size_bytes - offset)
    there = (size_t) (size_bytes - offset);
  memset (buf + there, 0, count - there);
  return there > 0 ? qcow2_pread (image->view, buf, there, offset) : 0;
}

/* The offset of the first sector of A that differs from B, or from zeros if
 * B is NULL; COUNT if there is none.
 */
static size_t
find_difference (const uint8_t *a, const uint8_t *b, size_t count)
{
  static const uint8_t zeros[SECTOR_BYTES];
  size_t i, n;

  if (b ? memcmp (a, b, count) == 0 :
      count == 0 || (a[0] == 0 && memcmp (a, a + 1, count - 1) == 0))
    return count;
  for (i = 0; i < count; i += n) {
    n = count - i < SECTOR_BYTES ? count - i : SECTOR_BYTES;
    if (memcmp (a + i, b ? b + i : zeros, n) != 0)
      break;
  }
  return i;
}

/* img_piece_fn */
static void
compare_piece (void *opaque, const struct img_piece *piece, uint8_t *buf_1,
               uint8_t *buf_2)
{
  struct comparison *c = opaque;
  uint8_t *bufs[2] = { buf_1, buf_2 };
  size_t at;
  int i, r;

  if (is_over (c, piece->offset))
    return;
  for (i = 0; i < 2; ++i) {
    if (piece->kind != BOTH && piece->kind != i)
      continue;
    r = read_disk (&c->images[i], bufs[i], piece->count, piece->offset);
    if (r < 0) {
      found (c, (struct finding) { READ_FAILED, piece->offset, i, -r });
      return;
    }
  }
  if (piece->kind == BOTH)
    at = find_difference (buf_1, buf_2, piece->count);
  else
    at = find_difference (bufs[piece->kind], NULL, piece->count);
  if (at < piece->count)
    found (c, (struct finding) { CONTENT_DIFFERS, piece->offset + at, 0, 0 });
  else
    img_progress_add (piece->count);
}

static void
push_pieces (struct img_piece_pool *pool, uint64_t offset, uint64_t count,
             int kind)
{
  struct img_piece piece = { .kind = kind };

  while (count > 0) {
    piece.offset = offset;
    piece.count = count < IMG_PIECE_BYTES ? (size_t) count : IMG_PIECE_BYTES;
    img_piece_pool_push (pool, &piece);
    offset += piece.count;
    count -= piece.count;
  }
}

/*----- Maps -----*/

/* Is the same known of both, apart from where it lies? */
static bool
same_status (const struct qcow2_map_extent *a,
             const struct qcow2_map_extent *b)
{
  return a->present == b->present && a->data == b->data &&
    a->zero == b->zero && !a->filename == !b->filename;
}

/* Go through the range [OFFSET, END) in images SIDE to LAST_SIDE: both of
 * them, or the larger one alone.
 */
static void
walk (struct comparison *c, struct img_piece_pool *pool, uint64_t offset,
      uint64_t end, int side, int last_side)
{
  const struct qcow2_map_extent *e[2] = { NULL, NULL };
  uint64_t count;
  int i, r;

  for (; offset < end && !is_over (c, offset); offset += count) {
    count = end - offset;
    for (i = side; i <= last_side; ++i) {
      r = img_extent_reader_at (&c->readers[i], offset, &e[i]);
      if (r < 0) {
        found (c, (struct finding) { MAP_FAILED, offset, i, -r });
        return;
      }
      if (count > e[i]->offset + e[i]->count - offset)
        count = e[i]->offset + e[i]->count - offset;
    }

    if (side < last_side && c->strict && !same_status (e[0], e[1])) {
      found (c, (struct finding) { STATUS_DIFFERS, offset, 0, 0 });
      return;
    }
    if ((!e[0] || e[0]->zero) && (!e[1] || e[1]->zero))
      img_progress_add (count);
    else if (!e[0] || e[0]->zero)
      push_pieces (pool, offset, count, 1);
    else if (!e[1] || e[1]->zero)
      push_pieces (pool, offset, count, 0);
    else
      push_pieces (pool, offset, count, BOTH);
  }
}

/*----- The result -----*/

static void __attribute__ ((__format__ (__printf__, 2, 3)))
say (bool quiet, const char *fs, ...)
{
  va_list args;

  if (quiet)
    return;
  va_start (args, fs);
  vprintf (fs, args);
  va_end (args);
}

static int
tell_finding (const struct comparison *c, bool quiet)
{
  const struct finding *f = &c->first;
  const char *filename = c->images[f->side].filename;

  switch (f->kind) {
  case NOTHING:
    return IDENTICAL;
  case CONTENT_DIFFERS:
    say (quiet, "Content mismatch at offset %" PRIu64 "!\n", f->offset);
    return DIFFERENT;
  case STATUS_DIFFERS:
    say (quiet, "Strict mode: Offset %" PRIu64 " block status mismatch!\n",
         f->offset);
    return DIFFERENT;
  case MAP_FAILED:
    img_error ("Sector allocation test failed for %s: %s", filename,
               img_reason (f->err));
    return CANNOT_MAP;
  case READ_FAILED:
    img_error ("Error while reading offset %" PRIu64 " of %s: %s", f->offset,
               filename, img_reason (f->err));
    return CANNOT_READ;
  }
  return CANNOT_READ;
}

/* Compare the range [OFFSET, END) in images SIDE to LAST_SIDE. */
static int
compare_range (struct comparison *c, uint64_t offset, uint64_t end, int side,
               int last_side, bool quiet)
{
  struct img_piece_pool *pool = img_piece_pool_new (compare_piece, c);

  if (!pool) {
    img_error ("can't start threads");
    return CANNOT_READ;
  }
  walk (c, pool, offset, end, side, last_side);
  img_piece_pool_finish (pool);
  return tell_finding (c, quiet);
}

static int
compare (struct comparison *c, const struct img_options *options)
{
  uint64_t common, all;
  int larger, i, status;

  for (i = 0; i < 2; ++i) {
    c->disk_bytes[i] = img_disk_bytes (&c->images[i]);
    img_extent_reader_init (&c->readers[i], c->images[i].view,
                            c->disk_bytes[i]);
  }
  larger = c->disk_bytes[1] > c->disk_bytes[0];
  common = c->disk_bytes[!larger];
  all = c->disk_bytes[larger];

  img_progress_begin (options->progress, all);
  if (c->strict && common != all) {
    say (options->quiet, "Strict mode: Image size mismatch!\n");
    status = DIFFERENT;
  }
  else {
    status = compare_range (c, 0, common, 0, 1, options->quiet);
    if (status == IDENTICAL && common < all) {
      say (options->quiet, "Warning: Image size mismatch!\n");
      status = compare_range (c, common, all, larger, larger,
                              options->quiet);
    }
    if (status == IDENTICAL)
      say (options->quiet, "Images are identical.\n");
  }
  img_progress_end ();
  return status;
}

/*----- The command -----*/

struct own {
  bool strict;
  const char *data_file_2;
};

enum { DATA_FILE_2 = 256 };

static const struct img_option own_options[] = {
  { 's', NULL, false },
  { DATA_FILE_2, "data-file2", true },
  { 0, NULL, false },
};

static void
set_option (void *opaque, int id, const char *value)
{
  struct own *own = opaque;

  if (id == 's')
    own->strict = true;
  else
    own->data_file_2 = value;
}

static int
run (int argc, char **argv)
{
  static struct comparison c;
  struct own own = { false, NULL };
  struct img_options options;
  int status = CANNOT_OPEN;

  img_options_parse (&img_compare, argc, argv,
                     IMG_FORMAT | IMG_FORMAT_2 | IMG_SHARE | IMG_PROGRESS |
                     IMG_QUIET | IMG_SRC_CACHE | IMG_FILES,
                     own_options, set_option, &own, &options);
  if (options.nr_files != 2)
    img_usage_error ("Expecting two image file names");

  c.strict = own.strict;
  pthread_mutex_init (&c.lock, NULL);
  if (img_open (&options, options.files[0], options.format, "-f",
                options.engine.data_file, &c.images[0]) == 0) {
    if (img_open (&options, options.files[1], options.format_2, "-F",
                  own.data_file_2, &c.images[1]) == 0) {
      status = compare (&c, &options);
      img_close (&c.images[1]);
    }
    img_close (&c.images[0]);
  }
  img_options_clear (&options);
  return status;
}

const struct img_command img_compare = {
  .name = "compare",
  .usage = "[-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] "
    "[--allow-dir=dir]... [--data-file=file] [--data-file2=file] "
    "[--backing-format=fmt] filename1 filename2",
  .help =
    "Compare the content of two disks.\n"
    "\n"
    "  -f FMT, -F FMT        format of the first, and of the second image:\n"
    "                        qcow2 (default) or raw\n"
    IMG_HELP_SRC_CACHE
    IMG_HELP_PROGRESS
    IMG_HELP_QUIET
    "  -s                    strict: sizes, and what is allocated, must be\n"
    "                        the same, too\n"
    IMG_HELP_SHARE
    IMG_HELP_FILES
    "  --data-file2=FILE     the second image's external data file\n"
    "\n"
    "Exit status: 0 the same, 1 different, 2 an image can't be opened, 3 its\n"
    "map can't be read, 4 its data can't be read.\n",
  .error_status = CANNOT_OPEN,
  .run = run,
};
