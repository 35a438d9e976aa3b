# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# With lock=off the image is read again for the first of some clients, so
# that it sees what other programs have done to the image meanwhile.

load lib

# left: waits until the server has noticed that its clients have left, which
# it does some time after they have ended.
left ()
{
    for _ in {1..200}; do
        [ -n "$(find "/proc/$server_pid/fd" -lname 'socket:*' -printf 'x' |
                tail -c +2)" ] || return 0
        sleep 0.02
    done
    fail "a connection stays open"
}

# serves: the server's default export is what QEMU reads from the image.
serves ()
{
    left
    qemu_raw disk.qcow2 now.raw "$@"
    assert_same_content "$uri" now.raw
    left
}

@test "the next client sees data, size and snapshots that are new" {
    qemu-img create -q -f qcow2 disk.qcow2 8M
    qemu-io -f qcow2 -c 'write -q -P 1 0 3M' disk.qcow2
    start_nbdkit -r disk.qcow2 lock=off
    serves

    qemu-io -f qcow2 -c 'write -q -P 2 1M 5M' disk.qcow2
    serves
    qemu-img resize -q -f qcow2 disk.qcow2 40M
    qemu-io -f qcow2 -c 'write -q -P 3 39M 1M' disk.qcow2
    serves
    [ "$(nbdinfo --size "$uri")" = 41943040 ]
    left

    qemu-img snapshot -c first disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 4 0 1M' disk.qcow2
    qemu-img snapshot -c second disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 5 0 1M' disk.qcow2
    nbdinfo --list "$uri" > list
    grep 'export="first"' list
    grep 'export="second"' list
    serves
    qemu_raw disk.qcow2 second.raw -l second
    assert_same_content "nbd+unix:///second?socket=$sock" second.raw
    left

    qemu-img snapshot -d first disk.qcow2
    nbdinfo --list "$uri" > list
    run ! grep 'export="first"' list
    serves
    assert_same_content "nbd+unix:///second?socket=$sock" second.raw
    left
    qemu-img snapshot -a second disk.qcow2
    qemu-img snapshot -d second disk.qcow2
    qemu-img resize -q -f qcow2 --shrink disk.qcow2 2M
    serves
    [ "$(nbdinfo --size "$uri")" = 2097152 ]
    stop_nbdkit
    [ ! -s "$server_stderr" ]
}

@test "compressed clusters, too, when their places hold others" {
    for pattern in 1 2 3; do
        head -c 4M /dev/urandom | base64 -w 0 | head -c 4M > in$pattern.raw
    done
    for type in zlib zstd; do
        rm -f disk.qcow2
        qemu-img convert -O qcow2 -c -o compression_type=$type in1.raw \
            disk.qcow2
        start_nbdkit -r disk.qcow2 lock=off
        serves
        for pattern in 2 3; do
            qemu-img convert -O qcow2 -c -o compression_type=$type \
                in$pattern.raw other.qcow2
            cat other.qcow2 > disk.qcow2
            serves
            cmp now.raw in$pattern.raw
        done
        stop_nbdkit
    done
}

@test "an image of another kind in the same file" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    start_nbdkit -r disk.qcow2 lock=off
    serves
    for options in cluster_size=512 cluster_size=2M,extended_l2=on \
                   compat=0.10,cluster_size=4k cluster_size=64k; do
        qemu-img create -q -f qcow2 -o $options disk.qcow2 20M
        qemu-io -f qcow2 -c 'write -q -P 7 100k 3M' disk.qcow2
        serves
    done
    head -c 30M /dev/urandom > in.raw
    qemu-img create -q -f qcow2 disk.qcow2 30M
    serves
    qemu-img convert -n -f raw -O qcow2 in.raw disk.qcow2
    serves
    stop_nbdkit
}

@test "backing files are read again" {
    qemu-img create -q -f qcow2 -o cluster_size=4k base.qcow2 4M
    qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 middle.qcow2
    qemu-img create -q -f qcow2 -F qcow2 -b middle.qcow2 disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 1 0 1M' base.qcow2
    qemu-io -f qcow2 -c 'write -q -P 2 512k 1M' middle.qcow2
    start_nbdkit -r disk.qcow2 lock=off
    serves
    qemu-io -f qcow2 -c 'write -q -P 3 256k 3M' base.qcow2
    serves
    qemu-io -f qcow2 -c 'write -q -P 4 640k 3M' disk.qcow2
    qemu-img commit -q -f qcow2 disk.qcow2
    serves
    qemu-img resize -q -f qcow2 --shrink middle.qcow2 1M
    serves
    stop_nbdkit
}

@test "a raw backing file and a data file that have grown" {
    head -c 1M /dev/urandom > base.raw
    qemu-img create -q -f qcow2 -F raw -b base.raw disk.qcow2 4M
    start_nbdkit -r disk.qcow2 lock=off
    serves
    head -c 2M /dev/urandom >> base.raw
    serves
    stop_nbdkit
    rm disk.qcow2
    qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 4M
    start_nbdkit -r disk.qcow2 data-file=data.raw lock=off
    serves
    qemu-img resize -q -f qcow2 disk.qcow2 8M
    qemu-io -f qcow2 -c 'write -q -P 9 6M 1M' disk.qcow2
    serves
    stop_nbdkit
}

@test "while a client is there, others see what it sees" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    start_nbdkit -r disk.qcow2 lock=off
    "$PYTHON" - "$uri" <<'END'
import nbd, subprocess, sys

