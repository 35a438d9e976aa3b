#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause

"""Show where two disks of a qcow2 image differ, as lines `OFFSET LENGTH'.

    changed-ranges.py IMAGE EXPORT EXPORT [PARAMETER ...]

An export is the name of an internal snapshot, or '' for the current state.
Ranges are multiples of 64 KiB.  What both disks report as zeros is not read.
Further parameters go to the plugin, such as allow-dir=DIR.

Needs libnbd's Python module.
"""

import sys
import nbd

BLOCK = 64 * 1024
CONTEXT = nbd.CONTEXT_BASE_ALLOCATION


def connect(image, export, parameters):
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.add_meta_context(CONTEXT)
    handle.connect_command(["nbdkit", "-s", "--exit-with-parent", "-r",
                            "qcow2", "file=" + image] + parameters)
    return handle


def zero_until(handle, offset, end):
    """Where the zeros end that begin at OFFSET; OFFSET if there are none."""
    found = []

    def extent(context, start, entries, error):
        found.extend(entries)

    handle.block_status(min(end - offset, 1 << 30), offset, extent)
    for length, flags in zip(found[::2], found[1::2]):
        if not flags & nbd.STATE_ZERO:
            break
        offset += length
    return min(offset, end)


def changed_blocks(a, b):
    size_a, size_b = a.get_size(), b.get_size()
    common = min(size_a, size_b)
    offset = 0
    while offset < common:
        zeros = min(zero_until(a, offset, common),
                    zero_until(b, offset, common))
        if zeros - offset >= BLOCK:
            offset = zeros // BLOCK * BLOCK
            continue
        length = min(BLOCK, common - offset)
        if a.pread(length, offset) != b.pread(length, offset):
            yield offset, length
        offset += length
    if size_a != size_b:
        yield common, max(size_a, size_b) - common


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__.strip())
    image, parameters = sys.argv[1], sys.argv[4:]
    a, b = (connect(image, export, parameters) for export in sys.argv[2:4])

    begin = end = None
    for offset, length in changed_blocks(a, b):
        if offset != end:
            if begin is not None:
                print(begin, end - begin)
            begin = offset
        end = offset + length
    if begin is not None:
        print(begin, end - begin)


main()
