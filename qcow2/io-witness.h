/* SPDX-License-Identifier: BSD-3-Clause */

/* Has the kernel lost anything of what was written to a file?
 *
 * It tells of an error of writing back once to each open file description,
 * whichever call is the first to ask: fdatasync, or a durable write, which may
 * have been about other bytes.  All threads share one description, so the one
 * that is told may be another than the one that has lost.  The witness is a
 * description of its own, which nobody but io_witness_ask asks, and what it was
 * told is remembered for good.
 */

#ifndef QCOW2_IO_WITNESS_H
#define QCOW2_IO_WITNESS_H

#include <pthread.h>
#include <stdbool.h>

struct io_witness {
  int fd;                       /* -1: there is none */
  pthread_mutex_t lock;         /* for all of this */
  int lost;                     /* 0, or a negative errno */
};

/* A witness of the file of FD, from now on, if WANTED, and if there can be
 * one: the file is opened once more, through /proc, for reading.
 */
extern void io_witness_init (struct io_witness *w, int fd, bool wanted);
extern void io_witness_destroy (struct io_witness *w);

/* 0 if nothing was lost that writing back was over for before this call, or
 * if there is no witness.  Else a negative errno, never -ENOSPC, from now on.
 */
extern int io_witness_ask (struct io_witness *w);

/* Sync FD, and ask.  -ENOSPC if the sync says so. */
extern int io_witness_sync (struct io_witness *w, int fd);

/* Is there one? */
extern bool io_witness_is_there (struct io_witness *w);

#endif /* QCOW2_IO_WITNESS_H */
