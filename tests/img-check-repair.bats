# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img check -r beside qemu-img check -r, on twins of damaged images.

load lib
load make-image
load img

setup () { img_setup; }

C=$((1 << 63))                  # the COPIED flag

# An image whose metadata lies where the tests want it:
# 0x10000 refcount table, 0x20000 its block, 0x30000 L1, 0x40000 L2, then three
# data clusters, which the guest sees at 0, 64k and 512k.
simple_image ()
{
    rm -f disk.qcow2
    qemu-img create -q -f qcow2 "$@" disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -P 1 0 64k' -c 'write -q -P 2 64k 64k' \
        -c 'write -q -P 3 512k 64k' disk.qcow2
    [ "$(l2_entry_at disk.qcow2 0)" -eq $((0x40000)) ]
}

# damage OFFSET BYTES NUMBER ...: puts these numbers.
damage ()
{
    while [ $# -gt 0 ]; do
        put_number disk.qcow2 "$1" "$2" "$3"
        shift 3
    done
}

# counts FILE: what a check has counted, of its JSON output.
counts ()
{
    jq -c '[.corruptions, .leaks, ."check-errors", ."corruptions-fixed",
            ."leaks-fixed"]' "$1"
}

# content FILE: a checksum of what the guest reads, where it can.
content ()
{
    local i
    for i in 0 1 2 3 8 9; do
        qemu-io -U -r -f qcow2 -c "read -v $((i * 65536)) 512" "$1" 2>&1 |
            grep '^0000' || echo unreadable
    done | sha256sum
}

# both_repair HOW: repairs disk.qcow2 with qcow2-img, and its twin qemu.qcow2
# with qemu-img.  Sets $status and $theirs.
both_repair ()
{
    theirs=0
    cp disk.qcow2 qemu.qcow2
    qemu-img check --output=json -r "$1" qemu.qcow2 > json.qemu 2> err.qemu ||
        theirs=$?
    run_img check --output=json -r "$1" disk.qcow2
}

# same_repair HOW STATUS: both programs have counted the same, and leave the
# same.
same_repair ()
{
    local before after
    before=$(content disk.qcow2)
    both_repair "$1"
    [ "$status" -eq "$theirs" ] && [ "$status" -eq "$2" ] &&
        [ "$(counts out)" = "$(counts json.qemu)" ] ||
        fail "$theirs and $status: $(cat json.qemu err.qemu out err)" || return
    after=$(content disk.qcow2)
    [ "$after" = "$before" ] || fail "the content has changed" || return
    same_left
}

# same_left: QEMU finds in both twins the same.
same_left ()
{
    local one=0 two=0
    qemu-img check --output=json disk.qcow2 > json.one 2> /dev/null || one=$?
    qemu-img check --output=json qemu.qcow2 > json.two 2> /dev/null || two=$?
    [ "$one" -eq "$two" ] && [ "$(counts json.one)" = "$(counts json.two)" ] ||
        fail "left: $one and $two: $(cat json.one json.two)"
}

# repaired: our repair has made all right, whatever QEMU's has.
repaired ()
{
    local before
    before=$(content disk.qcow2)
    run_img check -r all disk.qcow2
    [ "$status" -eq 0 ] || fail "$(cat out err)" || return
    qemu-img check disk.qcow2 > out.qemu 2>&1 || fail "$(cat out.qemu)" ||
        return
    [ "$(content disk.qcow2)" = "$before" ] || fail "the content has changed"
}

# Clusters that are not free any more than they were: QEMU frees them.
# kept HOW CORRUPTIONS LEAKS
kept ()
{
    local before
    before=$(content disk.qcow2)
    run_img check --output=json -r "$1" disk.qcow2
    [ "$status" -eq 2 ] &&
        [ "$(jq -c '[.corruptions, .leaks]' out)" = "[$2,$3]" ] ||
        fail "$(cat out err)" || return
    grep -q 'Leaked clusters are not freed' err || return
    [ "$(content disk.qcow2)" = "$before" ] || fail "the content has changed"
}

