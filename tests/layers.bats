# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# Below nbdkit's filters the plugin does what they expect of it.

load lib
load make-image

random_reads ()
{
    "$PYTHON" "$BATS_TEST_DIRNAME/nbd-random-reads.py" "$@"
}

small_disk ()
{
    make_image disk.qcow2 seed=401 compression=zlib backing=qcow2 snapshots=1 \
        cluster=4096 "$@"
    qemu_raw disk.qcow2 qemu.raw
}

@test "cow: what clients write is seen, the image stays as it was" {
    local before
    small_disk
    before=$(sha256sum disk.qcow2 disk.qcow2.base)
    cp qemu.raw want.raw
    start_nbdkit --filter=cow disk.qcow2
    run ! nbdinfo --is readonly "$uri"
    assert_same_content "$uri" qemu.raw
    "$PYTHON" - "$uri" want.raw <<'END'
import random, sys, nbd

h = nbd.NBD ()
h.connect_uri (sys.argv[1])
r = random.Random (1)
with open (sys.argv[2], "r+b") as want:
    for i in range (60):
        count = r.choice ((1, 513, 4096, 70000))
        offset = r.randrange (h.get_size () - count)
        data = r.randbytes (count) if i % 3 else bytes (count)
        h.pwrite (data, offset)
        want.seek (offset)
        want.write (data)
END
    assert_same_content "$uri" want.raw
    random_reads "$uri" want.raw
    stop_nbdkit
    [ "$(sha256sum disk.qcow2 disk.qcow2.base)" = "$before" ]
    run ! cmp -s want.raw qemu.raw
}

@test "cow with prefetch copies into the overlay" {
    small_disk
    start_nbdkit --filter=cow disk.qcow2 cow-on-cache=true
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
h.cache (h.get_size (), 0)' "$uri"
    assert_same_content "$uri" qemu.raw
    stop_nbdkit
}

@test "cache" {
    local pass
    small_disk
    start_nbdkit -r --filter=cache disk.qcow2 cache-on-read=true
    for pass in 1 2; do
        assert_same_content "$uri" qemu.raw
        random_reads "$uri" qemu.raw 100 4 "$pass"
    done
    stop_nbdkit
}

# readahead sends prefetch requests to the plugin.
@test "readahead" {
    local pass
    small_disk size=20000256
    start_nbdkit -r --filter=readahead disk.qcow2
    for pass in 1 2; do
        assert_same_content "$uri" qemu.raw
        random_reads "$uri" qemu.raw 100 4 "$pass"
    done
    stop_nbdkit
}

# Partition 1 begins at sector 2048 and has 3000 sectors; partition 2 begins at
# 6001, with 1777.
@test "partition" {
    local i start count
    head -c 4M /dev/urandom > disk.raw
    head -c 512 /dev/zero | dd of=disk.raw conv=notrunc status=none
    printf '\x55\xaa' | dd of=disk.raw seek=510 oflag=seek_bytes \
        conv=notrunc status=none
    i=446
    for part in 2048:3000 6001:1777; do
        printf '\x83' | dd of=disk.raw seek=$((i + 4)) oflag=seek_bytes \
            conv=notrunc status=none
        # Little-endian.
        for number in "${part%:*}" "${part#*:}"; do
            printf '%08x' "$number" | sed 's/\(..\)\(..\)\(..\)\(..\)/\4\3\2\1/'
        done | xxd -r -p | dd of=disk.raw seek=$((i + 8)) oflag=seek_bytes \
            conv=notrunc status=none
        i=$((i + 16))
    done
    qemu-img convert -t unsafe -c -f raw -O qcow2 disk.raw disk.qcow2

    for i in 1:2048:3000 2:6001:1777; do
        IFS=: read -r i start count <<< "$i"
        dd if=disk.raw of=part.raw bs=512 skip="$start" count="$count" \
            status=none
        start_nbdkit -r --filter=partition disk.qcow2 partition="$i"
        assert_same_content "$uri" part.raw
        random_reads "$uri" part.raw
        stop_nbdkit
    done
}

@test "exportname: other names for snapshots" {
    small_disk
    qemu_raw disk.qcow2 s1.raw -l snapshot.id=1
    run ! cmp -s s1.raw qemu.raw

    start_nbdkit -r --filter=exportname disk.qcow2 default-export=s1
    assert_same_content "$uri" s1.raw
    stop_nbdkit

    start_nbdkit -r --filter=exportname disk.qcow2 exportname-list=explicit \
        exportname=s1 exportname-strict=true exportdesc=fixed:past
    [ "$(nbdinfo --list --json "$uri" | jq -r '.exports[]."export-name"')" = \
        s1 ]
    assert_same_content "nbd+unix:///s1?socket=$sock" s1.raw
    run ! nbdinfo "nbd+unix:///other?socket=$sock"
    stop_nbdkit
}

@test "stats: each byte is read once by nbdcopy" {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -t unsafe -f qcow2 -c 'write -q -P 1 1M 2M' disk.qcow2
    qemu_raw disk.qcow2 qemu.raw
    start_nbdkit -r --filter=stats disk.qcow2 statsfile=stats
    assert_same_content "$uri" qemu.raw
    stop_nbdkit
    cat stats
    # Extents tell which 2 MiB there are.
    grep -E '^read: .* 2\.00 MiB' stats
    grep -E '^extents: [1-9]' stats
}

@test "several filters over another" {
    small_disk
    start_nbdkit --filter=stats --filter=cow --filter=cache \
        --filter=readahead --filter=blocksize disk.qcow2 statsfile=stats \
        minblock=512
    assert_same_content "$uri" qemu.raw
    random_reads "$uri" qemu.raw
    stop_nbdkit
}

# An image in an image: the offset filter shows a part of the disk, truncate
# rounds the odd size up.
@test "offset and truncate" {
    small_disk
    set_virtual_size disk.qcow2 3000001
    truncate -s 3000001 qemu.raw
    start_nbdkit -r --filter=truncate disk.qcow2 round-up=1M
    cp qemu.raw rounded.raw
    truncate -s 3M rounded.raw
    assert_same_content "$uri" rounded.raw
    stop_nbdkit

    start_nbdkit -r --filter=offset disk.qcow2 offset=1000001 range=1234567
    dd if=qemu.raw of=part.raw bs=64k iflag=skip_bytes,count_bytes \
        skip=1000001 count=1234567 status=none
    assert_same_content "$uri" part.raw
    random_reads "$uri" part.raw
    stop_nbdkit
}
