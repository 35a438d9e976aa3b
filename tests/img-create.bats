# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# qcow2-img create beside qemu-img create.

load lib
load img

device=

setup () { img_setup; }

teardown ()
{
    [ -z "$device" ] || losetup --detach "$device"
    common_teardown
}

# twin_create ARG ...: both make an image, and all their files are the same
# byte for byte; so is what they print.
twin_create ()
{
    rm -rf qemu ours
    mkdir qemu ours
    (cd qemu && qemu-img create "$@") > out.qemu ||
        fail "qemu-img create $*"
    (cd ours && "$img" create "$@") > out 2> err || fail "$*: $(cat err)"
    cmp out.qemu out || fail "$*: $(cat out.qemu out)"
    [ ! -s err ]
    diff -r qemu ours || fail "$*: other bytes"
}

@test "files and the line printed are qemu-img's, byte for byte" {
    local options i=0
    qemu-img create -q -f qcow2 base.qcow2 3M
    qemu-img create -q -f raw 'ba,se.raw' 1M
    while IFS= read -r options; do
        echo "# $options"
        eval "twin_create -f qcow2 $options"
        i=$((i + 1))
    done <<'END'
x.qcow2 1M
x.qcow2 0
x.qcow2 1000
x.qcow2 1.5k
x.qcow2 0x100000
x.qcow2 1P
-o size=1M x.qcow2
-o cluster_size=64k -o cluster_size=4k x.qcow2 20M
-o cluster_size=512 x.qcow2 10M
-o cluster_size=512,compat=0.10 x.qcow2 1M
-o cluster_size=2M,compat=v2 x.qcow2 7G
-o compat=1.1 x.qcow2 1M
-o compat=v3,refcount_bits=0x10,encryption=off x.qcow2 1M
-o refcount_bits=1 x.qcow2 3M
-o refcount_bits=64,cluster_size=4k x.qcow2 3M
-o lazy_refcounts x.qcow2 1M
-o lazy_refcounts=yes,extended_l2=y x.qcow2 1000
-o nolazy_refcounts,nodata_file_raw x.qcow2 1M
-o extended_l2=on,cluster_size=16k x.qcow2 100G
-o compression_type=zstd x.qcow2 1M
-o preallocation=off x.qcow2 1M
-o preallocation=metadata x.qcow2 5M
-o preallocation=metadata,extended_l2=on x.qcow2 5M
-o data_file=data.raw x.qcow2 1M
-o data_file=da,,ta.raw -o preallocation=metadata x.qcow2 1M
-o data_file=data.raw,preallocation=full x.qcow2 1M
-o data_file=data.raw,data_file_raw=on x.qcow2 1M
-b ../base.qcow2 -F qcow2 x.qcow2
-b ../base.qcow2 -F qcow2 x.qcow2 10M
-b ../ba,se.raw -F raw x.qcow2 512k
-b ../ba,se.raw -F raw -o size=512k x.qcow2
-o backing_file=../ba,,se.raw,backing_fmt=raw x.qcow2
-o backing_file=nowhere -b ../base.qcow2 -F qcow2 x.qcow2
-b ../base.qcow2 -F qcow2 -o extended_l2=on,preallocation=metadata x.qcow2
-b nowhere -F raw -u x.qcow2 1M
-b 'json:{"driver":"raw","file":{"driver":"file","filename":"../ba,se.raw"}}' -F raw x.qcow2
-q x.qcow2 1M
-q -b ../base.qcow2 -F qcow2 x.qcow2
END
    [ $i -eq 38 ]
}

# The place of the last tables is our own.
@test "space that is taken at once is as much as qemu-img takes" {
    local options
    for options in preallocation=falloc preallocation=full,compat=0.10 \
        preallocation=full,extended_l2=on \
        preallocation=falloc,cluster_size=4k; do
        twin create -f qcow2 -o $options x.qcow2 3M
        run_img map --output=json x.qcow2
        mv out ours.map
        [ "$(stat -c %b x.qcow2)" -ge 6144 ]
        qemu-img check -q x.qcow2
        qemu-img create -q -f qcow2 -o $options x.qcow2 3M
        run_img map --output=json x.qcow2
        cmp <(jq 'map(del(.offset))' out) <(jq 'map(del(.offset))' ours.map)
    done
}

