/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage that fails on request.
 *
 * A struct faults stands behind the wrap and log functions of
 * qcow2_options: all storages of an image then share it.  Reads are
 * counted, and the N-th from now on can be told to go wrong.
 */

#ifndef FAULTY_STORAGE_H
#define FAULTY_STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "qcow2.h"

enum fault {
  FAULT_EIO,                    /* this read fails */
  FAULT_NOTHING,                /* it gives nothing */
  FAULT_HALF,                   /* it gives half of the bytes */
  FAULT_STUCK,                  /* it and all after it give nothing */
  FAULT_HALF_STUCK,             /* it gives half, all after it nothing */
  FAULT_TRICKLE,                /* it and all after it give 100 bytes */
};

#define NR_FAULTS 6

struct faults {
  enum fault fault;
  atomic_long countdown;        /* reads up to the fault; 0: none will come */
  atomic_bool lasting;          /* a FAULT_STUCK or the like is on */
  atomic_uint nr_hit;           /* faults given */
  atomic_uint nr_reads;
  atomic_uint delay_usec;       /* before each read */

  atomic_uint nr_open;          /* storages not yet closed */
  atomic_uint nr_messages;      /* for the user, from the log */
};

extern const char *fault_name (enum fault fault);

/* Does reading go on as if nothing had happened? */
extern bool fault_is_harmless (enum fault fault);

/* Zero FAULTS and set wrap, log and opaque of OPTIONS. */
extern void faults_init (struct faults *faults, struct qcow2_options *options);

/* For qcow2_options.wrap, with a struct faults for opaque. */
extern int faults_wrap (void *opaque, enum qcow2_storage_role role,
                        const char *filename, struct qcow2_storage **s);

/* Let the N-th read (from 1 on) go wrong.  No read is in progress. */
extern void faults_arm (struct faults *faults, enum fault fault, long n);

/* No faults any more. */
extern void faults_disarm (struct faults *faults);

#endif /* FAULTY_STORAGE_H */
