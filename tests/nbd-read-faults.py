# SPDX-License-Identifier: BSD-3-Clause
#
# usage: nbd-read-faults.py URI CONTENT CONTROL
#
# Reads the whole disk again and again while each N-th read of the server's
# files goes wrong (tests/preload-read-fault.c, which CONTROL controls), for
# each kind of fault, and compares with the file CONTENT.  A request may fail
# with EIO, no other way, and must then succeed when there is no fault; all
# data must be right.  Prints how many requests failed of each kind.

import errno
import struct
import sys

import nbd

REQUEST_BYTES = 50000
EIO, NOTHING, HALF, STUCK = range(4)

uri, content_name, control_name = sys.argv[1:]
content = open(content_name, "rb").read()
control = open(control_name, "r+b", buffering=0)

h = nbd.NBD()
h.connect_uri(uri)
assert h.get_size() == len(content), "size"


def set_fault(countdown, fault):
    # The countdown last: until then no read looks at the kind.
    control.seek(0)
    control.write(struct.pack("=I", 0))
    control.write(struct.pack("=I", fault))
    control.seek(0)
    control.write(struct.pack("=I", countdown))


def countdown():
    control.seek(0)
    return struct.unpack("=I", control.read(4))[0]


def read(offset, count):
    data = h.pread(count, offset)
    assert data == content[offset:offset + count], \
        "wrong data at %d" % offset


def one_pass():
    failed = 0
    for offset in range(0, len(content), REQUEST_BYTES):
        count = min(REQUEST_BYTES, len(content) - offset)
        try:
            read(offset, count)
        except nbd.Error as e:
            assert e.errnum == errno.EIO, e.string
            failed += 1
            set_fault(0, EIO)
            read(offset, count)
    return failed


for fault in EIO, NOTHING, HALF, STUCK:
    failed = 0
    n = 0
    hit = True
    while hit:
        n += 1
        set_fault(n, fault)
        failed += one_pass()
        # Nothing is hit when there are not so many reads.
        hit = countdown() == 0
        set_fault(0, EIO)
    print("reads=%d failed=%d" % (n - 1, failed))
h.shutdown()
