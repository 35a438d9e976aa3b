/* SPDX-License-Identifier: BSD-3-Clause */

/* The command line of a sub-command, and opening what it names. */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "message.h"
#include "options.h"

#define MAX_OPTIONS 64

enum shared_id {
  OBJECT = IMG_SHARED_ID,
  IMAGE_OPTS,
  OUTPUT,
  ALLOW_DIR,
  DATA_FILE,
  BACKING_FORMAT,
};

static const struct {
  struct img_option option;
  unsigned group;               /* 0: every command has it */
} shared_options[] = {
  { { 'h', "help", false }, 0 },
  { { OBJECT, "object", true }, 0 },
  { { IMAGE_OPTS, "image-opts", false }, 0 },
  { { 'f', NULL, true }, IMG_FORMAT },
  { { 'F', NULL, true }, IMG_FORMAT_2 },
  { { OUTPUT, "output", true }, IMG_OUTPUT },
  { { 'U', "force-share", false }, IMG_SHARE },
  { { 'p', NULL, false }, IMG_PROGRESS },
  { { 'q', NULL, false }, IMG_QUIET },
  { { 'T', NULL, true }, IMG_SRC_CACHE },
  { { ALLOW_DIR, "allow-dir", true }, IMG_FILES },
  { { DATA_FILE, "data-file", true }, IMG_FILES },
  { { BACKING_FORMAT, "backing-format", true }, IMG_FILES },
};

/* What getopt_long wants to know. */
struct syntax {
  struct option longs[MAX_OPTIONS + 1];
  size_t nr_longs;
  char shorts[2 * MAX_OPTIONS + 2];
};

static void
add_option (struct syntax *s, const struct img_option *o)
{
  size_t len = strlen (s->shorts);

  if (o->id < 256)
    snprintf (s->shorts + len, sizeof s->shorts - len, "%c%s", o->id,
              o->has_value ? ":" : "");
  if (o->name && s->nr_longs < MAX_OPTIONS)
    s->longs[s->nr_longs++] = (struct option) {
      o->name, o->has_value ? required_argument : no_argument, NULL, o->id,
    };
}

static void
make_syntax (struct syntax *s, unsigned shared, const struct img_option *own)
{
  size_t i;

  memset (s, 0, sizeof *s);
  s->shorts[0] = ':';
  for (i = 0; i < sizeof shared_options / sizeof shared_options[0]; ++i)
    if (!shared_options[i].group || shared_options[i].group & shared)
      add_option (s, &shared_options[i].option);
  for (; own && own->id; ++own)
    add_option (s, own);
}

/*----- The shared options -----*/

static void
set_output (struct img_options *options, const char *value)
{
  if (strcmp (value, "json") != 0 && strcmp (value, "human") != 0) {
    img_error ("--output must be used with human or json as argument.");
    exit (EXIT_FAILURE);
  }
  options->json = strcmp (value, "json") == 0;
}

static void
set_src_cache (const struct img_command *command, const char *value,
               struct qcow2_options *engine)
{
  static const struct {
    const char *name;
    enum qcow2_cache_mode mode;
  } modes[] = {
    { "directsync", QCOW2_CACHE_DIRECTSYNC },
    { "none", QCOW2_CACHE_NONE },
    { "unsafe", QCOW2_CACHE_UNSAFE },
    { "writeback", QCOW2_CACHE_WRITEBACK },
    { "writethrough", QCOW2_CACHE_WRITETHROUGH },
  };
  size_t i;

  for (i = 0; i < sizeof modes / sizeof modes[0]; ++i)
    if (strcmp (value, modes[i].name) == 0) {
      engine->cache = modes[i].mode;
      return;
    }
  img_error ("Invalid source cache option: %s", value);
  exit (command->error_status);
}

