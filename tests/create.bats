# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# create=: images that the plugin makes, and what becomes of them.  What the
# options mean is compared with qemu-img in test-create*.c.

load lib

# Random data with holes, less than 3 MiB.
make_raw ()
{
    head -c 1000000 /dev/urandom > "$1"
    truncate -s 2M "$1"
    head -c 500001 /dev/urandom >> "$1"
    truncate -s 3M "$1"
}

# nothing_made FILE...: the directory holds these files, and what the test
# wrote down.
nothing_made ()
{
    [ "$(ls | grep -v refused.err)" = "$(printf '%s\n' "$@")" ] ||
        fail "there is: $(ls)"
}

@test "create=SIZE makes an image that clients can write to" {
    start_nbdkit new.qcow2 create=10G
    [ "$(nbdinfo --size "$uri")" -eq 10737418240 ]
    nbdinfo --can write "$uri"
    qemu-io -f raw -c 'write -q -P 7 5G 1M' "$uri"
    stop_nbdkit
    [ ! -s "$server_stderr" ] || fail "$(cat "$server_stderr")"
    qemu-img check -f qcow2 new.qcow2
    qemu-io -f qcow2 -c 'read -P 7 5G 1M' new.qcow2 | grep 'read 1048576'
    [ "$(qemu-img info --output=json new.qcow2 |
        jq '."format-specific".data.compat')" = '"1.1"' ]
}

@test "an image of each kind is filled, checked and changed by QEMU" {
    local i=0 options
    make_raw in.raw
    for options in compat=0.10 lazy_refcounts=on,cluster_size=512 \
        cluster_size=2M extended_l2=on refcount_bits=1,compression_type=zstd \
        preallocation=metadata preallocation=falloc,cluster_size=4k \
        preallocation=full,extended_l2=on data_file=data.raw \
        data_file=data.raw,data_file_raw=on \
        data_file=data.raw,data_file_raw=on,extended_l2=on; do
        echo "# $options"
        rm -f disk.qcow2 data.raw
        start_nbdkit disk.qcow2 create=3M create-options=$options
        nbd_raw "$uri" zeros.raw
        cmp -n 3145728 zeros.raw /dev/zero
        nbdcopy --flush in.raw "$uri"
        stop_nbdkit
        qemu-img check -f qcow2 disk.qcow2
        qemu_raw disk.qcow2 out.raw
        cmp in.raw out.raw
        [[ $options != *data_file_raw=on* ]] || cmp in.raw data.raw

        qemu-io -f qcow2 -c 'write -q -P 9 1M 100k' -c 'discard -q 0 64k' \
            disk.qcow2
        qemu_raw disk.qcow2 out.raw
        start_nbdkit -r disk.qcow2 allow-dir=.
        assert_same_content "$uri" out.raw
        stop_nbdkit
        i=$((i + 1))
    done
    [ $i -eq 11 ]
}

@test "options can be given more than once" {
    start_nbdkit new.qcow2 create=1M create-options=cluster_size=4k \
        create-options=refcount_bits=8,cluster_size=8k
    stop_nbdkit
    qemu-img info new.qcow2 > info
    grep -x 'cluster_size: 8192' info
    grep 'refcount bits: 8' info
}

@test "an existing file is not overwritten" {
    echo precious > disk.qcow2
    refuses_to_start \
        'disk.qcow2: the file exists already, and is not overwritten' \
        disk.qcow2 create=1M
    [ "$(cat disk.qcow2)" = precious ]

    start_nbdkit new.qcow2 create=1M
    qemu-io -f raw -c 'write -q -P 7 0 1M' "$uri"
    stop_nbdkit
    cp new.qcow2 before.qcow2
    refuses_to_start 'new.qcow2: the file exists already' new.qcow2 create=1M
    cmp new.qcow2 before.qcow2
    start_nbdkit -r new.qcow2
    stop_nbdkit
}

@test "what is wrong is said, and nothing is made" {
    refuses_to_start "create-options: Invalid parameter 'clustersize'" \
        new.qcow2 create=1M create-options=clustersize=64k
    refuses_to_start 'create: new.qcow2: Cluster size must be a power of two' \
        new.qcow2 create=1M create-options=cluster_size=3k
    refuses_to_start "'encrypt.format': encryption is not supported yet" \
        new.qcow2 create=1M create-options=encrypt.format=luks
    refuses_to_start 'size is too large' \
        new.qcow2 create=129G create-options=cluster_size=512
    refuses_to_start 'create-options= needs create=SIZE' \
        new.qcow2 create-options=cluster_size=64k
    refuses_to_start 'create=backing needs a backing_file' \
        new.qcow2 create=backing
    refuses_to_start 'the size is given by create=SIZE' \
        new.qcow2 create=1M create-options=size=1M
    refuses_to_start 'create=big: must be a size' new.qcow2 create=big
    refuses_to_start 'write=off' new.qcow2 create=1M write=off
    refuses_to_start "can't be used with nbdkit's -r" -r new.qcow2 create=1M
    refuses_to_start "or the cow filter" --filter=cow new.qcow2 create=1M
    refuses_to_start 'detect-zeroes to unmap is not allowed' \
        new.qcow2 create=1M detect-zeroes=unmap discard=ignore
    refuses_to_start 'lazy-refcounts=on needs an image of version 3' \
        new.qcow2 create=1M create-options=compat=0.10 lazy-refcounts=on
    refuses_to_start 'allow-dir=nowhere: No such file' \
        new.qcow2 create=1M allow-dir=nowhere
    refuses_to_start 'data-file=data.raw: .* only if create-options=' \
        new.qcow2 create=1M data-file=data.raw
    refuses_to_start 'snapshot=' new.qcow2 create=1M snapshot=1
    refuses_to_start 'missing/new.qcow2: No such file' \
        missing/new.qcow2 create=1M
    nothing_made ''
}

