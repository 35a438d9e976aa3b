/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage past the page cache: a file with O_DIRECT, and before it the
 * alignment that the kernel asks for then.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io-aligned.h"
#include "io-direct.h"
#include "io-file.h"

/* No filesystem has blocks that this is not a multiple of, and memory that
 * fits pages fits everything.  To try out less would not be safe: in a hole
 * a filesystem may take what it refuses elsewhere.
 */
#define UNKNOWN_BLOCK_BYTES 4096
#define UNKNOWN_MEMORY_BYTES 4096

/* What the kernel says (from 6.1 on), or what fits everywhere. */
static void
find_alignment (int fd, struct io_alignment *alignment)
{
  int sector_bytes;

#ifdef STATX_DIOALIGN
  struct statx st;

  if (statx (fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
      st.stx_mask & STATX_DIOALIGN && st.stx_dio_offset_align > 0) {
    alignment->memory_bytes = st.stx_dio_mem_align;
    alignment->block_bytes = st.stx_dio_offset_align;
    return;
  }
#endif
  alignment->memory_bytes = UNKNOWN_MEMORY_BYTES;
  alignment->block_bytes = UNKNOWN_BLOCK_BYTES;
  if (ioctl (fd, BLKSSZGET, &sector_bytes) == 0)
    alignment->block_bytes = (uint64_t) sector_bytes;
}

static int
not_supported (struct qcow2_error *error, const char *filename)
{
  return qcow2_error_set (error, EINVAL,
                          "%s: the file can't be read past the page cache: "
                          "the file system may not support O_DIRECT; use "
                          "another cache mode than none or directsync",
                          filename);
}

int
qcow2_io_direct_new (int fd, const char *filename, unsigned flags,
                     struct qcow2_storage **s, struct qcow2_error *error)
{
  struct io_alignment alignment;
  struct qcow2_storage *file;
  char byte;
  int status, r;

  r = qcow2_io_file_new (fd, filename, flags, &file, error);
  if (r < 0)
    return r;
  status = fcntl (fd, F_GETFL);
  if (status == -1 || fcntl (fd, F_SETFL, status | O_DIRECT) == -1) {
    r = -errno;
    qcow2_storage_close (file);
    if (r == -EINVAL)
      return not_supported (error, filename);
    return qcow2_error_set (error, -r, "%s: %s", filename, strerror (-r));
  }

  find_alignment (fd, &alignment);
  r = qcow2_io_aligned_new (file, &alignment, s);
  if (r < 0)
    return qcow2_error_set (error, -r, "%s: O_DIRECT: %s", filename,
                            strerror (-r));
  /* Some filesystems refuse only when it comes to reading. */
  if ((*s)->ops->pread (*s, &byte, 1, 0) == -EINVAL) {
    qcow2_storage_close (*s);
    *s = NULL;
    return not_supported (error, filename);
  }
  return 0;
}
