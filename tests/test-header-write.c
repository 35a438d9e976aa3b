/* SPDX-License-Identifier: BSD-3-Clause */

/* Rewrites of the header: whatever power failure leaves of one, and
 * whatever fails on the way, is read as before or as after.  From the log
 * of the writes the states are made that a disk may be in: any of the
 * sectors of a write that is not known to be durable may be there, or not.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "header-disk.h"
#include "qcow2/extension.h"
#include "qcow2/format.h"
#include "tap.h"

/*----- What a header means -----*/

static void
print_text (FILE *f, const char *what, const char *text)
{
  fprintf (f, "%s=%s;", what, text ? text : "-");
}

static void
print_bytes (FILE *f, const uint8_t *bytes, size_t n)
{
  while (n-- > 0)
    fprintf (f, "%02x", *bytes++);
  fputc (';', f);
}

/* All that H says, as a string.  NAMES: with the feature name table. */
static char *
meaning (const struct header *h, bool names)
{
  char *text = NULL;
  size_t len, i;
  FILE *f = open_memstream (&text, &len);

  disk_must (f != NULL, "open_memstream");
  fprintf (f, "v%u c%u s%" PRIu64 " l1 %" PRIu32 "@%" PRIu64 " rt %" PRIu32
           "@%" PRIu64 " sn %" PRIu32 "@%" PRIu64 " f %" PRIx64 ",%" PRIx64
           ",%" PRIx64 " ro%u hl%" PRIu32 " ct%u b%d,%" PRIu32 ",%" PRIu64
           ",%" PRIu64 ";", h->version, h->cluster_bits, h->size_bytes,
           h->l1_entries, h->l1_offset, h->refcount_table_clusters,
           h->refcount_table_offset, h->nr_snapshots, h->snapshots_offset,
           h->incompatible_features, h->compatible_features,
           h->autoclear_features, h->refcount_order, h->header_bytes,
           h->compression_type, h->has_bitmaps, h->nr_bitmaps,
           h->bitmap_directory_offset, h->bitmap_directory_bytes);
  print_text (f, "name", h->backing_name);
  print_text (f, "format", h->backing_format);
  print_text (f, "data", h->data_file);
  print_bytes (f, h->unknown_fields, h->nr_unknown_bytes);
  if (names)
    print_bytes (f, h->feature_names, h->nr_feature_names * 48);
  for (i = 0; i < h->nr_unknown_extensions; ++i) {
    if (h->unknown_extensions[i].type == EXTENSION_GAP)
      continue;
    fprintf (f, "%" PRIx32 ":", h->unknown_extensions[i].type);
    print_bytes (f, h->unknown_extensions[i].data,
                 h->unknown_extensions[i].length_bytes);
  }
  fclose (f);
  return text;
}

static bool
has_gap (const struct header *h)
{
  size_t i;

  for (i = 0; i < h->nr_unknown_extensions; ++i)
    if (h->unknown_extensions[i].type == EXTENSION_GAP)
      return true;
  return false;
}

#define MAX_EXPECTED 4

/* What the header may be read as.  A text without the feature names
 * counts for a header that has none.
 */
struct expected {
  char *text[MAX_EXPECTED];
  char *text_short[MAX_EXPECTED];
  unsigned nr;
  unsigned nr_whole;            /* the first of them have their names */
};

static void
expect (struct expected *e, const struct header *h)
{
  disk_must (e->nr < MAX_EXPECTED, "few expectations");
  e->text[e->nr] = meaning (h, true);
  e->text_short[e->nr++] = meaning (h, false);
}

static void
expected_free (struct expected *e)
{
  while (e->nr > 0) {
    free (e->text[--e->nr]);
    free (e->text_short[e->nr]);
  }
}

static unsigned nr_states, nr_gaps, nr_mended;

static bool
is_one_of (const struct header *h, const struct expected *e)
{
  char *text = meaning (h, true), *text_short = meaning (h, false);
  bool found = false;
  unsigned i;

  for (i = 0; i < e->nr; ++i)
    found = found || strcmp (text, e->text[i]) == 0 ||
      (h->nr_feature_names == 0 && i >= e->nr_whole &&
       strcmp (text_short, e->text_short[i]) == 0);
  if (!found) {
    printf ("# got  %s\n", text);
    for (i = 0; i < e->nr; ++i)
      printf ("# want %s\n", e->text[i]);
  }
  free (text);
  free (text_short);
  return found;
}

/* Any change takes a gap away that is left over, and without a detour:
 * there is room in it for what follows it.
 */