@test "no other data file is opened than the one that was made" {
    echo precious > precious.raw
    refuses_to_start 'create= makes the data file data.raw' new.qcow2 \
        create=1M create-options=data_file=data.raw data-file=precious.raw
    nothing_made precious.raw
    [ "$(cat precious.raw)" = precious ]
    start_nbdkit new.qcow2 create=1M create-options=data_file=data.raw \
        data-file=data.raw
    qemu-io -f raw -c 'write -q -P 7 0 1M' "$uri"
    stop_nbdkit
    [ "$(cat precious.raw)" = precious ]
    qemu-io -f qcow2 -c 'read -P 7 0 1M' new.qcow2 | grep 'read 1048576'
}

@test "when space runs out, nothing is left" {
    local options
    mkdir dir
    for options in preallocation=full preallocation=falloc \
        preallocation=metadata data_file=data.raw,preallocation=full; do
        # Writing past the limit is an error only if its signal is ignored.
        (
            trap '' XFSZ
            ulimit -f 2000
            refuses_to_start "can't be written: File too large" \
                dir/new.qcow2 create=64M create-options=$options
        )
        [ -z "$(ls dir)" ]
    done
}

@test "an overlay has the size of its backing file, and shows it" {
    make_raw base.raw
    start_nbdkit new.qcow2 create=backing \
        create-options=backing_file=base.raw,backing_fmt=raw
    assert_same_content "$uri" base.raw
    qemu-io -f raw -c 'write -q -P 5 100k 1k' "$uri"
    stop_nbdkit
    qemu-img check -f qcow2 new.qcow2
    qemu-io -f raw -c 'write -q -P 5 100k 1k' base.raw
    qemu_raw new.qcow2 out.raw
    cmp base.raw out.raw

    # One preallocated, of another size, in another directory.
    mkdir dir
    start_nbdkit dir/top.qcow2 create=5M allow-dir=. create-options=$(
        )backing_file=../new.qcow2,backing_fmt=qcow2,$(
        )extended_l2=on,preallocation=metadata
    truncate -s 5M base.raw
    assert_same_content "$uri" base.raw
    qemu-io -f raw -c 'write -q -P 6 1000 1k' "$uri"
    stop_nbdkit
    qemu-img check -f qcow2 dir/top.qcow2
    qemu-io -f raw -c 'write -q -P 6 1000 1k' base.raw
    qemu_raw dir/top.qcow2 out.raw
    cmp base.raw out.raw
}

@test "a backing file is not written to, nor locked out" {
    qemu-img create -q -f qcow2 base.qcow2 1M
    cp base.qcow2 before.qcow2
    start_nbdkit one.qcow2 create=backing \
        create-options=backing_file=base.qcow2,backing_fmt=qcow2
    start_nbdkit two.qcow2 create=backing \
        create-options=backing_file=base.qcow2,backing_fmt=qcow2
    qemu-io -f raw -c 'write -q -P 7 0 1M' "$uri"
    stop_nbdkit
    stop_nbdkit
    cmp base.qcow2 before.qcow2
}

@test "a backing file that is being written is refused, but for lock=off" {
    local writer
    qemu-img create -q -f qcow2 base.qcow2 1M
    start_nbdkit base.qcow2 write=on
    writer=$server_pid
    refuses_to_start 'Failed to get shared "write" lock' new.qcow2 \
        create=backing \
        create-options=backing_file=base.qcow2,backing_fmt=qcow2
    [ ! -e new.qcow2 ]
    start_nbdkit new.qcow2 create=backing lock=off \
        create-options=backing_file=base.qcow2,backing_fmt=qcow2
    stop_nbdkit
    stop_nbdkit "$writer"
}

@test "an image whose backing file may not be opened stays, but is not served" {
    mkdir dir
    qemu-img create -q -f qcow2 base.qcow2 1M
    refuses_to_start 'add allow-dir=.*the new image was made' \
        dir/new.qcow2 create=backing \
        create-options=backing_file=../base.qcow2,backing_fmt=qcow2
    qemu-img check -f qcow2 dir/new.qcow2
    start_nbdkit dir/new.qcow2 allow-dir=.
    stop_nbdkit
}

@test "a data file is made, too, and named by the operator" {
    start_nbdkit new.qcow2 create=1M create-options=data_file=data.raw
    qemu-io -f raw -c 'write -q -P 7 0 1M' "$uri"
    stop_nbdkit
    cmp -n 1048576 data.raw <(tr '\0' '\7' < /dev/zero)
    [ "$(stat -c %s data.raw)" -eq 1048576 ]
    # Next time it is the image's word.
    refuses_to_start 'add data-file=data.raw' new.qcow2

    rm new.qcow2
    refuses_to_start 'data.raw: the file exists already' \
        new.qcow2 create=1M create-options=data_file=data.raw
    [ ! -e new.qcow2 ]
    cmp -n 1048576 data.raw <(tr '\0' '\7' < /dev/zero)
}
