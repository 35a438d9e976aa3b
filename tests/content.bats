# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# What a client reads is what QEMU reads, for every kind of image: whole, and
# in random pieces from four connections at once.

load lib
load make-image

@test "512-byte clusters" {
    local c="cluster=512 size=1000448"
    same_as_qemu $c version=2 compression=zlib snapshots=2 seed=11
    same_as_qemu $c refcount=1 backing=raw backing_size=700001 seed=12
    same_as_qemu $c refcount=64 compression=zstd backing=qcow2 seed=13
    same_as_qemu $c data=on backing=qcow2 backing_size=2000384 seed=14
    same_as_qemu $c data=raw seed=15
    same_as_qemu odd=3 $c compression=zlib seed=16
    same_as_qemu odd=511 $c version=2 backing=raw backing_size=2000001 seed=17
    same_as_qemu $c refcount=8 compression=zlib backing=qcow2 \
        backing_cluster=2097152 snapshots=1 seed=18
}

@test "4 KiB clusters" {
    local c="cluster=4096 size=5000192"
    same_as_qemu $c version=2 backing=qcow2 snapshots=1 seed=21
    same_as_qemu $c refcount=1 compression=zstd seed=22
    same_as_qemu $c refcount=64 data=on backing=raw backing_size=3000001 seed=23
    same_as_qemu $c data=raw refcount=1 seed=24
    same_as_qemu odd=1 $c compression=zlib backing=raw snapshots=3 seed=25
    same_as_qemu odd=4095 $c version=2 compression=zlib backing=qcow2 \
        backing_cluster=512 backing_size=3000320 seed=26
    same_as_qemu $c refcount=8 compression=zstd backing=qcow2 \
        backing_size=7000064 writes=200 snapshots=1 seed=27
    same_as_qemu $c prealloc=metadata refcount=64 seed=28
}

@test "64 KiB clusters" {
    local c="cluster=65536 size=40000000"
    same_as_qemu $c version=2 compression=zlib seed=31
    same_as_qemu $c version=2 backing=raw backing_size=50000001 seed=32
    same_as_qemu $c refcount=1 backing=qcow2 backing_cluster=4096 seed=33
    same_as_qemu $c refcount=64 compression=zstd snapshots=2 seed=34
    same_as_qemu $c refcount=32 data=raw seed=35
    same_as_qemu $c data=on backing=qcow2 backing_size=3000320 seed=36
    same_as_qemu odd=100 $c compression=zstd backing=raw snapshots=1 seed=37
    same_as_qemu odd=65537 $c version=2 compression=zlib backing=qcow2 \
        backing_size=100000256 snapshots=1 seed=38
    same_as_qemu $c prealloc=metadata snapshots=1 seed=39
}

@test "2 MiB clusters" {
    local c="cluster=2097152 size=60000256"
    same_as_qemu $c version=2 compression=zlib snapshots=1 seed=41
    same_as_qemu $c refcount=1 compression=zstd backing=raw seed=42
    same_as_qemu $c refcount=64 backing=qcow2 backing_cluster=512 \
        backing_size=1000448 seed=43
    same_as_qemu $c data=on compression= seed=44
    same_as_qemu odd=2097151 $c compression=zlib backing=qcow2 \
        backing_size=90000384 seed=45
    same_as_qemu odd=255 $c data=raw refcount=64 seed=46
}