@test "what one makes, the other uses" {
    local options
    head -c 3M /dev/urandom > in.raw
    for options in compat=0.10 cluster_size=512 extended_l2=on \
        preallocation=full data_file=data.raw,data_file_raw=on; do
        run_img create -q -o $options x.qcow2 3M
        [ "$status" -eq 0 ]
        qemu-img convert -n -O qcow2 -f raw in.raw x.qcow2
        qemu-img check -q x.qcow2
        run_img compare -F raw x.qcow2 in.raw
        [ "$status" -eq 0 ]
        run_img check x.qcow2
        [ "$status" -eq 0 ]
        rm -f x.qcow2 data.raw
    done
}

@test "a file that is there is overwritten, and stays the same file" {
    local inode
    head -c 5M /dev/urandom > x.qcow2
    chmod 600 x.qcow2
    ln x.qcow2 link.qcow2
    ln -s x.qcow2 symlink.qcow2
    inode=$(stat -c %i x.qcow2)
    run_img create symlink.qcow2 1M
    [ "$status" -eq 0 ]
    [ "$(stat -c '%i %a' x.qcow2)" = "$inode 600" ]
    [ -L symlink.qcow2 ]
    cmp x.qcow2 link.qcow2
    qemu-img create -q -f qcow2 theirs.qcow2 1M
    cmp x.qcow2 theirs.qcow2

    # A data file, too.
    head -c 5M /dev/urandom > data.raw
    run_img create -q -o data_file=data.raw x.qcow2 1M
    [ "$status" -eq 0 ]
    cmp -n 1048576 data.raw /dev/zero
    [ "$(stat -c %s data.raw)" -eq 1048576 ]

    # A link to nowhere, as qemu-img.
    ln -s later.qcow2 ahead.qcow2
    run_img create -q ahead.qcow2 1M
    [ "$status" -eq 0 ]
    cmp later.qcow2 theirs.qcow2
}

@test "an image in use is not overwritten" {
    qemu-img create -q -f qcow2 x.qcow2 1M
    cp x.qcow2 before.qcow2
    hold_open x.qcow2
    refuses 1 'Failed to get "(write|consistent read)" lock.*\[x.qcow2\]\?$' \
        create -q x.qcow2 2M
    let_go
    cmp x.qcow2 before.qcow2

    qemu-img create -q -f qcow2 -o data_file=data.raw y.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 7 0 1M' y.qcow2
    cp data.raw before.raw
    hold_open y.qcow2
    refuses 1 'lock' create -q -o data_file=data.raw x.qcow2 2M
    let_go
    cmp x.qcow2 before.qcow2
    cmp data.raw before.raw
}

# Neither command has -U.
@test "a backing file in use is in the way, and no advice is given" {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 over.qcow2
    hold_open base.qcow2
    refuses 1 'lock' create -q -F qcow2 -b base.qcow2 x.qcow2
    run ! grep -e '-U' err
    refuses 1 'lock' resize -q over.qcow2 +1M
    run ! grep -e '-U' err
    let_go
}

# untouched REGEX ARG ...: refused, and x.qcow2 is as it was.
untouched ()
{
    refuses 1 "$@"
    cmp x.qcow2 before.qcow2
}

