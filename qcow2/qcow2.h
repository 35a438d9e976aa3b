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
  /* The format of the top image: "raw", or "qcow2", which NULL means.  A
   * raw image has neither snapshots nor a backing file, and is opened
   * for reading only.
   */
  const char *format;

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

  /* For qcow2_check alone: images are opened that are too damaged to be
   * used, and nothing but a check changes them, WRITABLE or not.  No
   * warning tells that they are damaged; if they can't be written, that is
   * an error.
   */
  bool check;

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

/* Fill in the defaults: locks on, repair on, nothing allowed but the directory
 * of the image, default cache sizes.
 */
extern void qcow2_options_init (struct qcow2_options *options);

/* What of qcow2_open's errors OPTIONS alone tell: values that don't go
 * together, directories in allow_dirs that are none.
 */
extern int qcow2_options_check (const struct qcow2_options *options,
                                struct qcow2_error *error);

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
 * is read, and all is as before.  But where writing has ended already (the
 * image is corrupt, a flush has failed), it is read all the same; after a
 * flush that failed it is read-only from then on.  After any other error no
 * view can be opened, which gives this error again, until a later
 * qcow2_reopen succeeds.  That is so, too, where an image names another
 * backing file or data file than before: these are opened by qcow2_open
 * alone.
 */
extern int qcow2_reopen (struct qcow2 *image, struct qcow2_error *error);

/*----- Facts about an open image -----*/

/* 1 for a raw image, which has no clusters. */
extern uint64_t qcow2_cluster_size (const struct qcow2 *image);

extern bool qcow2_is_raw (const struct qcow2 *image);

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
  uint64_t icount;              /* instructions executed until then, or
                                   QCOW2_NO_ICOUNT */
};

#define QCOW2_NO_ICOUNT UINT64_MAX

extern size_t qcow2_nr_snapshots (const struct qcow2 *image);

/* INDEX is below qcow2_nr_snapshots.  Strings live as long as IMAGE. */
extern void qcow2_snapshot_get (const struct qcow2 *image, size_t index,
                                struct qcow2_snapshot_info *info);

/* Find a snapshot as qemu-img does: by id, else by name.  Returns its
 * index, or -ENOENT.
 */
extern int qcow2_snapshot_find (const struct qcow2 *image,
                                const char *id_or_name);

/* The first with this name, whatever ids there are. */
extern int qcow2_snapshot_find_name (const struct qcow2 *image,
                                     const char *name);

/*----- What an image says about itself -----*/

struct qcow2_bitmap_info {
  const char *name;
  uint64_t granularity_bytes;
  bool in_use;                  /* or was not closed properly */
  bool automatic;               /* enabled when the image is opened */
};

#define QCOW2_LUKS_SLOTS 8

/* From a LUKS header.  Strings are not trusted, and may be any bytes. */
struct qcow2_luks_info {
  char cipher[33];              /* "aes" */
  char mode[33];                /* "xts-plain64" */
  char hash[33];
  char uuid[41];
  uint32_t key_bytes;
  uint64_t payload_offset;      /* bytes */
  uint32_t master_key_iterations;
  struct {
    bool active;
    uint32_t iterations;
    uint64_t key_offset;        /* bytes */
    uint32_t stripes;
  } slots[QCOW2_LUKS_SLOTS];
};

enum qcow2_encryption {
  QCOW2_ENCRYPTION_NONE,
  QCOW2_ENCRYPTION_AES,         /* QEMU's old method */
  QCOW2_ENCRYPTION_LUKS,
};

/* Header, snapshots and bitmaps of one file.  Strings may be NULL. */
struct qcow2_info {
  const char *filename;         /* as opened */
  bool is_raw;
  uint64_t size_bytes;          /* of the disk */
  int64_t disk_bytes;           /* that the file takes on its host; -1: not
                                   known */
  struct qcow2_info *backing;   /* if it was asked for */

