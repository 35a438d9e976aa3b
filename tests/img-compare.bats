# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img compare beside qemu-img compare.

load lib
load make-image
load img

setup () { img_setup; }

# expect STATUS ARG ...: both say the same, and end with this status.
expect ()
{
    local wanted=$1
    shift
    twin compare "$@" || return 1
    [ "$status" -eq "$wanted" ] || fail "compare $*: status $status"
}

@test "images of all kinds, with raw files and with each other" {
    local i=0
    while read -r kind; do
        i=$((i + 1))
        # shellcheck disable=SC2086
        make_image disk.qcow2 $kind
        qemu_raw disk.qcow2 disk.raw
        expect 0 -F raw disk.qcow2 disk.raw
        expect 0 -f raw -F qcow2 disk.raw disk.qcow2
        # One byte, anywhere.
        RANDOM=$i
        at=$(((RANDOM << 15 | RANDOM) % $(stat -c %s disk.raw)))
        cp disk.raw other.raw
        printf '\%o' $(($(number_at disk.raw $at 1) ^ 1)) |
            dd of=other.raw bs=1 seek=$at conv=notrunc status=none
        expect 1 -F raw disk.qcow2 other.raw
        grep -x "Content mismatch at offset $((at / 512 * 512))!" out
        qemu-img convert -f raw -O qcow2 -c other.raw other.qcow2
        expect 1 other.qcow2 disk.qcow2
        qemu-img convert -f raw -O qcow2 -o cluster_size=4k disk.raw other.qcow2
        expect 0 other.qcow2 disk.qcow2
        rm -f ./*.qcow2*
    done <<'END'
version=2
version=3 compression=zlib
cluster=512 size=300032 writes=30
cluster=2097152 size=10000384
extended=on compression=zstd seed=4
backing=raw backing_size=1500160
backing=qcow2 backing_cluster=512 extended=on seed=6
data=on
data=raw seed=7
prealloc=metadata
prealloc=full size=1048576
END
}

@test "zeros, however they are stored, are equal" {
    qemu-img create -q -f qcow2 hole.qcow2 4M
    qemu-img create -q -f qcow2 data.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -P 0 0 4M' data.qcow2
    qemu-img create -q -f qcow2 zero.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -P 1 0 4M' -c 'write -q -z 0 4M' zero.qcow2
    qemu-img create -q -f qcow2 -o preallocation=metadata meta.qcow2 4M
    qemu-img convert -c -O qcow2 -S 0 data.qcow2 compressed.qcow2
    truncate -s 4M base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw overlay.qcow2
    for a in *.qcow2; do
        for b in *.qcow2; do
            expect 0 "$a" "$b"
        done
        expect 0 -F raw "$a" base.raw
    done
    # Zero clusters hide what is below, and what is in their place.
    qemu-io -f raw -c 'write -q -P 5 1M 1M' base.raw
    expect 1 overlay.qcow2 zero.qcow2
    qemu-io -f qcow2 -c 'write -q -z 0 4M' overlay.qcow2
    expect 0 overlay.qcow2 zero.qcow2
}

@test "sizes that differ" {
    head -c 1000000 /dev/urandom > a.raw
    cp a.raw b.raw
    truncate -s 5M b.raw
    cp b.raw c.raw
    printf x | dd of=c.raw bs=1 seek=4000000 conv=notrunc status=none
    for i in a b c; do
        qemu-img convert -f raw -O qcow2 $i.raw $i.qcow2
    done
    for a in a b c; do
        for b in a b c; do
            twin compare $a.qcow2 $b.qcow2
            twin compare -s -q $a.qcow2 $b.qcow2
            twin compare -q $a.qcow2 $b.qcow2
            twin compare -f raw -F raw $a.raw $b.raw
            twin compare -F raw $a.qcow2 $b.raw
        done
    done
    expect 0 a.qcow2 b.qcow2
    grep -x 'Warning: Image size mismatch!' out
    expect 1 a.qcow2 c.qcow2
    grep -x 'Content mismatch at offset 3999744!' out
    expect 1 -s a.qcow2 b.qcow2
    grep -x 'Strict mode: Image size mismatch!' out
    # Raw disks end with a sector.
    head -c 999999 a.raw > odd.raw
    printf '\0' >> odd.raw
    truncate -s 999937 odd.raw
    twin compare -f raw -F raw odd.raw a.raw
    twin compare -F raw a.qcow2 odd.raw
    cp odd.raw odd.same
    truncate -s 1000448 odd.same
    expect 0 -f raw -F raw odd.raw odd.raw
    qemu-img create -q -f qcow2 empty.qcow2 0
    twin compare empty.qcow2 empty.qcow2
    twin compare empty.qcow2 a.qcow2
    twin compare b.qcow2 empty.qcow2
}

@test "strict: what is allocated must be the same" {
    qemu-img create -q -f qcow2 a.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -P 1 1M 128k' -c 'write -q -P 0 2M 128k' a.qcow2
    cp --sparse=never a.qcow2 b.qcow2
    expect 0 -s a.qcow2 b.qcow2
    qemu-img convert -O qcow2 a.qcow2 c.qcow2
    expect 0 a.qcow2 c.qcow2
    expect 1 -q -s a.qcow2 c.qcow2
    # QEMU sees a difference where an extent goes on to the end of the disk
    # in one of them alone, at 1179648.
    run_img compare -s a.qcow2 c.qcow2
    grep -x 'Strict mode: Offset 2097152 block status mismatch!' out
    qemu-io -f qcow2 -c 'write -q -z 3M 64k' b.qcow2
    expect 0 a.qcow2 b.qcow2
    expect 1 -q -s a.qcow2 b.qcow2
    run_img compare -s a.qcow2 b.qcow2
    grep -x 'Strict mode: Offset 3145728 block status mismatch!' out
    # A difference in content that comes first is told first.
    qemu-io -f qcow2 -c 'write -q -P 2 1M 64k' b.qcow2
    expect 1 -s a.qcow2 b.qcow2
    grep -x 'Content mismatch at offset 1048576!' out
}

@test "of many differences, the first is told" {
    head -c 64M /dev/zero > a.raw
    qemu-io -f raw -c 'write -q -P 1 0 64M' a.raw
    qemu-img convert -f raw -O qcow2 a.raw a.qcow2
    for seed in {1..10}; do
        RANDOM=$seed
        cp a.qcow2 b.qcow2
        for _ in {1..20}; do
            echo "write -q -P 2 $(((RANDOM << 11 | RANDOM) % 65536 * 1024)) 1k"
        done | qemu_io -f qcow2 b.qcow2
        expect 1 a.qcow2 b.qcow2
    done
}

@test "-p shows progress that moves, -q nothing" {
    head -c 20M /dev/urandom > a.raw
    qemu-img convert -f raw -O qcow2 a.raw a.qcow2
    run_img compare -p -F raw a.qcow2 a.raw
    [ "$status" -eq 0 ]
    tr '\r' '\n' < out > lines
    grep -x '    (0.00/100%)' lines
    grep -x '    (100.00/100%)' lines
    [ "$(grep -Ecx '    \([0-9]+\.[0-9]{2}/100%\)' lines)" -gt 10 ]
    grep 'Images are identical.$' lines
    # Each is more than the one before.
    sed -n 's/^    (\([0-9.]*\).*/\1/p' lines | sort -c -n
    run_img compare -q -p -F raw a.qcow2 a.raw
    [ ! -s out ]
    printf x | dd of=a.raw bs=1 seek=10000000 conv=notrunc status=none
    run_img compare -q -F raw a.qcow2 a.raw
    [ "$status" -eq 1 ]
    [ ! -s out ]
    [ ! -s err ]
}

