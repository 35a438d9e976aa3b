/* SPDX-License-Identifier: BSD-3-Clause */

/* Looking down the chain, and remembering what was found.
 *
 * walk() asks one layer after the other and is always right; its answers
 * for whole units are kept in answer slices: one 64-bit word per unit.
 *
 *     bits 56-63  the layer
 *     bits  9-55  host offset in its data storage (ANSWER_HOST)
 *     bits  0-2   enum answer
 *
 * A unit for which there is no such answer, because a layer ends within
 * it or its cluster is compressed, is asked for each time: of its layer
 * alone, or of the chain.
 */

#include <assert.h>
#include <endian.h>

#include "chain.h"
#include "format.h"

enum answer {
  ANSWER_NOBODY,                /* zeros */
  ANSWER_HOST,                  /* data at the host offset */
  ANSWER_SAME,                  /* data, host offset == guest offset */
  ANSWER_ASK,                   /* ask this layer */
  ANSWER_WALK,                  /* ask the chain */
};

#define ANSWER_MASK 7
#define ANSWER_LAYER_SHIFT 56

/* No layer has this number, so keys of answer slices are their own. */
#define ANSWER_KEY (UINT64_C (255) << 56)
static_assert (QCOW2_MAX_CHAIN_DEPTH + 1 < 255, "layer numbers are bytes");

size_t
chain_slice_bytes (const struct chain *chain)
{
  size_t bytes = UINT64_C (1) << MIN_CLUSTER_BITS;
  unsigned k;

  for (k = 0; k < chain->nr_layers; ++k)
    if (chain->layers[k]->slice_bytes > bytes)
      bytes = chain->layers[k]->slice_bytes;
  return bytes;
}

void
chain_prepare (struct chain *chain)
{
  unsigned k;

  chain->answer_bits =
    (unsigned) __builtin_ctzl (chain_slice_bytes (chain) / sizeof (uint64_t));
  chain->unit_bits = MAX_CLUSTER_BITS;
  for (k = 1; k < chain->nr_layers; ++k) {
    const struct layer *l = chain->layers[k];

    if (!l->is_raw && l->unit_bits < chain->unit_bits)
      chain->unit_bits = l->unit_bits;
  }
}

/* What layer L, which does not end before OFFSET, says about its own
 * clusters: the last of them may reach beyond its end.
 */
static int
ask_layer (struct layer *l, uint64_t offset, uint64_t max_bytes,
           struct run *run)
{
  if (max_bytes > l->size_bytes - offset)
    max_bytes = l->size_bytes - offset;
  return map_lookup (l, &l->l1, offset, max_bytes, run);
}

/* A layer that ends hides what lies below it from there on. */
static int
walk (const struct chain *chain, uint64_t offset, uint64_t max_bytes,
      struct run *run)
{
  unsigned k;

  for (k = 1; k < chain->nr_layers; ++k) {
    struct layer *l = chain->layers[k];
    int r;

    if (offset >= l->size_bytes)
      break;
    r = ask_layer (l, offset, max_bytes, run);
    if (r < 0 || run->kind != RUN_UNALLOCATED)
      return r;
    max_bytes = run->length_bytes;
  }

  run->kind = RUN_UNALLOCATED;
  run->layer = chain->layers[0];
  run->length_bytes = max_bytes;
  return 0;
}

/*----- Answer slices -----*/

static uint64_t
encode (const struct run *run, uint64_t offset)
{
  uint64_t layer = (uint64_t) run->layer->index << ANSWER_LAYER_SHIFT;

  switch (run->kind) {
  case RUN_UNALLOCATED:
  case RUN_ZERO:
    return ANSWER_NOBODY;
  case RUN_DATA:
    if (run->host_offset == offset)
      return layer | ANSWER_SAME;
    return layer | run->host_offset | ANSWER_HOST;
  case RUN_COMPRESSED:
    return layer | ANSWER_ASK;
  }
  return ANSWER_WALK;
}

static void
move_run (struct run *run, uint64_t bytes)
{
  run->length_bytes -= bytes;
  run->host_offset += bytes;
}

/* slice_fill_fn: OPAQUE is the answers.  Looking into layers pins their
 * slices, and a thread may pin only one at a time: so the answers are
 * made before the slice is pinned.
 */
static int
copy_answers (void *opaque, uint64_t key, uint64_t *buf)
{
  const uint64_t *answers = opaque;
  size_t i;

  for (i = 0; i < SLICE_MAX_BYTES / sizeof *buf; ++i)
    buf[i] = htobe64 (answers[i]);
  return 0;
}

/* Answers for a slice from guest OFFSET on.  Where metadata can't be
 * read, whoever really wants it shall get the error, and nobody else.
 */
static void
make_answers (const struct chain *chain, uint64_t offset,
              uint64_t answers[SLICE_MAX_BYTES / sizeof (uint64_t)])
{
  uint64_t unit_bytes = UINT64_C (1) << chain->unit_bits;
  size_t nr_answers = (size_t) 1 << chain->answer_bits;
  struct run run = { .length_bytes = 0 };
  size_t i;

  for (i = 0; i < SLICE_MAX_BYTES / sizeof (uint64_t); ++i)
    answers[i] = ANSWER_WALK;

  for (i = 0; i < nr_answers; ++i, offset += unit_bytes) {
    if (run.length_bytes == 0 &&
        walk (chain, offset, (nr_answers - i) << chain->unit_bits, &run) < 0)
      return;
    if (run.length_bytes < unit_bytes) {
      run.length_bytes = 0;
      continue;
    }
    answers[i] = encode (&run, offset);
    move_run (&run, unit_bytes);
  }
}