  /* Of qcow2 images. */
  unsigned version;             /* 2 or 3 */
  uint64_t cluster_bytes;
  unsigned refcount_bits;
  const char *compression;      /* "zlib", "zstd" */
  bool dirty, corrupt, lazy_refcounts, extended_l2;
  enum qcow2_encryption encryption;
  struct qcow2_luks_info luks;  /* with QCOW2_ENCRYPTION_LUKS */

  const char *backing_name;     /* as it stands in the image */
  const char *backing_filename; /* from here; NULL where that is not known:
                                   the name is no path */
  const char *backing_format;
  const char *data_file;
  bool external_data, data_file_raw;

  const struct qcow2_snapshot_info *snapshots;
  size_t nr_snapshots;
  const struct qcow2_bitmap_info *bitmaps;
  size_t nr_bitmaps;
};

/* Read what the image FILENAME says about itself, encrypted or not.  No
 * data file is opened, and backing files only with CHAIN, each under the
 * rules of qcow2_open.  Of OPTIONS only what is about opening files for
 * reading counts.  Memory is bounded by the sizes of the snapshot table and
 * the bitmap directory in each file.  The caller frees *INFO; errors are
 * those of qcow2_open.
 */
extern int qcow2_info_read (const char *filename,
                            const struct qcow2_options *options, bool chain,
                            struct qcow2_info **info,
                            struct qcow2_error *error);

/* With those of the backing files.  INFO may be NULL. */
extern void qcow2_info_free (struct qcow2_info *info);

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
 * is freed, as for closing the image; errors are logged.  Without locks an
 * error ends writing, since others may write from now on: what was not flushed
 * may be lost, and later requests fail until qcow2_reopen.  VIEW may be NULL.
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

/* What a range is made of, and where. */
struct qcow2_map_extent {
  uint64_t offset;
  uint64_t count;
  unsigned depth;               /* in the chain, 0 is the top */
  bool present;                 /* mapped by the file at that depth; if
                                   not, nothing below holds it, either */
  bool data;                    /* mapped to data */
  bool zero;                    /* reads as zeros; with DATA: since the file
                                   has a hole there */
  bool compressed;
  const char *filename;         /* that has space for it; NULL: none, or
                                   compressed */
  uint64_t host_offset;         /* in that file */
};

/* Called with ascending, adjacent, merged extents; a result other than
 * 0 ends the walk.  EXTENT lives only as long as the call, its filename
 * as long as the image.
 */
typedef int qcow2_map_fn (void *opaque,
                          const struct qcow2_map_extent *extent);

/* Tell FN how the range is mapped along the whole chain: all of it, unlike
 * qcow2_extents, and with more detail, as QEMU tells it: holes in a file
 * count only in a raw one, and in an image whose clusters were allocated
 * beforehand.  The last 512 bytes of a raw disk may lie past its end.
 * Returns 0, the callback's result, or a negative errno; FN has been told of
 * all that comes before the error then.
 */
extern int qcow2_map (struct qcow2_view *view, uint64_t count,
                      uint64_t offset, qcow2_map_fn *fn, void *opaque);

/* Load the range into the caches, as far as they reach, and tell the
 * operating system that it will be read.
 */
extern int qcow2_prefetch (struct qcow2_view *view, uint64_t count,
                           uint64_t offset);

/*----- Measuring -----*/

/* What a new qcow2 image is to be like. */
struct qcow2_measure_options {
  uint64_t cluster_bytes;       /* 512 to 2 MiB */
  unsigned refcount_bits;       /* 1 to 64 */
  bool extended_l2;
  bool all_data;                /* space for the whole disk is taken at once */
};

struct qcow2_measure {
  uint64_t required_bytes;      /* of the file, at first */
  uint64_t fully_allocated_bytes; /* when all of the disk is written */
};

/* How large will an image for a disk of SIZE_BYTES be, if it holds what
 * VIEW, which has that size, reads as something else than zeros?  NULL: an
 * empty disk.  The numbers are upper bounds, those of QEMU.  -EFBIG for what
 * the format can't hold; errors of qcow2_map.
 */
