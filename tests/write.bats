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

# The largest requests that nbdkit takes; it tells clients to send 32 MiB.
@test "writes of 32 and 64 MiB at odd offsets" {
    for options in cluster_size=2M,extended_l2=on cluster_size=4k; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o $options disk.qcow2 150M
        start_nbdkit disk.qcow2
        "$PYTHON" - "$uri" model.raw <<'END'
import os, sys, nbd

h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
M = 1 << 20
size = h.get_size()
model = bytearray(size)
noise = os.urandom(64 * M)
for count, offset in ((32 * M, 511), (64 * M, 65535), (32 * M - 1, 70 * M + 1),
                      (64 * M, size - 64 * M), (64 * M - 3, 20 * M + 4097)):
    data = noise[:count - 1] + bytes([count & 127])
    h.pwrite(data, offset)
    model[offset:offset + count] = data
assert h.pread(64 * M, 1) == model[1:64 * M + 1]
h.flush()
with open(sys.argv[2], "wb") as f:
    f.write(model)
END
        stop_nbdkit
        holds model.raw
    done
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

# ---- clients that leave ---------------------------------------------------

# at_rest BYTES: waits until the file is as a clean close leaves it, while the
# server goes on: a copy of it passes the check and is not longer than that.
at_rest ()
{
    for _ in {1..200}; do
        cp disk.qcow2 copy.qcow2
        if [ "$(stat -c %s copy.qcow2)" -le "$1" ] &&
               qemu-img check -q -f qcow2 copy.qcow2; then
            return 0
        fi
        sleep 0.05
    done
    fail "the image does not come to rest"
}

@test "when the last client has left, the file alone is whole" {
    qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 16M
    start_nbdkit disk.qcow2 write=on
    truncate -s 16M model.raw
    for i in 1 2 3; do
        # What is given up at the end of the file is cut from it.
        for disk in "nbd:unix:$sock" model.raw; do
            qemu-io -f raw -c "write -q -P $i ${i}M 1M" \
                -c "write -q -P 9 8M 8M" -c "write -q -z -u 8M 8M" "$disk"
        done
        at_rest 6000000
        run ! grep "dirty flag" <(qemu-img info copy.qcow2)
        qemu_raw copy.qcow2 now.raw
        cmp now.raw model.raw
    done
    kill_nbdkit
    holds model.raw
}

@test "clients come and go quickly and write" {
    qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 16M
    start_nbdkit disk.qcow2 write=on
    truncate -s 16M model.raw
    truncate -s 16M model0.raw model1.raw model2.raw
    for part in 0 1 2; do
        for i in {1..12}; do
            at=$((part * 5000 + i * 300))k
            qemu-io -f raw -c "write -q -P $i $at 400k" "nbd:unix:$sock"
            qemu-io -f raw -c "write -q -P $i $at 400k" model$part.raw
        done 3>&- &
        clients[part]=$!
    done
    wait "${clients[@]}"
    for part in 0 1 2; do
        dd if=model$part.raw of=model.raw bs=1000k skip=$((part * 5)) \
            seek=$((part * 5)) count=5 conv=notrunc status=none
    done
    stop_nbdkit
    holds model.raw
    [ ! -s "$server_stderr" ]
}

# ---- servers that end -----------------------------------------------------

# go_elsewhere: to a directory on a filesystem of the other kind, tmpfs or a
# disk's: they do different things when space is zeroed or given up.
go_elsewhere ()
{
    local parent=/dev/shm
    [ "$(stat -f -c %T "$TEST_DIR")" != tmpfs ] || parent=$BUILD_DIR
    elsewhere=$(mktemp -d "$parent/elsewhere.XXXXXX")
    cd "$elsewhere"
}

teardown ()
{
    local status=0
    common_teardown || status=1
    [ -z "${elsewhere:-}" ] || rm -rf "$elsewhere"
    return $status
}

kinds=(cluster_size=64k cluster_size=512 cluster_size=4k,compat=0.10
       cluster_size=64k,extended_l2=on cluster_size=64k,preallocation=metadata
       cluster_size=2M cluster_size=4k,refcount_bits=64
       cluster_size=64k,lazy_refcounts=on cluster_size=512,lazy_refcounts=on)

client ()
{
    "$PYTHON" "$BATS_TEST_DIRNAME/nbd-interrupted.py" "$@"
}

# is_dirty: does disk.qcow2 have the dirty bit?
is_dirty ()
{
    qemu-img info -U --output=json disk.qcow2 | grep -q '"dirty-flag": true'
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

# write_until_gone SEED: a client writes; the server lives for a moment more
# once it is connected, which takes a while on a machine that is busy.
write_until_gone ()
{
    rm -f state
    start_nbdkit disk.qcow2 discard=unmap
    client write "$uri" state "$1" 3>&- &
    client_pid=$!
    until [ -e state ]; do      # it is connected
        kill -0 $client_pid
        sleep 0.02
    done
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

# A killed server may leak clusters (qemu-img's exit status 3), no more.  With
# lazy refcounts the image is dirty: the next server repairs it.
@test "kill -9 loses nothing flushed and damages nothing" {
    RANDOM=4
    repairs=0
    for ((seed = 0; seed < ${KILLS:-20}; seed++)); do
        [ $seed -ne $((${KILLS:-20} / 2)) ] || go_elsewhere
        make_kind $seed
        write_until_gone $seed
        kill_nbdkit
        wait $client_pid
        status=0
        is_dirty || qemu-img check -f qcow2 disk.qcow2 > check.log 2>&1 ||
            status=$?
        if [ $status -ne 0 ] && [ $status -ne 3 ]; then
            tail -n 20 check.log
            fail "kill $seed: qemu-img check has exit status $status"
        fi

        start_nbdkit disk.qcow2
        client verify "$uri" state flushed
        stop_nbdkit
        if grep -q repaired "$server_stderr"; then
            repairs=$((repairs + 1))
            qemu-img check -f qcow2 disk.qcow2
        fi
    done
    # Two of nine kinds have lazy refcounts.
    [ $repairs -gt $((seed / 9)) ]
}

@test "an image that qemu-io left dirty is repaired" {
    qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 1 0 1M' disk.qcow2
    qemu-img snapshot -c before disk.qcow2
    # The L2 table is not shared any more then.
    qemu-io -f qcow2 -c 'write -c -P 3 8M 64k' disk.qcow2
    # A core is not needed.
    (ulimit -c 0; qemu-io -f qcow2 -c 'write -P 2 512k 3M' -c flush \
        -c abort disk.qcow2) || true
    is_dirty
    [ "$(qemu-img check disk.qcow2 2>&1 | grep -c ERROR)" -gt 0 ]

    start_nbdkit disk.qcow2 write=on
    qemu-io -f raw -c 'read -P 1 0 512k' -c 'read -P 2 512k 3M' \
        -c 'read -P 3 8M 64k' -c 'write -P 4 20M 1M' "$uri" > qemu.log
    run ! grep -i 'verification failed' qemu.log
    stop_nbdkit
    grep -E 'warning: disk.qcow2: the image was not closed properly; it has been repaired: [1-9][0-9]* refcounts corrected, [0-9]+ leaks freed' \
        "$server_stderr"
    run ! is_dirty
    qemu-img check disk.qcow2
    qemu-img convert -l before -O raw disk.qcow2 before.raw
    qemu-io -f raw -c 'read -P 1 0 1M' before.raw > qemu.log
    run ! grep -i 'verification failed' qemu.log
}

@test "a dirty image is not repaired without locks" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    printf '\001' | dd of=disk.qcow2 bs=1 seek=79 conv=notrunc status=none
    cp disk.qcow2 copy
    start_nbdkit disk.qcow2 lock=off
    nbdinfo --is read-only "$uri"
    stop_nbdkit
    grep 'was not closed properly (dirty bit); it is served read-only' \
        "$server_stderr"
    cmp disk.qcow2 copy
}

@test "a dirty image that can't be repaired is served read-only" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 1 0 1M' disk.qcow2
    # The dirty bit; the second L2 entry, not aligned now.
    printf '\001' | dd of=disk.qcow2 bs=1 seek=79 conv=notrunc status=none
    printf '\002' | dd of=disk.qcow2 bs=1 seek=$((0x40000 + 14)) \
        conv=notrunc status=none
    cp disk.qcow2 copy
    start_nbdkit disk.qcow2 write=on
    nbdinfo --is read-only "$uri"
    stop_nbdkit
    grep -F "can't be repaired here: L2 table at 0x40000, entry 1: the data cluster is not aligned; it is served read-only, use \"qcow2-img check -r all\"" \
        "$server_stderr"
    cmp disk.qcow2 copy
}

@test "lazy-refcounts= is obeyed, and needs version 3" {
    for options in compat=1.1 lazy_refcounts=on; do
        for lazy in on off; do
            rm -f disk.qcow2
            qemu-img create -q -f qcow2 -o $options disk.qcow2 8M
            start_nbdkit disk.qcow2 write=on lazy-refcounts=$lazy
            # Until the client leaves.
            "$PYTHON" - "$uri" > info <<'END'
import nbd, subprocess, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 1000, 0)
h.flush()
subprocess.run(["qemu-img", "info", "-U", "--output=json", "disk.qcow2"])
END
            if [ $lazy = on ]; then
                grep '"dirty-flag": true' info
            else
                grep '"dirty-flag": false' info
            fi
            stop_nbdkit
            run ! is_dirty
            qemu-img check disk.qcow2
        done
    done
    qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 8M
    refuses_to_start 'old.qcow2: lazy refcounts need an image of version 3' \
        old.qcow2 write=on lazy-refcounts=on
    start_nbdkit old.qcow2 write=on lazy-refcounts=off
    stop_nbdkit
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

# test-power-failure itself runs where the other tests do.
@test "a power failure on a filesystem of the other kind" {
    go_elsewhere
    for subject in "64K clusters" "data file"; do
        TMPDIR=$elsewhere POWER_STATES=40 POWER_SUBJECT=$subject \
            "$BUILD_DIR/tests/test-power-failure"
    done
}

# The first commit comes when there is no room for what it writes.
@test "a full filesystem: what failed writes gave back makes room for a flush" {
    mkdir small
    cat > fill.py <<'END'
import nbd, os, sys

h = nbd.NBD()
h.connect_uri(sys.argv[1])
noise = os.urandom(65536)
failed = 0
for cluster in range(200):
    try:
        h.pwrite(noise, cluster * 65536)
    except nbd.Error:
        failed += 1
assert 0 < failed < 200, failed
h.trim(4 << 20, 0)
h.flush()
h.pwrite(noise, 20 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 20 << 20) == noise
END
    cat > in-small <<'END'
#!/bin/sh
mount -t tmpfs -o size=8m none small && exec "$@"
END
    chmod +x in-small
    TEST_WRAPPER="unshare --mount ./in-small" \
        start_nbdkit small/new.qcow2 create=64M
    $PYTHON fill.py "$uri"
    # Clusters that are not free yet are no errors.
    cp "/proc/$server_pid/root/$PWD/small/new.qcow2" now.qcow2
    run -0 qemu-img check now.qcow2 || run -3 qemu-img check now.qcow2
    stop_nbdkit
}
