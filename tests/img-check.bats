# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img check beside qemu-img check: the same counts and exit statuses.

load lib
load make-image
load img

setup () { img_setup; }

# same_check ARG ...: for people and programs.
same_check ()
{
    twin check "$@" && twin check --output=json "$@"
}

# An image whose metadata lies where the tests want it:
# 0x10000 refcount table, 0x20000 its block, 0x30000 L1, 0x40000 L2, then three
# data clusters, which the guest sees at 0, 64k and 512k.
simple_image ()
{
    rm -f disk.qcow2
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q 0 128k' -c 'write -q 512k 64k' disk.qcow2
    [ "$(l2_entry_at disk.qcow2 0)" -eq $((0x40000)) ]
}

# damaged OFFSET BYTES NUMBER ...: makes a simple image and puts these numbers.
damaged ()
{
    simple_image
    while [ $# -gt 0 ]; do
        put_number disk.qcow2 "$1" "$2" "$3"
        shift 3
    done
}

# same_verdict: both programs end with the same status, which is not 0, and if
# that is 2, both have found errors.  Sets $status.
same_verdict ()
{
    local theirs=0
    qemu-img check disk.qcow2 > out.qemu 2> err.qemu || theirs=$?
    run_img check disk.qcow2 || return 1
    [ "$status" -ne 0 ] && [ "$status" -eq "$theirs" ] && [ -s err ] ||
        fail "status $theirs and $status: $(cat out.qemu err.qemu out err)" ||
        return 1
    grep -q 'errors were found' out.qemu || return 0
    grep -q 'errors were found' out
}

@test "images of all kinds, clean" {
    while read -r kind; do
        rm -f ./*.qcow2*
        # shellcheck disable=SC2086
        make_image disk.qcow2 $kind
        same_check disk.qcow2 || fail "kind: $kind"
        [ "$status" -eq 0 ]
        [ ! -s err ]
    done <<'END'
version=2
version=3 compression=zlib
version=3 snapshots=1 seed=2
version=2 snapshots=2 seed=9
cluster=512 size=300000 writes=30
cluster=4096 compression=zstd seed=3
cluster=2097152 size=10000000
extended=on
extended=on cluster=16384 seed=4
backing=raw
backing=qcow2 backing_size=1500160 version=2
data=on
data=raw seed=7
data=on extended=on
prealloc=metadata
prealloc=metadata extended=on seed=8
prealloc=full size=1048576
END
}

@test "refcounts of all widths" {
    for bits in 1 2 4 8 16 32 64; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 \
            -o refcount_bits=$bits,cluster_size=512 disk.qcow2 2M
        qemu-io -f qcow2 -c 'write -q 100k 200k' -c 'write -q 50k 20k' \
            -c 'discard -q 120k 8k' disk.qcow2
        same_check disk.qcow2
        [ "$status" -eq 0 ]
    done
}

@test "bitmaps" {
    qemu-img create -q -f qcow2 disk.qcow2 100M
    qemu-img bitmap --add -g 512 disk.qcow2 one
    qemu-img bitmap --add disk.qcow2 two
    qemu-io -f qcow2 -c 'write -q 1M 1M' disk.qcow2
    same_check disk.qcow2
    [ "$status" -eq 0 ]
    # Without the autoclear bit nobody vouches for them: leaks.
    put_number disk.qcow2 88 8 0
    same_check disk.qcow2
    [ "$status" -eq 3 ]
}

@test "an empty disk; -q" {
    qemu-img create -q -f qcow2 disk.qcow2 0
    same_check disk.qcow2
    twin check -q disk.qcow2
    damaged $((0x40008)) 8 0
    twin check -q disk.qcow2
    twin check -q --output=json disk.qcow2
    [ ! -s out ]
    grep -q 'Leaked cluster 6' err
}

@test "leaks: status 3" {
    damaged $((0x40008)) 8 0
    same_check disk.qcow2
    [ "$status" -eq 3 ]
    cmp err err.qemu
    grep -q 'Leaked cluster 6 refcount=1 reference=0' err
}

@test "refcounts too low: status 2" {
    damaged $((0x2000a)) 2 0
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    grep -q 'ERROR cluster 5 refcount=0 reference=1' err
    # Both, and a refcount block that is missing.
    damaged $((0x2000a)) 2 0 $((0x2000c)) 2 3
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    damaged $((0x10000)) 8 0
    same_check disk.qcow2
    [ "$status" -eq 2 ]
}

@test "COPIED flags wrong: status 2" {
    damaged $((0x40000)) 8 $((0x50000)) # L2 entry, not set
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    damaged $((0x30000)) 8 $((0x40000)) # L1 entry
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    # Set, though a snapshot has it, too.
    simple_image
    qemu-img snapshot -c one disk.qcow2
    same_check disk.qcow2
    [ "$status" -eq 0 ]
    put_number disk.qcow2 "$(l2_entry_at disk.qcow2 0)" 8 \
        $((1 << 63 | 0x50000))
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    # Of a compressed cluster.
    rm disk.qcow2
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -c 0 64k' disk.qcow2
    same_check disk.qcow2
    [ "$status" -eq 0 ]
    put_number disk.qcow2 $((0x40000)) 1 $((0xc0))
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    # With a data file there is no refcount, and all are the image's own.
    rm disk.qcow2
    qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q 64k 64k' disk.qcow2
    put_number disk.qcow2 $((0x40008)) 8 $((0x10000))
    same_check disk.qcow2
    [ "$status" -eq 2 ]
}

@test "entries past the end of the file, or that share a cluster" {
    past=$((1 << 63 | 1 << 40))
    for at in $((0x40000)) $((0x30000)); do
        damaged "$at" 8 $past
        same_check disk.qcow2
        [ "$status" -eq 2 ]
    done
    damaged $((0x10000)) 8 $((1 << 40)) # a refcount block
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    for other in 0x30000 0x40000 0x60000; do
        damaged $((0x40000)) 8 $((1 << 63 | other))
        same_check disk.qcow2
        [ "$status" -eq 2 ]
    done
}

@test "snapshots: tables of theirs that can't be right" {
    simple_image
    qemu-img snapshot -c one disk.qcow2
    qemu-io -f qcow2 -c 'write -q 0 64k' disk.qcow2
    qemu-img snapshot -c two disk.qcow2
    same_check disk.qcow2
    [ "$status" -eq 0 ]
    mv disk.qcow2 clean.qcow2
    table=$((0x$(xxd -p -s 64 -l 8 clean.qcow2)))
    l1=$((0x$(xxd -p -s $table -l 8 clean.qcow2)))
    while read -r at bytes number wanted; do
        cp clean.qcow2 disk.qcow2
        put_number disk.qcow2 "$at" "$bytes" "$number"
        same_check disk.qcow2
        [ "$status" -eq "$wanted" ]
    done <<END
$table 8 $((l1 + 512)) 2
$table 8 $((1 << 40)) 2
$((table + 8)) 4 $((0xffffffff)) 2
$l1 8 $((1 << 40)) 2
$l1 8 0 3
END
    # The active one, too; where nothing can be opened there is one message.
    cp clean.qcow2 disk.qcow2
    put_number disk.qcow2 40 8 $((1 << 40))
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    put_number disk.qcow2 40 8 $((0x30200))
    refuses 1 'active L1 table offset .* not aligned' check disk.qcow2
}

@test "entries misaligned, or with reserved bits: the same verdict" {
    damaged $((0x40000)) 8 $((1 << 63 | 0x50200))
    same_verdict
    damaged $((0x40000)) 8 $((1 << 63 | 0x50002))
    same_verdict
    damaged $((0x30000)) 8 $((1 << 63 | 0x40200))
    same_verdict
    damaged $((0x30000)) 8 $((1 << 63 | 0x40001))
    same_verdict
    damaged $((0x10000)) 8 $((0x20001))
    same_verdict
    [ "$status" -eq 2 ]
}

@test "what can't be checked: status 1" {
    damaged $((0x10000)) 8 $((0x20200))
    same_verdict
    [ "$status" -eq 1 ]
    grep -q '^qcow2-img: Check failed' err
    grep -q '^8 internal errors' out
    refuses 1 "'none.qcow2': No such file" check none.qcow2
    refuses 1 'Expecting one image file name' check
    refuses 1 'Expecting one image file name' check disk.qcow2 disk.qcow2
    refuses 1 "-U can't be used with -r" check -U -r all disk.qcow2
    refuses 1 "expecting 'leaks' or 'all'" check -r x disk.qcow2
    refuses 63 'This image format does not support checks' \
        check -f raw disk.qcow2
}

@test "the dirty bit, the corrupt bit, and nothing is written" {
    simple_image
    put_number disk.qcow2 72 8 3
    put_number disk.qcow2 $((0x2000a)) 2 0
    cp disk.qcow2 before
    chmod a-w disk.qcow2
    same_check disk.qcow2
    [ "$status" -eq 2 ]
    cmp disk.qcow2 before
}

@test "an image in use; a backing file that is not there" {
    simple_image
    hold_open disk.qcow2
    refuses 1 'Failed to get shared "write" lock' check disk.qcow2
    run_img check -U disk.qcow2
    [ "$status" -eq 0 ]
    [ ! -s err ]
    let_go
    qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
    same_check top.qcow2
    mv disk.qcow2 gone.qcow2
    run_img check top.qcow2
    [ "$status" -eq 0 ]
}

@test "a small file that claims one L2 table very often takes no time" {
    qemu-img create -q -f qcow2 -o cluster_size=2M disk.qcow2 $((1 << 60))
    qemu-io -f qcow2 -c 'write -q 0 64k' disk.qcow2
    l1=$(xxd -p -s 40 -l 8 disk.qcow2)
    entry=$(xxd -p -s $((0x$l1)) -l 8 disk.qcow2)
    yes "$entry" | head -n 200000 | tr -d '\n' | xxd -r -p |
        dd of=disk.qcow2 bs=1M oflag=seek_bytes seek=$((0x$l1)) conv=notrunc \
            status=none
    status=0
    timeout 20 "$img" check disk.qcow2 > out 2> err || status=$?
    [ "$status" -eq 2 ]
}
