/* SPDX-License-Identifier: BSD-3-Clause */

/* Mutants, and running a test on many of them. */

#include <endian.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fuzz-mutant.h"

#define DEFAULT_RUNS 6000
#define DEFAULT_SECONDS 15      /* no further mutants after that */
#define MUTANT_SECONDS 20       /* for one of them; sanitizers are slow */

/*----- Random numbers -----*/

static uint64_t rng_state;

uint64_t
fuzz_random (void)
{
  uint64_t z = rng_state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return z ^ z >> 31;
}

uint64_t
fuzz_random_below (uint64_t n)
{
  return fuzz_random () % n;
}

/*----- Mutation -----*/

uint8_t *mutant;
size_t mutant_bytes;

static void
store (uint64_t offset, unsigned width, uint64_t value)
{
  uint64_t be = htobe64 (value);

  if (offset + width <= mutant_bytes)
    memcpy (mutant + offset, (char *) &be + 8 - width, width);
}

/* A number that is likely to be a limit of something. */
static uint64_t
interesting (void)
{
  uint64_t power = UINT64_C (1) << fuzz_random_below (64);

  switch (fuzz_random_below (8)) {
  case 0: return 0;
  case 1: return UINT64_MAX;
  case 2: return power - 1;
  case 3: return power + 1;
  case 4: return mutant_bytes & ~UINT64_C (511);
  case 5: return fuzz_random_below (mutant_bytes) & ~UINT64_C (4095);
  case 6: return fuzz_random ();
  default: return power;
  }
}

static void
mutate_once (const struct fuzz_base *b)
{
  const struct fuzz_range *range = &b->ranges[fuzz_random_below (b->nr_ranges)];
  uint64_t offset = range->offset + fuzz_random_below (range->bytes);
  unsigned width = 1u << fuzz_random_below (4);
  uint64_t field = offset & ~(uint64_t) (width - 1);

  if (offset >= mutant_bytes)
    return;
  switch (fuzz_random_below (8)) {
  case 0:
    mutant[offset] = (uint8_t) fuzz_random ();
    break;
  case 1:
  case 2:
    mutant[offset] ^= (uint8_t) (1u << fuzz_random_below (8));
    break;
  case 3:
  case 4:
    store (field, width, interesting ());
    break;
  case 5:                       /* a little more or less */
    store (field, width,
           fuzz_base_number (b, field, width) + fuzz_random_below (17) - 8);
    break;
  case 6:                       /* a copy from elsewhere */
    offset = fuzz_random_below (b->nr_bytes) & ~UINT64_C (7);
    store (field, width, fuzz_base_number (b, offset, width));
    break;
  default:                      /* the file is cut off */
    if (fuzz_random_below (4) == 0)
      mutant_bytes = fuzz_random_below (mutant_bytes) + 1;
  }
}

const struct fuzz_base *
make_mutant (uint64_t seed)
{
  const struct fuzz_base *b;
  uint64_t n;

  rng_state = seed;
  b = &fuzz_bases[fuzz_random_below (FUZZ_NR_BASES)];
  memcpy (mutant, b->bytes, b->nr_bytes);
  mutant_bytes = b->nr_bytes;
  for (n = 1 + fuzz_random_below (4); n > 0; --n)
    mutate_once (b);
  return b;
}

void
fuzz_begin (void)
{
  size_t i, largest = 0;

  fuzz_bases_make ();
  for (i = 0; i < FUZZ_NR_BASES; ++i)
    if (fuzz_bases[i].nr_bytes > largest)
      largest = fuzz_bases[i].nr_bytes;
  mutant = malloc (largest);
  must (mutant != NULL, "memory");
}

/*----- Running -----*/

/* Shared with the child. */
struct progress {
  uint64_t seed;
  unsigned nr_runs;
};

static uint64_t
number_of (const char *variable, uint64_t otherwise)
{
  const char *value = getenv (variable);

  return value ? strtoull (value, NULL, 0) : otherwise;
}

static void
run_all (void (*fn) (uint64_t seed), uint64_t seed, uint64_t nr_runs,
         bool limited, struct progress *progress)
{
  time_t start = time (NULL);
  uint64_t i;

  for (i = 0; i < nr_runs; ++i) {
    if (limited && time (NULL) - start > DEFAULT_SECONDS)
      break;
    progress->seed = seed + i;
    alarm (MUTANT_SECONDS);
    fn (seed + i);
    progress->nr_runs++;
  }
}

void
fuzz_run (void (*fn) (uint64_t seed), struct fuzz_result *result)
{
  uint64_t nr_runs = number_of ("FUZZ_RUNS", DEFAULT_RUNS);
  bool limited = !getenv ("FUZZ_RUNS");
  struct progress *progress;
  struct rusage usage;
  pid_t pid;

  result->first_seed = number_of ("FUZZ_SEED", 20240607);
  progress = mmap (NULL, sizeof *progress, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  must (progress != MAP_FAILED, "memory");
  fflush (stdout);
  pid = fork ();
  must (pid != -1, "fork");
  if (pid == 0) {
    run_all (fn, result->first_seed, nr_runs, limited, progress);
    exit (0);                   /* not _exit, for the leak checkers */
  }
  must (wait4 (pid, &result->status, 0, &usage) == pid, "wait4");
  result->seed = progress->seed;
  result->nr_runs = progress->nr_runs;
  result->max_bytes = usage.ru_maxrss * INT64_C (1024);
  munmap (progress, sizeof *progress);
}