extern int qcow2_measure (struct qcow2_view *view, uint64_t size_bytes,
                          const struct qcow2_measure_options *options,
                          struct qcow2_measure *measure,
                          struct qcow2_error *error);

/* How much the bitmaps of an image for a disk of SIZE_BYTES add, if they
 * are copied to one with clusters of CLUSTER_BYTES.
 */
extern uint64_t qcow2_measure_bitmaps (const struct qcow2_info *info,
                                       uint64_t cluster_bytes);

/*----- Checking -----*/

/* Counted as `qemu-img check' counts. */
struct qcow2_check_result {
  uint64_t corruptions;         /* refcounts too low, wrong COPIED flags, bad
                                   entries */
  uint64_t leaks;               /* clusters whose refcount is too high */
  uint64_t corruptions_fixed;   /* these do not count above */
  uint64_t leaks_fixed;
  uint64_t check_errors;        /* what could not be checked */
  uint64_t image_end_bytes;     /* where the last cluster in use ends */

  /* Of the active layer. */
  uint64_t total_clusters;      /* of the disk */
  uint64_t allocated_clusters;
  uint64_t fragmented_clusters; /* compressed, or not behind the one before */
  uint64_t compressed_clusters;
};

enum qcow2_repair {
  QCOW2_REPAIR_NONE,
  QCOW2_REPAIR_LEAKS,           /* only refcounts that are too high */
  QCOW2_REPAIR_ALL,             /* all that can be repaired */
};

/* The functions may be NULL; each is called by one thread at a time. */
struct qcow2_check_options {
  enum qcow2_repair repair;
  unsigned nr_threads;          /* 0: one for each CPU; at most 16 are used */

  /* Called with a text without newline for each finding, and each change. */
  void (*found) (void *opaque, const char *text);

