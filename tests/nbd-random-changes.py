#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""Changes a disk at random, one request after the other, and knows what it
holds then.

nbd-random-changes.py URI MODEL [SEED [REQUESTS [ERRNO]]]

MODEL is a raw file with the content that the disk has, and gets each change,
too.  Writes, write-zeroes and trims of all sizes and alignments, with all flags
that the server offers, go to the disk over three connections where multi-conn
says that this may be done.  What a trim has left is read, and has to be the old
content or zeros; with NO_TRIM in the environment there are none.  Requests may
fail with ERRNO, such as EIO, and have no effect then; some have to.
"""

import os
import random
import sys

import nbd

MAX_WRITE = 3 << 20


class Disk:
    def __init__(self, uri, model, seed):
        self.random = random.Random(seed)
        self.handles = [self.connect(uri)]
        if self.handles[0].can_multi_conn():
            self.handles += [self.connect(uri) for _ in range(2)]
        first = self.handles[0]
        self.size = first.get_size()
        assert self.size == len(model)
        self.model = model
        self.operations = [self.write, self.write]
        if first.can_zero():
            self.operations += [self.zero]
        if first.can_trim() and "NO_TRIM" not in os.environ:
            self.operations += [self.trim]
        self.fua = nbd.CMD_FLAG_FUA if first.can_fua() else 0
        self.fast = nbd.CMD_FLAG_FAST_ZERO if first.can_fast_zero() else 0

    @staticmethod
    def connect(uri):
        handle = nbd.NBD()
        handle.connect_uri(uri)
        return handle

    def any_handle(self):
        return self.random.choice(self.handles)

    def any_range(self):
        count = self.random.randrange(
            1, self.random.choice((2, 513, 5000, 70000, 400000, MAX_WRITE)))
        count = min(count, self.size)
        offset = self.random.choice((
            self.random.randrange(self.size - count + 1),
            self.random.randrange((self.size - count) // 4096 + 1) * 4096,
            self.size - count))
        return count, offset

    def any_flags(self, *flags):
        return sum(flag for flag in flags if self.random.randrange(4) == 0)

    def write(self):
        count, offset = self.any_range()
        data = self.random.randbytes(count)
        if self.random.randrange(8) == 0:
            data = bytes(count)
        self.any_handle().pwrite(data, offset, self.any_flags(self.fua))
        self.model[offset:offset + count] = data

    def zero(self):
        count, offset = self.any_range()
        flags = self.any_flags(self.fua, self.fast, nbd.CMD_FLAG_NO_HOLE)
        try:
            self.any_handle().zero(count, offset, flags)
        except nbd.Error as error:
            # Not fast.  libnbd's table of errors is the system's.
            if not flags & nbd.CMD_FLAG_FAST_ZERO or \
                    error.errno not in ("ENOTSUP", "EOPNOTSUPP"):
                raise
            return
        self.model[offset:offset + count] = bytes(count)

    def trim(self):
        count, offset = self.any_range()
        self.any_handle().trim(count, offset, self.any_flags(self.fua))
        left = self.read(count, offset)
        old = self.model[offset:offset + count]
        if left != bytes(count) and left != old:
            assert all(a in (0, b) for a, b in zip(left, old)), \
                "trim of %d at %d" % (count, offset)
        self.model[offset:offset + count] = left

    def read(self, count, offset):
        """Errors are not what is tested here."""
        while True:
            try:
                return self.any_handle().pread(count, offset)
            except nbd.Error as error:
                if error.errno != "EIO":
                    raise

    def check(self):
        count, offset = self.any_range()
        assert self.read(count, offset) == self.model[offset:offset + count], \
            "%d bytes at %d" % (count, offset)

    def flush(self):
        handle = self.any_handle()
        if handle.can_flush():
            handle.flush()


def main(uri, path, seed="1", requests="300", errno=None):
    with open(path, "rb") as file:
        model = bytearray(file.read())
    disk = Disk(uri, model, int(seed))
    nr_errors = 0
    for _ in range(int(requests)):
        operation = disk.random.choice(
            (disk.random.choice(disk.operations), disk.check, disk.flush))
        try:
            operation()
        except nbd.Error as error:
            if error.errno != errno:
                raise
            nr_errors += 1
    with open(path, "wb") as file:
        file.write(model)
    for handle in disk.handles:
        handle.shutdown()
    if errno and nr_errors == 0:
        sys.exit("no request has failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
