/* SPDX-License-Identifier: BSD-3-Clause */

/* Images whose refcounts and flags are wrong. */

#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "metadata-damage.h"
#include "qcow2/format.h"
#include "qemu-image.h"

struct file {
  uint8_t *bytes;
  uint64_t nr_bytes;
  unsigned cluster_bits;
  unsigned refcount_bits;
  unsigned entry_bytes;         /* of an L2 entry */
  uint64_t l1_offset, l1_entries;
  uint64_t table_offset, table_entries;
  uint64_t *state;
  struct metadata_damage *damage;
};

static bool
one_in (struct file *f, unsigned n)
{
  return random_below (f->state, n) == 0;
}

static uint64_t
get64 (const struct file *f, uint64_t offset)
{
  uint64_t be;

  memcpy (&be, f->bytes + offset, sizeof be);
  return be64toh (be);
}

static void
put64 (struct file *f, uint64_t offset, uint64_t value)
{
  uint64_t be = htobe64 (value);

  memcpy (f->bytes + offset, &be, sizeof be);
}

/*----- Refcounts -----*/

static uint64_t
get_refcount (const struct file *f, uint64_t block, uint64_t index)
{
  unsigned bits = f->refcount_bits, i;
  uint64_t first = index * bits, value = 0;

  if (bits < 8)
    return f->bytes[block + first / 8] >> first % 8 & ((1u << bits) - 1);
  for (i = 0; i < bits / 8; ++i)
    value = value << 8 | f->bytes[block + first / 8 + i];
  return value;
}

static void
put_refcount (struct file *f, uint64_t block, uint64_t index, uint64_t value)
{
  unsigned bits = f->refcount_bits, i;
  uint64_t first = index * bits;
  uint8_t *byte = &f->bytes[block + first / 8];

  if (bits < 8) {
    *byte &= (uint8_t) ~(((1u << bits) - 1) << first % 8);
    *byte |= (uint8_t) (value << first % 8);
    return;
  }
  for (i = bits / 8; i-- > 0; value >>= 8)
    byte[i] = (uint8_t) value;
}

static void
damage_block (struct file *f, uint64_t block)
{
  uint64_t nr = (UINT64_C (8) << f->cluster_bits) / f->refcount_bits, i;
  uint64_t max = f->refcount_bits == 64 ? UINT64_MAX :
    (UINT64_C (1) << f->refcount_bits) - 1;

  for (i = 0; i < nr; ++i) {
    uint64_t was = get_refcount (f, block, i), is = random_below (f->state, 4);

    if (!one_in (f, 4))
      continue;
    if (is == 3 || is > max)
      is = max;
    put_refcount (f, block, i, is);
    f->damage->nr_lower += is < was;
    f->damage->nr_higher += is > was;
  }
}

static void
damage_refcounts (struct file *f)
{
  uint64_t i;

  for (i = 0; i < f->table_entries; ++i) {
    uint64_t at = f->table_offset + i * 8, block = get64 (f, at);

    if (block == 0)
      continue;
    damage_block (f, block);
    if (one_in (f, 2)) {
      put64 (f, at, 0);
      f->damage->nr_blocks++;
    }
  }
}

/*----- Flags -----*/

static void
flip_copied (struct file *f, uint64_t at)
{
  put64 (f, at, get64 (f, at) ^ ENTRY_COPIED);
  f->damage->nr_flags++;
}

/* For the data file's first cluster the flag means something else; QEMU
 * does not repair those of compressed clusters.
 */
static void
damage_flags (struct file *f)
{
  uint64_t i, at;

  for (i = 0; i < f->l1_entries; ++i) {
    uint64_t l2 = get64 (f, f->l1_offset + i * 8) & ENTRY_OFFSET_MASK;

    if (l2 == 0)
      continue;
    if (one_in (f, 3))
      flip_copied (f, f->l1_offset + i * 8);
    for (at = l2; at < l2 + (UINT64_C (1) << f->cluster_bits);
         at += f->entry_bytes) {
      uint64_t entry = get64 (f, at);

      if (entry & ENTRY_OFFSET_MASK && !(entry & ENTRY_COMPRESSED) &&
          one_in (f, 5))
        flip_copied (f, at);
    }
  }
}

/*----- The file -----*/

static void
must (bool cond, const char *what)
{
  if (!cond) {
    printf ("Bail out! %s\n", what);
    exit (1);
  }
}

static void
parse (struct file *f)
{
  const struct disk_header *h = (const struct disk_header *) f->bytes;

  must (be32toh (h->version) == 3, "the image is not of version 3");
  f->cluster_bits = be32toh (h->cluster_bits);
  f->refcount_bits = 1u << be32toh (h->refcount_order);
  f->entry_bytes = be64toh (h->incompatible_features) &
    INCOMPAT_EXTENDED_L2 ? 16 : 8;
  f->l1_offset = be64toh (h->l1_table_offset);
  f->l1_entries = be32toh (h->l1_size);
  f->table_offset = be64toh (h->refcount_table_offset);
  f->table_entries = ((uint64_t) be32toh (h->refcount_table_clusters) <<
                      f->cluster_bits) / 8;
}

void
damage_metadata (const char *filename, uint64_t *state,
                 struct metadata_damage *damage)
{
  struct file f = { .state = state, .damage = damage };
  int fd = open (filename, O_WRONLY | O_CLOEXEC);

  memset (damage, 0, sizeof *damage);
  f.bytes = file_content (filename, &f.nr_bytes);
  parse (&f);
  damage_refcounts (&f);
  damage_flags (&f);
  f.bytes[79] |= INCOMPAT_DIRTY;
  must (fd >= 0 && pwrite (fd, f.bytes, f.nr_bytes, 0) ==
        (ssize_t) f.nr_bytes, filename);
  close (fd);
  free (f.bytes);
}

void
damage_set_dirty (const char *filename)
{
  int fd = open (filename, O_RDWR | O_CLOEXEC);
  uint8_t byte = 0;

  must (fd >= 0 && pread (fd, &byte, 1, 79) == 1, filename);
  byte |= INCOMPAT_DIRTY;
  must (pwrite (fd, &byte, 1, 79) == 1, filename);
  close (fd);
}

unsigned
damage_shrink_table (const char *filename)
{
  const uint32_t one = htobe32 (1);
  uint32_t was = 0;
  int fd = open (filename, O_RDWR | O_CLOEXEC);

  must (fd >= 0 && pread (fd, &was, sizeof was, 56) == sizeof was &&
        pwrite (fd, &one, sizeof one, 56) == sizeof one, filename);
  close (fd);
  damage_set_dirty (filename);
  return be32toh (was);
}

bool
damage_is_dirty (const char *filename)
{
  int fd = open (filename, O_RDONLY | O_CLOEXEC);
  uint8_t bytes[80];

  must (fd >= 0 && pread (fd, bytes, sizeof bytes, 0) == sizeof bytes,
        filename);
  close (fd);
  return bytes[7] == 3 && bytes[79] & INCOMPAT_DIRTY;
}
