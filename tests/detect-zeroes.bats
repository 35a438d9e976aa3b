# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# detect-zeroes=: zeros that clients write, beside qemu-nbd.

load lib

teardown ()
{
    [ -z "${qemu_pid:-}" ] || kill $qemu_pid 2> /dev/null || :
    common_teardown
}

# qemu_serve ARGS: qemu-nbd with ARGS; $uri and $qemu_pid.
qemu_serve ()
{
    uri="nbd+unix:///?socket=$TEST_DIR/qemu.sock"
    qemu-nbd -t -k "$TEST_DIR/qemu.sock" -f qcow2 "$@" 3>&- 4>&- &
    qemu_pid=$!
    for _ in {1..200}; do
        nbdinfo --size "$uri" > /dev/null 2>&1 && return
        sleep 0.05
    done
    fail "qemu-nbd did not start"
}

qemu_stop ()
{
    kill $qemu_pid
    wait $qemu_pid || :
    qemu_pid=
}

# What each disk holds before, and what clients write.  A cluster has 64 KiB.
make_disk ()
{
    rm -f $1
    qemu-img create -q -f qcow2 -o $2 $1 8M
    qemu-io -f qcow2 -c 'write -q -P 1 0 4M' $1
}

writes ()
{
    "$PYTHON" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1])
K = 1024
def zeros(count, offset, flags=0):
    h.pwrite(bytes(count), offset, flags)
zeros(64 * K, 0)                # a cluster of data
zeros(640 * K, 1024 * K)        # ten of them
zeros(4 * K, 192 * K + 8 * K)   # part of one
zeros(200 * K, 256 * K + 100)   # parts, and whole ones between
zeros(512, 3 * K, nbd.CMD_FLAG_FUA)
zeros(64 * K, 5120 * K)         # nothing was there
zeros(640 * K, 6144 * K)
zeros(4 * K, 7168 * K)
h.pwrite(b"a" * 64 * K, 7424 * K)
zeros(64 * K, 7424 * K, nbd.CMD_FLAG_FUA)
zeros(64 * K, 8192 * K - 64 * K)
h.flush()' "$uri"
}

# What is allocated, and what QEMU knows to be zeros.
allocation ()
{
    qemu-img map -f qcow2 --output=json $1 |
        jq -c '.[] | [.start, .length, .data, .zero]' | merge
    qemu-img check -f qcow2 --output=json $1 |
        jq '."allocated-clusters", ."leaks", ."corruptions"'
}

# Adjacent extents of one kind are one.
merge ()
{
    awk -F '[][,]' '{ kind = $4 " " $5
                      if (kind != last) { print $2, kind; last = kind } }'
}

# Compare with qemu-nbd for each mode; $1 are options of the image.
beside_qemu ()
{
    local mode
    for mode in off on unmap; do
        make_disk ours.qcow2 $1
        make_disk qemu.qcow2 $1
        start_nbdkit ours.qcow2 write=on detect-zeroes=$mode discard=unmap
        writes
        stop_nbdkit
        qemu_serve --discard=unmap --detect-zeroes=$mode qemu.qcow2
        writes
        qemu_stop
        allocation ours.qcow2 > ours.map
        allocation qemu.qcow2 > qemu.map
        echo "$mode:"
        diff qemu.map ours.map
        qemu-img compare -f qcow2 -F qcow2 ours.qcow2 qemu.qcow2
        # Not all modes do the same.
        cp ours.map map.$mode
    done
    run ! cmp map.off map.on
    run ! cmp map.on map.unmap
}

@test "the same clusters as with qemu-nbd" {
    beside_qemu cluster_size=64k
}

@test "... with small clusters" {
    beside_qemu cluster_size=4k
}

@test "... with version 2" {
    local mode
    # There it has no zero clusters that keep their space.
    for mode in on unmap; do
        make_disk ours.qcow2 compat=0.10
        make_disk qemu.qcow2 compat=0.10
        start_nbdkit ours.qcow2 write=on detect-zeroes=$mode
        writes
        stop_nbdkit
        qemu_serve --discard=unmap --detect-zeroes=$mode qemu.qcow2
        writes
        qemu_stop
        qemu-img check -f qcow2 ours.qcow2
        qemu-img compare -f qcow2 -F qcow2 ours.qcow2 qemu.qcow2
    done
}

@test "whole clusters of zeros within a write take no space" {
    local options clusters
    for options in cluster_size=64k,16 cluster_size=4k,256 \
                   cluster_size=512,2048; do
        clusters=${options#*,}
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o ${options%,*} disk.qcow2 8M
        start_nbdkit disk.qcow2 write=on detect-zeroes=on
        # A MiB, a quarter of which is data.
        "$PYTHON" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1])
K = 1024
part = bytes(128 * K) + b"x" * 64 * K + bytes(64 * K)
h.pwrite(part * 4, 2048 * K)
h.pwrite(part * 4, 4096 * K, nbd.CMD_FLAG_FUA)
assert h.pread(1024 * K, 2048 * K) == part * 4
assert h.pread(1024 * K, 4096 * K) == part * 4' "$uri"
        stop_nbdkit
        qemu-img check -f qcow2 disk.qcow2
        [ "$(qemu-img check -f qcow2 --output=json disk.qcow2 |
            jq '."allocated-clusters"')" -eq $((clusters / 2)) ]
    done
}

@test "zeros over a backing file hide it" {
    local mode
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 5 0 1M' base.qcow2
    for mode in on unmap; do
        qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
        start_nbdkit disk.qcow2 write=on detect-zeroes=$mode
        "$PYTHON" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1])
h.pwrite(bytes(300000), 1000)
assert h.pread(302000, 0) == \
    bytes([5]) * 1000 + bytes(300000) + bytes([5]) * 1000' "$uri"
        stop_nbdkit
        qemu-img check -f qcow2 disk.qcow2
        # Two edges.
        [ "$(qemu-img check -f qcow2 --output=json disk.qcow2 |
            jq '."allocated-clusters"')" -eq 2 ]
    done
}

@test "what was detected is durable with FUA" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 5 0 1M' disk.qcow2
    start_nbdkit disk.qcow2 write=on detect-zeroes=unmap
    "$PYTHON" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1])
h.pwrite(bytes(65536), 65536, nbd.CMD_FLAG_FUA)
h.pwrite(bytes(512), 512, nbd.CMD_FLAG_FUA)' "$uri"
    kill_nbdkit
    qemu-io -f qcow2 -c 'read -P 0 64k 64k' -c 'read -P 0 512 512' \
        -c 'read -P 5 1k 63k' disk.qcow2 > out
    [ "$(grep -c '^read .* bytes at' out)" -eq 3 ]
    run ! grep -i 'verification failed' out
}