static bool
mends_gap (struct disk *d, const struct expected *e)
{
  struct expected mended = *e;
  const struct header_parts none = { .parts = 0 };
  struct header_writer *w = disk_new_writer (d);
  struct header h;
  bool good;
  int r;

  disk_begin_log (d);
  r = header_writer_rewrite (w, &none, NULL, NULL);
  header_writer_free (w);
  mended.nr_whole = 0;
  disk_read_header (d, &h);
  good = is_one_of (&h, &mended) && r == 0 && !has_gap (&h) &&
    d->nr_writes <= 2;
  nr_mended++;
  header_clear (&h);
  return good;
}

/* Is CONTENT read as one of E? */
static bool
is_expected (const struct disk *d, const uint8_t *content,
             const struct expected *e)
{
  static struct disk view;
  struct qcow2_error error = { "" };
  struct header h;
  bool good;

  view.storage.ops = &disk_ops;
  view.cluster_bytes = d->cluster_bytes;
  memcpy (view.now, content, d->cluster_bytes);
  if (header_read (&view.storage, &h, &error) < 0) {
    printf ("# %s\n", error.message);
    return false;
  }
  good = is_one_of (&h, e);
  nr_states++;
  if (good && has_gap (&h) && nr_gaps++ % 8 == 0)
    good = mends_gap (&view, e);
  header_clear (&h);
  return good;
}

/*----- Power failures -----*/

struct sector {
  uint64_t offset;
  const uint8_t *data;
};

/* Sectors that may be on the disk, or not, when power fails in write K,
 * (or after all, for K == nr_writes).  Those of a failed write may come
 * until others are durable in their place.
 */
static size_t
uncertain_sectors (const struct disk *d, unsigned k, uint8_t *content,
                   struct sector *out)
{
  size_t nr = 0, i, j;
  unsigned n;

  memcpy (content, d->before, d->cluster_bytes);
  for (n = 0; n <= k && n < d->nr_writes; ++n) {
    const struct disk_write *w = &d->log[n];

    for (i = 0; i < w->nr_bytes; i += SECTOR) {
      if (n == k || !w->done) {
        out[nr++] = (struct sector) { w->offset + i, w->data + i };
        continue;
      }
      memcpy (content + w->offset + i, w->data + i, SECTOR);
      for (j = 0; j < nr; ++j)
        if (out[j].offset == w->offset + i)
          out[j--] = out[--nr];
    }
  }
  return nr;
}

static bool
survives_at (struct disk *d, unsigned k, const struct expected *e)
{
  static uint8_t base[MAX_CLUSTER], content[MAX_CLUSTER];
  static struct sector sectors[MAX_WRITES * MAX_CLUSTER / SECTOR];
  size_t nr = uncertain_sectors (d, k, base, sectors), i;
  unsigned states = nr < 5 ? 1u << nr : 32, state;

  for (state = 0; state < states; ++state) {
    memcpy (content, base, d->cluster_bytes);
    for (i = 0; i < nr; ++i) {
      bool there = nr < 5 ? state & 1u << i : state == 0 ||
        (state != 1 && disk_random (2));

      if (there)
        memcpy (content + sectors[i].offset, sectors[i].data, SECTOR);
    }
    if (!is_expected (d, content, e)) {
      printf ("# in write %u of %u, state %u\n", k, d->nr_writes, state);
      return false;
    }
  }
  return true;
}

static bool
survives (struct disk *d, const struct expected *e)
{
  unsigned k;

  for (k = 0; k <= d->nr_writes; ++k)
    if (!survives_at (d, k, e))
      return false;
  return true;
}

/*----- Random changes -----*/

struct random_change {
  struct header_parts parts;
  struct header_change change;
  char backing[MAX_BACKING_NAME_BYTES + 1];
  char format[MAX_BACKING_FORMAT_BYTES + 1];
  char data_file[MAX_DATA_FILE_NAME_BYTES + 1];
  struct disk_feature_name names[12];
};

static void
random_text (char *buf, size_t max, const char **text)
{
  disk_random_name (buf, disk_random (2) ? disk_random ((unsigned) max + 1) :
                    disk_random (max < 60 ? (unsigned) max : 60));
  *text = buf[0] || disk_random (2) ? buf : NULL;
}