  /* DONE of TOTAL (in whatever unit) is done. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* Is the metadata of the image consistent?  It is open for reading, or with
 * qcow2_options.check (else -EBUSY), and no other call on IMAGE changes it
 * meanwhile.  Its backing and data files are not looked at.  RESULT counts
 * what is wrong.
 *
 * With OPTIONS (may be NULL: nothing is changed) it is repaired, too, if it
 * is open with qcow2_options.check and writable (else -EROFS).  RESULT counts
 * what was wrong and was repaired apart from what still is; numbers of
 * allocated clusters are there only if nothing was repaired: so check again
 * then.  If nothing is wrong any more, the dirty and the corrupt bit are
 * cleared.  Whenever it ends, by power failure too, guests see what they saw
 * before, and the next repair goes on.  Nothing that
 * may be in use becomes free: as long as something is wrong that can't be
 * repaired, leaks are left alone.
 *
 * Takes 4 1/4 bytes of memory for each cluster of the file (none where
 * nothing is referenced; 8 1/4 where clusters are used for several things),
 * and for each thread 1 MiB or a cluster, whichever is more; a repair also
 * takes up to 8 MiB for the refcount table and 128 MiB for a snapshot
 * table of the largest size.  -EFBIG, if the map would take more than 1 GiB.
 * -ENOTSUP: a raw image.
 */
extern int qcow2_check (struct qcow2 *image,
                        const struct qcow2_check_options *options,
                        struct qcow2_check_result *result,
                        struct qcow2_error *error);

/*----- Writing -----*/

/* Only the active layer of an image that is open for writing, and not after
 * writing has ended: the image is corrupt, or a flush has failed.
 */
extern bool qcow2_view_can_write (const struct qcow2_view *view);

/* These return -EROFS for a view that can't be written.  With FUA, what
 * was done is durable when they return (as if there always were FUA, if
 * the cache mode says so); else after the next qcow2_flush of any view.
 * After an error the range holds the old or the new content, byte by byte;
 * nothing else has changed.
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

/*----- State of virtual machines -----*/

/* What a virtual machine was when a snapshot was taken (memory, devices) is
 * kept behind the disk, apart from it: COUNT bytes from OFFSET on, which is
 * counted from the beginning of the state.  Both kinds of image that can't
 * have snapshots, raw ones and those with a data file: -ENOTSUP.
 *
 * Of a snapshot, the range lies within its vm_state_bytes, else -EINVAL.  For
 * the active layer nobody has written down how much there is: what was not
 * written reads as zeros.  What is in no cluster reads as zeros, too, never as
 * what a backing file has.  -EIO, with a message: the snapshot's tables end
 * before its state.
 */
extern int qcow2_vmstate_pread (struct qcow2_view *view, void *buf,
                                size_t count, uint64_t offset);

/* Write to the VM state of the active layer, of which a snapshot that is
 * created takes as much as it is told; durable as after qcow2_pwrite without
 * FUA.  From any thread, beside other requests, which wait now and then while
 * the L1 table is moved.  Bitmaps stay valid.  If the size of the disk
 * changes, what was written is lost, or somewhere else in the state.  Errors
 * as those of qcow2_pwrite, and -EFBIG: the format's limits.
 */
extern int qcow2_vmstate_pwrite (struct qcow2_view *view, const void *buf,
                                 size_t count, uint64_t offset);

/* Drop all VM state of the active layer; it reads as zeros then.  Durable on
 * return.  Snapshots keep theirs.  After an error, some may be dropped.
 */
extern int qcow2_vmstate_discard (struct qcow2_view *view);

/*----- Managing -----*/

enum qcow2_preallocation {
  QCOW2_PREALLOCATION_OFF,
  QCOW2_PREALLOCATION_METADATA, /* all is mapped, in a file with holes */
  QCOW2_PREALLOCATION_FALLOC,   /* the space is reserved, too */
  QCOW2_PREALLOCATION_FULL,     /* zeros are really written */
};

/* Give the disk SIZE_BYTES, any number, durably.  Requests wait meanwhile;
 * views of the active layer that are open have the new size, too.  It is a
 * change as a write is.  Internal snapshots keep their sizes.
 *
 * What is added reads as zeros; its space is taken now if PREALLOCATION says
 * so.  Only with MAY_SHRINK, and with no view open, the disk may become
 * smaller: what lies behind its new end is gone then, the file becomes smaller
 * where that was at its end, and has holes elsewhere if the image was opened
 * with discard.
 *
 * If power fails, the disk has the old size and content or the new one.
 * After an error that is so, too: where it was made smaller and only giving
 * back space has failed, the message says so, and the space may leak.
 *
 * -EROFS: not open for writing; -EBUSY: a view is open, and the size is
 * smaller (none may be opened meanwhile); -ENOTSUP: the disk is larger, and
 * may not shrink; there are valid dirty bitmaps, or snapshots that don't tell
 * their sizes, as in images of version 2; -EINVAL: preallocation, and a
 * smaller size; -EFBIG: the format's limits.
 */
extern int qcow2_resize (struct qcow2 *image, uint64_t size_bytes,
                         enum qcow2_preallocation preallocation,
                         bool may_shrink, struct qcow2_error *error);

/*----- Managing internal snapshots -----*/

/* These work on an image in use: requests in progress are waited for, new
 * ones wait, and the image is at rest before and after.  No call that takes,
 * gives or looks up the index of a snapshot may be in progress on IMAGE
 * meanwhile, and what qcow2_snapshot_get has given is void afterwards.
 *
 * After an error all is as before, and the call may be made again, unless
 * writing has ended (a flush or the header could not be written): then the
 * image is read-only until it is opened again, and as before or as after.
 * An image of version 3 carries the dirty bit meanwhile, so that what a crash
 * has left is repaired by whoever opens it next; in one of version 2 it may
 * leave leaks and COPIED flags that are missing, which do no harm.  What could
 * not be cleaned up after an error, or after success, is left in the same way,
 * with a warning in the log.
 *
 * Memory: 4 bytes and 2 bits for each cluster of the file (8 bytes for
 * applying and deleting; touched only where something is referenced), 16
 * bytes for each L2 table, 4 MiB, and the snapshot table.
 *
 * Errors: -EROFS: not open for writing; -ENOTSUP: with an external data file;
 * -ERANGE: a refcount would not fit in refcount_bits; -EFBIG: too many
 * snapshots, or a file too large for that memory (1 GiB); -EIO: metadata that
 * can't be right; and those of the system.
 */
struct qcow2_snapshot_params {
  const char *name;             /* at most 255 bytes, may be there already */
  const char *id;               /* at most 127 bytes; NULL: the highest
                                   number plus 1 */
  uint32_t date_sec;
  uint32_t date_nsec;
  uint64_t vm_clock_nsec;
  uint64_t vm_state_bytes;      /* 0: there is none */
  uint64_t icount;              /* or QCOW2_NO_ICOUNT */
};

/* Take a snapshot of the active layer.  Bitmaps stay valid.  With
 * vm_state_bytes, what the L1 table maps behind the end of the disk belongs
 * to the snapshot alone afterwards.  The new snapshot has the last index.
 * -EINVAL: name or id too long; -EEXIST: there is that id.
 */
extern int qcow2_snapshot_create (struct qcow2 *image,
                                  const struct qcow2_snapshot_params *params,
                                  struct qcow2_error *error);

/* Give the active layer the content, size and VM state of a snapshot, which
 * stays.  Views of the active layer that are open have them, too; what it had
 * is lost.  -EBUSY: the image has valid bitmaps, or the disk would get smaller
 * and there are open views; -ENOTSUP: the size is another one, and there are
 * snapshots that don't tell theirs, or the image is of version 2; -ENOENT: no
 * such index.
 */
extern int qcow2_snapshot_apply (struct qcow2 *image, size_t index,
                                 struct qcow2_error *error);

/* Delete a snapshot; those behind it have lower indexes then, views too.
 * Bitmaps stay valid.  -EBUSY: a view of it is open; -ENOENT: no such index.
 */
extern int qcow2_snapshot_delete (struct qcow2 *image, size_t index,
                                  struct qcow2_error *error);

/*----- Creating -----*/

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