static void
decode (const struct chain *chain, uint64_t word, uint64_t offset,
        struct run *run)
{
  unsigned k = word >> ANSWER_LAYER_SHIFT;

  /* A word that was read while its slot changed hands may hold any. */
  run->layer = chain->layers[k < chain->nr_layers ? k : 0];
  run->kind = RUN_DATA;
  switch (word & ANSWER_MASK) {
  case ANSWER_HOST:
    run->host_offset = word & ENTRY_OFFSET_MASK;
    break;
  case ANSWER_SAME:
    run->host_offset = offset;
    break;
  default:
    run->kind = RUN_UNALLOCATED;
  }
}

/* Read the answers from OFFSET on.  What has to be asked for comes back
 * in *ASK, and the run is as long as the same layer has to be asked: what
 * follows may be another one's, though a cluster goes on there.
 */
static void
read_answers (const struct chain *chain, const struct slice_ref *ref,
              uint64_t offset, uint64_t max_bytes, enum answer *ask,
              struct run *run)
{
  uint64_t unit_bytes = UINT64_C (1) << chain->unit_bits;
  uint64_t in_unit = offset & (unit_bytes - 1);
  size_t nr = (size_t) 1 << chain->answer_bits;
  size_t i = (offset >> chain->unit_bits) & (nr - 1);
  uint64_t word = slice_load (ref, i), first;

  *ask = word & ANSWER_MASK;
  decode (chain, word, offset - in_unit, run);
  run->length_bytes = unit_bytes - in_unit;
  run->host_offset += in_unit;
  if (*ask == ANSWER_WALK)
    return;
  first = word;

  while (++i < nr && run->length_bytes < max_bytes) {
    struct run next = { .length_bytes = unit_bytes };

    word = slice_load (ref, i);
    if ((word & ANSWER_MASK) != *ask)
      break;
    if (*ask == ANSWER_ASK) {
      if (word != first)        /* another layer */
        break;
      run->length_bytes += unit_bytes;
      continue;
    }
    decode (chain, word, offset + run->length_bytes, &next);
    if (!run_join (run, &next))
      break;
  }
}

static int
pin_answers (const struct chain *chain, uint64_t key, uint64_t offset,
             struct slice_ref *ref)
{
  uint64_t answers[SLICE_MAX_BYTES / sizeof (uint64_t)];
  unsigned slice_bits = chain->unit_bits + chain->answer_bits;

  make_answers (chain, offset >> slice_bits << slice_bits, answers);
  return slice_cache_pin (chain->slices, key, copy_answers, answers, ref);
}

static int
lookup_answers (const struct chain *chain, uint64_t offset,
                uint64_t max_bytes, struct run *run)
{
  uint64_t key = ANSWER_KEY |
    (offset >> (chain->unit_bits + chain->answer_bits));
  struct slice_ref ref;
  enum answer ask;
  bool valid = false;

  if (slice_cache_find (chain->slices, key, &ref)) {
    read_answers (chain, &ref, offset, max_bytes, &ask, run);
    valid = slice_still_valid (&ref);
  }
  if (!valid) {
    /* No slot can be had. */
    if (pin_answers (chain, key, offset, &ref) < 0)
      return walk (chain, offset, max_bytes, run);
    read_answers (chain, &ref, offset, max_bytes, &ask, run);
    slice_unpin (chain->slices, &ref);
  }

  if (ask == ANSWER_WALK)
    return walk (chain, offset, max_bytes, run);
  if (run->length_bytes > max_bytes)
    run->length_bytes = max_bytes;
  if (ask == ANSWER_ASK)
    return ask_layer (run->layer, offset, run->length_bytes, run);
  return 0;
}

int
chain_lookup (const struct chain *chain, const struct l1_table *l1,
              uint64_t offset, uint64_t max_bytes, struct run *run)
{
  int r;

  r = map_lookup (chain->layers[0], l1, offset, max_bytes, run);
  if (r < 0 || run->kind != RUN_UNALLOCATED || chain->nr_layers == 1 ||
      l1->alone)
    return r;

  /* One layer below answers with one look-up anyway. */
  if (chain->nr_layers == 2)
    return walk (chain, offset, run->length_bytes, run);
  return lookup_answers (chain, offset, run->length_bytes, run);
}

int
chain_reads_as_zeros (const struct chain *chain, const struct l1_table *l1,
                      uint64_t offset, uint64_t count, bool *zeros)
{
  struct run run;
  int r;

  *zeros = true;
  while (count > 0 && *zeros) {
    r = chain_lookup (chain, l1, offset, count, &run);
    if (r < 0)
      return r;
    *zeros = run.kind == RUN_ZERO || run.kind == RUN_UNALLOCATED;
    offset += run.length_bytes;
    count -= run.length_bytes;
  }
  return 0;
}