static void
make_random_change (struct random_change *rc, const struct header *h)
{
  struct header_parts *p = &rc->parts;
  struct header_change *c = &rc->change;

  memset (rc, 0, sizeof *rc);
  p->parts = disk_random (16);
  if (h->version == 3 && disk_random (3) == 0) {
    p->parts |= HEADER_BITMAPS;
    p->nr_bitmaps = disk_random (2);
    p->bitmap_directory_offset = (UINT64_C (8) << h->cluster_bits);
    p->bitmap_directory_bytes = 8;
    c->clear.autoclear = AUTOCLEAR_BITMAPS;
    c->set.autoclear = p->nr_bitmaps ? AUTOCLEAR_BITMAPS : 0;
    c->set.incompatible = disk_random (2) ? INCOMPAT_DIRTY : 0;
  }
  else
    p->parts &= ~(unsigned) HEADER_BITMAPS;
  random_text (rc->backing, MAX_BACKING_NAME_BYTES, &p->backing_name);
  random_text (rc->format, MAX_BACKING_FORMAT_BYTES, &p->backing_format);
  random_text (rc->data_file, MAX_DATA_FILE_NAME_BYTES, &p->data_file);
  if (disk_random (3) == 0) {
    p->parts |= HEADER_FEATURE_NAMES;
    p->nr_feature_names = disk_random (13);
    p->feature_names = rc->names;
    disk_random_bytes ((uint8_t *) rc->names, sizeof rc->names);
  }
  if (disk_random (2)) {
    c->fields = disk_random (16);
    c->size_bytes = disk_random (513);
    c->l1_entries = 1;
    c->l1_offset = UINT64_C (3) << h->cluster_bits;
    c->refcount_table_offset = UINT64_C (4) << h->cluster_bits;
    c->refcount_table_clusters = 1 + disk_random (2);
    c->snapshots_offset = UINT64_C (5) << h->cluster_bits;
    c->nr_snapshots = disk_random (3);
  }
}

static void
replace (char **text, const char *with)
{
  free (*text);
  *text = with && with[0] ? strdup (with) : NULL;
}

/* The same change made in memory. */
static void
change_in_memory (struct header *h, const struct random_change *rc)
{
  const struct header_parts *p = &rc->parts;
  const struct header_change *c = &rc->change;

  if (p->parts & HEADER_BACKING_NAME)
    replace (&h->backing_name, p->backing_name);
  if (p->parts & HEADER_BACKING_FORMAT)
    replace (&h->backing_format, p->backing_format);
  if (p->parts & HEADER_DATA_FILE)
    replace (&h->data_file, p->data_file);
  if (p->parts & HEADER_BITMAPS) {
    h->has_bitmaps = p->nr_bitmaps > 0;
    h->nr_bitmaps = p->nr_bitmaps;
    h->bitmap_directory_offset =
      h->has_bitmaps ? p->bitmap_directory_offset : 0;
    h->bitmap_directory_bytes =
      h->has_bitmaps ? p->bitmap_directory_bytes : 0;
  }
  if (p->parts & HEADER_FEATURE_NAMES) {
    free (h->feature_names);
    h->nr_feature_names = p->nr_feature_names;
    h->feature_names = malloc (sizeof rc->names);
    memcpy (h->feature_names, rc->names, sizeof rc->names);
  }
  h->incompatible_features &= ~c->clear.incompatible;
  h->incompatible_features |= c->set.incompatible;
  h->autoclear_features &= ~c->clear.autoclear;
  h->autoclear_features |= c->set.autoclear;
  if (c->fields & HEADER_SIZE)
    h->size_bytes = c->size_bytes;
  if (c->fields & HEADER_L1) {
    h->l1_entries = c->l1_entries;
    h->l1_offset = c->l1_offset;
  }
  if (c->fields & HEADER_REFCOUNT_TABLE) {
    h->refcount_table_clusters = c->refcount_table_clusters;
    h->refcount_table_offset = c->refcount_table_offset;
  }
  if (c->fields & HEADER_SNAPSHOTS) {
    h->nr_snapshots = c->nr_snapshots;
    h->snapshots_offset = c->snapshots_offset;
  }
}

/*----- Tests -----*/

/* Unknown extensions that are in OLD with their padding are in D, too. */
static bool
keeps_unknown (const struct disk *d, const uint8_t *old, size_t header_bytes)
{
  size_t end = extension_bound (old, d->cluster_bytes);
  size_t offset = header_bytes;
  struct extension x;

  while (extension_next (old, end, &offset, &x, NULL) > 0)
    if (x.type < 0x2000 &&
        !memmem (d->now, d->cluster_bytes, x.data - 8,
                 (size_t) (old + offset - x.data) + 8))
      return false;
  return true;
}

/* How often each thing was met, so that none is met never. */
static unsigned nr_done, nr_refused, nr_detours, nr_dropped, nr_dropped_early;
static unsigned nr_failed, nr_clusters[17];

static void
count (const struct disk *d, const struct header *wanted)
{
  struct header h;
  bool dropped;

  disk_read_header ((struct disk *) d, &h);
  dropped = h.nr_feature_names < wanted->nr_feature_names;
  nr_done++;
  nr_detours += d->nr_writes > 2;
  nr_dropped += dropped;
  /* A detour is possible in a large cluster, but not behind long fields. */
  nr_dropped_early += dropped && d->cluster_bytes == MAX_CLUSTER &&
    h.header_bytes <= 504;
  nr_clusters[h.cluster_bits]++;
  header_clear (&h);
}

