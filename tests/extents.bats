# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# Block status: data is never called zero or a hole, and whatever QEMU knows to
# be zero without reading it is called zero here.

load lib
load make-image

# check_extents [PARAM ...]: of disk.qcow2.
check_extents ()
{
    start_nbdkit -r disk.qcow2 "$@" &&
        "$PYTHON" "$BATS_TEST_DIRNAME/nbd-extents.py" "$uri" disk.qcow2 &&
        stop_nbdkit
}

# as_qemu_shows_it KIND ...
as_qemu_shows_it ()
{
    local params=()
    rm -f disk.qcow2*
    make_image disk.qcow2 "$@"
    [ ! -e disk.qcow2.data ] || params+=(data-file=disk.qcow2.data)
    check_extents "${params[@]}" || fail "kind: $*"
}

@test "images without a backing file" {
    as_qemu_shows_it cluster=512 size=1000448 version=2 snapshots=1 seed=101
    as_qemu_shows_it cluster=4096 compression=zlib writes=100 seed=102
    as_qemu_shows_it size=30000128 compression=zstd snapshots=1 seed=103
    as_qemu_shows_it cluster=2097152 size=30000128 writes=20 seed=104
    as_qemu_shows_it cluster=16384 extended=on writes=100 seed=105
    as_qemu_shows_it extended=on compression=zlib writes=100 seed=106
}

@test "images with a backing file" {
    as_qemu_shows_it cluster=512 size=1000448 backing=raw \
        backing_size=700001 seed=111
    as_qemu_shows_it cluster=4096 backing=qcow2 backing_cluster=512 \
        backing_size=2000384 seed=112
    as_qemu_shows_it size=30000128 version=2 backing=raw \
        backing_size=40000001 seed=113
    as_qemu_shows_it size=30000128 backing=qcow2 compression=zlib seed=114
    as_qemu_shows_it cluster=16384 extended=on backing=raw writes=100 seed=115
    as_qemu_shows_it cluster=2097152 size=30000128 extended=on backing=qcow2 \
        backing_cluster=4096 writes=30 seed=116
}

@test "external data files" {
    as_qemu_shows_it data=on seed=121
    as_qemu_shows_it data=on backing=raw cluster=4096 seed=122
    as_qemu_shows_it data=raw seed=123
    as_qemu_shows_it data=raw extended=on seed=124

    # Where the data file ends, zeros begin.
    truncate -s 1500001 disk.qcow2.data
    check_extents data-file=disk.qcow2.data
}

@test "preallocated clusters" {
    local mode
    for mode in metadata falloc full; do
        as_qemu_shows_it prealloc=$mode writes=20 seed=131
    done
    as_qemu_shows_it prealloc=metadata cluster=4096 extended=off seed=132
    as_qemu_shows_it prealloc=metadata extended=on writes=20 seed=133
    as_qemu_shows_it prealloc=metadata data=on writes=20 seed=134

    # None of it was written: it is all zero.
    rm -f disk.qcow2
    qemu-img create -q -f qcow2 -o preallocation=metadata disk.qcow2 100M
    start_nbdkit -r disk.qcow2
    run -0 nbdinfo --map "$uri"
    [[ $output =~ ^\ *0\ +104857600\ +2\ +zero$ ]]
    stop_nbdkit
}

@test "holes in a raw backing file, seen through overlays" {
    local block i
    truncate -s 8M base.raw
    for block in 0 5 6 100 700 1023; do
        head -c 8192 /dev/urandom |
            dd of=base.raw bs=8192 seek=$block conv=notrunc status=none
    done
    truncate -s 8000001 base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 9M
    check_extents

    for i in 1 2 3 4; do
        mv disk.qcow2 layer$i.qcow2
        qemu-img create -q -f qcow2 -o cluster_size=$((512 << (i * 2))) \
            -b layer$i.qcow2 -F qcow2 disk.qcow2
        qemu-io -t unsafe -f qcow2 -c "write -q -z ${i}M 100k" \
            -c "write -q -P $i $((i * 1500000)) 3000" disk.qcow2
    done
    check_extents
}

@test "each layer shorter or longer than the next" {
    local i size
    truncate -s 1M base.raw
    qemu-io -t unsafe -f raw -c 'write -q -P 5 900k 124k' base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 3M
    for size in 2M 5M 1000000k 700k 4M; do
        qemu-io -t unsafe -f qcow2 -c "write -q -P 6 600k 10k" disk.qcow2
        mv disk.qcow2 "under-$size.qcow2"
        qemu-img create -q -f qcow2 -o cluster_size=4k \
            -b "under-$size.qcow2" -F qcow2 disk.qcow2 "${size/1000000k/7M}"
    done
    check_extents
}

@test "every second 512-byte cluster" {
    "$PYTHON" -c '
import sys
for i in range (40000):
    sys.stdout.buffer.write (bytes (512) + b"%08d" % i * 64)
' > data.raw
    qemu-img convert -t unsafe -S 512 -f raw -O qcow2 -o cluster_size=512 \
        data.raw disk.qcow2
    start_nbdkit -r disk.qcow2
    nbdinfo --map "$uri" > map
    [ "$(wc -l < map)" -eq 80000 ]
    [ "$(grep -c 'hole,zero' map)" -eq 40000 ]
    assert_same_content "$uri" data.raw
    stop_nbdkit
}

# An answer has to come in reasonable time, and may be short.
@test "requests of 4 GiB - 1" {
    local cluster
    for cluster in 512 64k 2M; do
        qemu-img create -q -f qcow2 -o cluster_size=$cluster disk.qcow2 100G
        qemu-io -t unsafe -f qcow2 -c 'write -q -P 1 50G 4k' disk.qcow2
        start_nbdkit -r disk.qcow2
        timeout 60 nbdinfo --map --totals "$uri" > map
        cat map
        [ "$(awk '$3 == 0 { print $1 }' map)" -le $((2 << 20)) ]
        timeout 60 "$PYTHON" - "$uri" <<'END'
import sys, nbd

h = nbd.NBD ()
h.add_meta_context ("base:allocation")
h.connect_uri (sys.argv[1])
count = (1 << 32) - 1
size = h.get_size ()
middle = 50 << 30
for offset in (0, 1, middle - (1 << 31), middle - 1, size - count):
    for flags in (0, nbd.CMD_FLAG_REQ_ONE):
        got = []
        h.block_status (count, offset, lambda c, o, e, err: got.extend (e),
                        flags)
        assert sum (got[::2]) <= count, (offset, got)
        assert not flags or len (got) == 2, (offset, got)
        assert got[1] == 3, (offset, got)
        assert got[0] <= max (middle - offset, 0) or offset > middle \
            or offset + count < middle, (offset, got)
END
        stop_nbdkit
    done
}

@test "an external data file or a raw file beyond 4 GiB" {
    truncate -s 20G base.raw
    qemu-io -t unsafe -f raw -c 'write -q -P 1 10G 64k' base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
    start_nbdkit -r disk.qcow2
    nbdinfo --map "$uri" | awk '{ print $1, $2, $3 }' > map
    printf '%s\n' '0 10737418240 3' '10737418240 65536 0' \
        '10737483776 10737352704 3' | diff - map
    stop_nbdkit
}

@test "extents of a snapshot" {
    local state
    make_image disk.qcow2 snapshots=2 size=20000256 backing=raw seed=141
    start_nbdkit -r disk.qcow2
    for state in s1 s2; do
        "$PYTHON" "$BATS_TEST_DIRNAME/nbd-extents.py" \
            "nbd+unix:///$state?socket=$sock" disk.qcow2 $state
    done
    stop_nbdkit
}
