/* SPDX-License-Identifier: BSD-3-Clause */

/* JSON for the standard output.
 *
 * jansson keeps the values; they are printed here, since scripts may have
 * grown used to how QEMU lays them out.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "message.h"

#define INDENT 4

/*----- Building -----*/

static void *
need (void *p)
{
  if (!p) {
    img_error ("out of memory");
    exit (EXIT_FAILURE);
  }
  return p;
}

json_t *
img_json_object (void)
{
  return need (json_object ());
}

json_t *
img_json_array (void)
{
  return need (json_array ());
}

void
img_json_set (json_t *object, const char *key, json_t *value)
{
  if (json_object_set_new_nocheck (object, key, need (value)) != 0)
    need (NULL);
}

void
img_json_set_string (json_t *object, const char *key, const char *value)
{
  img_json_set (object, key, json_string_nocheck (value));
}

void
img_json_set_int (json_t *object, const char *key, uint64_t value)
{
  img_json_set (object, key, json_integer ((json_int_t) value));
}

void
img_json_set_bool (json_t *object, const char *key, bool value)
{
  img_json_set (object, key, json_boolean (value));
}

void
img_json_append (json_t *array, json_t *value)
{
  if (json_array_append_new (array, need (value)) != 0)
    need (NULL);
}

/*----- Printing for programs -----*/

/* The code point that TEXT begins with, in *VALUE, and its length; where
 * that is no UTF-8, one byte of U+FFFD.
 */
static size_t
next_code_point (const unsigned char *text, uint32_t *value)
{
  static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
  size_t len = text[0] < 0x80 ? 1 : text[0] < 0xc0 ? 0 : text[0] < 0xe0 ? 2 :
    text[0] < 0xf0 ? 3 : text[0] < 0xf8 ? 4 : 0;
  size_t i;

  *value = len == 1 ? text[0] : text[0] & (0x7f >> len);
  for (i = 1; i < len; ++i) {
    if ((text[i] & 0xc0) != 0x80) {
      len = 0;
      break;
    }
    *value = *value << 6 | (text[i] & 0x3f);
  }
  if (len == 0 || *value < smallest[len] || *value > 0x10ffff ||
      (*value >= 0xd800 && *value < 0xe000)) {
    *value = 0xfffd;
    return 1;
  }
  return len;
}

static void
print_code_point (uint32_t c)
{
  static const char special[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
  const char *p;

  if (c > 0 && c < 0x80 && (p = strchr (special, (int) c)) != NULL)
    printf ("\\%c", names[p - special]);
  else if (c >= 0x20 && c < 0x7f)
    putchar ((int) c);
  else if (c < 0x10000)
    printf ("\\u%04X", c);
  else
    printf ("\\u%04X\\u%04X", 0xd800 + ((c - 0x10000) >> 10),
            0xdc00 + ((c - 0x10000) & 0x3ff));
}

static void
print_string (const char *text)
{
  const unsigned char *p = (const unsigned char *) text;
  uint32_t c;

  putchar ('"');
  while (*p) {
    p += next_code_point (p, &c);
    print_code_point (c);
  }
  putchar ('"');
}

static void print_value (const json_t *value, int depth);

static void
new_line (const char *before, int depth)
{
  printf ("%s\n%*s", before, depth * INDENT, "");
}

static void
print_object (const json_t *object, int depth)
{
  const char *key, *before = "";
  json_t *member;

  putchar ('{');
  json_object_foreach ((json_t *) object, key, member) {
    new_line (before, depth + 1);
    print_string (key);
    printf (": ");
    print_value (member, depth + 1);
    before = ",";
  }
  new_line ("", depth);
  putchar ('}');
}

static void
print_array (const json_t *array, int depth)
{
  size_t i;

  putchar ('[');
  for (i = 0; i < json_array_size (array); ++i) {
    new_line (i > 0 ? "," : "", depth + 1);
    print_value (json_array_get (array, i), depth + 1);
  }
  new_line ("", depth);
  putchar (']');
}

static void
print_value (const json_t *value, int depth)
{
  if (json_is_object (value))
    print_object (value, depth);
  else if (json_is_array (value))
    print_array (value, depth);
  else if (json_is_string (value))
    print_string (json_string_value (value));
  else if (json_is_integer (value))
    printf ("%" JSON_INTEGER_FORMAT, json_integer_value (value));
  else
    printf (json_is_true (value) ? "true" : "false");
}

void
img_json_print (const json_t *value)
{
  print_value (value, 0);
  putchar ('\n');
}

/*----- Printing for people -----*/

static void
print_human_value (const json_t *value, int depth)
{
  char text[2048];
  size_t i;

  if (json_is_object (value))
    img_json_print_human (value, depth);
  else if (json_is_array (value)) {
    for (i = 0; i < json_array_size (value); ++i) {
      const json_t *item = json_array_get (value, i);
      bool composite = json_is_object (item) || json_is_array (item);

      printf ("%*s[%zu]:%c", depth * INDENT, "", i, composite ? '\n' : ' ');
      print_human_value (item, depth + 1);
      if (!composite)
        putchar ('\n');
    }
  }
  else if (json_is_string (value)) {
    qcow2_error_escape (text, sizeof text, json_string_value (value));
    printf ("%s", text);
  }
  else
    print_value (value, 0);
}

void
img_json_print_human (const json_t *object, int depth)
{
  const char *key;
  json_t *member;

  json_object_foreach ((json_t *) object, key, member) {
    bool composite = json_is_object (member) || json_is_array (member);
    const char *p;

    printf ("%*s", depth * INDENT, "");
    for (p = key; *p; ++p)
      putchar (*p == '-' ? ' ' : *p);
    printf (":%c", composite ? '\n' : ' ');
    print_human_value (member, depth + 1);
    if (!composite)
      putchar ('\n');
  }
}
