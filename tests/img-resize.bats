# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# qcow2-img resize beside qemu-img.  What faults and power failures leave is
# seen in test-resize-*.c.

load lib
load img

setup () { img_setup; }

virtual_size ()
{
    qemu-img info -U --output=json "$1" | jq '."virtual-size"'
}

# make_kind KIND FILE: an image whose disk has 6 MiB, mostly filled.
make_kind ()
{
    local options=${1%%:*} rest=${1#*:} command
    qemu-img create -q -f qcow2 -o "$options" "$2" 6M
    while [ -n "$rest" ]; do
        command=${rest%%;*}
        rest=${rest#"$command"}
        rest=${rest#;}
        if [ "$command" = snapshot ]; then
            qemu-img snapshot -c s "$2"
        else
            qemu-io -f qcow2 -c "$command" "$2" > io.log
        fi
    done
}

kinds=(
    'compat=0.10,cluster_size=512:write -P 1 0 6M'
    'cluster_size=512:write -P 1 0 6M'
    'cluster_size=512,refcount_bits=64:write -P 1 0 6M;snapshot'
    'cluster_size=4k:write -P 1 0 6M;snapshot;write -P 2 900k 2M'
    'cluster_size=4k,compat=0.10:write -P 1 512 3M;write -P 2 4M 1M'
    'lazy_refcounts=on,refcount_bits=1:write -P 1 0 6M'
    'cluster_size=64k:write -P 1 0 6M'
    'cluster_size=64k:write -P 1 0 6M;snapshot;discard 0 2M'
    'cluster_size=2M:write -P 1 0 6M'
    'extended_l2=on:write -P 1 0 6M;snapshot;write -P 2 999k 3k'
    'compression_type=zstd:write -c -P 1 0 4M;write -P 2 4M 2M'
    'compat=0.10:write -c -P 1 0 4M;write -P 2 4M 2M'
    'preallocation=metadata:write -P 1 1M 2M'
)

# same_as_twin OURS THEIRS
same_as_twin ()
{
    [ "$(virtual_size "$1")" -eq "$(virtual_size "$2")" ]
    qemu-img check -q "$1"
    qemu-img compare "$1" "$2"
    run_img check "$1"
    [ "$status" -eq 0 ]
}

@test "a smaller disk: content, snapshot and file are as after qemu-img" {
    local kind size
    for kind in "${kinds[@]}"; do
        make_kind "$kind" disk.qcow2
        for size in 4M 1000448; do
            echo "# $kind, $size"
            cp disk.qcow2 theirs.qcow2
            cp disk.qcow2 ours.qcow2
            qemu-img resize --shrink theirs.qcow2 $size > out.qemu
            run_img resize --shrink ours.qcow2 $size
            [ "$status" -eq 0 ]
            [ ! -s err ]
            cmp out out.qemu
            same_as_twin ours.qcow2 theirs.qcow2
            sync ours.qcow2 theirs.qcow2
            [ "$(stat -c %s ours.qcow2)" -le \
                $(($(stat -c %s theirs.qcow2) + 65536)) ]
            [ "$(stat -c %b ours.qcow2)" -le \
                $(($(stat -c %b theirs.qcow2) + 8500)) ]
            if [[ $kind == *snapshot* ]]; then
                cp disk.qcow2 before.qcow2
                qemu-img snapshot -a s before.qcow2
                qemu-img snapshot -a s ours.qcow2
                same_as_twin ours.qcow2 before.qcow2
            fi
        done
    done
}

@test "what was behind the end does not come back" {
    local kind i
    for ((i = 1; i < ${#kinds[@]}; i += 2)); do
        kind=${kinds[i]}
        echo "# $kind"
        make_kind "$kind" disk.qcow2
        run_img resize -q --shrink disk.qcow2 1000448
        run_img resize -q disk.qcow2 5M
        [ "$status" -eq 0 ]
        qemu-io -f qcow2 -r -c "read -q -P 0 1000448 $((5242880 - 1000448))" \
            disk.qcow2 > io.log
        [ ! -s io.log ] || fail "$(cat io.log)"
        qemu-img check -q disk.qcow2
    done
    # Not with QEMU's growing, either, where the disk alone has its clusters.
    make_kind 'cluster_size=64k:write -P 1 0 6M' disk.qcow2
    run_img resize -q --shrink disk.qcow2 1000448
    qemu-img resize -q disk.qcow2 5M
    qemu-io -f qcow2 -r -c "read -q -P 0 1000448 $((5242880 - 1000448))" \
        disk.qcow2 > io.log
    [ ! -s io.log ] || fail "$(cat io.log)"
}

@test "a larger disk: as after qemu-img, with each kind of preallocation" {
    local kind mode before i
    for ((i = 0; i < ${#kinds[@]}; i += 2)); do
        kind=${kinds[i]}
        make_kind "$kind" disk.qcow2
        for mode in off metadata falloc full; do
            echo "# $kind, $mode"
            cp disk.qcow2 theirs.qcow2
            cp disk.qcow2 ours.qcow2
            sync ours.qcow2
            before=$(stat -c %b ours.qcow2)
            qemu-img resize --preallocation=$mode theirs.qcow2 +2M > out.qemu
            run_img resize --preallocation=$mode ours.qcow2 +2M
            [ "$status" -eq 0 ]
            cmp out out.qemu
            same_as_twin ours.qcow2 theirs.qcow2
            # As much of it is mapped, and takes as much space.
            for file in ours theirs; do
                qemu-img map --output=json $file.qcow2 | jq -c '[.[] |
                    select(.start + .length > 6291456) |
                    [.present, has("offset")]] | unique' > $file.map
            done
            cmp ours.map theirs.map
            [ $mode = off ] || [ $mode = metadata ] || {
                sync ours.qcow2
                [ "$(stat -c %b ours.qcow2)" -ge $((before + 4000)) ]
            }
        done
    done
}

@test "what one has resized, the other uses and resizes" {
    local kind i
    for ((i = 1; i < ${#kinds[@]}; i += 2)); do
        kind=${kinds[i]}
        echo "# $kind"
        make_kind "$kind" disk.qcow2
        qemu-img convert -O qcow2 disk.qcow2 twin.qcow2
        run_img resize -q disk.qcow2 7M
        qemu-io -f qcow2 -c 'write -q -P 5 6500k 100k' disk.qcow2
        qemu-img resize -q disk.qcow2 8M
        run_img resize -q --shrink disk.qcow2 6600k
        qemu-io -f qcow2 -c 'write -q -P 6 3M 100k' disk.qcow2
        qemu-img resize -q --shrink disk.qcow2 4M
        run_img resize -q --preallocation=metadata disk.qcow2 4195k
        qemu-img check -q disk.qcow2
        qemu-io -f qcow2 -c 'write -q -P 6 3M 100k' twin.qcow2
        qemu-img resize -q --shrink twin.qcow2 4M
        qemu-img resize -q twin.qcow2 4195k
        qemu-img compare disk.qcow2 twin.qcow2
    done
}

@test "sizes, options and messages are qemu-img's" {
    qemu-img create -q -f qcow2 disk.qcow2 10M
    cp disk.qcow2 same.qcow2
    while IFS='|' read -r options size; do
        echo "# $options $size"
        theirs=0
        # shellcheck disable=SC2086
        qemu-img resize $options disk.qcow2 $size > out.qemu 2> err.qemu ||
            theirs=$?
        # shellcheck disable=SC2086
        run_img resize $options same.qcow2 $size
        [ "$status" -eq "$theirs" ]
        cmp out out.qemu
        sed 's/^qcow2-img/qemu-img/; s/qcow2-img --help/qemu-img --help/' \
            err > err.ours
        if [[ $size != *abc* && $size != *+-* && $size != *E ]]; then
            cmp err.ours err.qemu
        fi
        [ "$(virtual_size disk.qcow2)" -eq "$(virtual_size same.qcow2)" ]
    done <<'END'
|12M
|+1M
|-1M
--shrink|-1M
-q|+1G
|100
--shrink|100
|1.5k
--shrink|+0
|+0
|++5
|+-5
|abc
|+abc
|9E
--shrink|-100G
--shrink|0
|0
|0x10000000000
|1M
--preallocation=foo|2T
--preallocation=full --shrink|1M
--preallocation=full|1M
--preallocation=off|2T
--shrink|1000448
--preallocation=metadata|5M
--preallocation=falloc|+512
--preallocation=full|+512
-f qcow2 -q|6M
--preallocation=off --shrink|1M
END
    # The last argument is the size, whatever it looks like.
    for args in '' same.qcow2 'same.qcow2 5M 6M' '--nonsense same.qcow2 5M' \
        '-U same.qcow2 5M'; do
        # shellcheck disable=SC2086
        refuses 1 . resize $args
        [ "$(virtual_size same.qcow2)" -eq 1048576 ]
    done
    grep -q "Try 'qcow2-img --help'" err
}

@test "what can't be resized stays as it is" {
    qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1M
    qemu-img snapshot -c s v2.qcow2
    qemu-img create -q -f qcow2 bitmaps.qcow2 1M
    qemu-img bitmap --add bitmaps.qcow2 b
    qemu-img create -q -f qcow2 small.qcow2 1M
    qemu-img create -q -f qcow2 -o cluster_size=512 fine.qcow2 1M
    qemu-img create -q -f qcow2 -o data_file=data.raw data.qcow2 1M
    qemu-img create -q -f raw raw.raw 1M
    mkdir before
    cp ./*.qcow2 ./*.raw before/
    refuses 1 "v2.qcow2: Can't resize a v2 image which has snapshots" \
        resize v2.qcow2 2M
    refuses 1 "v2.qcow2: Can't resize a v2 image which has snapshots" \
        resize --shrink v2.qcow2 512k
    refuses 1 'bitmaps.qcow2: the image has dirty bitmaps' \
        resize bitmaps.qcow2 2M
    refuses 1 'bitmaps.qcow2: the image has dirty bitmaps' \
        resize --shrink bitmaps.qcow2 512k
    refuses 1 'too large for clusters of 512 bytes' resize fine.qcow2 129G
    refuses 1 "Only images in qcow2 format are resized here, not 'raw'" \
        resize -f raw raw.raw 2M
    refuses 1 "Could not open 'raw.raw'.*not in qcow2 format" \
        resize raw.raw 2M
    refuses 1 "Could not open 'missing.qcow2'.*No such file" \
        resize missing.qcow2 2M
    QCOW2_ALLOW_DIR='' refuses 1 "add --data-file=data.raw" \
        resize data.qcow2 2M
    hold_open small.qcow2
    refuses 1 "Could not open 'small.qcow2': Failed to get .* lock" \
        resize small.qcow2 2M
    let_go
    for file in ./*.qcow2 ./*.raw; do
        cmp "$file" "before/$file"
    done

    # Without the bitmaps it can.
    qemu-img bitmap --remove bitmaps.qcow2 b
    run_img resize bitmaps.qcow2 2M
    [ "$status" -eq 0 ]
}

@test "who may not write to an image is told so" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    chmod 444 disk.qcow2
    [ "$(id -u)" -ne 0 ] || powerless='setpriv --bounding-set -dac_override'
    status=0
    ${powerless-} "$img" resize disk.qcow2 2M > out 2> err || status=$?
    [ "$status" -eq 1 ]
    [ "$(cat err)" = \
        "qcow2-img: Could not open 'disk.qcow2': Permission denied" ]
    [ "$(virtual_size disk.qcow2)" -eq 1048576 ]
}

@test "a corrupt image is not resized" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q 0 1M' disk.qcow2
    # An L2 entry behind the new end is not aligned.
    printf '\x80\0\0\0\0\x09\x02\0' |
        dd of=disk.qcow2 bs=1 seek=$((0x40000 + 8 * 15)) conv=notrunc \
            status=none
    refuses 1 'disk.qcow2: the disk could not be made smaller' \
        resize --shrink disk.qcow2 512k
    [ "$(virtual_size disk.qcow2)" -eq 1048576 ]
    refuses 1 "Could not open 'disk.qcow2'.*corrupt" \
        resize --shrink disk.qcow2 512k
}

@test "data files have the size of the disk" {
    local options
    for options in data_file=data.raw data_file=data.raw,data_file_raw=on; do
        echo "# $options"
        qemu-img create -q -f qcow2 -o $options disk.qcow2 3M
        qemu-io -f qcow2 -c 'write -q -P 1 0 3M' disk.qcow2
        run_img resize -q --shrink disk.qcow2 1000448
        [ "$status" -eq 0 ]
        [ "$(stat -c %s data.raw)" -eq 1000448 ]
        qemu-img check -q disk.qcow2
        run_img resize -q disk.qcow2 2M
        [ "$status" -eq 0 ]
        [ "$(stat -c %s data.raw)" -eq 2097152 ]
        run_img resize -q --preallocation=full disk.qcow2 4M
        [ "$status" -eq 0 ]
        [ "$(stat -c %s data.raw)" -eq 4194304 ]
        [ "$(stat -c %b data.raw)" -ge 4096 ]
        qemu-img check -q disk.qcow2
        qemu-img convert -O raw disk.qcow2 content.raw
        head -c 1000448 /dev/zero | tr '\0' '\1' > expected.raw
        truncate -s 4M expected.raw
        cmp content.raw expected.raw
        [[ $options != *raw=on ]] || cmp data.raw expected.raw
        rm data.raw
    done
    # What is added to a raw one is mapped, as QEMU does.
    qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on \
        disk.qcow2 1M
    run_img resize -q disk.qcow2 2M
    [ "$(qemu-img map --output=json disk.qcow2 | jq -c 'map([.length, .data])')" \
        = '[[2097152,true]]' ]
}

@test "an overlay: its backing file is longer, and does not show" {
    local mode compat
    qemu-img create -q -f qcow2 base.qcow2 6M
    qemu-io -f qcow2 -c 'write -q -P 9 0 6M' base.qcow2
    for compat in 0.10 1.1; do
        for mode in off metadata falloc full; do
            echo "# $compat $mode"
            qemu-img create -q -f qcow2 -o compat=$compat -b base.qcow2 \
                -F qcow2 disk.qcow2 1000448
            run_img resize -q --preallocation=$mode disk.qcow2 7M
            [ "$status" -eq 0 ]
            qemu-img check -q disk.qcow2
            qemu-io -f qcow2 -r -c 'read -q -P 9 0 1000448' \
                -c 'read -q -P 0 1000448 6339584' disk.qcow2 > io.log
            [ ! -s io.log ] || fail "$(cat io.log)"
            run_img resize -q --shrink disk.qcow2 512k
            [ "$status" -eq 0 ]
            qemu-img check -q disk.qcow2
            run_img resize -q disk.qcow2 2M
            qemu-io -f qcow2 -r -c 'read -q -P 9 0 512k' \
                -c 'read -q -P 0 512k 1536k' disk.qcow2 > io.log
            [ ! -s io.log ] || fail "$(cat io.log)"
        done
    done
}

@test "the state of a virtual machine in a snapshot is kept" {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -P 1 0 4M' -c 'write -q -b -P 9 0 1M' \
        disk.qcow2
    qemu-img snapshot -c s disk.qcow2
    cp disk.qcow2 before.qcow2
    run_img resize -q --shrink disk.qcow2 1M
    [ "$status" -eq 0 ]
    qemu-img check -q disk.qcow2
    run_img resize -q disk.qcow2 2G
    [ "$status" -eq 0 ]
    qemu-img check -q disk.qcow2
    qemu-io -f qcow2 -r -c 'read -q -P 0 1M 1G' disk.qcow2 > io.log
    [ ! -s io.log ]
    qemu-img snapshot -a s disk.qcow2
    qemu-img compare disk.qcow2 before.qcow2
    qemu-io -f qcow2 -r -c 'read -q -b -P 9 0 1M' disk.qcow2 > io.log
    [ ! -s io.log ]
}

@test "when space runs out, the disk and its file are as before" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 1 0 1M' disk.qcow2
    cp disk.qcow2 before.qcow2
    (
        trap '' XFSZ
        ulimit -f 3000
        for mode in falloc full metadata; do
            refuses 1 'could not be made larger: File too large' \
                resize --preallocation=$mode disk.qcow2 64M
        done
    )
    qemu-img check -q disk.qcow2
    qemu-img compare -s disk.qcow2 before.qcow2
    [ "$(stat -c %s disk.qcow2)" -lt 1600000 ]
    run_img resize disk.qcow2 64M
    [ "$status" -eq 0 ]
}

# The clusters that are free in the file have their space there.
@test "where the host has no room, a larger L1 table goes into the file" {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -d unmap -c 'write -q -P 1 0 4M' -c 'discard -q 1M 2M' \
            disk.qcow2
    mkdir small
    cat > in-small <<'END'
#!/bin/sh -e
mount -t tmpfs -o size=8m none small
cp --sparse=never disk.qcow2 small
cat /dev/zero > small/rest 2> /dev/null || :
"$@" small/disk.qcow2 5T
cp --sparse=always small/disk.qcow2 larger.qcow2
END
    chmod +x in-small
    unshare --mount ./in-small "$img" resize
    qemu-img check -q larger.qcow2
    [ "$(virtual_size larger.qcow2)" -eq $((5 << 40)) ]
    qemu-io -f qcow2 -r -c 'read -q -P 1 0 1M' -c 'read -q -P 0 1M 2M' \
            -c 'read -q -P 1 3M 1M' larger.qcow2
}

# What is added begins within a cluster.
@test "falloc and full take the rest of the last cluster, too" {
    local mode options before
    qemu-img create -q -f raw base.raw 100K
    for mode in falloc full; do
        for options in data_file=disk.data \
                       data_file=disk.data,data_file_raw=on; do
            rm -f disk.data
            run_img create -q -o cluster_size=2M,$options disk.qcow2 100K
            [ "$status" -eq 0 ]
            run_img resize -q --allow-dir=. --preallocation=$mode \
                disk.qcow2 1M
            [ "$status" -eq 0 ]
            [ "$(stat -c %b disk.data)" -ge 1848 ]
            qemu-img check -q disk.qcow2
            qemu-io -f qcow2 -r -c 'read -q -P 0 0 1M' disk.qcow2 > io.log
            [ ! -s io.log ]
        done
        qemu-img create -q -f qcow2 -o cluster_size=2M -b base.raw -F raw \
            disk.qcow2
        before=$(stat -c %b disk.qcow2)
        run_img resize -q --allow-dir=. --preallocation=$mode disk.qcow2 1M
        [ "$status" -eq 0 ]
        [ "$(stat -c %b disk.qcow2)" -ge $((before + 1848)) ]
        qemu-img check -q disk.qcow2
    done
}
