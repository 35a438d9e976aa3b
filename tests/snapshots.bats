# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# Internal snapshots: each is an export, and snapshot= makes one the default.

load lib
load make-image

# export_uri NAME: of the running server.
export_uri ()
{
    "$PYTHON" -c 'import sys, urllib.parse
print ("nbd+unix:///%s?socket=%s" % (urllib.parse.quote (sys.argv[1]),
                                     sys.argv[2]))' "$1" "$sock"
}

# The names and descriptions that the server lists, as lines NAME|DESCRIPTION.
list ()
{
    nbdinfo --list --json "$uri" > list.json
    jq -r '.exports[] | ."export-name" + "|" + .description' list.json
}

# assert_export NAME ID: the export shows what QEMU reads from the snapshot with
# this id.
assert_export ()
{
    qemu_raw "${image:-disk.qcow2}" snapshot.raw -t unsafe -l snapshot.id="$2"
    assert_same_content "$(export_uri "$1")" snapshot.raw
}

# assert_default ARG NUMBER: with this snapshot= the default export is filled
# with bytes of this number.
assert_default ()
{
    start_nbdkit disk.qcow2 snapshot="$1"
    nbd_raw "$uri" default.raw
    [ "$(tr -d "\\$2" < default.raw | wc -c)" -eq 0 ] ||
        fail "snapshot=$1: not filled with $2"
    [ "$(stat -c %s default.raw)" -eq $((1 << 20)) ]
    stop_nbdkit
}

# image_with_snapshots NAME ...: snapshots with ids 1, 2, ... and these names,
# all filled with bytes of the id's number.  The active layer is filled with 7.
image_with_snapshots ()
{
    local name n=0
    qemu-img create -q -f qcow2 disk.qcow2 1M
    for name in "$@"; do
        n=$((n + 1))
        qemu-io -t unsafe -f qcow2 -c "write -q -P $n 0 1M" disk.qcow2
        qemu-img snapshot -c "$name" disk.qcow2
    done
    qemu-io -t unsafe -f qcow2 -c 'write -q -P 7 0 1M' disk.qcow2
}

# snapshot_at IMAGE NUMBER: where in the file the table's entry is, from 0 on.
snapshot_at ()
{
    local at i
    at=$(number_at "$1" 64 8)
    for ((i = 0; i < $2; i++)); do
        at=$((at + 40 + $(number_at "$1" $((at + 36)) 4) +
              $(number_at "$1" $((at + 12)) 2) +
              $(number_at "$1" $((at + 14)) 2)))
        at=$(((at + 7) & ~7))
    done
    echo "$at"
}

@test "each snapshot is an export with the content that it had" {
    local i
    for kind in "" "version=2" "cluster=512 size=1000448 backing=raw" \
        "extended=on compression=zstd backing=qcow2" "cluster=2097152"; do
        rm -f disk.qcow2*
        # shellcheck disable=SC2086
        make_image disk.qcow2 snapshots=3 compression=zlib $kind seed=5
        start_nbdkit -r disk.qcow2
        qemu_raw disk.qcow2 qemu.raw
        assert_same_content "$uri" qemu.raw
        for i in 1 2 3; do
            assert_export s$i $i
        done
        stop_nbdkit
    done
}

@test "all snapshots are read at the same time from several connections" {
    local i readers=()
    make_image disk.qcow2 snapshots=3 cluster=4096 compression=zlib seed=6
    start_nbdkit -r disk.qcow2 cache-size=64k compressed-cache-size=64k
    for i in 1 2 3; do
        qemu_raw disk.qcow2 s$i.raw -t unsafe -l snapshot.id=$i
    done
    qemu_raw disk.qcow2 s.raw
    for i in "" 1 2 3; do
        "$PYTHON" "$BATS_TEST_DIRNAME/nbd-random-reads.py" \
            "$(export_uri "${i:+s}$i")" s$i.raw 200 2 3>&- &
        readers+=($!)
    done
    for i in "${readers[@]}"; do
        wait "$i"
    done
    stop_nbdkit
}

@test "snapshots are listed with id, date and size of the VM state" {
    local at
    image_with_snapshots first "with space/slash" "ünï"
    at=$(snapshot_at disk.qcow2 0)
    put_number disk.qcow2 $((at + 16)) 4 1700000000
    put_number disk.qcow2 $((at + 40)) 8 $((5 << 30))
    at=$(snapshot_at disk.qcow2 1)
    put_number disk.qcow2 $((at + 16)) 4 $((0xffffffff))
    put_number disk.qcow2 $((at + 32)) 4 12345
    put_number disk.qcow2 $((at + 40)) 8 67890

    start_nbdkit -r disk.qcow2
    list > listed
    cat listed
    [ "$(wc -l < listed)" -eq 4 ]
    grep -Fx '|active layer' listed
    grep -Fx "first|snapshot, id 1, 2023-11-14 22:13:20 UTC, VM state\
 5368709120 bytes" listed
    grep -Fx "with space/slash|snapshot, id 2, 2106-02-07 06:28:15 UTC,\
 VM state 67890 bytes" listed
    grep -E "^ünï\|snapshot, id 3, 20[0-9-]+ [0-9:]+ UTC, VM state 0 bytes$" \
        listed
    [ "$(jq '.exports | map (."export-size") | unique | .[]' list.json)" = \
        1048576 ]
    # A client that does not list is told, too.
    nbdinfo "$(export_uri first)" | grep -F 'snapshot, id 1, 2023-11-14'
    assert_export "with space/slash" 2
    assert_export ünï 3
    stop_nbdkit
}