@test "what people see is what qemu-img prints" {
    for how in leaks all; do
        simple_image
        damage $((0x40008)) 8 0
        cp disk.qcow2 twin.qcow2
        qemu-img check -r $how disk.qcow2 > out.qemu 2> /dev/null
        mv twin.qcow2 disk.qcow2
        run_img check -r $how disk.qcow2
        [ "$status" -eq 0 ]
        cmp out out.qemu
        grep -q '^Leaked cluster 6 refcount=1 reference=0' err
        grep -q '^Repairing cluster 6 refcount=1 reference=0' err
    done
    # Nothing to be done; -q.
    twin check -r all disk.qcow2
    damage $((0x40000)) 8 $((0x50000))
    run_img check -q -r all disk.qcow2
    [ "$status" -eq 0 ]
    [ ! -s out ]
    twin check --output=json -r all disk.qcow2
}

@test "leaks" {
    simple_image
    damage $((0x40008)) 8 0
    same_repair leaks 0
    damage $((0x20004)) 2 5 $((0x20010)) 2 1
    same_repair all 0
}

@test "refcounts too low, and both" {
    simple_image
    damage $((0x40008)) 8 0 $((0x2000a)) 2 0
    same_repair leaks 1
    same_repair all 0
    # Not 0: -r leaks does what it can.
    simple_image
    damage $((0x40008)) 8 $((0x50000)) $((0x40000)) 8 $((0x50000))
    same_repair leaks 2
    same_repair all 0
}

@test "COPIED flags; -r leaks repairs them if nothing else is wrong" {
    simple_image
    damage $((0x40000)) 8 $((0x50000)) $((0x30000)) 8 $((0x40000))
    cp disk.qcow2 before.qcow2
    same_repair leaks 0
    cp before.qcow2 disk.qcow2
    same_repair all 0
    simple_image
    qemu-img snapshot -c one disk.qcow2
    damage "$(l2_entry_at disk.qcow2 0)" 8 $((C | 0x50000))
    same_repair all 0
    # Of a compressed cluster: QEMU leaves it.
    rm disk.qcow2
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -c 0 64k' disk.qcow2
    damage $((0x40000)) 1 $((0xc0))
    repaired
}

@test "a COPIED flag of an L1 entry that names no table" {
    qemu-img create -q -f qcow2 disk.qcow2 2G
    qemu-io -f qcow2 -c 'write -q -P 1 0 64k' disk.qcow2
    damage $((0x30010)) 8 $C
    run qemu-img check disk.qcow2
    [ "$status" -eq 2 ]
    run_img check disk.qcow2
    [ "$status" -eq 2 ]
    run_img check -r all disk.qcow2
    [ "$status" -eq 0 ]
    qemu-img check disk.qcow2
}

@test "data that an L1 entry names as a table stays as it is" {
    local pattern
    for pattern in 0xfc 0xc1 0x8f; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 disk.qcow2 600M
        qemu-io -f qcow2 -c "write -q -P $pattern 0 64k" disk.qcow2
        qemu-img snapshot -c one disk.qcow2
        qemu-img convert -f qcow2 -l one -O raw disk.qcow2 before.raw
        damage $((0x30008)) 8 $((0x50000))
        run_img check -r all disk.qcow2
        [ "$status" -eq 2 ]
        qemu-img convert -f qcow2 -l one -O raw disk.qcow2 after.raw
        cmp before.raw after.raw
    done
}

@test "clusters that are used twice" {
    for other in 0x30000 0x40000 0x60000; do
        simple_image
        damage $((0x40000)) 8 $((C | other))
        cp disk.qcow2 before.qcow2
        both_repair leaks
        [ "$status" -eq "$theirs" ] && same_left
        cp before.qcow2 disk.qcow2
        both_repair all
        [ "$(counts out)" = "$(counts json.qemu)" ]
        [ "$status" -eq 0 ] && same_left
    done
}

@test "refcount structures in the way, outside or broken are made anew" {
    while read -r at bytes number; do
        simple_image
        damage "$at" "$bytes" "$number"
        cp disk.qcow2 before.qcow2
        same_repair leaks 1
        cp before.qcow2 disk.qcow2
        same_repair all 0
    done <<END
$((0x10000)) 8 0
$((0x10000)) 8 $((0x50000))
$((0x10000)) 8 $((0x30000))
$((0x40000)) 8 $((C | 0x20000))
48 8 $((1 << 40))
END
    # QEMU makes the file as large as the wrong number says, or fails.
    while read -r at bytes number; do
        simple_image
        damage "$at" "$bytes" "$number"
        run_img check -r leaks disk.qcow2
        [ "$status" -eq 1 ]
        repaired
        [ "$(stat -c %s disk.qcow2)" -lt 1000000 ]
    done <<END
$((0x10000)) 8 $((1 << 40))
$((0x10000)) 8 $((0x100000))
$((0x10000)) 8 $((0x20200))
$((0x10000)) 8 $((0x20001))
48 8 0
48 8 $((0x30000))
END
    simple_image
    damage 56 4 0
    run_img check -r all disk.qcow2
    [ "$status" -eq 0 ]
    qemu-img check disk.qcow2
}

