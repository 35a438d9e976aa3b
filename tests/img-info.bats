# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img info beside qemu-img info: the same bytes.

load lib
load make-image
load img

setup () { img_setup; }

# same_info IMAGE: for people and programs, alone and with the chain.
same_info ()
{
    twin info "$@" && twin info --output=json "$@" &&
        twin info --backing-chain "$@" &&
        twin info --backing-chain --output=json "$@"
}

@test "images of all kinds" {
    while read -r kind; do
        rm -f ./*.qcow2*
        # shellcheck disable=SC2086
        make_image disk.qcow2 writes=6 $kind
        same_info disk.qcow2 || fail "kind: $kind"
        [ "$status" -eq 0 ]
    done <<'END'
version=3
version=2 cluster=4096
version=2 snapshots=2
cluster=512 refcount=1
cluster=2097152 refcount=64
extended=on compression=zstd
backing=raw
backing=qcow2 snapshots=1 version=2
data=on
data=raw
prealloc=metadata
prealloc=full size=1048576
size=512
END
}

@test "sizes for people" {
    for size in 0 512 1000448 1023999488 1024000000 1048575488 1048576 1500M \
        999M 1000M 1023M 1G 7T; do
        qemu-img create -q -f qcow2 disk.qcow2 $size
        twin info disk.qcow2
        truncate -s $size disk.raw
        twin info -f raw disk.raw
        twin info -f raw --output=json disk.raw
        rm disk.raw
    done
    head -c 1001 /dev/zero > disk.raw
    same_info -f raw disk.raw
    grep 'virtual-size": 1024' out
}

@test "what the header says: flags, dirty, corrupt" {
    qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 1M
    same_info disk.qcow2
    put_number disk.qcow2 72 8 1
    same_info disk.qcow2
    grep '"dirty-flag": true' out
    put_number disk.qcow2 72 8 2
    same_info disk.qcow2
    grep '"corrupt": true' out
}

@test "bitmaps" {
    qemu-img create -q -f qcow2 disk.qcow2 100M
    qemu-img bitmap --add disk.qcow2 one
    qemu-img bitmap --add -g 4096 --disable disk.qcow2 two
    same_info disk.qcow2
    # In use, as after a crash.
    entry=$(number_at disk.qcow2 \
        $(($(xxd -p disk.qcow2 | tr -d '\n' | grep -bo 23852875 |
                head -1 | cut -d: -f1) / 2 + 24)) 8)
    put_number disk.qcow2 $((entry + 12)) 4 3
    same_info disk.qcow2
    grep '"in-use"' out
}

@test "snapshots: VM state, clock, icount, names, time zones" {
    qemu-img create -q -f qcow2 disk.qcow2 10M
    qemu-img snapshot -c short disk.qcow2
    qemu-img snapshot -c "a name that is far too long for its column" disk.qcow2
    qemu-img snapshot -c "$(printf 'h\303\244\303\237lich "\\ \360\237\222\276')" \
        disk.qcow2
    same_info disk.qcow2

    table=$(number_at disk.qcow2 64 8)
    put_number disk.qcow2 $((table + 24)) 8 449999123456789
    put_number disk.qcow2 $((table + 32)) 4 12345678
    put_number disk.qcow2 $((table + 40)) 8 123456789012
    put_number disk.qcow2 $((table + 56)) 8 4711
    same_info disk.qcow2
    grep '"icount": 4711' out
    # That is how none is stored.
    put_number disk.qcow2 $((table + 56)) 8 -1
    same_info disk.qcow2
    TZ=America/New_York twin info disk.qcow2
    TZ=Asia/Kolkata twin info disk.qcow2
}

@test "names that a terminal would act upon are made harmless for people" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-img snapshot -c "$(printf 'red\033[31m')" disk.qcow2
    twin info --output=json disk.qcow2
    run_img info disk.qcow2
    grep -F 'red\x1b[31m' out
    # Bytes that are no text.
    qemu-img create -q -f qcow2 other.qcow2 1M
    qemu-img snapshot -c "$(printf 'x\377\376y\355\240\200z')" other.qcow2
    run_img info --output=json other.qcow2
    jq -e '.snapshots[0].name | startswith ("x\ufffd\ufffdy")' out
    rm disk.qcow2
    qemu-img create -q -f qcow2 -u -b "$(printf 'a\tb')" -F raw disk.qcow2 1M
    twin info --output=json disk.qcow2
}

@test "backing files' names: directories, protocols, json:" {
    truncate -s 1M base.raw
    mkdir -p sub/deep
    make () { qemu-img create -q -f qcow2 -u -b "$2" -F raw "$1" 1M; }
    make sub/rel.qcow2 ../base.raw
    make sub/abs.qcow2 "$PWD/base.raw"
    make sub/file.qcow2 file:base.raw
    make sub/nbd.qcow2 nbd://localhost/export
    make sub/json.qcow2 \
        'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}'
    make sub/deep/missing.qcow2 ../nothing.raw
    for file in sub/*.qcow2 sub/deep/*.qcow2 "$PWD/sub/rel.qcow2" \
        ./sub/rel.qcow2; do
        twin info "$file"
        twin info --output=json "$file"
    done
    same_info sub/rel.qcow2
    cd sub
    same_info rel.qcow2
}

@test "a long chain" {
    qemu-img create -q -f qcow2 0.qcow2 1M
    for i in {1..20}; do
        qemu-img create -q -f qcow2 -b $((i - 1)).qcow2 -F qcow2 "$i.qcow2"
    done
    same_info 20.qcow2
    [ "$(grep -c '"filename"' out)" -eq 21 ]
}

@test "encrypted images" {
    truncate -s 1M base.raw
    make_luks xts.qcow2
    make_luks cbc.qcow2 encrypt.cipher-mode=cbc encrypt.ivgen-alg=essiv \
        encrypt.ivgen-hash-alg=sha256 encrypt.cipher-alg=aes-128 \
        backing_file=base.raw backing_fmt=raw
    make_luks serpent.qcow2 encrypt.cipher-alg=serpent-192 data_file=data.raw
    qemu-img create -q -f qcow2 --object secret,id=s,data=x \
        -o encrypt.format=aes,encrypt.key-secret=s,compat=0.10 aes.qcow2 1M
    for file in xts cbc serpent aes; do
        twin info $file.qcow2
        twin info --output=json $file.qcow2
        [ "$status" -eq 0 ]
    done
    same_info cbc.qcow2

    # Damaged: the LUKS header's magic, the place of the header.
    cp xts.qcow2 bad.qcow2
    at=$(($(xxd -p bad.qcow2 | tr -d '\n' | grep -bo 4c554b53babe |
               head -1 | cut -d: -f1) / 2))
    put_number bad.qcow2 $at 4 0
    twin info bad.qcow2
    refuses 1 "'bad.qcow2': there is no LUKS1 header at 0x" info bad.qcow2
    # The disk itself can't be read.
    refuses 1 'encrypted .*LUKS' map xts.qcow2
}

@test "neither data nor backing file is opened, unless the chain is asked for" {
    truncate -s 1M base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw overlay.qcow2
    qemu-img create -q -f qcow2 -o data_file=data.raw data.qcow2 1M
    rm base.raw data.raw
    mkfifo base.raw
    unset QCOW2_ALLOW_DIR
    twin info data.qcow2
    [ "$status" -eq 0 ]
    ASAN_OPTIONS=detect_leaks=0 timeout 20 strace -f -o trace "$img" info overlay.qcow2 > out
    run ! grep base.raw trace
    refuses 1 'is a FIFO' info --backing-chain overlay.qcow2
    rm base.raw
    twin info --backing-chain overlay.qcow2
    refuses 1 'No such file' info --backing-chain overlay.qcow2
}

@test "files that an image names: --allow-dir, --backing-format" {
    unset QCOW2_ALLOW_DIR
    mkdir machines templates
    qemu-img create -q -f qcow2 templates/base.qcow2 1M
    qemu-img create -q -f qcow2 -b ../templates/base.qcow2 -F qcow2 \
        machines/disk.qcow2
    refuses 1 'add --allow-dir=' info --backing-chain machines/disk.qcow2
    twin info machines/disk.qcow2
    run_img info --backing-chain --allow-dir=templates machines/disk.qcow2
    [ "$status" -eq 0 ]
    qemu-img info --backing-chain machines/disk.qcow2 | cmp - out
    QCOW2_ALLOW_DIR=$PWD/templates twin info --backing-chain machines/disk.qcow2
    [ "$status" -eq 0 ]
    cp templates/base.qcow2 .
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
    run_img info --backing-chain disk.qcow2
    [ "$status" -eq 0 ]
    refuses 1 'add --allow-dir=' info --backing-chain --allow-dir=none disk.qcow2

    # An overlay that does not tell the format.
    xxd -p disk.qcow2 | tr -d '\n' | sed 's/e2792aca/00000001/' |
        xxd -r -p > formatless.qcow2
    refuses 1 'use --backing-format=qcow2' info --backing-chain formatless.qcow2
    run_img info --backing-chain --backing-format=qcow2 formatless.qcow2
    [ "$status" -eq 0 ]
    grep -x 'image: base.qcow2' out
}

@test "an image in use" {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
    hold_open disk.qcow2
    twin info disk.qcow2
    refuses 1 "'disk.qcow2': Failed to get shared \"write\" lock.*\(-U opens" \
        info disk.qcow2
    twin info -U disk.qcow2
    twin info --force-share --output=json disk.qcow2
    [ "$status" -eq 0 ]
    let_go

    hold_open base.qcow2
    twin info disk.qcow2
    [ "$status" -eq 0 ]
    twin info --backing-chain disk.qcow2
    [ "$status" -eq 1 ]
    twin info -U --backing-chain disk.qcow2
    [ "$status" -eq 0 ]
    let_go

    # Readers don't stand in each other's way.
    hold_open disk.qcow2 -r
    twin info disk.qcow2
    [ "$status" -eq 0 ]
    let_go
}

@test "bad images: one message, status 1" {
    qemu-img create -q -f qcow2 good.qcow2 1M
    refuses 1 "'none.qcow2': No such file" info none.qcow2
    refuses 1 "'\.': not a regular file" info .
    head -c 1M /dev/zero > disk.raw
    refuses 1 "not in qcow2 format .*use -f raw$" info disk.raw
    refuses 1 "not in qcow2 format \(the magic bytes are missing\)$" \
        info -f qcow2 disk.raw
    : > empty.qcow2
    twin info -f qcow2 empty.qcow2
    refuses 1 "not in qcow2 format" info empty.qcow2

    # bad OFFSET BYTES NUMBER REGEX
    bad () {
        cp good.qcow2 bad.qcow2
        put_number bad.qcow2 "$1" "$2" "$3"
        twin info bad.qcow2
        refuses 1 "$4" info bad.qcow2
    }
    bad 4 4 4 'unsupported qcow version 4'
    bad 20 4 30 'cluster_bits is 30'
    bad 36 4 0x7fffffff 'too large'
    bad 60 4 70000 'too many snapshots'
    bad 72 8 128 'unsupported incompatible feature'
    truncate -s 100 bad.qcow2
    refuses 1 . info bad.qcow2

    # Backing files that go in circles.
    cp good.qcow2 a.qcow2
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
    qemu-img create -q -f qcow2 -u -b b.qcow2 -F qcow2 a.qcow2 1M
    twin info --backing-chain a.qcow2
    refuses 1 'loop' info --backing-chain a.qcow2
    run_img info a.qcow2
    [ "$status" -eq 0 ]
}

@test "a damaged directory of bitmaps" {
    qemu-img create -q -f qcow2 good.qcow2 1M
    qemu-img bitmap --add good.qcow2 one
    qemu-img bitmap --add good.qcow2 another
    extension=$(($(xxd -p good.qcow2 | tr -d '\n' | grep -bo 23852875 |
                       head -1 | cut -d: -f1) / 2))
    entry=$(number_at good.qcow2 $((extension + 24)) 8)
    bad () {
        cp good.qcow2 bad.qcow2
        put_number bad.qcow2 "$1" "$2" "$3"
        twin info bad.qcow2
        [ "$status" -eq 1 ]
        refuses 1 "$4" info bad.qcow2
    }
    bad $((entry + 12)) 4 0x80 'flags 0x80'
    bad $((entry + 16)) 1 2 'type 2'
    bad $((entry + 17)) 1 8 'granularity_bits is 8'
    bad $((entry + 17)) 1 32 'granularity_bits is 32'
    bad $((entry + 18)) 2 0 'name_size is 0'
    bad $((entry + 18)) 2 2000 'beyond the directory'
    bad $((entry + 20)) 4 0xffffff00 'beyond the directory'
    bad $((extension + 8)) 4 3 'beyond the directory|has only'
    bad $((extension + 8)) 4 1 'entries take'
    bad $((extension + 16)) 8 8 'has only'
}
