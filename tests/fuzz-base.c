/* SPDX-License-Identifier: BSD-3-Clause */

/* The pristine images that test-fuzz mutates: made by QEMU, and where their
 * metadata is.
 */

#include <endian.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz-base.h"
#include "qcow2/format.h"

struct fuzz_base fuzz_bases[FUZZ_NR_BASES] = {
  { .path = "v2" }, { .path = "tiny" }, { .path = "zlib" },
  { .path = "zstd" }, { .path = "extended" }, { .path = "data" },
  { .path = "overlay" }, { .path = "luks" },
  { .path = "wide" },
};

static const char script[] =
  "set -e\n"
  "w () { i=$1; shift; qemu-io -f qcow2 \"$@\" $i; }\n"
  "c () { qemu-img create -q -f qcow2 \"$@\"; }\n"
  "c -o compat=0.10,cluster_size=4k v2 256k\n"
  "w v2 -c 'write -P 1 0 64k' -c 'write -P 2 100k 5k'\n"
  "qemu-img snapshot -c one v2\n"
  "w v2 -c 'write -P 3 32k 64k'\n"
  "qemu-img snapshot -c two v2\n"
  "w v2 -c 'write -P 4 60k 8k'\n"
  "c -o cluster_size=512,lazy_refcounts=on tiny 256k\n"
  "w tiny -c 'write -P 5 1000 60000' -c 'write -z 8k 8k'\n"
  "qemu-img snapshot -c small tiny\n"
  "w tiny -c 'write -P 6 200k 3k'\n"
  "qemu-img bitmap --add tiny bits\n"
  "head -c 200000 /dev/zero | tr '\\0' x > text\n"
  "seq 1 20000 >> text\n"
  "qemu-img convert -c -f raw -O qcow2 -o cluster_size=8k text zlib\n"
  "w zlib -c 'write -P 7 40k 20k'\n"
  "qemu-img convert -c -f raw -O qcow2 "
  "  -o cluster_size=16k,compression_type=zstd text zstd\n"
  "c -o extended_l2=on,cluster_size=16k extended 256k\n"
  "w extended -c 'write -P 8 3k 7k' -c 'write -P 9 40k 60k' "
  "  -c 'write -z 50k 4k' -c 'write -c -P 10 128k 16k'\n"
  "c -o data_file=data.raw,cluster_size=4k data 256k\n"
  "w data -c 'write -P 11 8k 30k' -c 'write -z 16k 4k'\n"
  "c -o cluster_size=4k -b zlib -F qcow2 overlay 256k\n"
  "w overlay -c 'write -P 12 12k 40k' -c 'write -z 64k 16k'\n"
  "c -o cluster_size=1k,refcount_bits=64 wide 256k\n"
  "w wide -c 'write -P 13 3k 20k' -c 'write -P 14 140k 20k'\n"
  "qemu-img snapshot -c big wide\n"
  "w wide -c 'write -P 15 10k 20k'\n"
  /* Not really encrypted: crypt_method, the extension, and a header at
   * 2048.
   */
  "c -o cluster_size=4k luks 256k\n"
  "put () { dd of=luks bs=1 seek=$1 conv=notrunc status=none; }\n"
  "printf '\\002' | put 35\n"
  "echo 0537be7700000010000000000000080000000000000010000000000000000000 |"
  "  xxd -r -p | put 112\n"
  "printf 'LUKS\\272\\276\\0\\001aes' | put 2048\n"
  "printf 'xts-plain64' | put 2088\n"
  "printf 'sha256' | put 2120\n";

