/* SPDX-License-Identifier: BSD-3-Clause */

/* The spellings of a backing file's name: what they come to, and that
 * nothing is guessed or passed over in them.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/backing-name.h"
#include "tap.h"

static const char *
or_none (const char *s)
{
  return s ? s : "(none)";
}

/* For the description of a check, which is one line. */
static const char *
shown (const char *name)
{
  static char text[60];

  qcow2_error_escape (text, sizeof text, name);
  return text;
}

static void
gives_in (const char *image, const char *name, const char *path,
          const char *format)
{
  struct backing_name out;
  struct qcow2_error error = { "" };
  int r = backing_name_parse (name, image, &out, &error);

  if (!ok (r == 0, "%s in %s is understood", shown (name), image)) {
    printf ("#   %s\n", error.message);
    return;
  }
  is_str (out.path, path, "... as the right path");
  is_str (or_none (out.format), or_none (format), "... as %s",
          or_none (format));
  backing_name_clear (&out);
  ok (!out.path && !out.format, "... and nothing is left of it");
}

static void
gives (const char *name, const char *path, const char *format)
{
  gives_in ("/images/top.qcow2", name, path, format);
}

static void
refused (const char *name, int err, const char *text)
{
  struct backing_name out;
  struct qcow2_error error = { "" };
  int r = backing_name_parse (name, "/images/top.qcow2", &out, &error);

  is_int (r, -err, "%s: %s", shown (name), strerror (err));
  if (!ok (strstr (error.message, text) != NULL, "... says: %s",
           shown (text)))
    printf ("#   got  %s\n", error.message);
  ok (!out.path && !out.format, "... and gives nothing");
}

static void
paths (void)
{
  gives ("base.qcow2", "/images/base.qcow2", NULL);
  gives ("/other/base.qcow2", "/other/base.qcow2", NULL);
  gives ("../base", "/images/../base", NULL);
  gives ("./a:b", "/images/./a:b", NULL);
  gives ("dir/a:b", "/images/dir/a:b", NULL);
  gives ("file:base.qcow2", "/images/base.qcow2", NULL);
  gives ("file:/other/base", "/other/base", NULL);
  gives ("file:a:b", "/images/a:b", NULL);
  gives ("host_device:/dev/vg/base", "/dev/vg/base", NULL);
  gives ("json", "/images/json", NULL);
  gives ("\xc3\xa4 \x1b\n.qcow2", "/images/\xc3\xa4 \x1b\n.qcow2", NULL);

  gives_in ("top.qcow2", "base.qcow2", "base.qcow2", NULL);
  gives_in ("./top.qcow2", "base.qcow2", "./base.qcow2", NULL);
  gives_in ("/top.qcow2", "base.qcow2", "/base.qcow2", NULL);
  gives_in ("a:b/top.qcow2", "base.qcow2", "a:b/base.qcow2", NULL);
  gives_in ("rel/top", "file:base", "rel/base", NULL);
  gives_in ("rel/top", "json:{\"file.filename\":\"base\"}", "rel/base", NULL);
}

static void
json (void)
{
  gives ("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
         "\"filename\":\"/b\"}}", "/b", "qcow2");
  gives ("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"host_device\","
         "\"filename\":\"/dev/sdb\"}}", "/dev/sdb", "raw");
  gives ("json:{\"file\":{\"filename\":\"b\"},\"driver\":\"raw\"}",
         "/images/b", "raw");
  gives ("json:{\"driver\":\"qcow2\",\"file.driver\":\"file\","
         "\"file.filename\":\"b\"}", "/images/b", "qcow2");
  gives ("json:{\"driver\":\"qcow2\",\"file.driver\":\"file\","
         "\"file\":{\"filename\":\"b\"}}", "/images/b", "qcow2");
  gives ("json:{\"driver\":\"file\",\"filename\":\"b\"}", "/images/b", NULL);
  gives ("json:{\"driver\":\"host_device\",\"filename\":\"/dev/b\"}",
         "/dev/b", NULL);
  gives ("json:{\"file.filename\":\"b\"}", "/images/b", NULL);
  gives ("json: { \"driver\" : \"raw\" , \"file.filename\" : \"b\" } ",
         "/images/b", "raw");
  gives ("json:{'driver':'qcow2','file':{'driver':'file','filename':'b'}}",
         "/images/b", "qcow2");
  gives ("json:{'file.filename':'it\\'s \"b\" \\\\ \\u00e4'}",
         "/images/it's \"b\" \\ \xc3\xa4", NULL);
  gives ("json:{\"file.filename\":\"it\\'s \\\"b\\\"\"}",
         "/images/it's \"b\"", NULL);
  /* Within json: a name is a path, whatever it looks like. */
  gives ("json:{\"file.filename\":\"nbd:x\"}", "/images/nbd:x", NULL);
  gives ("json:{\"file.filename\":\"file:x\"}", "/images/file:x", NULL);
}

