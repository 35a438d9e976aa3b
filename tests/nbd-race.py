#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""One connection hammers a few clusters, another writes clusters of its own.

nbd-race.py run URI STATE CLUSTER SECONDS INNOCENTS SEED
nbd-race.py verify URI STATE

The first connection keeps 64 requests in flight on the disk's first 8 clusters
of CLUSTER bytes: writes of 4 KiB that overlap, write-zeroes, most of them with
NO_HOLE, and trims.  The second one writes each of INNOCENTS further clusters
once, some whole, some in part, spread over the SECONDS; the disk held zeros
there.  At the end, every request has been answered; all innocent clusters are
what was written, also when they are read at once; and each byte of the
hammered ones is what some request made it that none has overwritten later.

STATE is a file that says what to expect; with verify, another server is asked
for the same.  Exit status 1 if something is wrong.
"""

import pickle
import random
import sys
import threading
import time

import nbd

from nbdblocks import BLOCK, Blocks, block_bytes, nr_unexplained

HAMMERED = 8
FIRST_INNOCENT = 16
IN_FLIGHT = 64


class Hammer(threading.Thread):
    def __init__(self, uri, cluster, until, seed):
        super().__init__()
        self.random = random.Random(seed)
        self.cluster = cluster
        self.bytes = HAMMERED * cluster
        self.until = until
        self.answered = self.started = 0
        self.errors = []
        self.blocks = Blocks(self.bytes)
        self.nbd = nbd.NBD()
        self.nbd.connect_uri(uri)

    def place(self, whole):
        if whole:
            length = self.cluster * self.random.choice((1, 1, 1, 2))
            offset = self.random.randrange(HAMMERED) * self.cluster
        else:
            length = 4096
            offset = self.random.randrange(self.bytes // BLOCK) * BLOCK
        return offset, min(length, self.bytes - offset)

    def ended(self, request, error):
        self.answered += 1
        self.blocks.end(request)
        self.blocks.settle(request)
        if error:
            self.errors.append("a hammering request got errno %d" % error)
        return 1

    def start_one(self):
        dice = self.random.random()
        offset, length = self.place(dice > 0.45 and self.random.random() < 0.6)
        self.started += 1
        trim = dice > 0.85
        number = self.started if dice <= 0.45 else 0
        request = self.blocks.begin(number, offset, length, not trim)

        def completion(error):
            return self.ended(request, error.value)

        if number:
            data = nbd.Buffer.from_bytearray(
                bytearray(block_bytes(number) * (length // BLOCK)))
            self.nbd.aio_pwrite(data, offset, completion)
        elif trim:
            self.nbd.aio_trim(length, offset, completion)
        else:
            flags = nbd.CMD_FLAG_NO_HOLE if self.random.random() < 0.8 else 0
            self.nbd.aio_zero(length, offset, completion, flags)

    def run(self):
        while time.monotonic() < self.until or self.nbd.aio_in_flight() > 0:
            while time.monotonic() < self.until and \
                    self.nbd.aio_in_flight() < IN_FLIGHT:
                self.start_one()
            self.nbd.poll(-1)
        self.nbd.shutdown()


def innocent_content(cluster, index):
    """Some are written whole, of some only a part."""
    data = block_bytes((1 << 40) + index) * (cluster // BLOCK)
    if index % 2:
        return 0, data
    return cluster // 2, data[:cluster // 4]


def innocent_is_intact(handle, cluster, index):
    start, data = innocent_content(cluster, index)
    want = bytearray(cluster)
    want[start:start + len(data)] = data
    got = handle.pread(cluster, (FIRST_INNOCENT + index) * cluster)
    return got == want


class Innocent(threading.Thread):
    def __init__(self, uri, cluster, seconds, count):
        super().__init__()
        self.cluster = cluster
        self.seconds = seconds
        self.count = count
        self.damaged = set()
        self.errors = []
        self.nbd = nbd.NBD()
        self.nbd.connect_uri(uri)

    def run(self):
        begin = time.monotonic()
        for index in range(self.count):
            at = begin + self.seconds * index / self.count
            time.sleep(max(0, at - time.monotonic()))
            start, data = innocent_content(self.cluster, index)
            offset = (FIRST_INNOCENT + index) * self.cluster + start
            try:
                self.nbd.pwrite(data, offset)
                if not innocent_is_intact(self.nbd, self.cluster, index):
                    self.damaged.add(index)
            except nbd.Error as error:
                self.errors.append("an innocent write: %s" % error)
        self.nbd.shutdown()


def verify(uri, state, damaged):
    """Returns whether all is as expected, and says how much is not."""
    handle = nbd.NBD()
    handle.connect_uri(uri)
    for index in range(state["innocents"]):
        if not innocent_is_intact(handle, state["cluster"], index):
            damaged.add(index)
    wrong = nr_unexplained(handle, state["blocks"])
    handle.shutdown()
    print("%d of %d innocent clusters damaged, %d of %d blocks unexplained"
          % (len(damaged), state["innocents"], wrong, len(state["blocks"])))
    return not damaged and not wrong


def run(uri, state_file, cluster, seconds, innocents, seed):
    hammer = Hammer(uri, cluster, time.monotonic() + seconds, seed)
    innocent = Innocent(uri, cluster, seconds, innocents)
    hammer.start()
    innocent.start()
    hammer.join()
    innocent.join()

    state = {"cluster": cluster, "innocents": innocents,
             "blocks": hammer.blocks.expectation()}
    with open(state_file, "wb") as file:
        pickle.dump(state, file)
    for error in (hammer.errors + innocent.errors)[:10]:
        print(error, file=sys.stderr)
    print("%d of %d hammering requests answered"
          % (hammer.answered, hammer.started))
    good = verify(uri, state, innocent.damaged)
    return good and not hammer.errors and not innocent.errors and \
        hammer.answered == hammer.started


def main():
    command, uri, state_file = sys.argv[1:4]
    if command == "run":
        good = run(uri, state_file, *[int(a) for a in sys.argv[4:]])
    else:
        with open(state_file, "rb") as file:
            good = verify(uri, pickle.load(file), set())
    sys.exit(0 if good else 1)


main()
