/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-img info: what an image says about itself. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "json.h"
#include "message.h"
#include "options.h"
#include "size.h"
#include "snapshot-list.h"

/* QEMU counts raw disks in sectors. */
static uint64_t
disk_bytes (const struct qcow2_info *info)
{
  return info->is_raw ? (info->size_bytes + 511) / 512 * 512 :
    info->size_bytes;
}

static bool
has_backing_format (const struct qcow2_info *info)
{
  return info->backing_format && info->backing_format[0] != '\0';
}

/* The backing file's name from here: what names a protocol (a colon before
 * any slash) is the same everywhere.
 */
static const char *
full_backing_name (const struct qcow2_info *info)
{
  const char *name = info->backing_name;

  return name[strcspn (name, ":/")] == ':' ? name : info->backing_filename;
}

/*----- What is peculiar to the format -----*/

static json_t *
describe_slots (const struct qcow2_luks_info *luks)
{
  json_t *slots = img_json_array ();
  size_t i;

  for (i = 0; i < QCOW2_LUKS_SLOTS; ++i) {
    json_t *slot = img_json_object ();

    img_json_set_bool (slot, "active", luks->slots[i].active);
    if (luks->slots[i].active)
      img_json_set_int (slot, "iters", luks->slots[i].iterations);
    img_json_set_int (slot, "key-offset", luks->slots[i].key_offset);
    if (luks->slots[i].active)
      img_json_set_int (slot, "stripes", luks->slots[i].stripes);
    img_json_append (slots, slot);
  }
  return slots;
}

/* The mode is "xts-plain64" or "cbc-essiv:sha256": a mode, how initial
 * vectors are made, and the hash for that.  In xts mode there are two keys.
 */
static void
describe_luks (json_t *object, const struct qcow2_luks_info *luks)
{
  char mode[sizeof luks->mode], cipher[sizeof luks->cipher + 16];
  char *ivgen, *ivgen_hash = NULL;
  uint32_t key_bits = luks->key_bytes * 8;

  strcpy (mode, luks->mode);
  ivgen = strchr (mode, '-');
  if (ivgen) {
    *ivgen++ = '\0';
    ivgen_hash = strchr (ivgen, ':');
    if (ivgen_hash)
      *ivgen_hash++ = '\0';
  }
  if (strcmp (mode, "xts") == 0)
    key_bits /= 2;
  snprintf (cipher, sizeof cipher, "%s-%" PRIu32, luks->cipher, key_bits);

  img_json_set_string (object, "ivgen-alg", ivgen ? ivgen : "");
  img_json_set_string (object, "hash-alg", luks->hash);
  img_json_set_string (object, "cipher-alg", cipher);
  img_json_set_string (object, "uuid", luks->uuid);
  if (ivgen_hash)
    img_json_set_string (object, "ivgen-hash-alg", ivgen_hash);
  img_json_set_string (object, "format", "luks");
  img_json_set_string (object, "cipher-mode", mode);
  img_json_set (object, "slots", describe_slots (luks));
  img_json_set_int (object, "payload-offset", luks->payload_offset);
  img_json_set_int (object, "master-key-iters", luks->master_key_iterations);
}

static json_t *
describe_encryption (const struct qcow2_info *info)
{
  json_t *object = img_json_object ();

  if (info->encryption == QCOW2_ENCRYPTION_LUKS)
    describe_luks (object, &info->luks);
  else
    img_json_set_string (object, "format", "aes");
  return object;
}

static json_t *
describe_bitmaps (const struct qcow2_info *info)
{
  json_t *bitmaps = img_json_array ();
  size_t i;

  for (i = 0; i < info->nr_bitmaps; ++i) {
    const struct qcow2_bitmap_info *b = &info->bitmaps[i];
    json_t *bitmap = img_json_object (), *flags = img_json_array ();

    if (b->in_use)
      img_json_append (flags, json_string ("in-use"));
    if (b->automatic)
      img_json_append (flags, json_string ("auto"));
    img_json_set (bitmap, "flags", flags);
    img_json_set_string (bitmap, "name", b->name);
    img_json_set_int (bitmap, "granularity", b->granularity_bytes);
    img_json_append (bitmaps, bitmap);
  }
  return bitmaps;
}

