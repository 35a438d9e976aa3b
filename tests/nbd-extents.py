#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause

"""Checks what block status says about a disk.

nbd-extents.py URI IMAGE [SNAPSHOT]

The disk is compared with what qemu-img says of IMAGE, the active layer or the
snapshot of that name:

  - Answers begin where the request does, have no gaps and don't go beyond
    the request; with REQ_ONE there is one.
  - What is called zero or a hole is zero, byte by byte.
  - What `qemu-img map' calls zero is called zero.
  - What is said of a byte does not depend on the request.

To a filesystem, space that was allocated but not yet written may be data as
long as it is in the page cache.  So the files of the current directory are
thrown out of it in the beginning, the metadata is read once, and the server is
asked before QEMU reads.
"""

import json
import mmap
import os
import random
import subprocess
import sys
import tempfile

import nbd

META = "base:allocation"
MAX_REQUEST = (1 << 32) - 1

problems = []


def check(good, what, *args):
    if not good:
        problems.append(what % args)
    return good


class Disk:
    def __init__(self, uri):
        self.nbd = nbd.NBD()
        self.nbd.add_meta_context(META)
        self.nbd.connect_uri(uri)
        self.size = self.nbd.get_size()

    def ask(self, offset, count, flags=0):
        """One request: [(offset, length, state)]."""
        entries = []
        self.nbd.block_status(count, offset, lambda c, o, e, err:
                              entries.extend(e), flags)
        found = []
        at = offset
        for length, state in zip(entries[::2], entries[1::2]):
            check(length > 0, "an empty extent at %d", at)
            found.append((at, length, state))
            at += length
        check(found, "no answer at %d", offset)
        check(at <= offset + count,
              "%d bytes at %d: the answer goes on until %d",
              count, offset, at)
        if flags & nbd.CMD_FLAG_REQ_ONE:
            check(len(found) == 1, "REQ_ONE at %d: %d extents",
                  offset, len(found))
        return found

    def states(self, piece, flags=0):
        """The state of each byte, asked for in requests of PIECE bytes."""
        states = bytearray(self.size)
        offset = 0
        while offset < self.size and not problems:
            for at, length, state in self.ask(
                    offset, min(piece, self.size - offset), flags):
                states[at:at + length] = bytes([state]) * length
                offset = at + length
        return bytes(states)


def runs(data):
    """[(offset, length, value)] of equal bytes."""
    at = 0
    while at < len(data):
        value = data[at]
        step, end = 1, at + 1
        while end < len(data):
            part = data[end:end + step]
            if part == bytes([value]) * len(part):
                end += len(part)
                step = min(step * 2, 1 << 20)
            elif step > 1:
                step //= 2
            else:
                break
        yield at, end - at, value
        at = end


def check_states(states, raw):
    for at, length, state in runs(states):
        if state & nbd.STATE_HOLE:
            check(state & nbd.STATE_ZERO, "%d: a hole, but not zero", at)
        if state:
            check(raw[at:at + length].count(0) == length,
                  "%d bytes at %d are called zero, but are not", length, at)


def drop_caches():
    for name in os.listdir("."):
        if os.path.isfile(name):
            fd = os.open(name, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def qemu_map(image):
    said = subprocess.run(["qemu-img", "map", "--output=json", "-f", "qcow2",
                           image], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(said)


def qemu_raw(image, snapshot):
    with tempfile.NamedTemporaryFile(dir=".") as f:
        options = ["-l", "snapshot.name=" + snapshot] if snapshot else []
        subprocess.run(["qemu-img", "convert", "-t", "unsafe", "-f", "qcow2",
                        "-O", "raw", *options, image, f.name], check=True)
        return mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)


def check_map(states, qemu):
    for entry in qemu:
        if entry["zero"]:
            at, length = entry["start"], entry["length"]
            part = states[at:at + length]
            check(part.count(0) == 0,
                  "%d bytes at %d: QEMU shows zeros, of which %d are "
                  "called data", length, at, part.count(0))


def check_random(disk, states):
    r = random.Random(1)
    for i in range(300):
        offset = r.randrange(disk.size)
        count = r.choice((1, r.randint(1, 1000), r.randint(1, 100000),
                          r.randint(1, disk.size)))
        count = min(count, disk.size - offset)
        flags = r.choice((0, nbd.CMD_FLAG_REQ_ONE))
        for at, length, state in disk.ask(offset, count, flags):
            check(states[at:at + length].count(state) == length,
                  "%d bytes at %d: another answer for %d bytes at %d",
                  length, at, count, offset)


def main():
    uri, image = sys.argv[1:3]
    snapshot = sys.argv[3] if len(sys.argv) > 3 else None

    drop_caches()
    disk = Disk(uri)
    disk.states(MAX_REQUEST)
    states = disk.states(MAX_REQUEST)
    check(states == disk.states(MAX_REQUEST, nbd.CMD_FLAG_REQ_ONE),
          "REQ_ONE gives other answers")
    check(states == disk.states(99991), "smaller requests give other answers")
    check_random(disk, states)
    disk.nbd.shutdown()

    if not snapshot:
        check_map(states, qemu_map(image))
    raw = qemu_raw(image, snapshot)
    if check(len(raw) == disk.size, "the disk has %d bytes, not %d",
             disk.size, len(raw)):
        check_states(states, raw)

    for problem in problems[:10]:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