@test "zero clusters that can't be" {
    # Misaligned, with nothing in it.
    simple_image
    damage $((0x40010)) 8 $((C | 0x50201))
    same_repair leaks 2
    both_repair all
    [ "$status" -eq 0 ] && [ "$theirs" -eq 0 ]
    [ "$(counts out)" = "$(counts json.qemu)" ]
    same_left
    [ "$(content disk.qcow2)" = "$(content qemu.qcow2)" ]
    simple_image -o extended_l2=on
    damage $((0x40000)) 8 $((C | 0x50200)) $((0x40008)) 8 $((0xf << 32))
    both_repair all
    [ "$status" -eq 0 ] && [ "$(counts out)" = "$(counts json.qemu)" ]
    same_left
    # In version 2 there are none: QEMU can't read them, and finds nothing.
    simple_image -o compat=0.10
    damage $((0x40000)) 8 $((C | 0x50001)) $((0x40010)) 8 1
    run_img check disk.qcow2
    [ "$status" -eq 2 ]
    run_img check -r all disk.qcow2
    [ "$status" -eq 0 ]
    qemu-img check disk.qcow2
    qemu-io -f qcow2 -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' \
        -c 'read -P 0 128k 64k' disk.qcow2
}

@test "what nobody can repair stays, and nothing is freed" {
    while read -r at bytes number corruptions leaks; do
        simple_image
        damage "$at" "$bytes" "$number"
        cp disk.qcow2 before.qcow2
        kept leaks "$corruptions" "$leaks"
        cmp disk.qcow2 before.qcow2
    done <<END
$((0x40000)) 8 $((1 << 40)) 1 1
$((0x30000)) 8 $((1 << 40)) 1 4
$((0x30000)) 8 $((C | 0x40200)) 1 4
40 8 $((1 << 40)) 1 5
END
    # -r all repairs the rest: a block is missing, but nothing is free.
    simple_image
    damage $((0x30000)) 8 $((1 << 40)) $((0x10000)) 8 0
    run_img check --output=json -r all disk.qcow2
    [ "$status" -eq 2 ]
    damage $((0x30000)) 8 $((C | 0x40000))
    repaired
    qemu-io -f qcow2 -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' disk.qcow2
    # With QEMU's verdict.
    for number in $((C | 0x50200)) $((C | 0x50002)); do
        simple_image
        damage $((0x40000)) 8 "$number"
        same_repair leaks 2
        same_repair all 2
    done
    simple_image -o extended_l2=on
    damage $((0x40008)) 8 $((0x1ffffffff))
    same_repair all 2
}

@test "snapshot tables" {
    for compat in 0.10 1.1; do
        simple_image -o compat=$compat
        qemu-img snapshot -c one disk.qcow2
        qemu-io -f qcow2 -c 'write -q -P 7 0 64k' disk.qcow2
        qemu-img snapshot -c two disk.qcow2
        mv disk.qcow2 clean.qcow2
        qemu-img snapshot -l clean.qcow2 > list
        qemu-img convert -f qcow2 -l one -O raw clean.qcow2 one.raw
        table=$((0x$(xxd -p -s 64 -l 8 clean.qcow2)))
        while read -r at number; do
            cp clean.qcow2 disk.qcow2
            put_number disk.qcow2 "$at" 4 "$number"
            refuses 1 '"-r all" removes' check disk.qcow2
            refuses 1 '"-r all" removes' check -r leaks disk.qcow2
            run_img check -r all disk.qcow2
            [ "$status" -eq 0 ] || fail "$(cat out err)"
            qemu-img check disk.qcow2
            [ "$(content disk.qcow2)" = "$(content clean.qcow2)" ]
            qemu-img snapshot -l disk.qcow2 | cmp - list
            qemu-img convert -f qcow2 -l one -O raw disk.qcow2 now.raw
            cmp now.raw one.raw
        done <<END
$((table + 36)) 5000
$((table + 36)) $((0xffffffff))
60 70000
60 $((0xffffffff))
END
    done
    # What version 3 wants to have; with more than one QEMU is lost.
    cp clean.qcow2 disk.qcow2
    put_number disk.qcow2 $((table + 36)) 4 8
    run_img check -r all disk.qcow2
    [ "$status" -eq 0 ]
    qemu-img check disk.qcow2
    qemu-img snapshot -l disk.qcow2 | cmp - list
    simple_image
    qemu-img snapshot -c one disk.qcow2
    damage $((0x$(xxd -p -s 64 -l 8 disk.qcow2) + 36)) 4 8
    same_repair leaks 2
    same_repair all 0
    # Not there at all.
    cp clean.qcow2 disk.qcow2
    put_number disk.qcow2 64 8 $((1 << 40))
    refuses 1 'snapshot table .* past the end' check -r all disk.qcow2
}

