# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# Writing as clients do, and servers that end while it goes on.
#
#   KILLS   how often a server is killed (default 20)

load lib

# Compresses a bit, repeats nowhere, and has holes.
make_raw ()
{
    head -c 9000000 /dev/urandom | base64 -w 0 > "$1"
    truncate -s 40000000 "$1"
    head -c 5000000 /dev/urandom >> "$1"
    truncate -s 61M "$1"
}

# The image is sound, and QEMU reads from it what is in the raw file.
holds ()
{
    qemu-img check -f qcow2 disk.qcow2
    qemu_raw disk.qcow2 qemu.raw
    cmp qemu.raw "$1"
}

@test "nbdcopy fills an image" {
    make_raw in.raw
    for options in cluster_size=64k extended_l2=on compat=0.10 \
                   cluster_size=512,refcount_bits=1 preallocation=metadata; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o $options disk.qcow2 61M
        start_nbdkit disk.qcow2 discard=unmap
        nbdcopy --requests=64 --flush in.raw "$uri"
        stop_nbdkit
        holds in.raw
    done
}

@test "nbdcopy fills an image over an older content" {
    make_raw in.raw
    qemu-img create -q -f qcow2 base.qcow2 70M
    qemu-io -f qcow2 -c 'write -q -P 5 0 70M' base.qcow2
    qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 disk.qcow2 61M
    qemu-io -f qcow2 -c 'write -q -P 6 20M 30M' disk.qcow2
    start_nbdkit disk.qcow2 discard=unmap
    nbdcopy in.raw "$uri"
    stop_nbdkit
    holds in.raw
}

@test "holes take no space" {
    make_raw in.raw
    qemu-img create -q -f qcow2 disk.qcow2 61M
    start_nbdkit disk.qcow2
    nbdcopy --flush in.raw "$uri"
    stop_nbdkit
    [ "$(stat -c %s disk.qcow2)" -lt 18000000 ]
}

@test "qemu-img convert -n writes into an image" {
    make_raw in.raw
    for options in cluster_size=64k extended_l2=on compat=0.10; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o $options disk.qcow2 61M
        start_nbdkit disk.qcow2
        qemu-img convert -n -W -f raw -O raw in.raw \
            "nbd:unix:$sock"
        stop_nbdkit
        holds in.raw
    done
}

# v2v OUTPUT: a guest is in in.qcow2; nbdcopy takes it to the image OUTPUT, from
# server to server, as virt-v2v starts and stops them.
v2v ()
{
    local overlay
    start_nbdkit --exit-with-parent --threads 16 --filter=cow in.qcow2
    overlay=$uri
    start_nbdkit --exit-with-parent --threads 16 "$1"
    nbdcopy --requests=64 --flush "$overlay" "$uri"
    # SIGTERM, and the end is waited for.
    stop_nbdkit
    [ ! -s "$server_stderr" ]
    stop_nbdkit
    [ ! -s "$server_stderr" ]
}

@test "converting a guest as virt-v2v does leaves a complete image" {
    make_raw in.raw
    qemu-img convert -c -f raw -O qcow2 in.raw in.qcow2
    for options in cluster_size=64k extended_l2=on,cluster_size=128k \
                   compat=0.10 lazy_refcounts=on; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o $options disk.qcow2 61M
        v2v disk.qcow2
        holds in.raw
        # As small as what QEMU would have made of it.
        qemu-img convert -f raw -O qcow2 -o $options in.raw qemu.qcow2
        [ "$(stat -c %s disk.qcow2)" -le \
            $(($(stat -c %s qemu.qcow2) + (1 << 20))) ]
    done
}

@test "fio verifies what it has written" {
    for options in cluster_size=64k cluster_size=4k,extended_l2=off \
                   cluster_size=128k,extended_l2=on; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o $options disk.qcow2 64M
        start_nbdkit disk.qcow2
        fio --name=verify --ioengine=nbd --uri="$uri" --rw=randrw \
            --bsrange=512-32k --blockalign=512 --serialize_overlap=1 \
            --size=64M --iodepth=16 --verify=crc32c --verify_fatal=1 --fsync=64 \
            --randseed=7 --output=fio.log || { cat fio.log; false; }
        stop_nbdkit
        qemu-img check -f qcow2 disk.qcow2
    done
}

# ---- servers that end -----------------------------------------------------

kinds=(cluster_size=64k cluster_size=512 cluster_size=4k,compat=0.10
       cluster_size=64k,extended_l2=on cluster_size=64k,preallocation=metadata
       cluster_size=2M cluster_size=4k,refcount_bits=64)

client ()
{
    "$PYTHON" "$BATS_TEST_DIRNAME/nbd-interrupted.py" "$@"
}

# make_kind NUMBER: an image of one of these kinds, with a snapshot at times.
make_kind ()
{
    rm -f disk.qcow2
    qemu-img create -q -f qcow2 -o "${kinds[$1 % ${#kinds[@]}]}" \
        disk.qcow2 8M
    if (($1 % 3 == 0)); then
        qemu-io -f qcow2 -c 'write -q -P 0 0 3M' disk.qcow2
        qemu-img snapshot -c before disk.qcow2
    fi
}

# write_until_gone SEED: a client writes; the server lives for a moment.
write_until_gone ()
{
    start_nbdkit disk.qcow2 discard=unmap
    client write "$uri" state "$1" 3>&- &
    client_pid=$!
    sleep 0.$(printf %03d $((RANDOM % 900 + 100)))
}

@test "SIGTERM while requests are in flight loses no answered one" {
    RANDOM=3
    for seed in 0 1 2 3 4 5; do
        make_kind $seed
        write_until_gone $seed
        stop_nbdkit
        wait $client_pid
        qemu-img check -f qcow2 disk.qcow2

        start_nbdkit -r disk.qcow2
        client verify "$uri" state answered
        stop_nbdkit
    done
}

# A killed server may leak clusters (qemu-img's exit status 3), no more.
@test "kill -9 loses nothing flushed and damages nothing" {
    RANDOM=4
    for ((seed = 0; seed < ${KILLS:-20}; seed++)); do
        make_kind $seed
        write_until_gone $seed
        kill_nbdkit
        wait $client_pid
        status=0
        qemu-img check -f qcow2 disk.qcow2 > check.log 2>&1 || status=$?
        if [ $status -ne 0 ] && [ $status -ne 3 ]; then
            tail -n 20 check.log
            fail "kill $seed: qemu-img check has exit status $status"
        fi

        start_nbdkit disk.qcow2
        client verify "$uri" state flushed
        stop_nbdkit
    done
}

@test "what is written in place and not flushed is flushed in the background" {
    qemu-img create -q -f qcow2 -o preallocation=metadata disk.qcow2 8M
    start_nbdkit disk.qcow2
    strace -qq -f -e trace=fdatasync -o trace -p "$server_pid" 3>&- &
    until grep -q "TracerPid:.*[1-9]" "/proc/$server_pid/status"; do
        sleep 0.05
    done
    $PYTHON -c "import nbd, os, sys, time
h = nbd.NBD(); h.connect_uri(sys.argv[1])
h.pwrite(b'x' * 65536, 2 << 20); time.sleep(7); os._exit(0)" "$uri"
    # Before the server ends, which flushes anyway.
    grep -q fdatasync trace
    stop_nbdkit
}