  /* Make image and data file of regular files that are there already, or of
   * a device that is not empty, see qcow2_create.
   */
  bool overwrite;

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
 * as said last; after an error some may be set.  -EINVAL: an unknown name or a
 * wrong value; -ENOTSUP: something that QEMU has, and this engine has not;
 * -ENOMEM.
 */
extern int qcow2_create_option_parse (struct qcow2_create_options *options,
                                      const char *text,
                                      struct qcow2_error *error);

/* The two halves of it.  Call FN for each item of TEXT: a name alone has
 * the value "on", or with "no" before it "off".  What FN returns other than
 * 0 ends it and is returned; FN has set ERROR then.  -EINVAL: an item is
 * empty; -ENOMEM.
 */
typedef int qcow2_option_fn (void *opaque, const char *name,
                             const char *value, struct qcow2_error *error);

extern int qcow2_option_list_parse (const char *text, qcow2_option_fn *fn,
                                    void *opaque, struct qcow2_error *error);

/* Set one; errors as above. */
extern int qcow2_create_option_set (struct qcow2_create_options *options,
                                    const char *name, const char *value,
                                    struct qcow2_error *error);

/* The size in bytes that qcow2_create would give the disk, before it is
 * rounded.  Opens the backing file if that matters, or to see whether it is
 * there; changes nothing.  Errors of qcow2_create; whether other options go
 * together is not looked at.
 */
extern int qcow2_create_size (const char *filename, uint64_t size_bytes,
                              const struct qcow2_create_options *options,
                              uint64_t *disk_bytes,
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
 * With options->overwrite a regular file that is there loses its content,
 * but keeps what else it is (owner, mode, links), and a device is written
 * whatever is on it.  That is begun only when the options are known to be
 * good and all files are open and locked.  The backing file is not
 * overwritten (-EINVAL), by whichever name it is called.
 *
 * On success all is durable.  On error what was made is removed again; a
 * file whose content was lost already is left empty, and a device without a
 * header.  Should the machine or the process die meanwhile, a file may be
 * left that nobody takes for an image, since the header is written last; of
 * what is overwritten there is the old content as a whole, or no header.
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
