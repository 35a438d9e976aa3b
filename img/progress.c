/* SPDX-License-Identifier: BSD-3-Clause */

/* How far long work has come. */

#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "progress.h"

/* Lines that would hardly differ are left out. */
#define MIN_STEP_PERCENT 2.0

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool is_shown;           /* all below: under lock */
static uint64_t total_count, done_count;
static double shown_percent;

static volatile sig_atomic_t was_asked;

static void
ask (int sig)
{
  was_asked = 1;
}

static double
percent (void)
{
  if (total_count == 0 || done_count >= total_count)
    return 100;
  return 100.0 * (double) done_count / (double) total_count;
}

static void
show (double now)
{
  printf ("    (%3.2f/100%%)\r", now);
  fflush (stdout);
  shown_percent = now;
}

void
img_progress_begin (bool shown, uint64_t total)
{
  struct sigaction action = { .sa_handler = ask, .sa_flags = SA_RESTART };

  is_shown = shown;
  total_count = total;
  done_count = 0;
  if (is_shown)
    show (0);
  else
    sigaction (SIGUSR1, &action, NULL);
}

void
img_progress_add (uint64_t done)
{
  double now;

  pthread_mutex_lock (&lock);
  done_count += done;
  now = percent ();
  if (is_shown) {
    if (now > shown_percent + MIN_STEP_PERCENT ||
        (now >= 100 && shown_percent < 100))
      show (now);
  }
  else if (was_asked) {
    was_asked = 0;
    fprintf (stderr, "    (%3.2f/100%%)\n", now);
  }
  pthread_mutex_unlock (&lock);
}

void
img_progress_end (void)
{
  if (is_shown)
    putchar ('\n');
}