@test "SIGUSR1 shows progress, too" {
    truncate -s 300M a.raw
    qemu-img create -q -f qcow2 -o preallocation=full a.qcow2 300M
    "$img" compare -F raw a.qcow2 a.raw > out 2> err &
    pid=$!
    while kill -USR1 $pid 2> /dev/null; do sleep 0.01; done
    wait $pid || [ $? -eq 138 ]         # came before there was a handler
    [ ! -s out ] || grep -Ex '    \([0-9.]+/100%\)' err
}

@test "snapshots and chains don't disturb" {
    make_image disk.qcow2 backing=qcow2 snapshots=2 compression=zlib
    cp disk.qcow2 before.qcow2
    mkdir copy
    qemu-img convert -O qcow2 disk.qcow2 copy/flat.qcow2
    expect 0 disk.qcow2 copy/flat.qcow2
    cmp disk.qcow2 before.qcow2
}

@test "data files: --data-file, --data-file2" {
    unset QCOW2_ALLOW_DIR
    for i in a b; do
        qemu-img create -q -f qcow2 -o data_file=$i.raw $i.qcow2 1M
        qemu-io -f qcow2 -c 'write -q -P 3 100k 100k' $i.qcow2
    done
    refuses 2 'add --data-file=a.raw' compare a.qcow2 b.qcow2
    refuses 2 'add --data-file=b.raw' compare --data-file=a.raw a.qcow2 b.qcow2
    run_img compare --data-file=a.raw --data-file2=b.raw a.qcow2 b.qcow2
    [ "$status" -eq 0 ]
    run_img compare -F raw --data-file=a.raw a.qcow2 b.raw
    [ "$status" -eq 0 ]
    run_img compare --allow-dir=. a.qcow2 b.qcow2
    [ "$status" -eq 0 ]
}

