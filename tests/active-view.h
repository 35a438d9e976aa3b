/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening the active layer where nothing can be tested without it. */

#ifndef ACTIVE_VIEW_H
#define ACTIVE_VIEW_H

#include <stdio.h>
#include <stdlib.h>

#include "qcow2.h"

static inline struct qcow2_view *
must_open_view (struct qcow2 *image)
{
  struct qcow2_error error;
  struct qcow2_view *view;

  if (qcow2_view_open (image, QCOW2_ACTIVE, &view, &error) < 0) {
    printf ("Bail out! %s\n", error.message);
    exit (1);
  }
  return view;
}

#endif /* ACTIVE_VIEW_H */
