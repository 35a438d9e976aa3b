/* SPDX-License-Identifier: BSD-3-Clause */

/* Damaged images that are open for writing, and what must become of them:
 * nothing is written but the corrupt bit, and what is sound can be read.
 */

#ifndef DAMAGED_IMAGE_H
#define DAMAGED_IMAGE_H

#include <errno.h>
#include <stdlib.h>

#include "image-builder.h"
#include "image.h"
#include "qemu-image.h"
#include "tap.h"
#include "write-log.h"

#define IMAGE "disk.qcow2"
#define KiB UINT64_C (1024)
#define CLUSTER (4 * KiB)
#define L1_SPAN (2048 * KiB)
#define DISK (4 * L1_SPAN)

/* Of the guest: what is patched, and what is sound. */
#define BAD (64 * KiB)
#define SOUND 0

/* Where in the file the bytes of feature bits are, and the one that holds
 * all incompatible ones that there are.
 */
#define FEATURES 72
#define INCOMPATIBLE_LOW (FEATURES + 7)

/*----- The image -----*/

enum target {
  HEADER, L1_TABLE, L2_TABLE, REFCOUNT_TABLE, REFCOUNT_BLOCK, SNAPSHOT_TABLE,
  SNAPSHOT_L1, BITMAP_DIRECTORY, NR_TARGETS,
};

extern const char *const target_names[NR_TARGETS];

extern struct image img;
extern uint64_t place[NR_TARGETS];

/* Data at 0, and under the second to fourth L1 entry; a snapshot with
 * tables of its own; valid bitmaps (not in version 2).  The file is open, to
 * be patched.
 */
extern void build (unsigned version);

extern void set_refcount (uint64_t offset, unsigned refcount);
extern uint64_t l1_entry (unsigned index);
extern void set_l1_entry (unsigned index, uint64_t entry);

enum entry_kind { OWNED, SHARED, COMPRESSED, ALLOCATED_ZERO, NR_ENTRY_KINDS };

/* Let the L2 entry of BAD name metadata. */
extern void patch_entry (enum target target, enum entry_kind kind);

/*----- The engine -----*/

extern struct write_log logged;
extern struct qcow2 *image;
extern struct qcow2_view *view;
extern const char *data_file;   /* to open it with, or NULL */

extern void open_image (bool writable, bool fixed_size);
extern int close_image (void);

/* Does the cluster at OFFSET hold BYTE only? */
extern bool reads_as (uint64_t offset, char byte);

enum operation {
  WRITE, WRITE_PART, WRITE_LONG, ZERO, ZERO_KEEP_SPACE, TRIM, NR_OPERATIONS,
};

extern const char *const operation_names[NR_OPERATIONS];

/* On the cluster at OFFSET, or some around it; what is written is 0x77. */
extern int operate (enum operation operation, uint64_t offset);

/*----- What should have become of it -----*/

/* Does a message say that the image is corrupt, as it must? */
extern bool says_corrupt (void);

/* Do all operations and flush give EIO, elsewhere too? */
extern bool refuses_all (void);

/* Is the file as BEFORE, but for feature bits? */
extern bool file_is_unharmed (const uint8_t *before, uint64_t before_bytes);

extern bool corrupt_bit_is_set (void);

/* The patches were made, the file is closed.  One operation must fail, and
 * what follows from that must be so.
 */
static inline void
expect_refused (const char *what, enum operation operation, uint64_t offset,
                bool fixed_size)
{
  uint64_t bytes;
  uint8_t *before = file_content (IMAGE, &bytes);

  open_image (true, fixed_size);
  is_int (operate (operation, offset), -EIO, "%s: refused", what);
  if (!ok (says_corrupt (), "%s: the message says so", what))
    printf ("#   %s\n", logged.message);
  ok (reads_as (SOUND, 0x11), "%s: what is sound can be read", what);
  ok (refuses_all (), "%s: nothing is written or flushed any more", what);
  is_int (close_image (), -EIO, "%s: closing says so", what);
  ok (file_is_unharmed (before, bytes), "%s: the file is unharmed", what);
  free (before);
  if (img.version < 3)
    return;                     /* it has no such bit */
  ok (corrupt_bit_is_set (), "%s: the corrupt bit is set", what);
  open_image (true, false);
  ok (!qcow2_view_can_write (view) && reads_as (SOUND, 0x11),
      "%s: opened again, it can be read only", what);
  close_image ();
}

#endif /* DAMAGED_IMAGE_H */
