/* SPDX-License-Identifier: BSD-3-Clause */

/* The parameters: what plugin.c is to serve, and how. */

#ifndef PLUGIN_CONFIG_H
#define PLUGIN_CONFIG_H

#include <stdbool.h>

#include "qcow2/qcow2.h"

struct plugin_config {
  const char *filename;
  const char *snapshot;         /* for the default export, or NULL */
  /* write=; a snapshot is read-only whatever it says. */
  enum { WRITE_AUTO, WRITE_ON, WRITE_OFF } write_mode;
  struct qcow2_options options;
};

extern struct plugin_config config;

/* Set the defaults. */
extern void config_load (void);
extern void config_unload (void);

/* nbdkit's .config and .config_complete. */
extern int config_parameter (const char *key, const char *value);
extern int config_complete (void);

/* May clients write?  Known once nbdkit has its parameters. */
extern bool config_is_for_writing (void);

#define CONFIG_HELP \
  "[file=]DISK.qcow2 (required)  The image to serve.\n" \
  "write=auto|on|off             Serve it for writing (default auto: unless\n" \
  "                              there is nbdkit's -r or the cow filter).\n" \
  "create=SIZE|backing           Make the image first, for writing.\n" \
  "create-options=OPTS           As for `qemu-img create -o'.\n" \
  "snapshot=NAME|ID              Serve this internal snapshot by default.\n" \
  "backing=none                  Serve the image without its backing file.\n" \
  "backing-format=qcow2|raw      Where the image does not tell the format.\n" \
  "data-file=FILE                The image's external data file.\n" \
  "allow-dir=DIR|none            The image may name files in DIR.\n" \
  "discard=unmap|ignore          What becomes of freed space.\n" \
  "lazy-refcounts=on|off         The default is as the image says.\n" \
  "cache=MODE                    As for qemu-nbd (default writeback).\n" \
  "detect-zeroes=off|on|unmap    Look for zeros in what is written.\n" \
  "max-chain=N                   Limit for the backing chain (default 200).\n" \
  "cache-size=SIZE               Metadata cache (default 32M).\n" \
  "compressed-cache-size=SIZE    Decompressed clusters (default 32M).\n" \
  "lock=on|off                   Take QEMU's locks (default on)."

#endif /* PLUGIN_CONFIG_H */
