/* SPDX-License-Identifier: BSD-3-Clause */

/* freelocale that does nothing, for servers with a sanitizer.
 *
 * With libasan or libtsan of gcc 12 preloaded, glibc 2.36 enters main with
 * its locale lock released once more than taken.  From the first error text on
 * (strerror, %m), whoever wants the lock for writing waits for ever.  In nbdkit
 * that is p11-kit, which gnutls brings along, when it frees its locale at exit.
 */

#include <locale.h>

void
freelocale (locale_t locale __attribute__ ((unused)))
{
}