/* Keys in QEMU's order. */
static json_t *
describe_format (const struct qcow2_info *info)
{
  json_t *data = img_json_object ();

  img_json_set_string (data, "compat", info->version < 3 ? "0.10" : "1.1");
  img_json_set_string (data, "compression-type", info->compression);
  if (info->version >= 3)
    img_json_set_bool (data, "lazy-refcounts", info->lazy_refcounts);
  if (info->nr_bitmaps > 0)
    img_json_set (data, "bitmaps", describe_bitmaps (info));
  img_json_set_int (data, "refcount-bits", info->refcount_bits);
  if (info->data_file)
    img_json_set_string (data, "data-file", info->data_file);
  if (info->encryption != QCOW2_ENCRYPTION_NONE)
    img_json_set (data, "encrypt", describe_encryption (info));
  if (info->version < 3)
    return data;
  if (info->external_data)
    img_json_set_bool (data, "data-file-raw", info->data_file_raw);
  img_json_set_bool (data, "corrupt", info->corrupt);
  img_json_set_bool (data, "extended-l2", info->extended_l2);
  return data;
}

/*----- For programs -----*/

static json_t *
describe_snapshots (const struct qcow2_info *info)
{
  json_t *snapshots = img_json_array ();
  size_t i;

  for (i = 0; i < info->nr_snapshots; ++i) {
    const struct qcow2_snapshot_info *sn = &info->snapshots[i];
    json_t *object = img_json_object ();

    if (sn->icount != QCOW2_NO_ICOUNT)
      img_json_set_int (object, "icount", sn->icount);
    img_json_set_int (object, "vm-clock-nsec", sn->vm_clock_nsec % 1000000000);
    img_json_set_string (object, "name", sn->name);
    img_json_set_int (object, "date-sec", sn->date_sec);
    img_json_set_int (object, "date-nsec", sn->date_nsec);
    img_json_set_int (object, "vm-clock-sec", sn->vm_clock_nsec / 1000000000);
    img_json_set_string (object, "id", sn->id);
    img_json_set_int (object, "vm-state-size", sn->vm_state_bytes);
    img_json_append (snapshots, object);
  }
  return snapshots;
}

/* Keys in QEMU's order. */
static json_t *
describe (const struct qcow2_info *info)
{
  const char *full = info->backing_name ? full_backing_name (info) : NULL;
  json_t *object = img_json_object (), *specific;

  if (has_backing_format (info))
    img_json_set_string (object, "backing-filename-format",
                         info->backing_format);
  if (info->nr_snapshots > 0)
    img_json_set (object, "snapshots", describe_snapshots (info));
  img_json_set_int (object, "virtual-size", disk_bytes (info));
  img_json_set_string (object, "filename", info->filename);
  if (!info->is_raw)
    img_json_set_int (object, "cluster-size", info->cluster_bytes);
  img_json_set_string (object, "format", info->is_raw ? "raw" : "qcow2");
  if (info->disk_bytes >= 0)
    img_json_set_int (object, "actual-size", (uint64_t) info->disk_bytes);
  if (!info->is_raw) {
    specific = img_json_object ();
    img_json_set_string (specific, "type", "qcow2");
    img_json_set (specific, "data", describe_format (info));
    img_json_set (object, "format-specific", specific);
  }
  if (full)
    img_json_set_string (object, "full-backing-filename", full);
  if (info->encryption != QCOW2_ENCRYPTION_NONE)
    img_json_set_bool (object, "encrypted", true);
  if (info->backing_name)
    img_json_set_string (object, "backing-filename", info->backing_name);
  img_json_set_bool (object, "dirty-flag", info->dirty);
  return object;
}

