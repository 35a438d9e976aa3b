/* SPDX-License-Identifier: BSD-3-Clause */

/* Preloaded into nbdkit: lets the N-th read of a file fail or come short.
 *
 * READ_FAULT_CONTROL names a file of two 32-bit numbers in the machine's
 * order, which is mapped, so that a test may change them at any time:
 * how many reads to go (0: none fails), and what then happens: 0 EIO;
 * 1 no bytes, once; 2 half of the bytes, once; 3 no bytes, in this read
 * and all that follow.  Only pread is looked at, which the server itself
 * does not use.
 */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum fault { FAULT_EIO, FAULT_NOTHING, FAULT_HALF, FAULT_STUCK };

struct control {
  _Atomic uint32_t countdown;
  _Atomic uint32_t fault;
};

typedef ssize_t pread_fn (int fd, void *buf, size_t count, off_t offset);

static struct control *control;
static pread_fn *real_pread;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void
initialize (void)
{
  const char *name = getenv ("READ_FAULT_CONTROL");
  int fd = name ? open (name, O_RDWR | O_CLOEXEC) : -1;
  void *p;

  real_pread = (pread_fn *) dlsym (RTLD_NEXT, "pread64");
  if (fd == -1)
    return;
  p = mmap (NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p != MAP_FAILED)
    control = p;
  close (fd);
}

/* Is it this read's turn?  Being stuck lasts until the countdown is set
 * again.
 */
static int
count_down (void)
{
  uint32_t n = atomic_load (&control->countdown);

  while (n > 0) {
    if (n == 1 && atomic_load (&control->fault) == FAULT_STUCK)
      return 1;
    if (atomic_compare_exchange_weak (&control->countdown, &n, n - 1))
      return n == 1;
  }
  return 0;
}

ssize_t pread64 (int fd, void *buf, size_t count, off_t offset);

ssize_t
pread64 (int fd, void *buf, size_t count, off_t offset)
{
  pthread_once (&once, initialize);
  if (control && count_down ())
    switch (atomic_load (&control->fault)) {
    case FAULT_EIO:
      errno = EIO;
      return -1;
    case FAULT_NOTHING:
    case FAULT_STUCK:
      return 0;
    case FAULT_HALF:
      count /= 2;
      break;
    }
  return real_pread (fd, buf, count, offset);
}
