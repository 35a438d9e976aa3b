/* SPDX-License-Identifier: BSD-3-Clause */

/* The qcow2 engine: public API.
 *
 * A struct qcow2 is an open image with its backing chain.  A struct
 * qcow2_view is one disk in it that a guest can see: the active layer,
 * or an internal snapshot.  Both may be used from many threads at once.
 *
 * Functions return 0 (or what they say), or a negative errno.
 */

#ifndef QCOW2_H
#define QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "storage.h"

struct qcow2;
struct qcow2_view;

/*----- Opening -----*/

/* Which storage a hook is asked about. */
enum qcow2_storage_role {
  QCOW2_STORAGE_IMAGE,          /* a qcow2 file */
  QCOW2_STORAGE_DATA,           /* an external data file */
  QCOW2_STORAGE_RAW,            /* a raw backing file */
};

enum qcow2_log_level {
  QCOW2_LOG_WARNING,            /* the user should know */
  QCOW2_LOG_ERROR,              /* why a request failed */
};

/* Refcounts need not be right on disk while an image is in use, if its
 * header says that it has to be repaired otherwise (the dirty bit).
 */
enum qcow2_lazy_refcounts {
  QCOW2_LAZY_AS_IMAGE,          /* as the image's header says */
  QCOW2_LAZY_ON,                /* version 3 only */
  QCOW2_LAZY_OFF,
};

/* How what is written gets to the disk, named as QEMU names it. */
enum qcow2_cache_mode {
  QCOW2_CACHE_WRITEBACK,        /* through the page cache */
  QCOW2_CACHE_WRITETHROUGH,     /* ... each request durable when answered */
  QCOW2_CACHE_NONE,             /* past the page cache, all of the chain */
  QCOW2_CACHE_DIRECTSYNC,       /* ... each request durable when answered */
  QCOW2_CACHE_UNSAFE,           /* nothing is ever made durable */
};

/* What becomes of zeros that a guest writes. */
enum qcow2_detect_zeroes {
  QCOW2_DETECT_ZEROES_OFF,      /* they are written */
  QCOW2_DETECT_ZEROES_ON,       /* as qcow2_zero without MAY_TRIM */
  QCOW2_DETECT_ZEROES_UNMAP,    /* as qcow2_zero with it */
};

struct qcow2_options {
  /* The format of backing files for which the header names none:
   * "qcow2", "raw", or NULL, in which case such an image is refused.
   */
  const char *backing_format;

  /* Open the image alone: what its backing file would give is zeros. */
  bool no_backing;

  /* The external data file of the top image, as the operator names it.
   * NULL: the name in the image, if an allowed directory holds it.
   */
  const char *data_file;

  /* Directories from which an image may name further files, besides
   * that of the top image for backing files.
   */
  const char *const *allow_dirs;
  size_t nr_allow_dirs;
  bool allow_none;              /* not even the top image's directory */

  /* Take QEMU's locks on each file. */
  bool lock;

  /* Open the top image for writing.  Where that can't be, a warning says
   * why, and it is opened read-only: with a reader's locks if it is the
   * image or its data file that may not be written.  If it was not closed
   * properly, it is repaired first, or if !REPAIR opened read-only.
   */
  bool writable;

  /* Not to be set without locks, where the image may be dirty because
   * another program is about to write more of it.
   */
  bool repair;

  enum qcow2_lazy_refcounts lazy_refcounts;

  /* Give space that becomes free back to the host. */
  bool discard;

  enum qcow2_cache_mode cache;
  enum qcow2_detect_zeroes detect_zeroes; /* UNMAP only with DISCARD */

  uint64_t cache_bytes;            /* metadata cache, whole chain */
  uint64_t compressed_cache_bytes; /* decompressed clusters, whole chain */

  /* How many backing files may stand in a row; at most
   * QCOW2_MAX_CHAIN_DEPTH.
   */
  unsigned max_chain_depth;

  /* Called with a text without newline, from any thread.  May be NULL. */
  void (*log) (void *opaque, enum qcow2_log_level level, const char *text);

  /* Called for each storage after it was opened; puts another one
   * before it that takes ownership of it.  May be NULL.  On error the
   * engine still owns *S.
   */
  int (*wrap) (void *opaque, enum qcow2_storage_role role,
               const char *filename, struct qcow2_storage **s);

  void *opaque;                 /* for log and wrap */
};

#define QCOW2_MAX_CHAIN_DEPTH 250
#define QCOW2_DEFAULT_CHAIN_DEPTH 200
#define QCOW2_DEFAULT_CACHE_BYTES (32u << 20)
#define QCOW2_DEFAULT_COMPRESSED_CACHE_BYTES (32u << 20)

/* Fill in the defaults: locks on, repair on, nothing allowed but the directory of
 * the image, default cache sizes.
 */
extern void qcow2_options_init (struct qcow2_options *options);

/* Open FILENAME with its data file and its backing chain.  Everything
 * OPTIONS points to is copied, but for the functions.  No thread is
 * started before the first write.
 */