static void
print_json (const struct qcow2_info *info, bool chain)
{
  json_t *all = chain ? img_json_array () : describe (info);

  for (; chain && info; info = info->backing)
    img_json_append (all, describe (info));
  img_json_print (all);
  json_decref (all);
}

/*----- For people -----*/

/* A line with a text from the image. */
static void
print_text (const char *key, const char *text)
{
  char harmless[4096];

  qcow2_error_escape (harmless, sizeof harmless, text);
  printf ("%s%s", key, harmless);
}

static void
print_backing (const struct qcow2_info *info)
{
  const char *full = full_backing_name (info);

  print_text ("backing file: ", info->backing_name);
  if (!full)
    printf (" (cannot determine actual path)");
  else if (strcmp (full, info->backing_name) != 0) {
    print_text (" (actual path: ", full);
    putchar (')');
  }
  putchar ('\n');
  if (has_backing_format (info)) {
    print_text ("backing file format: ", info->backing_format);
    putchar ('\n');
  }
}

static void
print_human (const struct qcow2_info *info)
{
  char size[32];
  json_t *data;

  print_text ("image: ", info->filename);
  img_size_format (size, sizeof size, disk_bytes (info));
  printf ("\nfile format: %s\nvirtual size: %s (%" PRIu64 " bytes)\n",
          info->is_raw ? "raw" : "qcow2", size, disk_bytes (info));
  if (info->disk_bytes >= 0)
    img_size_format (size, sizeof size, (uint64_t) info->disk_bytes);
  printf ("disk size: %s\n", info->disk_bytes >= 0 ? size : "unavailable");
  if (info->encryption != QCOW2_ENCRYPTION_NONE)
    printf ("encrypted: yes\n");
  if (info->is_raw)
    return;

  printf ("cluster_size: %" PRIu64 "\n", info->cluster_bytes);
  if (info->dirty)
    printf ("cleanly shut down: no\n");
  if (info->backing_name)
    print_backing (info);
  img_snapshots_print (info);
  printf ("Format specific information:\n");
  data = describe_format (info);
  img_json_print_human (data, 1);
  json_decref (data);
}

/*----- The command -----*/

enum { BACKING_CHAIN = 256 };

static const struct img_option own_options[] = {
  { BACKING_CHAIN, "backing-chain", false },
  { 0, NULL, false },
};

static void
set_option (void *opaque, int id, const char *value)
{
  bool *chain = opaque;

  *chain = true;                /* there is but one */
}

static int
run (int argc, char **argv)
{
  struct img_options options;
  struct qcow2_error error = { "" };
  struct qcow2_info *info, *i;
  bool chain = false;
  int r;

  img_options_parse (&img_info, argc, argv,
                     IMG_FORMAT | IMG_OUTPUT | IMG_SHARE | IMG_FILES,
                     own_options, set_option, &chain, &options);
  if (options.nr_files != 1)
    img_usage_error ("Expecting one image file name");

  options.engine.format = options.format;
  r = qcow2_info_read (options.files[0], &options.engine, chain, &info,
                       &error);
  if (r < 0)
    img_open_error (options.files[0], &error, options.format ? NULL : "-f");
  else {
    if (options.json)
      print_json (info, chain);
    else
      for (i = info; i; i = i->backing) {
        if (i != info)
          putchar ('\n');
        print_human (i);
      }
    qcow2_info_free (info);
  }
  img_options_clear (&options);
  return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct img_command img_info = {
  .name = "info",
  .usage = "[-f fmt] [--output=ofmt] [--backing-chain] [-U] "
    "[--allow-dir=dir]... [--backing-format=fmt] filename",
  .help =
    "Show what an image says about itself.\n"
    "\n"
    IMG_HELP_FORMAT
    IMG_HELP_OUTPUT
    "  --backing-chain       and its backing files, too\n"
    IMG_HELP_SHARE
    "  --allow-dir=DIR|none  the image may name backing files in DIR\n"
    "  --backing-format=FMT  where the image does not tell the format of its\n"
    "                        backing file: qcow2 or raw\n",
  .error_status = EXIT_FAILURE,
  .run = run,
};
