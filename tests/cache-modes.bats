# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# cache=: what is durable when, and past which caches; block devices with
# sectors of both sizes.

load lib

loops=()

teardown ()
{
    local status=0 device
    common_teardown || status=1
    for device in "${loops[@]}"; do
        losetup --detach "$device" || status=1
    done
    return $status
}

# A block device with sectors of $2 bytes over the file $1: $device.
attach ()
{
    device=$(losetup --find --show --sector-size "$2" "$1")
    loops+=("$device")
}

random_writes ()
{
    "$PYTHON" "$BATS_TEST_DIRNAME/nbd-random-writes.py" "$@"
}

# The image is sound, and QEMU reads from it what is in the raw file.
holds ()
{
    qemu-img check -f qcow2 "$1"
    qemu_raw "$1" qemu.raw
    cmp qemu.raw "$2"
}

# client CODE: Python with `h' connected to the server.
client ()
{
    "$PYTHON" -c "import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1])
$1" "$uri"
}

# hold_open: a client that stays until let_go.  When the last one leaves, the
# server makes everything durable in any case.
hold_open ()
{
    rm -f held
    "$PYTHON" -c "import nbd, sys, time
h = nbd.NBD(); h.connect_uri(sys.argv[1]); open('held', 'w'); time.sleep(300)" \
        "$uri" 3>&- &
    holder=$!
    until [ -e held ]; do
        kill -0 $holder
        sleep 0.02
    done
}

let_go ()
{
    kill $holder
    wait $holder || :
}

# traced CODE: the calls that write or sync, while the client runs, in `trace'.
traced ()
{
    strace -qq -f -e trace=fdatasync,fsync,pwrite64,pwritev,pwritev2 -o trace \
        -p "$server_pid" 3>&- &
    until grep -q "TracerPid:.*[1-9]" "/proc/$server_pid/status"; do
        sleep 0.05
    done
    client "$1"
    kill $!
    wait $! || :
}

# How many calls made something durable.
nr_syncs ()
{
    grep -cE 'fdatasync\(|RWF_DSYNC' trace || :
}

requests='
for i in range(10):
    h.pwrite(b"x" * 4096, i * 4096)
    h.pwrite(b"y" * 100, (2 << 20) + i * 65536)
    h.zero(65536, (4 << 20) + i * 65536)
    h.trim(65536, (5 << 20) + i * 65536)
'

make_disk ()
{
    rm -f disk.qcow2
    qemu-img create -q -f qcow2 disk.qcow2 8M
    qemu-io -f qcow2 -c 'write -q -P 1 0 1M' -c 'write -q -P 2 4M 2M' disk.qcow2
}

# open_flags NAME: the flags with which the server has the file open, and
# writes to it if it may; it may have it open for reading besides.
open_flags ()
{
    local fd
    for fd in "/proc/$server_pid/fd/"*; do
        [ "$(readlink "$fd")" != "$TEST_DIR/$1" ] ||
            sed -n 's/^flags:\s*//p' "/proc/$server_pid/fdinfo/${fd##*/}"
    done | sort -k1.8 | tail -n 1
}

@test "values that are wrong" {
    make_disk
    refuses_to_start 'cache=back: must be writeback' disk.qcow2 cache=back
    refuses_to_start 'detect-zeroes=yes: must be off' disk.qcow2 \
        detect-zeroes=yes
    refuses_to_start \
        'detect-zeroes to unmap is not allowed without .*discard.* to unmap' \
        disk.qcow2 write=on detect-zeroes=unmap discard=ignore
}

@test "writeback makes durable what is flushed" {
    make_disk
    start_nbdkit disk.qcow2 write=on cache=writeback
    hold_open
    traced "$requests"
    [ "$(nr_syncs)" -eq 0 ]
    traced 'h.flush ()'
    [ "$(nr_syncs)" -ge 1 ]
    let_go
    stop_nbdkit
}

# Each of the 40 requests is durable when it is answered, so no sooner than
# that the next one is made.
@test "writethrough and directsync make each request durable" {
    local mode
    for mode in writethrough directsync; do
        make_disk
        start_nbdkit disk.qcow2 write=on cache=$mode
        hold_open
        traced "$requests"
        [ "$(nr_syncs)" -ge 40 ]
        # A write in place over durable metadata is one durable write.
        client 'h.flush ()'
        traced 'h.pwrite (b"z" * 4096, 8192)'
        cat trace
        [ "$(grep -c RWF_DSYNC trace)" -eq 1 ]
        [ "$(grep -c fdatasync trace)" -eq 0 ]
        # Nothing more is needed, not even an end of the server.
        kill_nbdkit
        let_go
        qemu-io -f qcow2 -c 'read -P 120 0 8k' -c 'read -P 122 8k 4k' \
            -c 'read -P 121 2M 100' -c 'read -P 0 4M 640k' disk.qcow2 > out
        [ "$(grep -c '^read .* bytes at' out)" -eq 4 ]
        run ! grep -i 'verification failed' out
    done
}

