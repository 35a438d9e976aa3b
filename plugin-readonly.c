/* SPDX-License-Identifier: BSD-3-Clause */

/* What nbdkit's command line says about writing.
 *
 * An image that clients may write to needs the writer's lock, which
 * nobody can have beside a reader; an image that is only read must not
 * take it, or two servers of one template would shut each other out.
 * The lock is taken in .get_ready, so that a conflict shows on the
 * command line.  But nbdkit tells a plugin of its -r option only in
 * .open, when it has long been serving, and has no function to ask for
 * it.  So its command line is read, as the kernel keeps it.
 *
 * That is an estimate, and errs without harm both ways.  To take an
 * image for read-only that is not makes writing impossible, with a
 * warning in .open that names write=on.  The other way round only the
 * lock is stronger than it need be: nbdkit itself refuses to write.
 * write=on and write=off decide without this file.
 *
 * The words are read as getopt_long reads them: short options may stand
 * together, and with their values (-frU sock, -Usock); long ones may be
 * shortened as far as they are unique among nbdkit's; options may come
 * after the plugin's name, but not after "--".  The value of a long
 * option, unless that is the filter, is looked at as if it were a word
 * of its own: to be wrong about it, it would have to look like -r.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin-readonly.h"

/* Short options that have a value. */
#define WITH_VALUE "DeiPptugU"

/* The long names of -r and --filter can't be shortened further: there
 * are --run and --foreground.
 */
#define SHORTEST_READ_ONLY 2
#define SHORTEST_FILTER 2

/* What the next word is. */
enum next_word {
  NEXT_ANY,
  NEXT_VALUE,                   /* of an option that doesn't matter here */
  NEXT_FILTER,                  /* the value of --filter */
};

static bool
shortens (const char *name, size_t len, const char *option, size_t shortest)
{
  return len >= shortest && len <= strlen (option) &&
    memcmp (name, option, len) == 0;
}

/* A filter is given by its name or as a file.  cow opens what is below
 * it read-only, always.
 */
static bool
is_cow_filter (const char *filter)
{
  const char *slash = strrchr (filter, '/');

  if (slash)
    return strcmp (slash + 1, "nbdkit-cow-filter.so") == 0;
  return strcmp (filter, "cow") == 0;
}

/* OPTIONS comes after "-". */
static bool
short_options (const char *options, enum next_word *next)
{
  for (; *options; ++options) {
    if (*options == 'r')
      return true;
    if (strchr (WITH_VALUE, *options)) {
      if (options[1] == '\0')
        *next = NEXT_VALUE;
      return false;
    }
  }
  return false;
}

/* OPTION comes after "--". */
static bool
long_option (const char *option, enum next_word *next)
{
  size_t len = strcspn (option, "=");

  if (shortens (option, len, "filter", SHORTEST_FILTER)) {
    if (option[len] == '=')
      return is_cow_filter (option + len + 1);
    *next = NEXT_FILTER;
    return false;
  }
  return option[len] == '\0' &&
    (shortens (option, len, "readonly", SHORTEST_READ_ONLY) ||
     shortens (option, len, "read-only", SHORTEST_READ_ONLY));
}

static bool
word_is_read_only (const char *word, enum next_word *next)
{
  enum next_word this = *next;

  *next = NEXT_ANY;
  if (this == NEXT_FILTER)
    return is_cow_filter (word);
  if (this == NEXT_VALUE || word[0] != '-')
    return false;
  return word[1] == '-' ? long_option (word + 2, next) :
    short_options (word + 1, next);
}

bool
started_read_only (void)
{
  /* The first word is nbdkit's name. */
  enum next_word next = NEXT_VALUE;
  bool read_only = false;
  char *word = NULL;
  size_t size = 0;
  FILE *fp = fopen ("/proc/self/cmdline", "re");

  if (!fp)
    return false;
  while (!read_only && getdelim (&word, &size, '\0', fp) > 0 &&
         (next != NEXT_ANY || strcmp (word, "--") != 0))
    read_only = word_is_read_only (word, &next);
  free (word);
  fclose (fp);
  return read_only;
}