def connect():
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    return h

first = connect()
assert first.get_size() == 1 << 20
subprocess.check_call("qemu-img resize -q -f qcow2 disk.qcow2 2M",
                      shell=True)
second = connect()
assert second.get_size() == 1 << 20
first.shutdown()
third = connect()
assert third.get_size() == 1 << 20
END
    serves
    [ "$(nbdinfo --size "$uri")" = 2097152 ]
    stop_nbdkit
}

# refused REGEX: the next client is, and the log says why.
refused ()
{
    left
    run ! nbdinfo --size "$uri"
    grep -E "$1" "$server_stderr"
    left
}

@test "an image that names other files is not served any more" {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 1 0 1M' base.qcow2
    cp base.qcow2 other.qcow2
    qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 disk.qcow2
    qemu-img snapshot -c snap disk.qcow2
    start_nbdkit -r disk.qcow2 lock=off
    serves
    qemu-img rebase -u -f qcow2 -F qcow2 -b other.qcow2 disk.qcow2
    refused 'the name of the backing file has changed since .*"other.qcow2"'
    run ! nbdinfo --size "nbd+unix:///snap?socket=$sock"
    nbdinfo --list "$uri" || true
    qemu-img rebase -u -f qcow2 -F raw -b base.qcow2 disk.qcow2
    refused 'the format of the backing file .*, from "qcow2" to "raw"'
    qemu-img rebase -u -f qcow2 -b '' disk.qcow2
    refused 'from "base.qcow2" to "\(none\)"'
    qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 1M
    refused 'the kind of data file has changed'

    qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 disk.qcow2
    serves
    nbdinfo --list "$uri"
    stop_nbdkit
}

@test "nor is one that is damaged, until it is sound again" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 1 0 1M' disk.qcow2
    qemu-img snapshot -c snap disk.qcow2
    cp disk.qcow2 sound.qcow2
    start_nbdkit -r disk.qcow2 lock=off
    serves
    printf 'x' | dd of=disk.qcow2 conv=notrunc status=none
    refused 'not in qcow2 format'
    [ "$(grep -c 'not in qcow2 format' "$server_stderr")" -eq 1 ]
    run ! nbdinfo --size "nbd+unix:///snap?socket=$sock"
    : > disk.qcow2
    refused 'not in qcow2 format'
    cat sound.qcow2 > disk.qcow2
    serves
    nbdinfo --size "nbd+unix:///snap?socket=$sock"
    stop_nbdkit
}

@test "the snapshot of snapshot= may vanish and come again" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-img snapshot -c snap disk.qcow2
    start_nbdkit -r disk.qcow2 lock=off snapshot=snap
    serves
    qemu-img snapshot -d snap disk.qcow2
    refused 'no snapshot any more with the id or name'
    nbdinfo --list "$uri" || true
    qemu-io -f qcow2 -c 'write -q -P 3 0 1M' disk.qcow2
    qemu-img snapshot -c snap disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 4 0 1M' disk.qcow2
    serves -l snap
    stop_nbdkit
}

@test "an image that is served for writing can be written in turns" {
    qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 4M
    start_nbdkit disk.qcow2 write=on lock=off
    truncate -s 4M model.raw
    for i in 1 2 3 4 5; do
        at=$((i * 300))k
        qemu-io -f raw -c "write -q -P $i $at 500k" "nbd:unix:$sock"
        left
        # Not before the server is at rest.
        until qemu-img check -q -f qcow2 disk.qcow2; do sleep 0.1; done
        qemu-io -f raw -c "write -q -P $i $at 500k" model.raw
        qemu-io -f qcow2 -c "write -q -P 2$i $((i * 400))k 600k" disk.qcow2
        qemu-img snapshot -c s$i disk.qcow2
        qemu-io -f raw -c "write -q -P 2$i $((i * 400))k 600k" model.raw
        assert_same_content "$uri" model.raw
        left
    done
    stop_nbdkit
    qemu-img check -f qcow2 disk.qcow2
    qemu_raw disk.qcow2 now.raw
    cmp now.raw model.raw
}

@test "clients come and go while another program writes" {
    qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 8M
    start_nbdkit -r disk.qcow2 lock=off
    for _ in {1..40}; do
        nbdinfo --list "$uri"
        nbdinfo --map "$uri"
    done > clients.log 2>&1 3>&- &
    clients=$!
    for i in {1..8}; do
        qemu-io -f qcow2 -c "write -q -P $i ${i}00k 3M" disk.qcow2
        qemu-img snapshot -c s$i disk.qcow2
    done
    wait $clients || true
    serves
    stop_nbdkit
}

# With O_DIRECT the last block of a file is filled up.
@test "what other programs write at the end of the file stays there" {
    local image args
    qemu-img create -q -f qcow2 disk.qcow2 8M
    qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on \
        ext.qcow2 8M
    truncate -s 0 data.raw
    for image in disk ext; do
        args=()
        [ $image = disk ] || args=(data-file=data.raw)
        start_nbdkit $image.qcow2 write=on lock=off cache=none "${args[@]}"
        qemu-io -f raw -c 'write -q -P 0x61 0 100' "$uri"
        left
        qemu-io -f qcow2 -c 'write -q -P 2 100 412' $image.qcow2
        stop_nbdkit
        qemu-io -f qcow2 -c 'read -q -P 0x61 0 100' \
            -c 'read -q -P 2 100 412' $image.qcow2
        qemu-img check -q $image.qcow2
    done
}
