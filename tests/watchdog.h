/* SPDX-License-Identifier: BSD-3-Clause */

/* When a test hangs, tell where. */

#ifndef WATCHDOG_H
#define WATCHDOG_H

/* From now on, if this is not called again within SECONDS (0: never), the
 * backtraces of all threads are printed, where gdb is installed, and the
 * program is aborted.
 */
extern void watchdog (unsigned seconds);

#endif /* WATCHDOG_H */
