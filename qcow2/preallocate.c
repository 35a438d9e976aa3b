/* SPDX-License-Identifier: BSD-3-Clause */

/* The space and the tables of a new image.
 *
 * However large the image is, a table is written in pieces from one
 * buffer, and each word of it is computed when it is needed.
 */

#include <endian.h>
#include <errno.h>
#include <stdlib.h>

#include "create.h"

#define PIECE_BYTES (UINT64_C (1) << 20)
#define WORD_BYTES sizeof (uint64_t)

/*----- Space -----*/

static int
write_zeros (struct qcow2_storage *s, uint64_t offset, uint64_t bytes)
{
  uint64_t piece_bytes = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
  uint8_t *zeros = calloc (1, piece_bytes + 1);
  uint64_t done;
  int r = 0;

  if (!zeros)
    return -ENOMEM;
  for (done = 0; r == 0 && done < bytes; done += piece_bytes)
    r = qcow2_storage_write (s, zeros,
                             (size_t) (bytes - done < piece_bytes ?
                                       bytes - done : piece_bytes),
                             offset + done, false);
  free (zeros);
  return r;
}

int
preallocate_range (struct qcow2_storage *s, uint64_t offset, uint64_t bytes,
                   enum qcow2_preallocation preallocation)
{
  int r = -EOPNOTSUPP;

  if (preallocation < QCOW2_PREALLOCATION_FALLOC)
    return 0;
  if (preallocation == QCOW2_PREALLOCATION_FALLOC)
    r = qcow2_storage_allocate (s, offset, bytes);
  if (r == -EOPNOTSUPP)
    r = write_zeros (s, offset, bytes);
  return r;
}

static int
set_size (struct qcow2_storage *s, uint64_t bytes,
          enum qcow2_preallocation preallocation)
{
  int r = qcow2_storage_truncate (s, bytes);

  return r < 0 ? r : preallocate_range (s, 0, bytes, preallocation);
}

/* Storage of fixed size holds what was there before. */
static int
clear_area (struct qcow2_storage *s, uint64_t bytes)
{
  int64_t size_bytes = qcow2_storage_size (s);

  if (size_bytes < 0)
    return (int) size_bytes;
  if (bytes > (uint64_t) size_bytes)
    return -ENOSPC;
  return qcow2_storage_zero (s, 0, bytes, false);
}

int
preallocate_space (struct qcow2_storage *file, struct qcow2_storage *data,
                   const struct create_layout *layout,
                   enum qcow2_preallocation preallocation)
{
  int r;

  if (!qcow2_storage_can_grow (file))
    r = clear_area (file, layout->file_bytes);
  else
    r = set_size (file, layout->file_bytes,
                  data ? QCOW2_PREALLOCATION_OFF : preallocation);
  if (r == 0 && data)
    r = set_size (data, layout->size_bytes, preallocation);
  return r;
}

/*----- Tables -----*/

typedef uint64_t word_fn (const struct create_layout *layout,
                          uint64_t table, uint64_t index);

/* A buffer, and where its words go. */
struct table_writer {
  struct qcow2_storage *file;
  const struct create_layout *layout;
  uint64_t *words;
};

/* Write the first NR_WORDS words of a table at OFFSET. */
static int
write_table (const struct table_writer *w, uint64_t offset,
             uint64_t nr_words, word_fn *word, uint64_t table)
{
  const uint64_t most = PIECE_BYTES / WORD_BYTES;
  uint64_t done = 0;
  int r = 0;

  while (r == 0 && done < nr_words) {
    uint64_t nr = nr_words - done < most ? nr_words - done : most, i;

    for (i = 0; i < nr; ++i)
      w->words[i] = htobe64 (word (w->layout, table, done + i));
    r = qcow2_storage_write (w->file, w->words, (size_t) (nr * WORD_BYTES),
                             offset + done * WORD_BYTES, false);
    done += nr;
  }
  return r;
}

static int
write_mapping (const struct table_writer *w)
{
  const struct create_layout *l = w->layout;
  uint64_t i;
  int r;

  if (l->nr_l2_tables == 0)
    return 0;
  r = write_table (w, create_layout_l1_table (l), l->l1_entries,
                   create_layout_l1_entry, 0);
  for (i = 0; r == 0 && i < l->nr_l2_tables; ++i)
    r = write_table (w, create_layout_l2_table (l, i),
                     create_layout_l2_words (l, i), create_layout_l2_word, i);
  return r;
}

int
preallocate_tables (struct qcow2_storage *file,
                    const struct create_layout *layout)
{
  struct table_writer w = {
    .file = file, .layout = layout, .words = malloc (PIECE_BYTES),
  };
  int r;

  if (!w.words)
    return -ENOMEM;
  r = write_table (&w, create_layout_refcount_table (layout),
                   layout->nr_refcount_blocks, create_layout_refcount_entry,
                   0);
  if (r == 0)
    r = write_table (&w, create_layout_refcount_blocks (layout),
                     create_layout_refcount_words (layout),
                     create_layout_refcount_word, 0);
  if (r == 0)
    r = write_mapping (&w);
  free (w.words);
  return r;
}
