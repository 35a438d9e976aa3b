#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
#
# Bad images as a user meets them: nbdkit does not start, says what is wrong
# with which file, and ends with status 1; or it serves what can be served.
# Each field and each limit: tests/test-bad-*.c.

load lib

# patch FILE OFFSET HEX: overwrites bytes.
patch ()
{
    # shellcheck disable=SC2059
    printf "$(sed 's/../\\x&/g' <<< "$3")" |
        dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# make_image FILE: 1 MiB, of which the first 128 KiB are data.
make_image ()
{
    qemu-img create -q -f qcow2 "$1" 1M
    qemu-io -f qcow2 -c 'write -P 1 0 128k' "$1"
}

# reads OFFSET LENGTH URI: whether a client gets these bytes.
reads ()
{
    timeout 60 "$PYTHON" - "$3" "$1" "$2" 2> client.err <<'END'
import nbd, sys
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
h.pread (int (sys.argv[3]), int (sys.argv[2]))
h.shutdown ()
END
}

@test "no file, a directory, an empty file, a raw disk" {
    mkdir directory
    : > empty
    truncate -s 1M raw
    refuses_to_start 'missing: No such file' missing
    refuses_to_start 'directory: .*(directory|regular file)' directory
    refuses_to_start 'empty: .*not in qcow2 format' empty
    refuses_to_start 'raw: .*not in qcow2 format' raw
}

@test "a FIFO does not make it hang" {
    mkfifo fifo
    refuses_to_start 'fifo: not a regular file' fifo
}

@test "version 1 and an unknown version" {
    qemu-img create -q -f qcow one.qcow 1M
    refuses_to_start 'one.qcow: unsupported qcow version 1.*convert' one.qcow
    make_image disk.qcow2
    patch disk.qcow2 4 00000004
    refuses_to_start 'disk.qcow2: unsupported qcow version 4' disk.qcow2
}

@test "encrypted images are refused by name" {
    qemu-img create -q -f qcow2 --object secret,id=s,data=secret \
        -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M
    refuses_to_start 'aes.qcow2: the image is encrypted.*AES' aes.qcow2

    # Making a real one takes qemu-img seconds, and fails on a busy machine.
    make_image luks.qcow2
    patch luks.qcow2 32 00000002
    refuses_to_start 'luks.qcow2: the image is encrypted.*LUKS' luks.qcow2
}

@test "an unknown feature is refused by the name that the image gives it" {
    make_image disk.qcow2
    patch disk.qcow2 72 0000000000000100
    refuses_to_start 'disk.qcow2: .*unknown feature bit 8' disk.qcow2

    # The first entry of the table that qemu-img writes, behind 112 bytes of
    # header and 8 of extension: now bit 8, and a name with an escape sequence.
    patch disk.qcow2 120 0008
    patch disk.qcow2 122 1b5b324a676c6f7700
    refuses_to_start 'feature\(s\): \\x1b\[2Jglow' disk.qcow2
}

@test "dirty and corrupt images are served, with a warning" {
    make_image disk.qcow2
    qemu_raw disk.qcow2 qemu.raw
    for bits in 01 02; do
        patch disk.qcow2 79 $bits
        start_nbdkit -r disk.qcow2
        assert_same_content "$uri" qemu.raw
        stop_nbdkit
        grep -E 'warning: .*disk.qcow2: the image (is marked corrupt|was not closed)' \
            "$server_stderr"
    done
}

@test "a file that is cut off" {
    make_image disk.qcow2
    for size in 3 71 100 4096 70000 196609; do
        cp disk.qcow2 cut.qcow2
        truncate -s $size cut.qcow2
        refuses_to_start 'cut.qcow2: .*(magic|truncated|ends within)' cut.qcow2
    done
}

@test "tables that are too large or out of place" {
    make_image disk.qcow2
    cp disk.qcow2 bad.qcow2
    patch bad.qcow2 36 00400001
    refuses_to_start 'bad.qcow2: active L1 table too large' bad.qcow2
    cp disk.qcow2 bad.qcow2
    patch bad.qcow2 40 0000010000000000
    refuses_to_start 'bad.qcow2: active L1 table.*past the end' bad.qcow2
    cp disk.qcow2 bad.qcow2
    patch bad.qcow2 60 ffffffff
    refuses_to_start 'bad.qcow2: .*nb_snapshots is 4294967295' bad.qcow2
}

@test "a lost L2 table fails the reads that need it" {
    qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 8M
    qemu-io -f qcow2 -c 'write -P 1 0 4M' disk.qcow2
    # The second L1 entry: the L1 table's offset is at 40.
    l1=$((16#$(xxd -s 40 -l 8 -p disk.qcow2)))
    patch disk.qcow2 $((l1 + 8)) 8000010000000000

    start_nbdkit -r disk.qcow2
    reads 0 2097152 "$uri"
    reads 4194304 4096 "$uri"
    run ! reads 2097152 4096 "$uri"
    grep -i 'input/output error' client.err
    stop_nbdkit
    grep "disk.qcow2: can't read the L2 table at 0x10000000000" "$server_stderr"
}

@test "a snapshot with a bad L1 table fails alone" {
    make_image disk.qcow2
    qemu-img snapshot -c good disk.qcow2
    qemu-img snapshot -c bad disk.qcow2
    # The entries have 40 bytes, 24 of extra data, an id of one byte, a name.
    table=$((16#$(xxd -s 64 -l 8 -p disk.qcow2)))
    patch disk.qcow2 $((table + 72)) 0000010000000000

    start_nbdkit -r disk.qcow2
    reads 0 65536 "$uri"
    reads 0 65536 "nbd+unix:///good?socket=$sock"
    run ! reads 0 65536 "nbd+unix:///bad?socket=$sock"
    stop_nbdkit
    grep 'snapshot table entry 1: snapshot L1 table at 0x10000000000' \
        "$server_stderr"

    refuses_to_start 'snapshot table entry 1: snapshot L1 table' \
        disk.qcow2 snapshot=bad
}

@test "backing files: loop, missing, no format, forbidden" {
    make_image base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
    refuses_to_start 'longer than 0 files' top.qcow2 max-chain=0
    mv base.qcow2 elsewhere.qcow2
    refuses_to_start 'top.qcow2: backing file: .*base.qcow2: No such file' \
        top.qcow2
    ln -s top.qcow2 base.qcow2
    refuses_to_start 'backing chain has a loop' top.qcow2

    # Without the extension that begins at 112 and tells the format.
    cp top.qcow2 untold.qcow2
    patch untold.qcow2 112 12345678
    refuses_to_start 'untold.qcow2: .*never guessed; use backing-format=' \
        untold.qcow2
    mkdir in
    mv top.qcow2 in
    qemu-img rebase -q -u -f qcow2 -b ../elsewhere.qcow2 -F qcow2 in/top.qcow2
    refuses_to_start "add allow-dir=$(pwd -P)" in/top.qcow2
}
