# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img snapshot beside qemu-img snapshot: twin images go through the same
# commands, and hold the same after each.

load lib
load make-image
load img

setup () { img_setup; }

# all_content IMAGE OUT: the active layer and each snapshot as QEMU reads them.
all_content ()
{
    local id
    {
        qemu-img info "$1" | grep '^virtual size'
        qemu-img convert -U -O raw "$1" part.raw && sha256sum < part.raw
        for id in $(qemu-img snapshot -U -l "$1" | sed -n '3,$s/ .*//p'); do
            echo "snapshot $id"
            qemu-img convert -U -l "snapshot.id=$id" -O raw "$1" part.raw &&
                sha256sum < part.raw
        done
    } > "$2"
}

# A list without its dates, which are those of the programs' runs.
undated () { sed -E 's/ [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} / DATE /' "$1"; }

# same_twins: ours.qcow2 and theirs.qcow2.
same_twins ()
{
    qemu-img check -q ours.qcow2 > check.out 2>&1 ||
        fail "the check of ours: $(cat check.out)" || return 1
    all_content ours.qcow2 ours.content &&
        all_content theirs.qcow2 theirs.content &&
        diff theirs.content ours.content || return 1
    qemu-img snapshot -l theirs.qcow2 > theirs.list
    "$img" snapshot -l ours.qcow2 > ours.list
    diff <(undated theirs.list) <(undated ours.list) || return 1
    diff <(qemu-img info theirs.qcow2 | sed '/^image:/d; /^disk size:/d' |
               undated /dev/stdin) \
        <(qemu-img info ours.qcow2 | sed '/^image:/d; /^disk size:/d' |
              undated /dev/stdin)
}

# both SNAPSHOT_OPTION NAME: each program changes its image; the exit statuses
# are the same.
both ()
{
    local theirs=0
    qemu-img snapshot "$@" theirs.qcow2 > out.qemu 2> err.qemu || theirs=$?
    run_img snapshot "$@" ours.qcow2 || return 1
    [ "$status" -eq "$theirs" ] && [ ! -s out ] ||
        fail "snapshot $*: $theirs and $status: $(cat err.qemu err)" ||
        return 1
    same_twins || fail "after snapshot $*"
}

# change COMMAND ...: qemu-io does the same to both.
change ()
{
    local args=() c
    for c; do args+=(-c "$c"); done
    qemu-io -t unsafe -f qcow2 "${args[@]}" ours.qcow2 > io.out
    qemu-io -t unsafe -f qcow2 "${args[@]}" theirs.qcow2 > io.out
}

# swap: what one program has made the other one uses.
swap ()
{
    mv ours.qcow2 other.qcow2
    mv theirs.qcow2 ours.qcow2
    mv other.qcow2 theirs.qcow2
}

twins_live_on ()
{
    cp --sparse=always disk.qcow2 theirs.qcow2
    mv disk.qcow2 ours.qcow2
    both -c first
    change 'write -P 11 100k 150k' 'discard 0 64k' 'write -z 400k 64k'
    both -c second
    swap
    change 'write -P 12 64k 300k'
    both -c second
    both -a first
    change 'write -P 13 10k 5k'
    swap
    both -a 2
    change 'write -P 14 200k 100k'
    both -d second
    both -c 17
    swap
    both -d first
    both -d nosuch
    both -a 17
    both -a 3
    change 'write -P 15 0 600k'
    both -d second
    swap
    both -d 17
    change 'write -P 16 0 100k'
    same_twins
}