# The table's second entry is cut, but still names the snapshot's L1 table; or
# nothing is left of it.
@test "an entry of the snapshot table is lost: nothing is freed" {
    simple_image
    qemu-img snapshot -c one disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 7 0 64k' disk.qcow2
    qemu-img snapshot -c two disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 8 0 64k' disk.qcow2
    old=$((0x$(xxd -p -s 64 -l 8 disk.qcow2)))
    new=$(( ($(stat -c %s disk.qcow2) + 65535) / 65536 * 65536 ))
    dd if=disk.qcow2 of=table bs=8 skip=$((old / 8)) count=18 status=none
    dd if=table of=disk.qcow2 bs=8 seek=$((new / 8)) conv=notrunc status=none
    damage 64 8 $new
    run_img check -r all disk.qcow2
    [ "$status" -eq 0 ]
    two=$((0x$(xxd -p -s $((new + 72)) -l 8 disk.qcow2)))
    block=$((0x20000 + two / 65536 * 2))
    [ "$(xxd -p -s $block -l 2 disk.qcow2)" = 0001 ]
    mv disk.qcow2 whole.qcow2
    for lost in "truncate -s $((new + 72 + 20))" "truncate -s $((new + 72))" \
        "fallocate -z -o $((new + 72)) -l 72"; do
        cp whole.qcow2 disk.qcow2
        $lost disk.qcow2
        run_img check -r all disk.qcow2
        [ "$status" -eq 3 ] || fail "$lost: $status"
        [ "$(xxd -p -s $block -l 2 disk.qcow2)" = 0001 ] || fail "$lost"
    done
}

@test "a snapshot's name that goes on behind the file is cut" {
    simple_image
    qemu-img snapshot -c one disk.qcow2
    qemu-img snapshot -l disk.qcow2 > list
    qemu-io -f qcow2 -c 'write -q -P 7 0 64k' disk.qcow2
    qemu-img convert -f qcow2 -l one -O raw disk.qcow2 one.raw
    old=$((0x$(xxd -p -s 64 -l 8 disk.qcow2)))
    new=$(( ($(stat -c %s disk.qcow2) + 65535) / 65536 * 65536 ))
    dd if=disk.qcow2 of=table bs=8 skip=$((old / 8)) count=9 status=none
    dd if=table of=disk.qcow2 bs=8 seek=$((new / 8)) conv=notrunc status=none
    damage 64 8 $new $((new + 14)) 2 $((256 + 3))
    run_img check disk.qcow2
    [ "$status" -eq 2 ]
    run_img check -r all disk.qcow2
    [ "$status" -eq 0 ] || fail "$(cat out err)"
    qemu-img check disk.qcow2
    qemu-img snapshot -l disk.qcow2 | cmp - list
    qemu-img convert -f qcow2 -l one -O raw disk.qcow2 now.raw
    cmp now.raw one.raw
}

@test "an encryption header stays, though the header says there is none" {
    make_luks disk.qcow2
    damage 32 4 0
    cp disk.qcow2 before.qcow2
    for how in leaks all; do
        run_img check -r $how disk.qcow2
        [ "$status" -eq 2 ]
        grep 'there is an encryption header' err
        cmp disk.qcow2 before.qcow2
    done
}

