/* SPDX-License-Identifier: BSD-3-Clause */

/* Messages for the user.
 *
 * Much of what stands in a message was read from an image: names,
 * paths, texts.  Rather than trust each caller to think of it, every
 * message is made harmless here, as a whole: what a terminal or a log
 * would act upon is shown as \xNN.
 */

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

/* The length in bytes of the UTF-8 sequence that TEXT begins with, and
 * its value; 0 if it is none.
 */
static size_t
decode_utf8 (const unsigned char *text, uint32_t *value)
{
  static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
  size_t len = text[0] < 0x80 ? 1 : text[0] < 0xc0 ? 0 : text[0] < 0xe0 ? 2 :
    text[0] < 0xf0 ? 3 : text[0] < 0xf8 ? 4 : 0;
  size_t i;

  if (len == 0)
    return 0;
  *value = len == 1 ? text[0] : text[0] & (0x7f >> len);
  for (i = 1; i < len; ++i) {
    if ((text[i] & 0xc0) != 0x80)       /* the terminating NUL, too */
      return 0;
    *value = *value << 6 | (text[i] & 0x3f);
  }
  return *value >= smallest[len] ? len : 0;
}

/* Control characters, and those that break or reorder a line. */
static bool
is_harmful (uint32_t c)
{
  return c < 0x20 || (c >= 0x7f && c < 0xa0) ||
    (c >= 0xd800 && c < 0xe000) || c > 0x10ffff ||
    c == 0x200e || c == 0x200f || c == 0x61c ||
    (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

void
qcow2_error_escape (char *dst, size_t size, const char *src)
{
  const unsigned char *p = (const unsigned char *) src;
  char hex[8];
  uint32_t value = 0;
  size_t len;

  while (*p) {
    len = decode_utf8 (p, &value);
    if (len > 0 && !is_harmful (value)) {
      if (len >= size)
        break;
      memcpy (dst, p, len);
      dst += len;
      size -= len;
      p += len;
    }
    else {
      snprintf (hex, sizeof hex, "\\x%02x", *p);
      if (strlen (hex) >= size)
        break;
      memcpy (dst, hex, strlen (hex));
      dst += strlen (hex);
      size -= strlen (hex);
      p++;
    }
  }
  *dst = '\0';
}

int
qcow2_error_set (struct qcow2_error *error, int err, const char *fs, ...)
{
  char text[sizeof error->message];
  va_list args;

  if (error) {
    va_start (args, fs);
    vsnprintf (text, sizeof text, fs, args);
    va_end (args);
    qcow2_error_escape (error->message, sizeof error->message, text);
  }
  return -err;
}

void
qcow2_error_prefix (struct qcow2_error *error, const char *fs, ...)
{
  char text[sizeof error->message];
  va_list args;
  size_t len;

  if (!error)
    return;

  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  len = strlen (text);
  snprintf (text + len, sizeof text - len, "%s", error->message);
  qcow2_error_escape (error->message, sizeof error->message, text);
}