@test "twins of all kinds hold the same after each command" {
    while read -r kind; do
        rm -f ./*.qcow2*
        # shellcheck disable=SC2086
        make_image disk.qcow2 size=700416 writes=20 $kind
        twins_live_on || fail "kind: $kind"
    done <<'END'
version=2 cluster=512
version=2 compression=zlib
version=3 compression=zlib snapshots=1
cluster=4096 compression=zstd seed=3
extended=on cluster=16384 compression=zlib seed=4
backing=raw
prealloc=metadata
END
}

@test "a snapshot of another size gives the disk its size" {
    qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 100k
    qemu-io -f qcow2 -c 'write -P 1 0 100k' disk.qcow2
    cp disk.qcow2 theirs.qcow2
    mv disk.qcow2 ours.qcow2
    both -c small
    for i in ours theirs; do qemu-img resize -q $i.qcow2 1M; done
    change 'write -P 2 90k 900k'
    both -c large
    both -a small
    change 'write -P 3 90k 10k'
    both -a large
    change 'write -P 4 900k 100k'
    for i in ours theirs; do qemu-img resize -q --shrink $i.qcow2 50k; done
    swap
    both -a large
    both -a small
    both -d small
    both -d large
    change 'write -P 5 0 100k'
    same_twins
}

@test "a list: the same bytes" {
    make_image disk.qcow2
    twin snapshot -l disk.qcow2
    [ ! -s out ]
    "$img" snapshot -c 'a name' disk.qcow2
    "$img" snapshot -c '' disk.qcow2
    "$img" snapshot -c "$(printf 'x%.0s' {1..255})" disk.qcow2
    TZ=Asia/Tokyo twin snapshot -l disk.qcow2
    [ "$(wc -l < out)" -eq 5 ]
    twin snapshot -q -l disk.qcow2
    twin snapshot -U -l disk.qcow2
    twin snapshot disk.qcow2
}

@test "what can't be listed, created, applied or deleted" {
    make_image disk.qcow2 snapshots=1
    cp disk.qcow2 before.qcow2
    twin snapshot
    twin snapshot -l
    twin snapshot -l disk.qcow2 disk.qcow2
    twin snapshot -l nosuch.qcow2
    twin snapshot -c one -a s1 disk.qcow2
    twin snapshot -l -l disk.qcow2
    twin snapshot -c
    twin snapshot -f qcow2 -l disk.qcow2
    twin snapshot -a nosuch disk.qcow2
    twin snapshot -d nosuch disk.qcow2
    twin snapshot -d 1 disk.qcow2
    twin snapshot -U -c one disk.qcow2
    refuses 1 "Could not delete snapshot 'nosuch': snapshot not found" \
        snapshot -d nosuch disk.qcow2
    refuses 1 "Could not apply snapshot 'x': Failed to load snapshot: No such" \
        snapshot -a x disk.qcow2
    refuses 1 "Could not open 'disk.qcow2': force-share=on can only" \
        snapshot -U -d s1 disk.qcow2
    refuses 1 "'-l', '-a', '-c', '-d'" snapshot -l -c one disk.qcow2
    refuses 1 "too long: at most 255 bytes" \
        snapshot -c "$(printf 'x%.0s' {1..256})" disk.qcow2
    cmp before.qcow2 disk.qcow2
    truncate -s 1M raw.qcow2
    refuses 1 "not in qcow2 format" snapshot -l raw.qcow2
    chmod a-w disk.qcow2
    if [ "$(id -u)" -ne 0 ]; then
        refuses 1 "Permission denied" snapshot -c one disk.qcow2
    fi
}

@test "an image in use is left alone" {
    make_image disk.qcow2 snapshots=1
    hold_open disk.qcow2
    for options in "-c one" "-a s1" "-d s1" -l; do
        # shellcheck disable=SC2086
        refuses 1 "Could not open 'disk.qcow2'.*lock" \
            snapshot $options disk.qcow2
    done
    twin snapshot -U -l disk.qcow2
    let_go
    qemu-img check -q disk.qcow2
    [ "$(qemu-img snapshot -l disk.qcow2 | wc -l)" -eq 3 ]
}

@test "an external data file is in the way, as with QEMU" {
    make_image disk.qcow2 data=on
    for options in "-c one" "-a one" "-d one"; do
        # shellcheck disable=SC2086
        twin snapshot $options disk.qcow2
        # shellcheck disable=SC2086
        refuses 1 "external data file" snapshot $options disk.qcow2
    done
    twin snapshot -l disk.qcow2
}

@test "refcounts that are too narrow: nothing is changed" {
    for bits in 1 2; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o refcount_bits=$bits disk.qcow2 1M
        qemu-io -f qcow2 -c 'write -P 1 0 1M' disk.qcow2
        for ((i = 1; i < (1 << bits) - 1; i++)); do
            "$img" snapshot -c "s$i" disk.qcow2
        done
        cp disk.qcow2 before.qcow2
        refuses 1 "refcount_bits=$bits can hold" snapshot -c over disk.qcow2
        cmp disk.qcow2 before.qcow2
        qemu-img check -q disk.qcow2
    done
    # What is in common needs no more references.
    "$img" snapshot -a s1 disk.qcow2
    "$img" snapshot -a s2 disk.qcow2
    qemu-img check -q disk.qcow2
}

@test "bitmaps stay for -c and -d, and are in the way of -a" {
    make_image disk.qcow2 snapshots=1
    qemu-img bitmap --add disk.qcow2 bitmap
    cp disk.qcow2 theirs.qcow2
    mv disk.qcow2 ours.qcow2
    both -c second
    qemu-img info ours.qcow2 | grep -q 'name: bitmap'
    both -a s1
    refuses 1 'bitmaps' snapshot -a s1 ours.qcow2
    both -d s1
    qemu-img info ours.qcow2 | grep -q 'name: bitmap'
    qemu-img bitmap --remove ours.qcow2 bitmap
    qemu-img bitmap --remove theirs.qcow2 bitmap
    both -a second
}

@test "extra data of other snapshots stays byte for byte" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    for i in one two three; do qemu-img snapshot -c $i disk.qcow2; done
    # Entries of 40 + 24 + 1 + name bytes, in steps of 8: the second one gets 8
    # more bytes of extra data, the third is moved by them.
    local at
    at=$(number_at disk.qcow2 64 8)
    dd if=disk.qcow2 of=table bs=1 skip="$at" count=216 status=none
    {
        head -c 108 table
        printf '\0\0\0\40'
        dd if=table bs=1 skip=112 count=24 status=none
        printf 'unknown!'
        dd if=table bs=1 skip=136 status=none
    } | dd of=disk.qcow2 bs=1 seek="$at" conv=notrunc status=none
    twin snapshot -l disk.qcow2
    "$img" snapshot -c four disk.qcow2
    "$img" snapshot -d one disk.qcow2
    twin snapshot -l disk.qcow2
    [ "$(wc -l < out)" -eq 5 ]
    at=$(number_at disk.qcow2 64 8)
    dd if=disk.qcow2 of=now bs=1 skip="$at" count=80 status=none
    grep -q 'unknown!' now
    [ "$(number_at now 36 4)" -eq 32 ]
    qemu-img check -q disk.qcow2
}

@test "a dirty image is repaired first" {
    make_image disk.qcow2 snapshots=1
    put_number disk.qcow2 79 1 1
    run_img snapshot -c two disk.qcow2
    [ "$status" -eq 0 ]
    grep -q 'has been repaired' err
    qemu-img check -q disk.qcow2
    [ "$(qemu-img snapshot -l disk.qcow2 | wc -l)" -eq 4 ]
}

@test "space that a deleted snapshot had is given back" {
    qemu-img create -q -f qcow2 disk.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 1 0 32M' disk.qcow2
    "$img" snapshot -c one disk.qcow2
    qemu-io -f qcow2 -c 'write -P 2 0 32M' disk.qcow2
    [ "$(du -k disk.qcow2 | cut -f1)" -gt 60000 ]
    "$img" snapshot -d one disk.qcow2
    [ "$(du -k disk.qcow2 | cut -f1)" -lt 40000 ]
    qemu-img check -q disk.qcow2
}
