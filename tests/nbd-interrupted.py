#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""Writes until the server is gone, and knows what has to be there then.

nbd-interrupted.py write URI STATE SEED
nbd-interrupted.py verify URI STATE flushed|answered

Writes, write-zeroes, trims and flushes are kept in flight all over the disk,
which held zeros, until the connection breaks.  With `flushed', what was
written before a completed flush, or with FUA, has to be there; what came later
may be.  With `answered', for a server that ended properly, so has all that was
answered.
"""

import pickle
import random
import sys

import nbd

from nbdblocks import BLOCK, Blocks, block_bytes, nr_unexplained

IN_FLIGHT = 16


class Writer:
    def __init__(self, uri, seed):
        self.random = random.Random(seed)
        self.nbd = nbd.NBD()
        self.nbd.connect_uri(uri)
        self.size = self.nbd.get_size()
        self.flushed = Blocks(self.size)
        self.answered = Blocks(self.size)
        self.number = 0
        self.done = []              # and not known to be durable
        self.nr_flushes = 0

    def begin(self, number, offset, length, overwrites):
        return [b.begin(number, offset, length, overwrites)
                for b in (self.flushed, self.answered)]

    def end(self, requests, fua, error):
        if error:
            return 1
        self.flushed.end(requests[0])
        self.answered.end(requests[1])
        self.answered.settle(requests[1])
        if fua:
            self.flushed.settle(requests[0])
        else:
            self.done.append(requests[0])
        return 1

    def flush(self):
        before, self.done = self.done, []

        def completion(error):
            if error.value == 0:
                self.nr_flushes += 1
                for request in before:
                    self.flushed.settle(request)
            return 1

        self.nbd.aio_flush(completion)

    def start_one(self):
        dice = self.random.random()
        length = BLOCK * self.random.choice((1, 8, 8, 8, 50, 128, 256))
        length = min(length, self.size)
        offset = self.random.randrange((self.size - length) // BLOCK + 1) \
            * BLOCK
        if dice < 0.04:
            self.flush()
            return
        fua = self.random.random() < 0.03
        flags = nbd.CMD_FLAG_FUA if fua else 0
        self.number += 1
        requests = self.begin(self.number if dice < 0.8 else 0, offset,
                              length, dice < 0.95)

        def completion(error):
            return self.end(requests, fua, error.value)

        if dice < 0.8:
            data = bytearray(block_bytes(self.number) * (length // BLOCK))
            self.nbd.aio_pwrite(nbd.Buffer.from_bytearray(data), offset,
                                completion, flags)
        elif dice < 0.95:
            if self.random.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            self.nbd.aio_zero(length, offset, completion, flags)
        else:
            self.nbd.aio_trim(length, offset, completion, flags)

    def run(self):
        try:
            while True:
                while self.nbd.aio_in_flight() < IN_FLIGHT:
                    self.start_one()
                self.nbd.poll(-1)
        except nbd.Error:
            pass


def write(uri, state_file, seed):
    writer = Writer(uri, seed)
    open(state_file + ".connected", "w").close()
    writer.run()
    state = {"flushed": writer.flushed.expectation(),
             "answered": writer.answered.expectation()}
    with open(state_file, "wb") as file:
        pickle.dump(state, file)
    print("%d requests, %d flushes" % (writer.number, writer.nr_flushes))
    return True


def verify(uri, state_file, which):
    with open(state_file, "rb") as file:
        expectation = pickle.load(file)[which]
    handle = nbd.NBD()
    handle.connect_uri(uri)
    wrong = nr_unexplained(handle, expectation)
    handle.shutdown()
    print("%d of %d blocks are wrong" % (wrong, len(expectation)))
    return wrong == 0


def main():
    command, uri, state_file, argument = sys.argv[1:]
    if command == "write":
        good = write(uri, state_file, int(argument))
    else:
        good = verify(uri, state_file, argument)
    sys.exit(0 if good else 1)


main()