@test "what is wrong is said, and an old file is left alone" {
    qemu-img create -q -f qcow2 x.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 7 0 1M' x.qcow2
    cp x.qcow2 before.qcow2
    ln x.qcow2 same.qcow2
    untouched "x.qcow2: Invalid parameter 'foo'" create -o foo=1 x.qcow2 1M
    untouched "'compat' does not accept value '7'" create -o compat=7 x.qcow2 1M
    untouched "Parameter 'lazy_refcounts' expects 'on' or 'off'" \
        create -o lazy_refcounts=7 x.qcow2 1M
    untouched 'Invalid option list' create -o '' x.qcow2 1M
    untouched 'Cluster size must be a power of two between 512 and 2048k' \
        create -o cluster_size=77 x.qcow2 1M
    untouched 'Lazy refcounts are only supported' \
        create -o compat=0.10,lazy_refcounts=on x.qcow2 1M
    untouched 'image size must be specified only once' \
        create -o size=1M x.qcow2 2M
    untouched 'Image creation needs a size parameter' create x.qcow2
    untouched 'Image creation needs a size parameter' \
        create -u -b nowhere -F raw x.qcow2
    untouched 'nowhere: No such file' create -b nowhere -F raw x.qcow2 1M
    untouched 'Backing file specified without backing format' \
        create -b before.qcow2 x.qcow2 1M
    untouched 'Backing format cannot be used without backing file' \
        create -F raw x.qcow2 1M
    untouched "format 'vmdk' is not supported" \
        create -b before.qcow2 -F vmdk x.qcow2
    untouched 'same filename as the backing file' \
        create -b x.qcow2 -F qcow2 x.qcow2
    untouched 'the backing file is the same file' \
        create -b same.qcow2 -F qcow2 x.qcow2
    untouched 'the backing file is the same file' \
        create -u -b same.qcow2 -F qcow2 x.qcow2 1M
    untouched 'the backing file is the same file' \
        create -b before.qcow2 -F qcow2 -o extended_l2=on,data_file=x.qcow2 \
        -b x.qcow2 y.qcow2
    untouched 'encryption is not supported' \
        create -o encrypt.format=luks x.qcow2 1M
    untouched 'encryption is not supported' create -o encryption=on x.qcow2 1M
    untouched 'size is too large' create -o cluster_size=512 x.qcow2 129G
    untouched "Only images in qcow2 format are created here, not 'raw'" \
        create -f raw x.qcow2 1M
    untouched 'object is not supported' create --object secret,id=a x.qcow2 1M
    untouched 'Unexpected argument: 3M' create x.qcow2 1M 3M
    untouched 'Expecting image file name' create
    run_img create x.qcow2 huge
    [ "$status" -eq 1 ]
    grep -q 'Invalid image size specified' err
    cmp x.qcow2 before.qcow2
    [ ! -e y.qcow2 ]
}

@test "no device, no file: refused" {
    mkdir dir
    mkfifo fifo
    refuses 1 'dir' create -q dir 1M
    refuses 1 'fifo: this is no regular file' create -q fifo 1M
    refuses 1 'missing/x.qcow2: No such file' create -q missing/x.qcow2 1M
}

@test "when space runs out: a new file goes, an old one is left empty" {
    head -c 100k /dev/urandom > old.qcow2
    # Writing past the limit is an error only if its signal is ignored.
    (
        trap '' XFSZ
        ulimit -f 2000
        refuses 1 "can't be written: File too large" \
            create -q -o preallocation=full old.qcow2 64M
        refuses 1 "can't be written: File too large" \
            create -q -o preallocation=full new.qcow2 64M
    )
    [ ! -e new.qcow2 ]
    [ "$(stat -c %s old.qcow2)" -eq 0 ]
}

@test "-o help lists what there is" {
    qemu-img create -f qcow2 -o help | grep -v 'encrypt' |
        sed '/^$/,$d' > theirs
    run_img create -o help
    [ "$status" -eq 0 ]
    cmp out theirs
    run_img create -o 'compat=1.1,?' x.qcow2
    cmp out theirs
    [ ! -e x.qcow2 ]
}

@test "a block device is overwritten, too" {
    truncate -s 10M storage.raw
    device=$(losetup --find --show storage.raw)
    head -c 10M /dev/urandom > "$device"
    run_img create -q "$device" 5M
    [ "$status" -eq 0 ]
    qemu-img check -q -f qcow2 "$device"
    qemu-io -f qcow2 -c 'read -q -P 0 0 5M' -c 'write -q -P 5 1M 1M' "$device"
    run_img create -q -o cluster_size=4k "$device" 4M
    [ "$status" -eq 0 ]
    qemu-io -f qcow2 -c 'read -q -P 0 0 4M' "$device"
    refuses 1 'preallocation is not possible on a device' \
        create -q -o preallocation=metadata "$device" 4M
    qemu-img check -q -f qcow2 "$device"
}
