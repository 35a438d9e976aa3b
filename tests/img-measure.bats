# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img measure beside qemu-img measure: the same numbers.

load lib
load make-image
load img

setup () { img_setup; }

# measure ARG ...: for people and programs.
measure ()
{
    twin measure "$@" && twin measure --output=json "$@"
}

@test "empty images: sizes and options" {
    for options in cluster_size=512 cluster_size=512,refcount_bits=1 \
        cluster_size=4k,refcount_bits=64 cluster_size=64k compat=0.10 \
        cluster_size=2M cluster_size=2M,refcount_bits=1 \
        extended_l2=on extended_l2=on,cluster_size=16k \
        preallocation=metadata preallocation=falloc,cluster_size=4k \
        preallocation=full backing_file=x,backing_fmt=raw; do
        for size in 0 1 512 65537 100M 1G 1234567890 100G 7T; do
            twin measure -O qcow2 -o $options --size $size
        done
    done
    for size in 0 1 1000 1M 7E; do
        measure --size $size
        measure -O raw --size $size
    done
}

@test "sizes that the format can't hold" {
    measure -O qcow2 --size 64T
    [ "$status" -eq 0 ]
    while read -r args; do
        # shellcheck disable=SC2086
        measure -O qcow2 $args
    done <<'END'
--size 2E
--size 3E
--size 7E
--size 128G -o cluster_size=512
--size 129G -o cluster_size=512
--size 8E
--size 8E -o cluster_size=2M
--size 9223372036854775807
--size 9223372036854775296 -o cluster_size=2M
END
}

@test "images of all kinds" {
    while read -r kind; do
        rm -f ./*.qcow2*
        # shellcheck disable=SC2086
        make_image disk.qcow2 $kind
        for options in cluster_size=64k cluster_size=512 cluster_size=2M \
            extended_l2=on,cluster_size=16k preallocation=full \
            compat=0.10 backing_file=x,backing_fmt=raw; do
            twin measure -O qcow2 -o $options disk.qcow2 ||
                fail "kind: $kind"
            [ "$status" -eq 0 ]
        done
        measure -O qcow2 disk.qcow2
        measure disk.qcow2
    done <<'END'
version=2
version=3 compression=zlib
cluster=512 size=300032 writes=30
cluster=2097152 size=10000384
extended=on seed=4
backing=raw backing_size=1500160
backing=qcow2 backing_cluster=512 extended=on seed=6
data=on
data=raw seed=7
prealloc=metadata
prealloc=full size=1048576
END
}

@test "raw files" {
    head -c 1000001 /dev/urandom > data.raw
    truncate -s 3000001 data.raw
    truncate -s 5M hole.raw
    : > empty.raw
    for file in *.raw; do
        measure -f raw "$file"
        measure -f raw -O qcow2 "$file"
        measure -f raw -O qcow2 -o cluster_size=512 "$file"
    done
}

@test "bitmaps" {
    qemu-img create -q -f qcow2 disk.qcow2 1G
    measure -O qcow2 disk.qcow2
    grep '"bitmaps": 0' out
    qemu-img bitmap --add disk.qcow2 one
    qemu-img bitmap --add -g 512 disk.qcow2 "a longer name than that"
    qemu-img bitmap --add -g 2G disk.qcow2 coarse
    for options in cluster_size=64k cluster_size=512 cluster_size=2M \
        compat=0.10; do
        measure -O qcow2 -o $options disk.qcow2
    done
    measure -O raw disk.qcow2
    # One in use counts, too.
    extension=$(($(xxd -p disk.qcow2 | tr -d '\n' | grep -bo 23852875 |
                       head -1 | cut -d: -f1) / 2))
    entry=$(number_at disk.qcow2 $((extension + 24)) 8)
    put_number disk.qcow2 $((entry + 12)) 4 3
    measure -O qcow2 disk.qcow2
    qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1G
    measure -O qcow2 old.qcow2
    run ! grep bitmaps out
}

@test "snapshots: -l by id and name" {
    make_image disk.qcow2 snapshots=2 size=3000320
    qemu-img snapshot -c 1 disk.qcow2           # a name that is an id, too
    for l in 1 2 s1 s2 3 snapshot.id=2 snapshot.name=s2 snapshot.name=1 \
        snapshot.id=s1 nothing; do
        measure -O qcow2 -l $l disk.qcow2
    done
    refuses 1 "Can't find snapshot" measure -O qcow2 -l nothing disk.qcow2
}

@test "bad options: qemu-img's status, one message" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    while read -r args; do
        # shellcheck disable=SC2086
        twin measure $args
        [ "$status" -eq 1 ]
        [ "$(grep -c '' err)" -le 2 ]
    done <<'END'

-O qcow2
-f raw
-l s1 --size 1M
--size 1M disk.qcow2
--size x
--size -1
--size 1.5
--size 1MB
--size 0x
-O vdi --size 1M
-O nonsense --size 1M
-O qcow2 --size 1M -o nonsense=1
-O raw --size 1M -o cluster_size=64k
-O qcow2 --size 1M -o cluster_size=1000
-O qcow2 --size 1M -o ,size=1
-O raw --size 1M -o ,size=1
-O qcow2 --size 1M -o cluster_size=4M
-O qcow2 --size 1M -o cluster_size=x
-O qcow2 --size 1M -o refcount_bits=3
-O qcow2 --size 1M -o refcount_bits=x
-O qcow2 --size 1M -o refcount_bits=8,compat=0.10
-O qcow2 --size 1M -o compat=1.2
-O qcow2 --size 1M -o extended_l2=maybe
-O qcow2 --size 1M -o extended_l2=on,cluster_size=4k
-O qcow2 --size 1M -o preallocation=some
-O qcow2 --size 1M -o encrypt.format=luks
-O qcow2 none.qcow2
END
    # Commas, switches without value, several -o.
    while read -r args; do
        # shellcheck disable=SC2086
        measure -O qcow2 --size 1G $args
        [ "$status" -eq 0 ]
    done <<'END'
-o backing_file=a,,cluster_size=512,backing_fmt=raw
-o extended_l2
-o extended_l2,cluster_size=128k
-o cluster_size=4k -o refcount_bits=64
-o cluster_size=4k,cluster_size=8k
-o lazy_refcounts=on,data_file=x,data_file_raw=on,size=5
END
    measure -O raw --size 1G -o nocow=on,extent_size_hint=1M,size=5
    [ "$status" -eq 0 ]
    refuses 1 "Parameter 'nocow' of QEMU's driver for files" \
        measure -O qcow2 --size 1M -o nocow=on
    refuses 1 "Parameter 'encrypt.format': encryption is not" \
        measure -O qcow2 --size 1M -o encrypt.format=luks
}

@test "an image in use, and a bad one" {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q 0 4M' disk.qcow2
    hold_open disk.qcow2
    twin measure -O qcow2 disk.qcow2
    [ "$status" -eq 1 ]
    twin measure -U -O qcow2 disk.qcow2
    [ "$status" -eq 0 ]
    let_go
    put_number disk.qcow2 "$(l2_entry_at disk.qcow2 $((1 << 20)))" 8 \
        $((1 << 63 | 0x1234200))
    refuses 1 'Unable to get block status.*corrupt' \
        measure -O qcow2 disk.qcow2
}
