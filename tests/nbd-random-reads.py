#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""Random, unaligned reads from several connections at once.

nbd-random-reads.py URI RAW [READS [CONNECTIONS [SEED]]]

Each answer is compared with the raw file RAW, which has to be as large as the
disk.  READS is for each connection, of which each has 16 requests in flight.
"""

import os
import random
import sys
import threading

import nbd

IN_FLIGHT = 16


class Reader(threading.Thread):
    def __init__(self, uri, raw, size, reads, seed):
        super().__init__()
        self.raw = raw
        self.size = size
        self.reads = reads
        self.random = random.Random(seed)
        self.problems = []
        self.nbd = nbd.NBD()
        self.nbd.connect_uri(uri)
        if self.nbd.get_size() != size:
            self.problems.append("the disk has %d bytes, the raw file %d"
                                 % (self.nbd.get_size(), size))
            self.reads = 0

    def place(self):
        """Small and large ones, and what lies across powers of two."""
        r = self.random
        length = r.choice((r.randint(1, 600), r.randint(1, 9000),
                           r.randint(1, 70000), r.randint(1, 500000)))
        offset = r.randrange(self.size)
        if r.random() < 0.4:
            unit = 1 << r.randint(9, 21)
            offset = max(0, offset // unit * unit - r.randint(0, length))
        if r.random() < 0.05:
            offset = self.size - length
        offset = max(0, offset)
        return offset, min(length, self.size - offset)

    def finished(self, buf, offset, length, error):
        if error:
            self.problems.append("reading %d bytes at %d: errno %d"
                                 % (length, offset, error))
            return 1
        want = os.pread(self.raw, length, offset)
        got = bytes(buf.to_bytearray())
        if got != want:
            at = next(i for i in range(length) if got[i] != want[i])
            self.problems.append("%d bytes at %d differ from %d on"
                                 % (length, offset, offset + at))
        return 1

    def start_one(self):
        offset, length = self.place()
        buf = nbd.Buffer(length)
        self.nbd.aio_pread(
            buf, offset,
            lambda error: self.finished(buf, offset, length, error.value))

    def run(self):
        started = 0
        while started < self.reads or self.nbd.aio_in_flight() > 0:
            while started < self.reads and \
                    self.nbd.aio_in_flight() < IN_FLIGHT:
                self.start_one()
                started += 1
            self.nbd.poll(-1)
        self.nbd.shutdown()


def main():
    uri, raw_name = sys.argv[1:3]
    reads, connections, seed = (
        [int(a) for a in sys.argv[3:]] + [100, 4, 1][len(sys.argv) - 3:])
    raw = os.open(raw_name, os.O_RDONLY)
    size = os.fstat(raw).st_size
    readers = [Reader(uri, raw, size, reads, seed * 1000 + i)
               for i in range(connections)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    problems = [p for reader in readers for p in reader.problems]
    for problem in problems[:10]:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