extern int qcow2_open (const char *filename,
                       const struct qcow2_options *options,
                       struct qcow2 **image, struct qcow2_error *error);

/* Make everything durable and free what can be freed, as for closing;
 * waits for the requests in progress.  Further requests that change the
 * image fail.  Returns what went wrong.
 */
extern int qcow2_finish (struct qcow2 *image);

/* Make everything durable, and close.  Views that are still open are
 * closed, too: no request may be in progress.  IMAGE may be NULL.
 * Returns what went wrong, if anything did; IMAGE is gone all the same.
 */
extern int qcow2_close (struct qcow2 *image);

/* Read the image again, through the descriptors that are open: header,
 * tables, sizes and snapshots of it and of its backing files, with empty
 * caches.  So what another program has changed meanwhile is seen.  No
 * view is open (else -EBUSY), and no other call on IMAGE but qcow2_finish
 * may be in progress; snapshots may have other indexes afterwards.
 *
 * What is open for writing is made durable first; if that fails, nothing
 * is read, and all is as before.  After any other error no view can be
 * opened, which gives this error again, until a later qcow2_reopen
 * succeeds.  That is so, too, where an image names another backing file
 * or data file than before: these are opened by qcow2_open alone.
 */
extern int qcow2_reopen (struct qcow2 *image, struct qcow2_error *error);

/*----- Facts about an open image -----*/

extern uint64_t qcow2_cluster_size (const struct qcow2 *image);

/* What is built in, for --dump-plugin: each call gives the next pair,
 * from *POS == 0 on; false at the end.
 */
extern bool qcow2_build_info (size_t *pos, const char **key,
                              const char **value);

/*----- Internal snapshots -----*/

struct qcow2_snapshot_info {
  const char *id;
  const char *name;
  uint64_t disk_size_bytes;
  uint64_t vm_state_bytes;
  uint32_t date_sec;            /* Unix time */
  uint32_t date_nsec;
  uint64_t vm_clock_nsec;       /* guest time since it was started */
};

extern size_t qcow2_nr_snapshots (const struct qcow2 *image);

/* INDEX is below qcow2_nr_snapshots.  Strings live as long as IMAGE. */
extern void qcow2_snapshot_get (const struct qcow2 *image, size_t index,
                                struct qcow2_snapshot_info *info);

/* Find a snapshot as qemu-img does: by id, else by name.  Returns its
 * index, or -ENOENT.
 */
extern int qcow2_snapshot_find (const struct qcow2 *image,
                                const char *id_or_name);

/*----- Views -----*/

#define QCOW2_ACTIVE ((size_t) -1)

/* Open the active layer (SNAPSHOT == QCOW2_ACTIVE) or the internal
 * snapshot with that index.  Views of one image share its caches;
 * opening a view that is open gives another reference to it.  *VIEW is
 * NULL on error.
 */
extern int qcow2_view_open (struct qcow2 *image, size_t snapshot,
                            struct qcow2_view **view,
                            struct qcow2_error *error);

/* No request of this reference is in progress.  With the last view of an
 * image that was changed everything is made durable, and what can be freed
 * is freed, as for closing the image; errors are logged.  VIEW may be
 * NULL.
 */
extern void qcow2_view_close (struct qcow2_view *view);

/* The virtual size in bytes: any number, also zero. */
extern uint64_t qcow2_view_size (const struct qcow2_view *view);

/* Read COUNT bytes at guest OFFSET.  The range lies within the view. */
extern int qcow2_pread (struct qcow2_view *view, void *buf, size_t count,
                        uint64_t offset);

enum qcow2_extent {
  QCOW2_EXTENT_DATA,            /* may hold anything */
  QCOW2_EXTENT_ZERO,            /* data that the storage knows to be zeros */
  QCOW2_EXTENT_HOLE,            /* reads as zeros by metadata, as QEMU
                                   reports zero clusters of both kinds */
};

/* Called with ascending, adjacent, merged extents; a result other than
 * 0 ends the walk.
 */
typedef int qcow2_extent_fn (void *opaque, enum qcow2_extent type,
                             uint64_t offset, uint64_t count);

/* What the range is made of, along the whole chain.  The first extent
 * begins at OFFSET, none goes beyond OFFSET + COUNT; at least one is
 * reported, perhaps not the whole range (a walk is bounded).  Returns 0,
 * the callback's result, or a negative errno.
 */
extern int qcow2_extents (struct qcow2_view *view, uint64_t count,
                          uint64_t offset, qcow2_extent_fn *fn, void *opaque);

/* Load the range into the caches, as far as they reach, and tell the
 * operating system that it will be read.
 */
extern int qcow2_prefetch (struct qcow2_view *view, uint64_t count,
                           uint64_t offset);

/*----- Writing -----*/

/* Only the active layer of an image that is open for writing. */
extern bool qcow2_view_can_write (const struct qcow2_view *view);

/* These return -EROFS for a view that can't be written.  With FUA, what
 * was done is durable when they return (as if there always were FUA, if
 * the cache mode says so); else after the next qcow2_flush of any view.  After an error the range holds the old or the new
 * content, byte by byte; nothing else has changed.
 */