@test "unsafe makes nothing durable, but writes everything" {
    make_disk
    start_nbdkit disk.qcow2 write=on cache=unsafe
    traced "$requests
h.pwrite (b'z' * 512, 0, nbd.CMD_FLAG_FUA)
h.flush ()"
    grep pwritev trace
    [ "$(nr_syncs)" -eq 0 ]
    # After a flush the metadata is in the file.
    kill_nbdkit
    qemu-img check -q -f qcow2 disk.qcow2 || [ $? -eq 3 ]
    qemu-io -f qcow2 -c 'read -P 121 2M 100' disk.qcow2 > out
    run ! grep -i 'verification failed' out
}

@test "none and directsync open all files past the page cache" {
    local mode name direct=0040000
    truncate -s 3M base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2 3M
    qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 \
        -o data_file=disk.data disk.qcow2
    for mode in none directsync writeback writethrough unsafe; do
        start_nbdkit disk.qcow2 write=on cache=$mode data-file=disk.data
        for name in disk.qcow2 disk.data mid.qcow2 base.raw; do
            echo "$mode $name: $(open_flags $name)"
            case $mode in
            none|directsync) [ $(($(open_flags $name) & direct)) -ne 0 ] ;;
            *) [ $(($(open_flags $name) & direct)) -eq 0 ] ;;
            esac
        done
        stop_nbdkit
    done
    # For reading, too.
    start_nbdkit -r disk.qcow2 cache=none data-file=disk.data
    [ $(($(open_flags base.raw) & direct)) -ne 0 ]
    stop_nbdkit
}

@test "a file system without O_DIRECT is told of in one message" {
    refuses_to_start '/proc/version: .*may not support O_DIRECT.*cache' \
        /proc/version cache=none
    [ "$(grep -c . <<< "$output")" -eq 1 ]
}

@test "random requests in each mode" {
    local mode options seed=0
    truncate -s 3000320 empty.raw
    head -c 2000000 /dev/urandom > base.raw
    cp base.raw expected.raw
    truncate -s 3000320 expected.raw
    for mode in writethrough none directsync unsafe; do
        for options in cluster_size=64k cluster_size=512 \
                       extended_l2=on,cluster_size=64k; do
            seed=$((seed + 1))
            rm -f disk.qcow2
            qemu-img create -q -f qcow2 -o $options -b base.raw -F raw \
                disk.qcow2 3000320
            cp expected.raw raw
            start_nbdkit disk.qcow2 write=on cache=$mode detect-zeroes=on
            random_writes "$uri" raw 150 $seed
            stop_nbdkit
            holds disk.qcow2 raw
            start_nbdkit -r disk.qcow2 cache=$mode
            assert_same_content "$uri" raw
            stop_nbdkit
        done
    done
}

# A data file that is a raw disk is not longer than it in the end.
@test "a raw data file past the page cache" {
    qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on \
        disk.qcow2 3000320
    truncate -s 3000320 raw
    truncate -s 0 data.raw
    start_nbdkit disk.qcow2 write=on cache=none data-file=data.raw
    random_writes "$uri" raw 300 7
    client 'h.pwrite (b"e" * 300, h.get_size () - 300)'
    stop_nbdkit
    head -c 300 /dev/zero | tr '\0' e |
        dd of=raw bs=1 seek=$((3000320 - 300)) conv=notrunc status=none
    holds disk.qcow2 raw
    cmp data.raw raw
}

# ---- block devices --------------------------------------------------------

# What is on a device before an image is made there never shows.
@test "devices with sectors of 512 and 4096 bytes" {
    local sector cluster mode seed=0
    for sector in 512 4096; do
        for cluster in 512 4096 64k; do
            head -c 12M /dev/urandom > disk.img
            attach disk.img $sector
            for mode in writeback none; do
                seed=$((seed + 1))
                qemu-img create -q -f qcow2 -o cluster_size=$cluster "$device" \
                    3000320
                truncate -s 0 raw
                truncate -s 3000320 raw
                start_nbdkit "$device" write=on cache=$mode
                assert_same_content "$uri" raw
                random_writes "$uri" raw 250 $seed
                assert_same_content "$uri" raw
                stop_nbdkit
                holds "$device" raw
            done
        done
    done
}

@test "the end of a device is an end of space" {
    local sector mode
    for sector in 512 4096; do
        head -c 2M /dev/urandom > small.img
        attach small.img $sector
        for mode in writeback none; do
            qemu-img create -q -f qcow2 -o cluster_size=4k "$device" 8000000
            truncate -s 0 raw
            truncate -s 8000000 raw
            start_nbdkit "$device" write=on cache=$mode
            random_writes "$uri" raw 700 5 30000 > out || { cat out; false; }
            cat out
            run ! grep -x '0 requests found no space' out
            assert_same_content "$uri" raw
            stop_nbdkit
            holds "$device" raw
        done
    done
}