@test "an image in use" {
    qemu-img create -q -f qcow2 a.qcow2 1M
    cp a.qcow2 b.qcow2
    hold_open b.qcow2
    expect 2 a.qcow2 b.qcow2
    refuses 2 "'b.qcow2': Failed to get shared \"write\" lock" \
        compare a.qcow2 b.qcow2
    expect 0 -U a.qcow2 b.qcow2
    let_go
    # The same file twice is no conflict.
    expect 0 a.qcow2 a.qcow2
}

# cached_bytes FILE: of it in the page cache.
cached_bytes ()
{
    fincore --noheadings --bytes --output RES "$1" | tr -d ' '
}

@test "-T none and directsync read past the page cache, others through it" {
    qemu-img create -q -f qcow2 one.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -P 1 0 4M' one.qcow2
    cp one.qcow2 two.qcow2
    sync one.qcow2 two.qcow2
    for cache in none directsync writeback writethrough unsafe; do
        for file in one.qcow2 two.qcow2; do
            dd of=$file oflag=nocache conv=notrunc count=0 status=none
            [ "$(cached_bytes $file)" -eq 0 ]
        done
        run_img compare -T $cache one.qcow2 two.qcow2
        [ "$status" -eq 0 ]
        for file in one.qcow2 two.qcow2; do
            case $cache in
                none | directsync) [ "$(cached_bytes $file)" -eq 0 ] ;;
                *) [ "$(cached_bytes $file)" -ge 4194304 ] ;;
            esac
        done
        expect 0 -T $cache one.qcow2 two.qcow2
    done
}

@test "errors: statuses 2, 3 and 4, one message" {
    qemu-img create -q -f qcow2 good.qcow2 4M
    qemu-io -f qcow2 -c 'write -q -P 1 0 4M' good.qcow2
    refuses 2 "'none': No such file" compare none good.qcow2
    refuses 2 "'none': No such file" compare good.qcow2 none
    head -c 4M /dev/zero > zero.raw
    refuses 2 'if it is a raw image, use -F raw$' compare good.qcow2 zero.raw
    refuses 2 'if it is a raw image, use -f raw$' compare zero.raw good.qcow2
    refuses 2 'the format "vdi" is not supported' \
        compare -F vdi good.qcow2 zero.raw
    expect 2 -T nonsense good.qcow2 good.qcow2
    refuses 2 'Invalid source cache option: nonsense' \
        compare -T nonsense good.qcow2 good.qcow2

    # Metadata: the map.
    cp good.qcow2 bad.qcow2
    put_number bad.qcow2 "$(l2_entry_at bad.qcow2 $((1 << 20)))" 8 \
        $((1 << 63 | 0x1234200))
    expect 3 good.qcow2 bad.qcow2
    refuses 3 'Sector allocation test failed for bad.qcow2: .*corrupt' \
        compare good.qcow2 bad.qcow2
    # A difference before it comes first.
    qemu-io -f qcow2 -c 'write -q -P 2 64k 64k' good.qcow2
    expect 1 bad.qcow2 good.qcow2

    # Data: compressed clusters that can't be read.
    qemu-img convert -c -O qcow2 good.qcow2 compressed.qcow2
    at=$(l2_entry_at compressed.qcow2 $((2 << 20)))
    entry=$(number_at compressed.qcow2 "$at" 8)
    put_number compressed.qcow2 "$at" 8 $((entry + 7))
    expect 4 compressed.qcow2 good.qcow2
    refuses 4 'Error while reading offset 2097152 of compressed.qcow2: ' \
        compare good.qcow2 compressed.qcow2
}