extern int qcow2_pwrite (struct qcow2_view *view, const void *buf,
                         size_t count, uint64_t offset, bool fua);

/* The range's content is not needed any more. */
extern int qcow2_trim (struct qcow2_view *view, uint64_t count,
                       uint64_t offset, bool fua);

/* The range reads as zeros afterwards.  MAY_TRIM: its space may be given
 * up.  FAST: -EOPNOTSUPP, and nothing is done, if it would be as slow as
 * writing.
 */
extern int qcow2_zero (struct qcow2_view *view, uint64_t count,
                       uint64_t offset, bool may_trim, bool fast, bool fua);

/* Make everything durable that was done before on any view. */
extern int qcow2_flush (struct qcow2_view *view);

/*----- Managing -----*/

/* Make the disk larger: SIZE_BYTES, any number.  What is added reads as
 * zeros, and the new size is durable on return.  Requests wait meanwhile.
 * Views of the active layer that are open have the new size, too.  It is
 * a change as a write is: bitmaps in the image are invalid then.  After
 * an error the disk has its old size.  -EROFS: not open for writing;
 * -ENOTSUP: SIZE_BYTES is less than the disk's size, or this is an image
 * of version 2 with snapshots, which don't tell their sizes; -EFBIG: the
 * format's limits.
 */
extern int qcow2_grow (struct qcow2 *image, uint64_t size_bytes,
                       struct qcow2_error *error);

/*----- Creating -----*/

enum qcow2_preallocation {
  QCOW2_PREALLOCATION_OFF,
  QCOW2_PREALLOCATION_METADATA, /* all is mapped, in a file with holes */
  QCOW2_PREALLOCATION_FALLOC,   /* the space is reserved, too */
  QCOW2_PREALLOCATION_FULL,     /* zeros are really written */
};

/* "No size was given." */
#define QCOW2_NO_SIZE UINT64_MAX

/* What `qemu-img create -o' knows. */
struct qcow2_create_options {
  unsigned version;             /* 2 (compat=0.10) or 3 (compat=1.1) */
  uint64_t cluster_bytes;
  uint64_t refcount_bits;
  bool extended_l2;
  bool lazy_refcounts;
  bool zstd;                    /* compression_type=zstd */
  enum qcow2_preallocation preallocation;
  uint64_t size_bytes;          /* of the option "size", or QCOW2_NO_SIZE */

  /* Malloced, or NULL. */
  char *backing_file;
  char *backing_format;
  char *data_file;
  bool data_file_raw;

  /* Do not look whether the backing file is there (qemu-img's -u). */
  bool unchecked_backing;

  /* Take QEMU's locks meanwhile. */
  bool lock;

  /* As in qcow2_options: called for each file, also the backing file. */
  int (*wrap) (void *opaque, enum qcow2_storage_role role,
               const char *filename, struct qcow2_storage **s);
  void *opaque;
};

/* Fill in the defaults: those of qemu-img, with locks. */
extern void qcow2_create_options_init (struct qcow2_create_options *options);

/* Free what the members point to, not OPTIONS. */
extern void qcow2_create_options_clear (struct qcow2_create_options *options);

/* Set what TEXT says: "name=value,name=value", with qemu-img's names and
 * values; a comma in a value is written twice.  What is said twice counts
 * as said last; after an error some may be set.  -EINVAL: an unknown name or a wrong value; -ENOTSUP:
 * something that QEMU has, and this engine has not; -ENOMEM.
 */
extern int qcow2_create_option_parse (struct qcow2_create_options *options,
                                      const char *text,
                                      struct qcow2_error *error);

/* Make a new image FILENAME of SIZE_BYTES, rounded up to 512 bytes; with
 * QCOW2_NO_SIZE, of options->size_bytes, else of the size of the backing
 * file.  The files that OPTIONS names are the operator's word.  Relative
 * names are relative to FILENAME, as when the image is opened.
 *
 * Image and data file are made anew: -EEXIST if one is there, which then
 * is not touched.  Only FILENAME may be a block device; if the area that
 * would be written on it (or its first MiB, if that is larger) does not
 * read as zeros, that is -EEXIST, too.
 *
 * On success all is durable.  On error what was made is removed again.
 * Should the machine or the process die meanwhile, a file may be left
 * that nobody takes for an image, since the header is written last.
 *
 * Further errors: -EINVAL for options that don't go together, -EFBIG for
 * a size that the format can't hold, and those of the system.
 */
extern int qcow2_create (const char *filename, uint64_t size_bytes,
                         const struct qcow2_create_options *options,
                         struct qcow2_error *error);

/* The name under which qcow2_create makes the data file, malloced, in
 * *NAME; NULL if there is to be none.
 */
extern int qcow2_create_data_file_name (const char *filename,
                                        const struct qcow2_create_options
                                        *options, char **name,
                                        struct qcow2_error *error);

#endif /* QCOW2_H */
