/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage: where the bytes of an image live.
 *
 * The engine reaches every file (image, external data file, backing
 * files) through this vtable alone, so that the same engine runs over a
 * file, over a callback, or over a wrapper that makes requests fail.
 *
 * All members may be called from many threads at once.  A member
 * returns a negative errno on error.
 */

#ifndef QCOW2_STORAGE_H
#define QCOW2_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct qcow2_storage;

struct qcow2_storage_ops {
  /* Read up to COUNT bytes at OFFSET.  Returns the number of bytes
   * read.  Less than COUNT means nothing by itself; 0 means that there
   * is no byte at OFFSET (the end of the storage).
   */
  ssize_t (*pread) (struct qcow2_storage *s, void *buf, size_t count,
                    uint64_t offset);

  /* The current size in bytes. */
  int64_t (*size) (struct qcow2_storage *s);

  /* Does the storage know that bytes from OFFSET on are a hole, which
   * reads as zeros?  Sets *HOLE, and *LENGTH_BYTES (at least 1, may be
   * less than the true length, never more) for how far that holds.
   * OFFSET is below the size.  May be NULL: all is data.
   */
  int (*hole) (struct qcow2_storage *s, uint64_t offset,
               bool *hole, uint64_t *length_bytes);

  /* How much space the storage takes on its host.  May be NULL: not
   * known.
   */
  int64_t (*disk_bytes) (struct qcow2_storage *s);

  /* Advice that the range will be read soon.  May be NULL. */
  void (*prefetch) (struct qcow2_storage *s, uint64_t offset,
                    uint64_t count);

  /* The members below are NULL in storage that can't be written. */

  /* Write all of IOV at OFFSET, growing the storage where it can grow.
   * With DURABLE, the bytes written are on stable storage when this
   * returns (as after flush), and so is the size: an earlier truncate
   * does not come to light after them.  -ENOSPC means that there is no room for
   * them, and nothing else; after another error of a durable write what
   * others wrote since the last flush may be lost, too.
   */
  int (*pwritev) (struct qcow2_storage *s, const struct iovec *iov,
                  int iovcnt, uint64_t offset, bool durable);

  /* Make all completed writes durable.  After an error what was written
   * since the last flush may be lost, whatever a later flush says.
   */
  int (*flush) (struct qcow2_storage *s);

  /* Make the range read as zeros, without taking space where that is
   * possible and MAY_PUNCH.  -EOPNOTSUPP where it would have to be
   * written; never changes the size.
   */
  int (*zero) (struct qcow2_storage *s, uint64_t offset, uint64_t count,
               bool may_punch);

  /* Advice that the bytes are not needed any more: what they read as is
   * not known then.  Nothing beside them changes, nor the size.  May be
   * NULL.
   */
  void (*discard) (struct qcow2_storage *s, uint64_t offset,
                   uint64_t count);

  /* Cut or grow to SIZE_BYTES; what is added reads as zeros.
   * -EOPNOTSUPP for storage of fixed size.
   */
  int (*truncate) (struct qcow2_storage *s, uint64_t size_bytes);

  /* Reserve space for the range, so that writing there does not run out
   * of it; neither content nor size change.  -EOPNOTSUPP where that can't
   * be done.  May be NULL.
   */
  int (*allocate) (struct qcow2_storage *s, uint64_t offset,
                   uint64_t count);

  /* No request is in progress, and none may come for a while: have the
   * file as it is to be left, should that differ from how it suits those
   * who write.  May be NULL.
   */
  int (*settle) (struct qcow2_storage *s);

  /* Threads of the storage's own, which make it faster.  It has none before
   * it is told ON, since they would not live through a fork, and none after
   * !ON, which may come while requests are in progress.  May be NULL.
   */
  void (*threads) (struct qcow2_storage *s, bool on);

  /* Can the storage grow by writing past its end? */
  bool (*can_grow) (struct qcow2_storage *s);

  /* Release everything, S itself included. */
  void (*close) (struct qcow2_storage *s);
};

/* An implementation embeds this as its first member. */
struct qcow2_storage {
  const struct qcow2_storage_ops *ops;
};

/* Read exactly COUNT bytes at OFFSET of data: what lies past the end of
 * the storage reads as zeros.  A read that comes short before the end
 * is never zeros: it is tried again, and is -EIO if nothing comes.
 */
extern int qcow2_storage_read_data (struct qcow2_storage *s, void *buf,
                                    size_t count, uint64_t offset);

/* Read exactly COUNT bytes at OFFSET of metadata: -EIO if the storage
 * ends before OFFSET + COUNT.
 */
extern int qcow2_storage_read_meta (struct qcow2_storage *s, void *buf,
                                    size_t count, uint64_t offset);

extern int64_t qcow2_storage_size (struct qcow2_storage *s);

/* As the vtable's member; all is data where it has none, and what lies
 * past the end of the storage is a hole.
 */
extern int qcow2_storage_hole (struct qcow2_storage *s, uint64_t offset,
                               bool *hole, uint64_t *length_bytes);

/* Is all of the range known to be a hole?  Then it need not be read: a small
 * file may claim that it has many tables, which were never written.
 */
extern bool qcow2_storage_is_hole (struct qcow2_storage *s, uint64_t offset,
                                   uint64_t count);

/* How much space the storage takes on its host; -EOPNOTSUPP where that is
 * not known.
 */
extern int64_t qcow2_storage_disk_bytes (struct qcow2_storage *s);

extern void qcow2_storage_prefetch (struct qcow2_storage *s, uint64_t offset,
                                    uint64_t count);

/* Write exactly COUNT bytes.  DURABLE as in the vtable.  On error any part
 * of them may have been written.  -EROFS for storage that can't be written,
 * here and below.
 */
extern int qcow2_storage_write (struct qcow2_storage *s, const void *buf,
                                size_t count, uint64_t offset, bool durable);

extern int qcow2_storage_writev (struct qcow2_storage *s,
                                 const struct iovec *iov, int iovcnt,
                                 uint64_t offset, bool durable);

/* 0 for storage that can't be written: there is nothing to be lost. */
extern int qcow2_storage_flush (struct qcow2_storage *s);

/* Make the range read as zeros: as the vtable's member, else by writing
 * zeros.  Does not change the size: what lies past the end reads as
 * zeros already.
 */
extern int qcow2_storage_zero (struct qcow2_storage *s, uint64_t offset,
                               uint64_t count, bool may_punch);

/* Make the range read as zeros without taking space, if the storage can
 * do that; else -EOPNOTSUPP, and nothing is done.
 */
extern int qcow2_storage_punch (struct qcow2_storage *s, uint64_t offset,
                                uint64_t count);

/* Give the range back to the host if it can take it: as the vtable's
 * member, up to the end of the storage.
 */
extern void qcow2_storage_discard (struct qcow2_storage *s, uint64_t offset,
                                   uint64_t count);

extern int qcow2_storage_truncate (struct qcow2_storage *s,
                                   uint64_t size_bytes);

/* As the vtable's member; -EOPNOTSUPP where it has none. */
extern int qcow2_storage_allocate (struct qcow2_storage *s, uint64_t offset,
                                   uint64_t count);

/* As the vtable's member; nothing to do where it has none. */
extern int qcow2_storage_settle (struct qcow2_storage *s);

/* As the vtable's member.  One caller at a time. */
extern void qcow2_storage_threads (struct qcow2_storage *s, bool on);

extern bool qcow2_storage_can_grow (struct qcow2_storage *s);

/* S may be NULL. */
extern void qcow2_storage_close (struct qcow2_storage *s);

#endif /* QCOW2_STORAGE_H */
