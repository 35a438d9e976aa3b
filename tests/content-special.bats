# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# What a client reads is what QEMU reads: images with extended L2 entries, disks
# and files that end in odd places, small caches.

load lib
load make-image

@test "extended L2 entries" {
    local c="extended=on size=3000320"
    same_as_qemu $c cluster=16384 compression=zlib backing=raw writes=150 \
        backing_size=2000001 seed=51
    same_as_qemu $c cluster=16384 refcount=64 snapshots=2 writes=150 seed=52
    same_as_qemu $c cluster=65536 refcount=1 compression=zstd backing=qcow2 \
        backing_size=4000256 writes=100 seed=53
    same_as_qemu $c cluster=65536 data=on backing=raw writes=100 seed=54
    same_as_qemu $c cluster=65536 data=raw writes=100 seed=55
    same_as_qemu $c cluster=65536 prealloc=metadata snapshots=1 seed=56
    same_as_qemu $c cluster=2097152 size=30000128 compression=zlib snapshots=1 \
        backing=qcow2 seed=57
    same_as_qemu odd=77 $c cluster=2097152 size=30000128 refcount=64 seed=58
    same_as_qemu odd=7777 $c cluster=32768 compression=zstd backing=qcow2 \
        backing_cluster=512 backing_size=3000320 snapshots=1 seed=59
}

# Each of the 32 subclusters of a cluster in each state, next to each other one.
@test "subclusters in all states" {
    local extents s size=$((32 * 2048)) kind
    pattern_file pattern1 100003
    head -c $size /dev/urandom > base.raw
    qemu-img create -q -f qcow2 -o cluster_size=64k,extended_l2=on \
        -b base.raw -F raw disk.qcow2
    for ((s = 0; s < 32; s++)); do
        kind=$((s * s / 3 % 3))
        [ $kind -ne 0 ] || echo "write -q -s pattern1 $((s * 2048)) 2048"
        [ $kind -ne 1 ] || echo "write -q -z $((s * 2048)) 2048"
    done > commands
    qemu_io -f qcow2 disk.qcow2 < commands
    qemu_raw disk.qcow2 qemu.raw

    # The bitmap of the first entry: all three states are there.
    extents=$(qemu-img map --output=json disk.qcow2)
    [[ $extents == *'"depth": 1'* && $extents == *'"zero": true'* ]]
    serves_as qemu.raw disk.qcow2
}

@test "an image of no bytes, and of few" {
    local size
    for size in 0 512 1024; do
        qemu-img create -q -f qcow2 disk.qcow2 $size
        [ $size -eq 0 ] ||
            qemu-io -f qcow2 -c "write -q -P 7 0 $size" disk.qcow2
        qemu_raw disk.qcow2 qemu.raw
        start_nbdkit -r disk.qcow2
        [ "$(nbdinfo --size "$uri")" -eq $size ]
        assert_same_content "$uri" qemu.raw
        stop_nbdkit
    done
    for size in 1 511 513; do
        set_virtual_size disk.qcow2 $size
        printf '\7%.0s' $(seq $size) > want.raw
        serves_as want.raw disk.qcow2
    done
}

@test "an overlay of no bytes over a backing file, and one over none" {
    head -c 100000 /dev/urandom > base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 0
    start_nbdkit -r disk.qcow2
    [ "$(nbdinfo --size "$uri")" -eq 0 ]
    stop_nbdkit

    : > base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 200000
    qemu-io -f qcow2 -c 'write -q -P 9 100000 50000' disk.qcow2
    qemu_raw disk.qcow2 qemu.raw
    serves_as qemu.raw disk.qcow2
}

@test "the file ends within the last cluster" {
    local cut
    pattern_file pattern1 65521
    for cut in 1 30000 65535; do
        qemu-img create -q -f qcow2 disk.qcow2 1M
        qemu-io -f qcow2 -c 'write -q -s pattern1 0 192k' disk.qcow2
        truncate -s -$cut disk.qcow2
        qemu_raw disk.qcow2 qemu.raw
        serves_as qemu.raw disk.qcow2
    done

    # Whole clusters of an external data file.
    qemu-img create -q -f qcow2 -o data_file=data disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -s pattern1 0 1M' disk.qcow2
    truncate -s 300001 data
    qemu_raw disk.qcow2 qemu.raw
    serves_as qemu.raw disk.qcow2 data-file=data
}

@test "a cluster of which the compressed data ends with the file" {
    pattern_file pattern1 65536
    qemu-img convert -f raw -O qcow2 -c pattern1 disk.qcow2
    serves_as pattern1 disk.qcow2
    qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd pattern1 \
        disk.qcow2
    serves_as pattern1 disk.qcow2
}

@test "caches of a few kilobytes" {
    make_image disk.qcow2 cluster=4096 size=20000256 compression=zstd \
        backing=qcow2 backing_cluster=512 writes=300 seed=71
    qemu_raw disk.qcow2 qemu.raw
    serves_as qemu.raw disk.qcow2 cache-size=16k compressed-cache-size=0
    serves_as qemu.raw disk.qcow2 cache-size=0 compressed-cache-size=8k
}

@test "a compressed cluster that reaches below another file's data" {
    pattern_file pattern1 65536
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -c -s pattern1 0 64k' base.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=1k -F qcow2 -b base.qcow2 \
        middle.qcow2
    qemu-io -f qcow2 -c 'write -q -P 7 2k 1k' -c 'write -q -z 5k 1k' \
        middle.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=1k -F qcow2 -b middle.qcow2 \
        disk.qcow2
    qemu_raw disk.qcow2 qemu.raw
    serves_as qemu.raw disk.qcow2
}
