/* SPDX-License-Identifier: BSD-3-Clause */

/* Messages. */

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "message.h"

#define MAX_TEXT_BYTES 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char first_error[MAX_TEXT_BYTES]; /* of the engine; under lock */

static void __attribute__ ((__format__ (__printf__, 1, 0)))
print_error (const char *fs, va_list args)
{
  char text[MAX_TEXT_BYTES], harmless[2 * MAX_TEXT_BYTES];

  vsnprintf (text, sizeof text, fs, args);
  qcow2_error_escape (harmless, sizeof harmless, text);
  fflush (stdout);              /* in the order in which it was said */
  fprintf (stderr, IMG_NAME ": %s\n", harmless);
}

void
img_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  print_error (fs, args);
  va_end (args);
}

void
img_usage_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  print_error (fs, args);
  va_end (args);
  fprintf (stderr, "Try '" IMG_NAME " --help' for more information\n");
  exit (EXIT_FAILURE);
}

/*----- The engine's words -----*/

/* The engine calls its options by the names of the plugin's parameters. */
static const struct {
  const char *parameter, *option;
} names[] = {
  { "allow-dir=", "--allow-dir=" },
  { "backing-format=", "--backing-format=" },
  { "data-file=", "--data-file=" },
  { "data-file was given", "--data-file was given" },
  { "lock=off", "-U" },
};

/* Copy TEXT with the names of the tool's options.  A name begins a word:
 * what is part of a file's name is left alone, mostly.
 */
static void
translate (char *out, size_t size, const char *text)
{
  size_t pos = 0, i;
  char before = ' ';

  while (*text && pos + 32 < size) {
    for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
      size_t len = strlen (names[i].parameter);

      if ((before == ' ' || before == '(') &&
          strncmp (text, names[i].parameter, len) == 0) {
        pos += (size_t) snprintf (out + pos, size - pos, "%s",
                                  names[i].option);
        text += len;
        break;
      }
    }
    if (i < sizeof names / sizeof names[0]) {
      before = '=';
      continue;
    }
    before = *text;
    out[pos++] = *text++;
  }
  out[pos] = '\0';
}

/* Who changes an image has no choice of how it is opened. */
static void
cut_advice (char *text)
{
  char *advice = strstr (text, " (write=off opens it");

  if (advice)
    *advice = '\0';
}

void
img_cut_share_advice (struct qcow2_error *error)
{
  char *advice = strstr (error->message, " (lock=off opens it");

  if (advice)
    *advice = '\0';
}

void
img_engine_error (struct qcow2_error *error)
{
  char translated[MAX_TEXT_BYTES];

  img_cut_share_advice (error);
  translate (translated, sizeof translated, error->message);
  cut_advice (translated);
  img_error ("%s", translated);
}

void
img_open_error (const char *filename, const struct qcow2_error *error,
                const char *format_option)
{
  const char *text = error->message;
  char harmless[MAX_TEXT_BYTES], translated[MAX_TEXT_BYTES];
  size_t len;

  /* The name comes first in most messages, but is said already. */
  qcow2_error_escape (harmless, sizeof harmless, filename);
  len = strlen (harmless);
  if (strncmp (text, harmless, len) == 0 && strncmp (text + len, ": ", 2) == 0)
    text += len + 2;
  translate (translated, sizeof translated, text);
  cut_advice (translated);

  if (format_option && strstr (translated, "not in qcow2 format"))
    img_error ("Could not open '%s': %s; if it is a raw image, use %s raw",
               filename, translated, format_option);
  else
    img_error ("Could not open '%s': %s", filename, translated);
}

void
img_log (void *writes, enum qcow2_log_level level, const char *text)
{
  const bool *is_writer = writes;

  if (level == QCOW2_LOG_WARNING) {
    if (is_writer && *is_writer)
      img_error ("warning: %s", text);
    return;
  }
  pthread_mutex_lock (&lock);
  if (first_error[0] == '\0')
    snprintf (first_error, sizeof first_error, "%s", text);
  pthread_mutex_unlock (&lock);
}

const char *
img_logged_error (void)
{
  const char *text;

  pthread_mutex_lock (&lock);
  text = first_error[0] != '\0' ? first_error : NULL;
  pthread_mutex_unlock (&lock);
  return text;
}

const char *
img_reason (int err)
{
  const char *text = img_logged_error ();

  return text ? text : strerror (err);
}
