#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""Random writes, zeroes and trims of any alignment, and what they leave.

nbd-random-writes.py URI RAW COUNT SEED [MAX]

Over four connections, 16 requests of up to MAX bytes (default 100000) in
flight, COUNT in all, none of which overlap while they are in flight.  RAW is a
raw file with the content of the disk before, and with what it should be
afterwards.  Exit status 1 if a request fails or a read is wrong; what was
answered with ENOSPC may hold the old content or the new, and is read.
"""

import errno
import random
import sys

import nbd

IN_FLIGHT = 16
CONNECTIONS = 4


class Client:
    def __init__(self, uri, raw, seed, longest):
        self.random = random.Random(seed)
        self.longest = longest
        self.handles = [nbd.NBD() for _ in range(CONNECTIONS)]
        for h in self.handles:
            h.set_strict_mode(0)
            h.connect_uri(uri)
        with open(raw, "rb") as f:
            self.content = bytearray(f.read())
        assert len(self.content) == self.handles[0].get_size()
        self.busy = {}              # number: (offset, length)
        self.unknown = []           # ranges that have to be read
        self.failed = 0
        self.nr_full = 0

    def range(self):
        while True:
            offset = self.random.randrange(len(self.content))
            length = 1 + self.random.randrange(
                self.random.choice((10, 600, 5000, self.longest)))
            if self.random.randrange(2):
                offset -= offset % 512
                length += -length % 512
            length = min(length, len(self.content) - offset)
            if all(o + n <= offset or o >= offset + length
                   for o, n in self.busy.values()):
                return offset, length

    def start(self, number):
        h = self.handles[number % CONNECTIONS]
        offset, length = self.range()
        kind = self.random.choice("wwwwwwzzntrr")
        self.busy[number] = offset, length
        expected = None

        def done(result):
            error = result.value
            del self.busy[number]
            if error and error != errno.ENOSPC:
                print(f"{kind} of {length} bytes at {offset}: error {error}")
            if error:
                self.nr_full += error == errno.ENOSPC
                self.failed += error != errno.ENOSPC
            if error or kind == "t":
                self.unknown.append((offset, length))
            elif expected is not None:
                if bytes(buf.to_bytearray()) != expected:
                    print(f"{length} bytes at {offset} are wrong")
                    self.failed += 1
            return 1

        if kind == "w":
            data = self.random.randbytes(length)
            if self.random.randrange(4) == 0:
                middle = length // 3
                data = data[:middle] + bytes(length - middle)
            self.content[offset:offset + length] = data
            buf = nbd.Buffer.from_bytearray(bytearray(data))
            h.aio_pwrite(buf, offset, done)
        elif kind == "r":
            if any(o < offset + length and o + n > offset
                   for o, n in self.unknown):
                del self.busy[number]
                return
            expected = bytes(self.content[offset:offset + length])
            buf = nbd.Buffer(length)
            h.aio_pread(buf, offset, done)
        elif kind == "t":
            h.aio_trim(length, offset, done)
        else:
            self.content[offset:offset + length] = bytes(length)
            h.aio_zero(length, offset, done,
                       nbd.CMD_FLAG_NO_HOLE if kind == "n" else 0)

    def wait(self, limit):
        while len(self.busy) > limit:
            for h in self.handles:
                h.poll(1 if h.aio_in_flight() else 0)

    def run(self, count):
        for number in range(count):
            self.wait(IN_FLIGHT - 1)
            self.start(number)
        self.wait(0)
        for offset, length in self.unknown:
            self.content[offset:offset + length] = \
                self.handles[0].pread(length, offset)
        self.handles[0].flush()


client = Client(sys.argv[1], sys.argv[2], int(sys.argv[4]),
                int(sys.argv[5]) if len(sys.argv) > 5 else 100000)
client.run(int(sys.argv[3]))
with open(sys.argv[2], "wb") as raw:
    raw.write(client.content)
print(f"{client.nr_full} requests found no space")
sys.exit(1 if client.failed else 0)
