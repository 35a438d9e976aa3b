/* SPDX-License-Identifier: BSD-3-Clause */

/* Ways around two troubles of an nbdkit with gcc 12's libasan or libtsan
 * preloaded.
 *
 * With glibc 2.36 it enters main with glibc's locale lock released once more
 * than taken.  From the first error text on (strerror, %m), whoever wants the
 * lock for writing waits for ever: p11-kit, which gnutls brings along, when it
 * frees its locale at exit.  So freelocale does nothing here.
 *
 * The shell that --run starts would have the library preloaded too, and dies
 * with libtsan.  So programs that nbdkit starts get nothing preloaded.
 */

#include <locale.h>
#include <stdlib.h>

void
freelocale (locale_t locale __attribute__ ((unused)))
{
}

static void __attribute__ ((constructor))
keep_from_children (void)
{
  unsetenv ("LD_PRELOAD");
}
