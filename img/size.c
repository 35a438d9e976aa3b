/* SPDX-License-Identifier: BSD-3-Clause */

/* Sizes as people write and read them. */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "message.h"
#include "size.h"

static const char suffixes[] = "bkmgtpe";

/* Digits behind the point: value / 10^n, as a fraction of 2^64. */
static int
parse_fraction (const char **text, long double *fraction)
{
  long double digit = 0.1L;

  *fraction = 0;
  if (**text != '.')
    return 0;
  for (++*text; **text >= '0' && **text <= '9'; ++*text) {
    *fraction += (**text - '0') * digit;
    digit /= 10;
  }
  return 1;
}

/* -EINVAL if TEXT is no size, -ERANGE if it is too large. */
static int
parse (const char *text, uint64_t *bytes)
{
  long double fraction, value;
  unsigned shift = 0;
  const char *suffix;
  char *end;
  uint64_t n;
  bool hex, has_point;

  while (*text == ' ' || (*text >= '\t' && *text <= '\r'))
    text++;
  if (*text == '+')
    text++;
  if (*text < '0' || *text > '9')
    return -EINVAL;
  hex = strncasecmp (text, "0x", 2) == 0;
  errno = 0;
  n = strtoull (text, &end, hex ? 16 : 10);
  if (errno == ERANGE)
    return -ERANGE;
  text = end;
  has_point = parse_fraction (&text, &fraction);
  if (has_point && hex)
    return -EINVAL;

  if (*text) {
    suffix = strchr (suffixes, *text | 0x20);
    if (!suffix || hex)
      return -EINVAL;
    shift = 10 * (unsigned) (suffix - suffixes);
    text++;
  }
  if (*text || (has_point && fraction > 0 && shift == 0))
    return -EINVAL;

  value = fraction * (UINT64_C (1) << shift);
  if (n > (UINT64_MAX - (uint64_t) value) >> shift)
    return -ERANGE;
  n = (n << shift) + (uint64_t) value;
  if (n > INT64_MAX)
    return -ERANGE;
  *bytes = n;
  return 0;
}

int
img_size_option (const char *what, const char *text, uint64_t *bytes)
{
  int r = parse (text, bytes);

  if (r == -ERANGE)
    img_error ("Invalid %s specified. Must be between 0 and %" PRId64 ".",
               what, INT64_MAX);
  else if (r < 0) {
    img_error ("Invalid %s specified. You may use k, M, G, T, P or E "
               "suffixes for", what);
    img_error ("kilobytes, megabytes, gigabytes, terabytes, petabytes and "
               "exabytes.");
  }
  return r < 0 ? -1 : 0;
}

/* The unit is the largest of which there is one, or nearly: what has four
 * digits before the point is counted in the next one.
 */
void
img_size_format (char *buf, size_t size, uint64_t bytes)
{
  static const char *const units[] = {
    "", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
  };
  double value = (double) bytes;
  size_t i = 0;

  while (value >= 1000 && i < 6) {
    value /= 1024;
    i++;
  }
  snprintf (buf, size, "%0.3g %sB", value, units[i]);
}
