/* SPDX-License-Identifier: BSD-3-Clause */

/* Snapshots as a table for people. */

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "size.h"
#include "snapshot-list.h"

#define MAX_NAME_BYTES 65536
#define FORMAT "%-9s %-16s %8s%20s%13s%11s\n"

static void
print_line (const struct qcow2_snapshot_info *sn)
{
  static char id[4 * MAX_NAME_BYTES], name[4 * MAX_NAME_BYTES];
  char size[32], date[64], clock[64], icount[32] = "";
  uint64_t seconds = sn->vm_clock_nsec / 1000000000;
  time_t when = sn->date_sec;
  struct tm tm;

  qcow2_error_escape (id, sizeof id, sn->id);
  qcow2_error_escape (name, sizeof name, sn->name);
  img_size_format (size, sizeof size, sn->vm_state_bytes);
  localtime_r (&when, &tm);
  strftime (date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
  snprintf (clock, sizeof clock, "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64
            ".%03" PRIu64, seconds / 3600, seconds / 60 % 60, seconds % 60,
            sn->vm_clock_nsec / 1000000 % 1000);
  if (sn->icount != QCOW2_NO_ICOUNT)
    snprintf (icount, sizeof icount, "%" PRId64, (int64_t) sn->icount);
  printf (FORMAT, id, name, size, date, clock, icount);
}

void
img_snapshots_print (const struct qcow2_info *info)
{
  size_t i;

  if (info->nr_snapshots == 0)
    return;
  printf ("Snapshot list:\n");
  printf (FORMAT, "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
  for (i = 0; i < info->nr_snapshots; ++i)
    print_line (&info->snapshots[i]);
}
