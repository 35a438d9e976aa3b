/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading a LUKS1 header, for what it tells without a key. */

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "format.h"
#include "luks-header.h"

#define SECTOR_BYTES 512
#define SLOT_ACTIVE UINT32_C (0x00ac71f3)

struct disk_luks_slot {
  uint32_t active;
  uint32_t iterations;
  uint8_t salt[32];
  uint32_t key_material_sector;
  uint32_t stripes;
} __attribute__ ((__packed__));

struct disk_luks_header {
  char magic[6];
  uint16_t version;
  char cipher_name[32];
  char cipher_mode[32];
  char hash_spec[32];
  uint32_t payload_sector;
  uint32_t key_bytes;
  uint8_t master_key_digest[20];
  uint8_t master_key_digest_salt[32];
  uint32_t master_key_digest_iterations;
  char uuid[40];
  struct disk_luks_slot slots[QCOW2_LUKS_SLOTS];
} __attribute__ ((__packed__));

static_assert (sizeof (struct disk_luks_header) == 592, "LUKS header size");

/* Where in the file the header is. */
static int
find_header (const struct header *h, uint64_t *offset,
             struct qcow2_error *error)
{
  size_t i;

  for (i = 0; i < h->nr_unknown_extensions; ++i) {
    const struct unknown_extension *x = &h->unknown_extensions[i];
    uint64_t place[2];

    if (x->type != EXTENSION_CRYPTO)
      continue;
    if (x->length_bytes != sizeof place)
      return qcow2_error_set (error, EINVAL,
                              "encryption header extension: length is %"
                              PRIu32 ", must be %zu", x->length_bytes,
                              sizeof place);
    memcpy (place, x->data, sizeof place);
    *offset = be64toh (place[0]);
    if (be64toh (place[1]) < sizeof (struct disk_luks_header))
      return qcow2_error_set (error, EINVAL,
                              "the encryption header is too short: %" PRIu64
                              " bytes", be64toh (place[1]));
    return 0;
  }
  return qcow2_error_set (error, EINVAL,
                          "the image is encrypted with LUKS, but has no "
                          "encryption header extension");
}

static void
decode (const struct disk_luks_header *d, struct qcow2_luks_info *info)
{
  size_t i;

  memset (info, 0, sizeof *info);
  memcpy (info->cipher, d->cipher_name, sizeof d->cipher_name);
  memcpy (info->mode, d->cipher_mode, sizeof d->cipher_mode);
  memcpy (info->hash, d->hash_spec, sizeof d->hash_spec);
  memcpy (info->uuid, d->uuid, sizeof d->uuid);
  info->key_bytes = be32toh (d->key_bytes);
  info->payload_offset = (uint64_t) be32toh (d->payload_sector) *
    SECTOR_BYTES;
  info->master_key_iterations = be32toh (d->master_key_digest_iterations);
  for (i = 0; i < QCOW2_LUKS_SLOTS; ++i) {
    const struct disk_luks_slot *slot = &d->slots[i];

    info->slots[i].active = be32toh (slot->active) == SLOT_ACTIVE;
    info->slots[i].iterations = be32toh (slot->iterations);
    info->slots[i].key_offset =
      (uint64_t) be32toh (slot->key_material_sector) * SECTOR_BYTES;
    info->slots[i].stripes = be32toh (slot->stripes);
  }
}

int
luks_header_read (struct qcow2_storage *s, const struct header *h,
                  struct qcow2_luks_info *info, struct qcow2_error *error)
{
  struct disk_luks_header d;
  uint64_t offset = 0;
  int r;

  r = find_header (h, &offset, error);
  if (r < 0)
    return r;
  r = qcow2_storage_read_meta (s, &d, sizeof d, offset);
  if (r < 0)
    return qcow2_error_set (error, -r,
                            "can't read the encryption header at 0x%" PRIx64
                            ": %s", offset, strerror (-r));
  if (memcmp (d.magic, "LUKS\xba\xbe", sizeof d.magic) != 0 ||
      be16toh (d.version) != 1)
    return qcow2_error_set (error, EINVAL,
                            "there is no LUKS1 header at 0x%" PRIx64, offset);
  decode (&d, info);
  return 0;
}