static void
not_supported (void)
{
  refused ("nbd://host/export", ENOTSUP, "protocol \"nbd\"");
  refused ("http://host/x", ENOTSUP, "protocol \"http\"");
  refused ("base:1.qcow2", ENOTSUP, "protocol \"base\"");
  refused (":x", ENOTSUP, "protocol \"\"");
  refused ("JSON:{}", ENOTSUP, "protocol \"JSON\"");
  refused ("FILE:x", ENOTSUP, "protocol \"FILE\"");
  refused ("\x1b[2J:x", ENOTSUP, "protocol \"\\x1b[2J\"");
  refused ("json:{\"driver\":\"raw\",\"offset\":512,"
           "\"file.filename\":\"b\"}", ENOTSUP, "option \"offset\"");
  refused ("json:{\"driver\":\"raw\",\"size\":\"1\","
           "\"file.filename\":\"b\"}", ENOTSUP, "option \"size\"");
  refused ("json:{\"file\":{\"filename\":\"b\",\"locking\":\"off\"}}",
           ENOTSUP, "option \"file.locking\"");
  refused ("json:{\"file\":{\"file\":{\"filename\":\"b\"}}}", ENOTSUP,
           "option \"file.file\"");
  refused ("json:{\"file\":{\"file.filename\":\"b\"}}", ENOTSUP,
           "option \"file.file.filename\"");
  refused ("json:{\"file.\":\"b\"}", ENOTSUP, "option \"file.\"");
  refused ("json:{\"\":\"b\"}", ENOTSUP, "option \"\"");
  refused ("json:{\"Driver\":\"raw\"}", ENOTSUP, "option \"Driver\"");
  refused ("json:{\"\\u001b[31m\":1}", ENOTSUP, "option \"\\x1b[31m\"");
  refused ("json:{\"driver\":\"nbd\",\"file.filename\":\"b\"}", ENOTSUP,
           "driver \"nbd\"");
  refused ("json:{\"driver\":\"\",\"file.filename\":\"b\"}", ENOTSUP,
           "driver \"\"");
  refused ("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"https\","
           "\"filename\":\"b\"}}", ENOTSUP, "driver \"https\"");
  refused ("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"qcow2\","
           "\"filename\":\"b\"}}", ENOTSUP, "driver \"qcow2\"");
}

static void
malformed (void)
{
  char deep[20000];

  refused ("", EINVAL, "empty");
  refused ("file:", EINVAL, "empty");
  refused ("host_device:", EINVAL, "empty");
  refused ("json:", EINVAL, "json:");
  refused ("json:[]", EINVAL, "json:");
  refused ("json:{", EINVAL, "json:");
  refused ("json:{'", EINVAL, "json:");
  refused ("json:{'\\", EINVAL, "json:");
  refused ("json:{} x", EINVAL, "json:");
  refused ("json:{}", EINVAL, "no \"file.filename\"");
  refused ("json:{\"driver\":\"raw\",}", EINVAL, "json:");
  refused ("json:{\"driver\":\"file\"}", EINVAL, "no \"filename\"");
  refused ("json:{\"driver\":\"raw\",\"file\":{}}", EINVAL,
           "no \"file.filename\"");
  refused ("json:{\"driver\":\"raw\",\"file\":\"node0\"}", EINVAL,
           "\"file\" is no object");
  refused ("json:{\"driver\":{\"a\":1}}", EINVAL, "\"driver\" is no string");
  refused ("json:{\"driver\":1}", EINVAL, "\"driver\" is no string");
  refused ("json:{\"file.filename\":null}", EINVAL,
           "\"file.filename\" is no string");
  refused ("json:{\"file.filename\":\"\"}", EINVAL, "empty");
  refused ("json:{\"driver\":\"file\",\"filename\":\"\"}", EINVAL, "empty");
  refused ("json:{\"file.filename\":\"b\\u0000c\"}", EINVAL, "json:");
  refused ("json:{\"dri\\u0000ver\":\"b\"}", EINVAL, "json:");
  refused ("json:{\"file.filename\":\"\xff\"}", EINVAL, "\\xff");
  refused ("json:{\"driver\":\"raw\",\"driver\":\"raw\"}", EINVAL,
           "driver");
  refused ("json:{\"file\":{\"filename\":\"a\",\"filename\":\"b\"}}", EINVAL,
           "filename");
  refused ("json:{\"file.filename\":\"a\",\"file\":{\"filename\":\"b\"}}",
           EINVAL, "\"file.filename\" is there twice");
  refused ("json:{\"driver\":\"raw\",\"filename\":\"b\"}", EINVAL,
           "\"filename\" does not go with the driver \"raw\"");
  refused ("json:{\"filename\":\"b\"}", EINVAL, "\"filename\" does not go");
  refused ("json:{\"driver\":\"file\",\"filename\":\"b\","
           "\"file.filename\":\"c\"}", EINVAL,
           "\"file.filename\" does not go with the driver \"file\"");

  memcpy (deep, "json:{\"file\":", 13);
  memset (deep + 13, '[', sizeof deep - 13);
  deep[sizeof deep - 1] = '\0';
  refused (deep, EINVAL, "json:");
}

int
main (void)
{
  paths ();
  json ();
  not_supported ();
  malformed ();
  return tap_done ();
}