@test "the dirty bit and the corrupt bit" {
    for how in leaks all; do
        simple_image
        damage 72 8 3 $((0x40008)) 8 0
        run_img check disk.qcow2
        [ "$status" -eq 3 ]
        [ "$(xxd -p -s 72 -l 8 disk.qcow2)" = 0000000000000003 ]
        same_repair $how 0
        [ "$(xxd -p -s 72 -l 8 disk.qcow2)" = 0000000000000000 ]
    done
    # Something is left: they stay.
    damage 72 8 3 $((0x40000)) 8 $((C | 0x50002))
    same_repair all 2
    [ "$(xxd -p -s 72 -l 8 disk.qcow2)" = 0000000000000003 ]
}

@test "kinds of images, with refcounts and flags at random" {
    while read -r kind; do
        rm -f ./*.qcow2* ./*.raw
        # shellcheck disable=SC2086
        make_image disk.qcow2 $kind
        qemu-img convert -f qcow2 -O raw disk.qcow2 before.raw
        block=$((0x$(xxd -p -s $((0x$(xxd -p -s 48 -l 8 disk.qcow2))) -l 8 \
            disk.qcow2)))
        for i in 0 1 3 4 6; do
            put_number disk.qcow2 $((block + 2 * i)) 2 $((i % 3))
        done
        run_img check -r all disk.qcow2
        [ "$status" -eq 0 ] || fail "kind: $kind: $(cat out err)"
        qemu-img check disk.qcow2
        qemu-img convert -f qcow2 -O raw disk.qcow2 after.raw
        cmp before.raw after.raw
    done <<'END'
version=2
version=3 snapshots=1 seed=2
version=2 snapshots=2 seed=9
cluster=512 size=300000 writes=30
cluster=4096 compression=zstd seed=3
extended=on cluster=16384 seed=4
data=on
END
}

@test "an entry that is not where the data file has it" {
    qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q 64k 64k' disk.qcow2
    l2=$(l2_entry_at disk.qcow2 0)
    damage $((l2 + 8)) 8 $((C | 0x20000))
    run_img check disk.qcow2
    [ "$status" -eq 2 ]
    grep -q "differs from the guest's" err
}

@test "in use, or not to be written" {
    simple_image
    damage $((0x40008)) 8 0
    cp disk.qcow2 before.qcow2
    hold_open disk.qcow2
    refuses 1 'Failed to get .*lock' check -r all disk.qcow2
    let_go
    hold_open disk.qcow2 -r
    refuses 1 'Failed to get .*lock' check -r all disk.qcow2
    let_go
    cmp disk.qcow2 before.qcow2
    refuses 1 "-U can't be used with -r" check -U -r leaks disk.qcow2
    refuses 1 "expecting 'leaks' or 'all'" check -r some disk.qcow2
    refuses 63 'does not support checks' check -f raw -r all disk.qcow2
}

@test "-p shows progress; -T" {
    qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q 0 4M' disk.qcow2
    run_img check -p disk.qcow2
    [ "$status" -eq 0 ]
    tr '\r' '\n' < out > lines
    grep -q '(100.00/100%)' lines
    [ "$(grep -c '/100%' lines)" -gt 4 ]
    run_img check -p -q disk.qcow2
    [ ! -s out ]
    for cache in none directsync unsafe writethrough; do
        simple_image
        damage $((0x40008)) 8 0
        run_img check -T $cache -r all disk.qcow2
        [ "$status" -eq 0 ]
        qemu-img check disk.qcow2
    done
}

@test "a small file that claims much is repaired in no time" {
    qemu-img create -q -f qcow2 -o cluster_size=2M disk.qcow2 $((1 << 60))
    qemu-io -f qcow2 -c 'write -q 0 64k' disk.qcow2
    l1=$((0x$(xxd -p -s 40 -l 8 disk.qcow2)))
    entry=$(xxd -p -s $l1 -l 8 disk.qcow2)
    yes "$entry" | head -n 200000 | tr -d '\n' | xxd -r -p |
        dd of=disk.qcow2 bs=1M oflag=seek_bytes seek=$l1 conv=notrunc \
            status=none
    timeout 20 "$img" check -r all disk.qcow2 > out 2> err || status=$?
    [ "$status" -le 3 ]
}
