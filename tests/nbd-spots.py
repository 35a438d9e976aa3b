#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""Looks at a few places of a large disk.

nbd-spots.py URI {OFFSET LENGTH BYTE}...

Each place holds LENGTH bytes of BYTE with zeros before and after, and that is
also what block status says: the bytes are data, zeros are around them (as near
as AROUND bytes, for clusters are allocated as a whole).
"""

import sys

import nbd

AROUND = 4 << 20
META = "base:allocation"

problems = []


def check(what, good):
    if not good:
        problems.append(what)


def extents(h, count, offset):
    """[(offset, length, flags)] up to the end of the request."""
    found = []
    end = offset + count
    while offset < end:
        answer = []

        def got(context, start, entries, error):
            answer.extend(entries)

        h.block_status(end - offset, offset, got)
        for length, flags in zip(answer[::2], answer[1::2]):
            found.append((offset, length, flags))
            offset += length
    check("extents end at %d, not at %d" % (offset, end), offset == end)
    return found


def main():
    h = nbd.NBD()
    h.add_meta_context(META)
    h.connect_uri(sys.argv[1])
    size = h.get_size()
    spots = [int(a) for a in sys.argv[2:]]
    for at, length, byte in zip(spots[::3], spots[1::3], spots[2::3]):
        name = "%d bytes at %d" % (length, at)
        check(name + ": differ", h.pread(length, at) == bytes([byte]) * length)
        before = min(at, 4096)
        if before > 0:
            check(name + ": no zeros before",
                  h.pread(before, at - before) == bytes(before))
        after = min(size - at - length, 4096)
        if after > 0:
            check(name + ": no zeros after",
                  h.pread(after, at + length) == bytes(after))

        first = max(0, at - AROUND)
        last = min(size, at + length + AROUND)
        found = extents(h, last - first, first)
        for offset, count, flags in found:
            if offset < at + length and offset + count > at:
                check(name + ": called zero", not flags & nbd.STATE_ZERO)
        if at - first == AROUND:
            check(name + ": zeros before are not shown",
                  found[0][2] & nbd.STATE_ZERO)
        if last == at + length + AROUND:
            check(name + ": zeros after are not shown",
                  found[-1][2] & nbd.STATE_ZERO)
    h.shutdown()
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
