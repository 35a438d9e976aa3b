# SPDX-License-Identifier: BSD-3-Clause
#
# Text for the compressed images: records of words (a few frequent, most
# rare), identifiers and numbers.  64 KiB of it deflate to about a half, at
# about the speed of the program and library files of an operating system,
# and no cluster is left that does not compress.
# Usage: awk -v bytes=N -f text.awk, prints N bytes or a little more.

BEGIN {
  srand (1)
  letters = "eeetttaaooiinnsshhrrddlcumwfgypbvkjxqz"
  for (i = 0; i < 6000; i++) {
    n = 3 + int (rand () * rand () * 12)
    word[i] = ""
    for (j = 0; j < n; j++)
      word[i] = word[i] substr (letters, 1 + int (rand () * 38), 1)
  }
  for (size = 0; size < bytes; size += length (s) + 1) {
    s = sprintf ("%08x %d", rand () * 2147483647, size)
    for (j = 0; j < 7; j++) {
      r = rand ()
      s = s " " word[int (6000 * r * r * r)]
    }
    s = s sprintf (" %x %d", rand () * 2147483647, rand () * 100000)
    print s
  }
}