@test "without snapshots there is one export" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    start_nbdkit -r disk.qcow2
    [ "$(list)" = "|active layer" ]
    stop_nbdkit
}

@test "snapshot= takes an id before a name, as qemu-img does" {
    local arg
    # The names 1 and 2 are ids of others.
    image_with_snapshots 2 1 three
    for arg in 1:1 2:2 3:3 three:3; do
        qemu_raw disk.qcow2 qemu.raw -t unsafe -l "${arg%:*}"
        [ "$(tr -d "\\${arg#*:}" < qemu.raw | wc -c)" -eq 0 ]
        assert_default "${arg%:*}" "${arg#*:}"
    done

    # Exports go by name.
    start_nbdkit -r disk.qcow2
    assert_export 2 1
    assert_export 1 2
    stop_nbdkit
}

@test "snapshot= leaves the other exports as they are" {
    image_with_snapshots a b
    start_nbdkit disk.qcow2 snapshot=b
    [ "$(list | cut -d'|' -f1 | tr '\n' ,)" = ",a,b," ]
    list | grep '^|snapshot, id 2, '
    assert_export '' 2
    assert_export a 1
    assert_export b 2
    stop_nbdkit
}

@test "snapshots with the same name are told apart by their ids" {
    image_with_snapshots twin single twin
    start_nbdkit -r disk.qcow2
    [ "$(list | cut -d'|' -f1 | tr '\n' ,)" = \
        ",twin (id 1),single,twin (id 3)," ]
    assert_export "twin (id 1)" 1
    assert_export "single" 2
    assert_export "twin (id 3)" 3
    run ! nbdinfo "$(export_uri twin)"
    stop_nbdkit
    # The first one, as qemu-img takes it.
    qemu_raw disk.qcow2 qemu.raw -t unsafe -l twin
    [ "$(tr -d '\1' < qemu.raw | wc -c)" -eq 0 ]
    assert_default twin 1
}

@test "a snapshot without a name" {
    image_with_snapshots ''
    start_nbdkit -r disk.qcow2
    [ "$(list | cut -d'|' -f1 | tr '\n' ,)" = ", (id 1)," ]
    assert_export ' (id 1)' 1
    nbd_raw "$uri" active.raw
    [ "$(tr -d '\7' < active.raw | wc -c)" -eq 0 ]
    stop_nbdkit
    assert_default 1 1
}

@test "no two exports have the same name, whatever snapshots are named" {
    image_with_snapshots a a 'a (id 1)'
    start_nbdkit -r disk.qcow2
    list | cut -d'|' -f1 > names
    cat names
    [ "$(sort -u names | wc -l)" -eq 4 ]
    assert_export 'a (id 1)' 1
    assert_export 'a (id 2)' 2
    assert_export 'a (id 1) (id 3)' 3
    stop_nbdkit
}

# Nothing that a terminal or a log would act upon.
@test "a name that a client asks for is escaped in messages" {
    image_with_snapshots a
    start_nbdkit -r disk.qcow2
    run ! nbdinfo "$(export_uri $'x\nnbdkit: y\033[31m')"
    stop_nbdkit
    grep -F 'there is no export "x\x0anbdkit: y\x1b[31m"' "$server_stderr"
    run ! grep -q $'\033' "$server_stderr"
}

# All share the L1 table of the first.
@test "of more snapshots than can be listed the first are" {
    image_with_snapshots a
    "$PYTHON" - <<'END'
import struct
with open ("disk.qcow2", "r+b") as f:
    f.seek (64)
    f.seek (struct.unpack (">Q", f.read (8))[0])
    l1 = f.read (12)
    f.seek (0, 2)
    where = (f.tell () + 0xffff) & ~0xffff
    f.seek (where)
    for i in range (10500):
        name = b"%05d" % i
        f.write (l1 + struct.pack (">HHIIQIIQQ", 5, 5, 0, 0, 0, 0, 16, 0,
                                   1 << 20) + name + name + bytes (6))
    f.seek (60)
    f.write (struct.pack (">IQ", 10500, where))
END
    start_nbdkit -r disk.qcow2
    list > names
    [ "$(wc -l < names)" -eq 10000 ]
    grep '^|active layer' names
    grep '^09998|' names
    run ! grep '^09999|' names
    [ "$(grep -c 'warning: .*10500 snapshots; only the first 9999 are listed' \
        "$server_stderr")" -eq 1 ]
    nbdinfo "$(export_uri 10499)"
    stop_nbdkit
}

@test "unknown snapshots are refused" {
    image_with_snapshots a
    start_nbdkit -r disk.qcow2
    run ! nbdinfo "$(export_uri b)"
    run ! nbdinfo "$(export_uri 1)"
    # The server goes on.
    assert_export a 1
    stop_nbdkit
    grep 'there is no export "b"' "$server_stderr"

    refuses_to_start 'snapshot=b: .*no snapshot' disk.qcow2 snapshot=b
    refuses_to_start 'snapshot=: .*no snapshot' disk.qcow2 snapshot=
    qemu-img create -q -f qcow2 disk.qcow2 1M
    refuses_to_start 'snapshot=a: .*no snapshot' disk.qcow2 snapshot=a
}

@test "snapshots of other sizes" {
    local i=0 size
    head -c 2500000 /dev/urandom > base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 1M
    qemu-io -t unsafe -f qcow2 -c 'write -q -P 1 500k 300k' disk.qcow2
    for size in 3M 3G 2000k; do
        i=$((i + 1))
        qemu-img snapshot -c s$i disk.qcow2
        qemu-img resize -q --shrink disk.qcow2 $size
        qemu-io -t unsafe -f qcow2 -c 'write -q -P 2 700k 100k' disk.qcow2
    done
    start_nbdkit -r disk.qcow2
    [ "$(nbdinfo --size "$uri")" -eq 2048000 ]
    [ "$(nbdinfo --size "$(export_uri s1)")" -eq $((1 << 20)) ]
    [ "$(nbdinfo --size "$(export_uri s2)")" -eq $((3 << 20)) ]
    [ "$(nbdinfo --size "$(export_uri s3)")" -eq $((3 << 30)) ]
    # What QEMU has after it went back to the snapshot; for its own -l each
    # snapshot is as large as the disk is now.
    for i in 1 2 3; do
        cp disk.qcow2 back.qcow2
        qemu-img snapshot -a $i back.qcow2
        qemu_raw back.qcow2 back.raw -t unsafe
        "$PYTHON" "$BATS_TEST_DIRNAME/nbd-random-reads.py" \
            "$(export_uri s$i)" back.raw
        [ $i -eq 3 ] || assert_same_content "$(export_uri s$i)" back.raw
        [ $i -eq 3 ] || "$PYTHON" "$BATS_TEST_DIRNAME/nbd-extents.py" \
            "$(export_uri s$i)" back.qcow2
    done
    qemu_raw disk.qcow2 qemu.raw
    assert_same_content "$uri" qemu.raw
    stop_nbdkit

    start_nbdkit disk.qcow2 snapshot=2
    [ "$(nbdinfo --size "$uri")" -eq $((3 << 20)) ]
    stop_nbdkit
}

# Version 2 entries have no extra data, so the size is the disk's.
@test "a snapshot that does not tell its size has the disk's" {
    local at from end
    qemu-img create -q -f qcow2 -o compat=0.10 disk.qcow2 1M
    qemu-io -t unsafe -f qcow2 -c 'write -q -P 3 100k 200k' disk.qcow2
    qemu-img snapshot -c old disk.qcow2
    at=$(snapshot_at disk.qcow2 0)
    # id and name move over the extra data.
    from=$((at + 40 + $(number_at disk.qcow2 $((at + 36)) 4)))
    end=$(number_at disk.qcow2 $from 4)
    put_number disk.qcow2 $((at + 40)) 4 "$end"
    put_number disk.qcow2 $((at + 36)) 4 0
    put_number disk.qcow2 $((at + 32)) 4 4711
    qemu-img snapshot -l disk.qcow2 | grep old

    start_nbdkit -r disk.qcow2
    list | grep -E '^old\|snapshot, id 1, .*, VM state 4711 bytes$'
    assert_export old 1
    stop_nbdkit
}

@test "the tables of many snapshots" {
    local i
    qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 100k
    for i in {1..60}; do
        qemu-io -t unsafe -f qcow2 -c "write -q -P $i ${i}k 1k" disk.qcow2
        qemu-img snapshot -c "number $i" disk.qcow2
    done
    start_nbdkit -r disk.qcow2
    [ "$(list | wc -l)" -eq 61 ]
    for i in 1 13 42 60; do
        assert_export "number $i" $i
    done
    stop_nbdkit
}

@test "a snapshot with a damaged L1 table leaves the others readable" {
    image_with_snapshots a b
    put_number disk.qcow2 "$(snapshot_at disk.qcow2 0)" 8 $((1 << 40))
    start_nbdkit -r disk.qcow2
    run ! nbdinfo "$(export_uri a)"
    assert_export b 2
    stop_nbdkit
    grep 'past the end of the file' "$server_stderr"
    refuses_to_start 'past the end of the file' disk.qcow2 snapshot=a
}
