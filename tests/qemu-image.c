/* SPDX-License-Identifier: BSD-3-Clause */

/* Images with random content, made by qemu-img and qemu-io. */

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemu-image.h"

static void __attribute__ ((__noreturn__))
bail_out (const char *what, const char *why)
{
  printf ("Bail out! %s: %s\n", what, why);
  exit (1);
}

uint64_t
random_next (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state * UINT64_C (0x2545f4914f6cdd1d) >> 11;
}

uint64_t
random_below (uint64_t *state, uint64_t limit)
{
  return random_next (state) % limit;
}

void
run_command (const char *fs, ...)
{
  char command[4096];
  va_list args;

  va_start (args, fs);
  vsnprintf (command, sizeof command, fs, args);
  va_end (args);
  if (system (command) != 0)
    bail_out (command, "failed");
}

uint8_t *
file_content (const char *filename, uint64_t *bytes)
{
  FILE *fp = fopen (filename, "r");
  uint8_t *content;

  if (!fp || fseeko (fp, 0, SEEK_END) == -1)
    bail_out (filename, strerror (errno));
  *bytes = ftello (fp);
  rewind (fp);
  content = malloc (*bytes + 1);
  if (!content || fread (content, 1, *bytes, fp) != *bytes)
    bail_out (filename, "can't be read");
  fclose (fp);
  return content;
}

uint8_t *
qemu_content (const char *image, const char *snapshot, uint64_t *bytes)
{
  uint8_t *content;

  /* Its warnings have no newline at their end. */
  run_command ("qemu-img convert -U -f qcow2 -O raw %s%s %s content.raw "
               "2> content.err || { cat content.err; false; }",
               snapshot ? "-l " : "", snapshot ? snapshot : "", image);
  content = file_content ("content.raw", bytes);
  unlink ("content.raw");
  unlink ("content.err");
  return content;
}

/* The kind of a request: at least half of them are data.  QEMU compresses
 * only what is not yet allocated, so compressed clusters come first.
 */
static unsigned
choose (unsigned kinds, bool early, uint64_t *state)
{
  unsigned kind = 1u << random_below (state, 4);

  if (early && kinds & WRITE_COMPRESSED)
    return WRITE_COMPRESSED;
  return kind & kinds & (WRITE_ZEROES | WRITE_UNMAP);
}

static void
random_write (FILE *script, uint64_t size_bytes, uint64_t max_bytes,
              uint64_t cluster_bytes, unsigned kind, uint64_t *state)
{
  uint64_t offset = random_below (state, size_bytes);
  uint64_t count = 1 + random_below (state, max_bytes);
  unsigned pattern = 1 + random_below (state, 255);

  if (kind == WRITE_COMPRESSED) {
    offset -= offset % cluster_bytes;
    count = cluster_bytes;
  }
  if (count > size_bytes - offset)
    count = size_bytes - offset;
  if (kind == WRITE_COMPRESSED && count < cluster_bytes)
    return;
  if (kind == WRITE_ZEROES)
    fprintf (script, "write -z %" PRIu64 " %" PRIu64 "\n", offset, count);
  else if (kind == WRITE_UNMAP)
    fprintf (script, "write -z -u %" PRIu64 " %" PRIu64 "\n", offset, count);
  else
    fprintf (script, "write %s -P %u %" PRIu64 " %" PRIu64 "\n",
             kind == WRITE_COMPRESSED ? "-c" : "", pattern, offset, count);
}

void
random_writes (const char *format, const char *image, uint64_t size_bytes,
               uint64_t max_bytes, uint64_t cluster_bytes,
               unsigned nr_writes, unsigned kinds, uint64_t *state)
{
  FILE *script = fopen ("script", "w");
  unsigned i;

  if (!script)
    bail_out ("script", strerror (errno));
  for (i = 0; i < nr_writes; ++i)
    random_write (script, size_bytes, max_bytes, cluster_bytes,
                  choose (kinds, i < nr_writes / 2, state), state);
  fclose (script);
  run_command ("qemu-io -d unmap -t unsafe -f %s %s < script > written 2>&1 "
               "%s|| { cat written; false; }", format, image,
               kinds & WRITE_COMPRESSED ? "|| true " : "");
  unlink ("script");
  unlink ("written");
}
