# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img map beside qemu-img map: the same bytes.

load lib
load make-image
load img

setup () { img_setup; }

# same_map ARG ...: of all of it, and of parts, for people and programs.
same_map ()
{
    twin map "$@" && twin map --output=json "$@" &&
        twin map --output=json --start-offset=100001 --max-length=300001 "$@" &&
        twin map --output=json -s 65536 -l 1M "$@" &&
        twin map -s 1M "$@"
}

@test "images of all kinds" {
    while read -r kind; do
        rm -f ./*.qcow2*
        # shellcheck disable=SC2086
        make_image disk.qcow2 $kind
        same_map disk.qcow2 || fail "kind: $kind"
    done <<'END'
version=2
version=3
version=3 compression=zlib
version=3 snapshots=1 seed=2
cluster=512 size=300000 writes=30
cluster=4096 compression=zstd seed=3
cluster=2097152 size=10000000
extended=on
extended=on cluster=16384 seed=4
extended=on backing=qcow2 seed=5
backing=raw
backing=raw backing_size=1500160
backing=qcow2 backing_size=1500160 version=2
backing=qcow2 backing_cluster=512 seed=6
data=on
data=raw seed=7
data=on extended=on
prealloc=metadata
prealloc=metadata extended=on seed=8
prealloc=falloc size=1048576
prealloc=full size=1048576
END
}

@test "metadata allocated beforehand: holes of the file are zeros" {
    for options in '' ,extended_l2=on ,refcount_bits=1 ,refcount_bits=64 \
        ,cluster_size=4k,refcount_bits=8; do
        qemu-img create -q -f qcow2 -o preallocation=metadata$options \
            disk.qcow2 8M
        same_map disk.qcow2
        qemu-io -f qcow2 -c 'write -q 3M 100k' -c 'write -q -P 0 5M 100k' \
            disk.qcow2
        same_map disk.qcow2
        twin map --output=json disk.qcow2
        grep -q '"zero": true, "data": true' out ||
            [[ $options == *extended* ]]
        rm disk.qcow2
    done
    # As a backing file, too.
    qemu-img create -q -f qcow2 -o preallocation=metadata base.qcow2 8M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 9M
    same_map disk.qcow2
}

# Of 8 MiB, which all name one refcount block.
@test "a refcount table that is much larger than the file needs" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q 0 64k' disk.qcow2
    "$PYTHON" - <<'END'
import struct
with open("disk.qcow2", "r+b") as f:
    f.seek(1 << 20)
    f.write(bytes(1 << 16))
    f.seek(2 << 20)
    f.write(struct.pack(">Q", 0x20000))
    f.write(struct.pack(">Q", 1 << 20) * ((1 << 20) - 1))
    f.seek(48)
    f.write(struct.pack(">QI", 2 << 20, 128))
END
    timeout 10 "$img" map disk.qcow2 > out
    grep '^0 ' out
}

@test "zero clusters with and without a place in the file" {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q 0 2M' -c 'write -q -z 256k 512k' \
        -c 'write -q -z -u 1M 256k' -c 'write -q -z 3M 128k' disk.qcow2
    same_map disk.qcow2
    twin map --output=json disk.qcow2
    grep '"zero": true, "data": false, "offset"' out
    grep '"zero": true, "data": false}' out
}

@test "raw files, whose size is no number of sectors" {
    head -c 1000001 /dev/urandom > data.raw
    cp data.raw hole.raw
    truncate -s 1500001 hole.raw
    truncate -s 777 small.raw
    : > empty.raw
    for file in ./*.raw; do
        same_map -f raw "$file"
    done
    for base in data hole small; do
        qemu-img create -q -f qcow2 -b $base.raw -F raw disk.qcow2 2M
        same_map disk.qcow2
        qemu-io -f qcow2 -c 'write -q 900k 200k' disk.qcow2
        same_map disk.qcow2
    done
}

@test "a chain: depth, and files in other directories" {
    mkdir sub
    truncate -s 1M base.raw
    qemu-io -f raw -c 'write -q 100k 100k' base.raw
    (cd sub &&
         qemu-img create -q -f qcow2 -b ../base.raw -F raw middle.qcow2 &&
         qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 &&
         qemu-io -f qcow2 -c 'write -q 300k 100k' middle.qcow2 &&
         qemu-io -f qcow2 -c 'write -q 500k 100k' top.qcow2)
    same_map sub/top.qcow2
    same_map "$PWD/sub/top.qcow2"
    twin map sub/top.qcow2
    grep 'sub/../base.raw$' out
    grep 'sub/middle.qcow2$' out
}

@test "an empty disk, and ranges beyond the end" {
    qemu-img create -q -f qcow2 empty.qcow2 0
    same_map empty.qcow2
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q 0 1M' disk.qcow2
    while read -r args; do
        # shellcheck disable=SC2086
        twin map $args disk.qcow2
        # shellcheck disable=SC2086
        twin map --output=json $args disk.qcow2
    done <<'END'
--start-offset=1M
--start-offset=2M
--start-offset=1048575
--start-offset=7E --max-length=7E
--max-length=0
--max-length=1
--max-length=7E
--start-offset=x
--start-offset=-1
--start-offset=8E
--max-length=x
--max-length=1.5
--start-offset=0.5M --max-length=1.5k
END
}

@test "a terabyte without data takes no time" {
    for options in '' -oextended_l2=on; do
        # shellcheck disable=SC2086
        qemu-img create -q -f qcow2 $options disk.qcow2 1T
        qemu-io -f qcow2 -c 'write -q 512G 64k' -c 'write -q -z -n 100G 16G' \
            disk.qcow2
        timeout 20 "$img" map --output=json disk.qcow2 > out
        qemu-img map --output=json disk.qcow2 | cmp - out
    done
}

@test "files that an image names: --allow-dir, --data-file, --backing-format" {
    unset QCOW2_ALLOW_DIR
    qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q 0 100k' disk.qcow2
    qemu-img map disk.qcow2 > wanted
    refuses 1 'add --data-file=data.raw or --allow-dir=' map disk.qcow2
    run_img map --data-file=data.raw disk.qcow2
    cmp out wanted
    run_img map --allow-dir=. disk.qcow2
    cmp out wanted
    qemu-img create -q -f qcow2 plain.qcow2 1M
    refuses 1 '--data-file was given, but' map --data-file=data.raw plain.qcow2

    mkdir -p sub
    qemu-img create -q -f qcow2 -b ../plain.qcow2 -F qcow2 sub/top.qcow2
    refuses 1 'add --allow-dir=' map sub/top.qcow2
    run_img map --allow-dir=none --allow-dir=. sub/top.qcow2
    [ "$status" -eq 0 ]
    qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 top.qcow2
    xxd -p top.qcow2 | tr -d '\n' | sed 's/e2792aca/00000001/' |
        xxd -r -p > formatless.qcow2
    refuses 1 'use --backing-format=qcow2' map formatless.qcow2
    run_img map --backing-format=qcow2 formatless.qcow2
    [ "$status" -eq 0 ]
}

@test "an image in use" {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
    hold_open base.qcow2
    twin map disk.qcow2
    refuses 1 'Failed to get shared "write" lock' map disk.qcow2
    twin map -U disk.qcow2
    [ "$status" -eq 0 ]
    let_go
}

@test "bad images: one message, status 1" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q 0 64k' -c 'write -q 512k 64k' disk.qcow2
    at=$(l2_entry_at disk.qcow2 524288)
    put_number disk.qcow2 "$at" 8 $((1 << 63 | 0x1234200))
    refuses 1 'Failed to read image metadata: .*corrupt: guest offset 0x80000' \
        map disk.qcow2
    grep -q '^0 ' out
    refuses 1 'Failed to read image metadata' map --output=json disk.qcow2
    run_img map --max-length=512k disk.qcow2
    [ "$status" -eq 0 ]
    refuses 1 "'none.qcow2': No such file" map none.qcow2
    # Dirty and corrupt images can be read, and nobody needs to know.
    qemu-img create -q -f qcow2 disk.qcow2 1M
    put_number disk.qcow2 72 8 3
    same_map disk.qcow2
    [ ! -s err ]
}
