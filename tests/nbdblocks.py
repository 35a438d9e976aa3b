# SPDX-License-Identifier: BSD-3-Clause

"""What the blocks of a disk may hold, for clients that write to it.

Each request has a number, and writes that number to its blocks of 512 bytes; 0
is for zeros.  Requests may overlap in place and time.
"""

import sys

BLOCK = 512
PENDING = float("inf")


def block_bytes(number):
    return number.to_bytes(8, "little") * (BLOCK // 8)


class Request:
    def __init__(self, number, blocks, began, overwrites):
        self.number = number
        self.blocks = blocks
        self.began = began
        self.ended = PENDING
        self.overwrites = overwrites


class Blocks:
    """For each block the requests of which it may be."""

    def __init__(self, size):
        self.clock = 1
        first = Request(0, (), 0, True)
        first.ended = 0
        self.blocks = [[first] for _ in range(size // BLOCK)]

    def now(self):
        self.clock += 1
        return self.clock

    def begin(self, number, offset, length, overwrites=True):
        """A request begins; a trim may leave things as they are, so it does
        not overwrite."""
        request = Request(number, range(offset // BLOCK,
                                        (offset + length) // BLOCK),
                          self.now(), overwrites)
        for block in request.blocks:
            self.blocks[block].append(request)
        return request

    def end(self, request):
        request.ended = self.now()

    def settle(self, request):
        """What had ended when this one began is gone for good."""
        if request.overwrites:
            for block in request.blocks:
                self.blocks[block] = [r for r in self.blocks[block]
                                      if r.ended >= request.began]

    def expectation(self):
        """For each block, the numbers of the requests it may be of."""
        return [sorted({r.number for r in block}) for block in self.blocks]


def explained(got, numbers):
    wants = [block_bytes(number) for number in numbers]
    return got in wants or all(any(got[k] == want[k] for want in wants)
                               for k in range(BLOCK))


def nr_unexplained(handle, expectation):
    """Reads the blocks from the disk's start on; says which are wrong."""
    wrong = 0
    step = 4096
    for first in range(0, len(expectation), step):
        part = expectation[first:first + step]
        content = handle.pread(len(part) * BLOCK, first * BLOCK)
        for i, numbers in enumerate(part):
            got = content[i * BLOCK:(i + 1) * BLOCK]
            if explained(got, numbers):
                continue
            wrong += 1
            if wrong <= 5:
                print("block %d begins with %s, not of one of %s"
                      % (first + i, bytes(got[:8]).hex(), numbers),
                      file=sys.stderr)
    return wrong