static void
add_allow_dir (struct qcow2_options *engine, const char *value)
{
  const char **all;

  if (strcmp (value, "none") == 0) {
    engine->allow_none = true;
    return;
  }
  all = realloc ((void *) engine->allow_dirs,
                 (engine->nr_allow_dirs + 1) * sizeof *all);
  if (!all) {
    img_error ("out of memory");
    exit (EXIT_FAILURE);
  }
  all[engine->nr_allow_dirs++] = value;
  engine->allow_dirs = all;
}

static void
set_backing_format (struct qcow2_options *engine, const char *value)
{
  if (strcmp (value, "qcow2") != 0 && strcmp (value, "raw") != 0)
    img_usage_error ("--backing-format must be used with qcow2 or raw as "
                     "argument.");
  engine->backing_format = value;
}

static void
set_shared (const struct img_command *command, int id, const char *value,
            struct img_options *options)
{
  switch (id) {
  case 'h':
    img_help (command);
    exit (EXIT_SUCCESS);
  case OBJECT:
    img_usage_error ("--object is not supported: there are no encrypted "
                     "images whose secrets could be given");
  case IMAGE_OPTS:
    img_usage_error ("--image-opts is not supported: give the name of a "
                     "file, and its format with -f");
  case 'f': options->format = value; break;
  case 'F': options->format_2 = value; break;
  case OUTPUT: set_output (options, value); break;
  case 'U': options->engine.lock = false; break;
  case 'p': options->progress = true; break;
  case 'q': options->quiet = true; break;
  case 'T': set_src_cache (command, value, &options->engine); break;
  case ALLOW_DIR: add_allow_dir (&options->engine, value); break;
  case DATA_FILE: options->engine.data_file = value; break;
  case BACKING_FORMAT: set_backing_format (&options->engine, value); break;
  }
}

static bool
is_own (const struct img_option *own, int id)
{
  for (; own && own->id; ++own)
    if (own->id == id)
      return true;
  return false;
}

void
img_options_parse (const struct img_command *command, int argc, char **argv,
                   unsigned shared, const struct img_option *own,
                   img_option_fn *fn, void *opaque,
                   struct img_options *options)
{
  struct syntax syntax;
  int id;

  memset (options, 0, sizeof *options);
  qcow2_options_init (&options->engine);
  options->engine.log = img_log;
  make_syntax (&syntax, shared, own);

  opterr = 0;
  while ((id = getopt_long (argc, argv, syntax.shorts, syntax.longs,
                            NULL)) != -1) {
    if (id == '?')
      img_usage_error ("unrecognized option '%s'", argv[optind - 1]);
    if (id == ':')
      img_usage_error ("missing argument for option '%s'", argv[optind - 1]);
    if (is_own (own, id))
      fn (opaque, id, optarg);
    else
      set_shared (command, id, optarg, options);
  }
  if (options->quiet)
    options->progress = false;
  options->files = argv + optind;
  options->nr_files = argc - optind;
}

void
img_options_clear (struct img_options *options)
{
  free ((void *) options->engine.allow_dirs);
}

/*----- Opening -----*/

int
img_open (const struct img_options *options, const char *filename,
          const char *format, const char *format_option,
          const char *data_file, struct img_image *image)
{
  struct qcow2_options engine = options->engine;
  struct qcow2_error error = { "" };
  int r;

  memset (image, 0, sizeof *image);
  image->filename = filename;
  engine.format = format;
  engine.data_file = data_file;
  r = qcow2_open (filename, &engine, &image->image, &error);
  if (r == 0)
    r = qcow2_view_open (image->image, QCOW2_ACTIVE, &image->view, &error);
  if (r == 0)
    return 0;
  if (engine.writable)
    img_cut_share_advice (&error);
  img_open_error (filename, &error, format ? NULL : format_option);
  img_close (image);
  return -1;
}

void
img_close (struct img_image *image)
{
  qcow2_view_close (image->view);
  qcow2_close (image->image);
  image->view = NULL;
  image->image = NULL;
}

uint64_t
img_disk_bytes (const struct img_image *image)
{
  uint64_t bytes = qcow2_view_size (image->view);

  return qcow2_is_raw (image->image) ? (bytes + 511) / 512 * 512 : bytes;
}