/* The header of CONTENT, with changes that are not NULL. */
static void
expect_changed (struct expected *e, const struct disk *d,
                const uint8_t *content, const struct random_change *first,
                const struct random_change *second)
{
  static struct disk view;
  struct header h;

  view.storage.ops = &disk_ops;
  view.cluster_bytes = d->cluster_bytes;
  memcpy (view.now, content, d->cluster_bytes);
  disk_read_header (&view, &h);
  if (first)
    change_in_memory (&h, first);
  if (second)
    change_in_memory (&h, second);
  expect (e, &h);
  header_clear (&h);
}

/* A change has failed, so that any of E may be there: make another one,
 * of fields alone or of anything.
 */
static int
go_on (struct header_writer *w, struct disk *d, const uint8_t *old,
       const struct random_change *first, struct expected *e,
       struct expected *last)
{
  static struct random_change second;
  struct header h;
  int r;

  nr_failed++;
  disk_read_header (d, &h);
  make_random_change (&second, &h);
  header_clear (&h);
  if (disk_random (2)) {
    second.parts.parts = 0;
    memset (&second.change.set, 0, sizeof second.change.set);
    memset (&second.change.clear, 0, sizeof second.change.clear);
    r = header_writer_commit (w, &second.change);
  }
  else
    r = header_writer_rewrite (w, &second.parts, &second.change, NULL);
  if (r < 0)
    return r;
  expect_changed (e, d, old, NULL, &second);
  expect_changed (e, d, old, first, &second);
  expect_changed (last, d, old, NULL, &second);
  expect_changed (last, d, old, first, &second);
  return 0;
}

static bool
one_rewrite (struct disk *d, struct header_writer *w, int fail_at)
{
  static uint8_t old[MAX_CLUSTER];
  static struct random_change rc;
  struct expected e = { .nr_whole = 1 }, last = { .nr = 0 };
  struct header h;
  bool good;
  int r;

  disk_begin_log (d);
  memcpy (old, d->now, sizeof old);
  d->fail_at = fail_at;
  d->fail_late = disk_random (2);
  disk_read_header (d, &h);
  make_random_change (&rc, &h);
  expect_changed (&e, d, old, NULL, NULL);
  expect_changed (&e, d, old, &rc, NULL);

  r = header_writer_rewrite (w, &rc.parts, &rc.change, NULL);
  if (r == 0) {
    change_in_memory (&h, &rc);
    count (d, &h);
    expect (&last, &h);
    expect (&last, &h);
  }
  else if (r == -EIO)
    r = go_on (w, d, old, &rc, &e, &last);
  nr_refused += r == -ENOSPC;
  good = (r == 0 || r == -ENOSPC) && d->nr_not_durable == 0 &&
    survives (d, &e) && is_expected (d, d->now, r == 0 ? &last : &e) &&
    keeps_unknown (d, old, h.header_bytes);
  if (!good)
    printf ("# rewrite: %s\n", strerror (-r));
  header_clear (&h);
  expected_free (&e);
  expected_free (&last);
  return good;
}

static void
random_rewrites (void)
{
  static struct disk d;
  unsigned bad = 0, i, j;

  for (i = 0; i < 1500 && bad == 0; ++i) {
    struct header_writer *w;
    uint64_t seed_of_disk = disk_seed;

    disk_make_random (&d);
    w = disk_new_writer (&d);
    for (j = 0; j < 4 && bad == 0; ++j)
      if (!one_rewrite (&d, w, disk_random (3) ? -1 :
                        (int) disk_random (4))) {
        printf ("# seed %" PRIu64 ", rewrite %u\n", seed_of_disk, j);
        bad++;
      }
    header_writer_free (w);
  }
  disk_begin_log (&d);
  is_int (bad, 0, "%u states of a disk after a power failure are read as "
          "before or after", nr_states);
  printf ("# %u rewrites, %u by a detour, %u without the feature names, "
          "%u refused, %u failed writes; %u states with a gap, %u mended\n",
          nr_done, nr_detours, nr_dropped, nr_refused, nr_failed, nr_gaps,
          nr_mended);
  ok (nr_done > 2000 && nr_detours > 100 && nr_dropped > 50 &&
      nr_refused > 50 && nr_failed > 300 && nr_mended > 100,
      "each of the ways was taken");
  ok (nr_clusters[9] && nr_clusters[10] && nr_clusters[11] &&
      nr_clusters[12] && nr_clusters[16], "... with clusters of each size");
  is_int (nr_dropped_early, 0,
          "feature names are dropped only where space is short");
}

int
main (void)
{
  random_rewrites ();
  return tap_done ();
}
