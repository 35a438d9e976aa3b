/* SPDX-License-Identifier: BSD-3-Clause */

/* Random requests of all kinds from many threads at once, against a
 * model.
 */

#ifndef WRITE_LOAD_H
#define WRITE_LOAD_H

#include <stdatomic.h>

#include "cluster-census.h"
#include "qcow2.h"
#include "content-model.h"

#define LOAD_CONNECTIONS 4

struct write_load {
  struct qcow2 *image;
  struct model *model;
  struct census *census;
  unsigned nr_requests;
  unsigned nr_threads;          /* how many requests are in flight */
  uint64_t seed;

  /* The load's own. */
  struct qcow2_view *views[LOAD_CONNECTIONS];
  uint64_t hot[8];              /* clusters that are hit often */
  uint64_t cluster_bytes;
  uint64_t disk_bytes;
  atomic_uint started;
  atomic_uint nr_wrong;         /* reads */
  atomic_uint nr_failed;        /* requests */
};

/* Run it until all requests have been answered.  Returns whether all went
 * well; says on stdout, as a TAP comment, what did not.
 */
extern bool write_load_run (struct write_load *load);

#endif /* WRITE_LOAD_H */
