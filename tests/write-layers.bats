# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# Writing through nbdkit's filters.  Whatever these make of a client's requests,
# clients see what they have written, and so does QEMU in the image afterwards.

load lib

# The disk is not a whole number of anything.
disk_bytes=12000257

# An overlay with small clusters, some of them allocated: disk.qcow2, and
# model.raw with what it holds.
make_disk ()
{
    head -c $disk_bytes /dev/urandom > base.raw
    rm -f disk.qcow2
    qemu-img create -q -f qcow2 -o "cluster_size=16k,$1" -b base.raw -F raw \
        disk.qcow2 $disk_bytes
    qemu-io -f qcow2 -c 'write -q -P 1 100k 3M' -c 'write -q -z 10M 1M' \
        disk.qcow2
    qemu_raw disk.qcow2 model.raw
    truncate -s "$(qemu-img info -f qcow2 --output=json disk.qcow2 |
        jq '."virtual-size"')" model.raw
}

random_writes ()
{
    "$PYTHON" "$BATS_TEST_DIRNAME/nbd-random-changes.py" "$uri" "$@"
}

# The image is sound, nothing leaks, and it holds what the model does.
image_is ()
{
    local size
    size=$(stat -c %s "$1")
    qemu-img check -f qcow2 disk.qcow2
    qemu_raw disk.qcow2 qemu.raw
    cmp -n "$size" "$1" qemu.raw
}

# writes_through ARGS: random writes through these filters.
writes_through ()
{
    seed=$((${seed:-0} + 1))
    make_disk "$([ $((seed % 2)) -eq 0 ] && echo compat=0.10 ||
        echo extended_l2=on)"
    start_nbdkit "$@" disk.qcow2
    random_writes model.raw $seed 200
    assert_same_content "$uri" model.raw
    stop_nbdkit
    [ ! -s "$server_stderr" ] || fail "$*: $(cat "$server_stderr")"
    image_is model.raw || fail "through $*"
}

@test "no filter" {
    writes_through
    writes_through
}

@test "fua" {
    for mode in emulate native force pass discard; do
        writes_through --filter=fua fuamode=$mode
    done
}

@test "nozero" {
    for mode in none emulate notrim plugin; do
        writes_through --filter=nozero zeromode=$mode
    done
    writes_through --filter=nozero zeromode=plugin fastzeromode=slow
}

@test "blocksize" {
    # It drops what is beyond the last whole block.
    disk_bytes=$((12000257 / 65536 * 65536))
    writes_through --filter=blocksize minblock=512
    writes_through --filter=blocksize minblock=64k maxdata=1M maxlen=2M
    writes_through --filter=blocksize maxdata=4096
}

# With any plugin, a hole that was written to only in the cache still looks like
# one, and what was trimmed is another thing in the cache than below it.
@test "cache" {
    local mode
    disk_bytes=$((12000257 / 65536 * 65536))
    for mode in writeback writethrough; do
        make_disk extended_l2=on
        start_nbdkit --filter=noextents --filter=cache cache=$mode disk.qcow2
        NO_TRIM=1 random_writes model.raw 5
        assert_same_content "$uri" model.raw
        "$PYTHON" -c 'import sys, nbd
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
h.flush ()' "$uri"
        stop_nbdkit
        image_is model.raw
    done
}

@test "multi-conn" {
    for mode in auto emulate plugin disable; do
        writes_through --filter=multi-conn multi-conn-mode=$mode
    done
}

# retry takes a fast zero that would be slow for a failure, with any plugin.
@test "noparallel, log, stats, readahead, delay, limit, retry" {
    writes_through --filter=noparallel serialize=requests
    writes_through --filter=log --filter=stats logfile=log statsfile=stats
    writes_through --filter=readahead
    writes_through --filter=delay wdelay=1ms
    writes_through --filter=limit limit=10
    writes_through --filter=nozero --filter=retry zeromode=plugin \
        fastzeromode=none
}

@test "rate" {
    make_disk extended_l2=on
    start_nbdkit --filter=rate rate=800M disk.qcow2
    random_writes model.raw 6
    assert_same_content "$uri" model.raw
    stop_nbdkit
    image_is model.raw
}

# A request that fails in the filter has never come to the plugin.
@test "error: clients see errors, the image stays sound" {
    make_disk extended_l2=on
    start_nbdkit --filter=error error=EIO error-rate=20% disk.qcow2
    random_writes model.raw 7 500 EIO
    stop_nbdkit
    image_is model.raw

    # Below another filter that opens the plugin again and retries.
    make_disk compat=0.10
    start_nbdkit --filter=nozero --filter=retry --filter=error error=EIO \
        error-rate=3% retry-delay=1 retries=20 retry-exponential=no \
        zeromode=plugin fastzeromode=none disk.qcow2
    random_writes model.raw 8 60
    stop_nbdkit
    image_is model.raw
}

# Partition 1 begins at 1 MiB and is 10 MiB long.
@test "partition, offset: nothing is written beside" {
    make_disk extended_l2=on
    start_nbdkit disk.qcow2
    "$PYTHON" - "$uri" <<'END'
import sys, nbd

h = nbd.NBD ()
h.connect_uri (sys.argv[1])
entry = bytes ((0, 0, 0, 0, 0x83, 0, 0, 0)) + \
    (2048).to_bytes (4, "little") + (20480).to_bytes (4, "little")
h.pwrite (bytes (446) + entry + bytes (48) + b"\x55\xaa", 0)
END
    nbd_raw "$uri" whole.raw
    stop_nbdkit

    dd if=whole.raw of=model.raw bs=1M skip=1 count=10 status=none
    start_nbdkit --filter=partition disk.qcow2 partition=1
    random_writes model.raw 9
    assert_same_content "$uri" model.raw
    stop_nbdkit
    dd if=model.raw of=whole.raw bs=1M seek=1 conv=notrunc status=none
    image_is whole.raw

    dd if=whole.raw of=model.raw bs=1 skip=1234567 count=1 status=none
    tail -c +1234568 whole.raw | head -c 7654321 > model.raw
    start_nbdkit --filter=offset disk.qcow2 offset=1234567 range=7654321
    random_writes model.raw 10
    assert_same_content "$uri" model.raw
    stop_nbdkit
    dd if=model.raw of=whole.raw bs=64k oflag=seek_bytes seek=1234567 \
        conv=notrunc status=none
    image_is whole.raw
}

# The copy is written to, the image is not; two copies of it at the same time.
@test "cow" {
    local before copy
    disk_bytes=$((12000257 / 65536 * 65536))
    make_disk extended_l2=on
    before=$(sha256sum disk.qcow2 base.raw)
    cp model.raw other.raw
    cp model.raw qemu-before.raw
    start_nbdkit --filter=cow disk.qcow2
    copy=$uri
    start_nbdkit --filter=cow disk.qcow2
    random_writes other.raw 12
    assert_same_content "$uri" other.raw
    uri=$copy
    random_writes model.raw 11
    assert_same_content "$uri" model.raw
    stop_nbdkit
    stop_nbdkit
    run ! cmp -s model.raw other.raw
    [ "$(sha256sum disk.qcow2 base.raw)" = "$before" ]
    image_is qemu-before.raw
}