static void
make_files (void)
{
  int fd = open ("script", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

  must (write (fd, script, sizeof script - 1) == sizeof script - 1, "script");
  close (fd);
  must (system ("sh script > script.log 2>&1") == 0,
        "making the pristine images");
}

uint64_t
fuzz_base_number (const struct fuzz_base *b, uint64_t offset,
                  unsigned width)
{
  uint64_t be = 0;

  if (offset + width > b->nr_bytes)
    return 0;
  memcpy ((char *) &be + 8 - width, b->bytes + offset, width);
  return be64toh (be);
}

static void
add_range (struct fuzz_base *b, uint64_t offset, uint64_t bytes)
{
  if (bytes == 0 || offset + bytes > b->nr_bytes ||
      b->nr_ranges == FUZZ_MAX_RANGES)
    return;
  b->ranges[b->nr_ranges++] = (struct fuzz_range) { offset, bytes };
}

#define HEADER(field) \
  fuzz_base_number (b, offsetof (struct disk_header, field), \
        sizeof (((struct disk_header *) NULL)->field))

/* What the extensions for bitmaps and encryption point to. */
static void
find_extension_ranges (struct fuzz_base *b)
{
  uint64_t i;

  for (i = sizeof (struct disk_header); i < 512; i += 8) {
    uint64_t type = fuzz_base_number (b, i, 4);

    if (type == EXTENSION_BITMAPS)
      add_range (b, fuzz_base_number (b, i + 24, 8), 32);
    if (type == EXTENSION_CRYPTO)
      add_range (b, fuzz_base_number (b, i + 8, 8), 592);
  }
}

static void
find_refcount_ranges (struct fuzz_base *b)
{
  uint64_t table = HEADER (refcount_table_offset), i;

  add_range (b, table, 64);
  for (i = 0; i < 8; ++i)
    add_range (b, fuzz_base_number (b, table + 8 * i, 8), 256);
}

/* The table, and the L1 table of the first snapshot. */
static void
find_snapshot_ranges (struct fuzz_base *b)
{
  uint64_t table = HEADER (snapshots_offset);

  if (HEADER (nb_snapshots) == 0)
    return;
  add_range (b, table, 160);
  add_range (b, fuzz_base_number (b, table, 8),
             fuzz_base_number (b, table + 8, 4) * 8);
}

/* The active L1 table, the used part of L2 tables and the compressed data. */
static void
find_mapping_ranges (struct fuzz_base *b)
{
  uint64_t cluster_bytes = UINT64_C (1) << HEADER (cluster_bits);
  uint64_t l1 = HEADER (l1_table_offset), l1_size = HEADER (l1_size);
  uint64_t i, n;

  add_range (b, l1, l1_size * 8);
  for (i = 0; i < l1_size; ++i) {
    uint64_t l2 = fuzz_base_number (b, l1 + 8 * i, 8) & ENTRY_OFFSET_MASK;

    if (l2 == 0)
      continue;
    add_range (b, l2, cluster_bytes < 512 ? cluster_bytes : 512);
    for (n = 0; n < 8; ++n) {
      uint64_t entry = fuzz_base_number (b, l2 + 8 * n, 8);

      if (entry & ENTRY_COMPRESSED)
        add_range (b, compressed_offset (entry, HEADER (cluster_bits)), 64);
    }
  }
}

/* The header with its extensions, and all that it points to. */
static void
find_ranges (struct fuzz_base *b)
{
  uint64_t cluster_bytes = UINT64_C (1) << HEADER (cluster_bits);

  add_range (b, 0, sizeof (struct disk_header));
  add_range (b, 0, cluster_bytes < 600 ? cluster_bytes : 600);
  find_extension_ranges (b);
  find_refcount_ranges (b);
  find_snapshot_ranges (b);
  find_mapping_ranges (b);
}

static void
load_base (struct fuzz_base *b)
{
  struct stat st;
  int fd = open (b->path, O_RDONLY | O_CLOEXEC);

  must (fd != -1 && fstat (fd, &st) == 0, b->path);
  b->nr_bytes = (size_t) st.st_size;
  b->bytes = malloc (b->nr_bytes);
  must (b->bytes && read (fd, b->bytes, b->nr_bytes) == st.st_size, b->path);
  close (fd);
  find_ranges (b);
}

void
fuzz_bases_make (void)
{
  size_t i;

  make_files ();
  for (i = 0; i < FUZZ_NR_BASES; ++i)
    load_base (&fuzz_bases[i]);
}
