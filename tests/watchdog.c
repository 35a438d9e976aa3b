/* SPDX-License-Identifier: BSD-3-Clause */

/* When a test hangs, tell where. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "watchdog.h"

static void
start_gdb (pid_t pid)
{
  char number[20];

  snprintf (number, sizeof number, "%d", (int) pid);
  dup2 (1, 2);
  execlp ("gdb", "gdb", "-p", number, "-batch", "-nx", "-ex",
          "thread apply all bt", NULL);
  _exit (127);
}

/* Nothing that the thread holds, which was interrupted, is used here. */
static void
bark (int signal)
{
  static const char text[] = "\n# it hangs\n";
  pid_t pid = getpid (), child;

  if (write (1, text, sizeof text - 1) < 0)
    _exit (1);
  prctl (PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  child = fork ();
  if (child == 0)
    start_gdb (pid);
  if (child > 0)
    waitpid (child, NULL, 0);
  abort ();
}

void
watchdog (unsigned seconds)
{
  struct sigaction action = { .sa_handler = bark };

  sigaction (SIGALRM, &action, NULL);
  alarm (seconds);
}
