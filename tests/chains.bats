# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# Backing files and data files: how images name them, which are opened, and how
# long a chain may be.

load lib
load make-image

# Messages name directories with links resolved.
setup ()
{
    common_setup
    TEST_DIR=$(pwd -P)
    cd "$TEST_DIR" || return 1
}

# serves RAW ARG ...: a server with these ARGs shows the disk RAW.
serves ()
{
    local raw=$1
    shift
    start_nbdkit -r "$@" && assert_same_content "$uri" "$raw" && stop_nbdkit
}

# base_and_overlay: dir/base.qcow2 of 3 MB with random data, dir/disk.qcow2 over
# it with a little of its own, and what that is as qemu.raw.
base_and_overlay ()
{
    mkdir dir
    head -c 3000320 /dev/urandom > random.raw
    qemu-img convert -t unsafe -f raw -O qcow2 random.raw dir/base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 dir/disk.qcow2
    qemu-io -t unsafe -f qcow2 -c 'write -q -P 1 1M 100k' dir/disk.qcow2
    qemu_raw dir/disk.qcow2 qemu.raw -t unsafe
}

# rename_backing NAME [FORMAT]: how dir/disk.qcow2 names its backing file.
rename_backing ()
{
    qemu-img rebase -u -b "$1" -F "${2:-qcow2}" dir/disk.qcow2
}

# forget_format FILE: turns the header extension with the backing file's format
# into one that nobody knows.
forget_format ()
{
    local at
    at=$(number_at "$1" 100 4)
    [ "$(number_at "$1" "$at" 4)" -eq $((0xe2792aca)) ]
    put_number "$1" "$at" 4 $((0x12345678))
}

# chain_of N: disk.qcow2 with N backing files below it, each with a sector of
# its own.  Files are copies of one image with other names in the header.
chain_of ()
{
    local i name n=$1
    qemu-img create -q -f qcow2 -o cluster_size=4k b000 4M
    qemu-img create -q -f qcow2 -o cluster_size=4k -b b000 -F qcow2 \
        -u overlay 4M
    qemu-io -t unsafe -f qcow2 -c 'write -q -P 99 2M 4k' b000
    for ((i = 1; i <= n; i++)); do
        printf -v name 'b%03d' $i
        [ $i -lt "$n" ] || name=disk.qcow2
        cp overlay "$name"
        printf 'b%03d' $((i - 1)) |
            dd of="$name" seek="$(number_at overlay 8 8)" oflag=seek_bytes \
                conv=notrunc status=none
    done
}

@test "json: and file: names" {
    local name
    base_and_overlay
    for name in \
        "file:$TEST_DIR/dir/base.qcow2" \
        "$TEST_DIR/dir/base.qcow2" \
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\
\"filename\":\"$TEST_DIR/dir/base.qcow2\"}}" \
        "json:{'driver':'qcow2','file.driver':'file',\
'file.filename':'$TEST_DIR/dir/base.qcow2'}" \
        "json:{\"file.filename\":\"$TEST_DIR/dir/base.qcow2\"}"
    do
        rename_backing "$name"
        qemu_raw dir/disk.qcow2 again.raw -t unsafe
        cmp qemu.raw again.raw
        serves qemu.raw dir/disk.qcow2 || fail "$name"
    done
}

@test "names of what is not a file are refused by what they are" {
    local name
    base_and_overlay
    while read -r name; do
        rename_backing "${name%%	*}"
        refuses_to_start "${name##*	}" dir/disk.qcow2
    done <<- 'END'
	nbd://localhost/	protocol "nbd" is not supported
	ssh://host/base.qcow2	protocol "ssh" is not supported
	json:{"driver":"nbd","host":"x"}	"?driver"? .*"?nbd"?|option "host"
	json:{"driver":"qcow2","file":{"driver":"https","url":"x"}}	not supported
	json:{"driver":"raw","file":{"filename":"base.qcow2"},"offset":512}	"offset"
	END
}

@test "relative names are relative to the image that holds them" {
    local name
    base_and_overlay
    mkdir -p dir/sub elsewhere
    qemu-img create -q -f qcow2 -b ../disk.qcow2 -F qcow2 dir/sub/top.qcow2
    qemu-img rebase -u -b sub/../base.qcow2 -F qcow2 dir/disk.qcow2
    for name in ../dir/sub/top.qcow2 "$TEST_DIR/dir/sub/top.qcow2"; do
        cd "$TEST_DIR/elsewhere"
        serves ../qemu.raw "$name" allow-dir=../dir
    done
    cd "$TEST_DIR/dir"
    serves ../qemu.raw sub/top.qcow2 allow-dir=.
    cd "$TEST_DIR/dir/sub"
    serves ../../qemu.raw top.qcow2 allow-dir=..
    serves ../../qemu.raw ./top.qcow2 allow-dir=../../dir
}

# QEMU looks for the name beside the link, too.
@test "links: to the image, to the backing file" {
    base_and_overlay
    mkdir links
    ln -s ../dir/disk.qcow2 links/link.qcow2
    refuses_to_start 'No such file' links/link.qcow2

    ln -s ../dir/base.qcow2 links/base.qcow2
    serves qemu.raw links/link.qcow2

    # A link that leads out of the directory does not count.
    mv dir/base.qcow2 elsewhere.qcow2
    ln -s ../elsewhere.qcow2 dir/base.qcow2
    refuses_to_start "allow-dir=$TEST_DIR" dir/disk.qcow2
    serves qemu.raw dir/disk.qcow2 allow-dir="$TEST_DIR"
}

@test "backing files outside the image's directory need allow-dir" {
    base_and_overlay
    mkdir dir/sub other 'other:2' dir2
    mv dir/base.qcow2 dir/sub
    rename_backing sub/base.qcow2
    serves qemu.raw dir/disk.qcow2

    mv dir/sub/base.qcow2 other
    rename_backing ../other/base.qcow2
    # The message says what to add, and that helps.
    refuses_to_start "add (allow-dir=$TEST_DIR/other)" dir/disk.qcow2
    serves qemu.raw dir/disk.qcow2 "${BASH_REMATCH[1]}"
    serves qemu.raw dir/disk.qcow2 allow-dir=dir2 allow-dir=other
    serves qemu.raw dir/disk.qcow2 allow-dir=.
    refuses_to_start 'allow-dir=' dir/disk.qcow2 allow-dir=dir2
    refuses_to_start 'allow-dir=oth: No such file' dir/disk.qcow2 allow-dir=oth
    refuses_to_start 'allow-dir=/other: No such file' dir/disk.qcow2 \
        allow-dir=/other

    # A directory of which the name only begins alike.
    mkdir dirty
    mv other/base.qcow2 dirty
    rename_backing ../dirty/base.qcow2
    refuses_to_start "allow-dir=$TEST_DIR/dirty" dir/disk.qcow2
}

@test "QCOW2_ALLOW_DIR allows directories, too" {
    base_and_overlay
    mkdir other
    mv dir/base.qcow2 other
    rename_backing ../other/base.qcow2
    QCOW2_ALLOW_DIR=$TEST_DIR/other serves qemu.raw dir/disk.qcow2
    QCOW2_ALLOW_DIR=/usr:$TEST_DIR/other: serves qemu.raw dir/disk.qcow2
    QCOW2_ALLOW_DIR=/usr refuses_to_start 'allow-dir=' dir/disk.qcow2
    QCOW2_ALLOW_DIR=/usr serves qemu.raw dir/disk.qcow2 allow-dir=other
    QCOW2_ALLOW_DIR=other refuses_to_start 'absolute' dir/disk.qcow2
}

@test "allow-dir=none takes the image's directory away" {
    base_and_overlay
    refuses_to_start 'only where this is allowed.*allow-dir=' dir/disk.qcow2 \
        allow-dir=none
    serves qemu.raw dir/disk.qcow2 allow-dir=none allow-dir=dir
    QCOW2_ALLOW_DIR=none refuses_to_start 'allow-dir=' dir/disk.qcow2
    QCOW2_ALLOW_DIR=none:$TEST_DIR/dir serves qemu.raw dir/disk.qcow2
    # What the operator names is his word.
    serves random.raw dir/base.qcow2 allow-dir=none
}

@test "a backing file that is not there, or no file" {
    base_and_overlay
    rm dir/base.qcow2
    refuses_to_start 'base.qcow2: No such file' dir/disk.qcow2
    mkdir dir/base.qcow2
    refuses_to_start 'base.qcow2: is a directory' dir/disk.qcow2
    rmdir dir/base.qcow2
    mkfifo dir/base.qcow2
    refuses_to_start 'base.qcow2: is a FIFO' dir/disk.qcow2
    rm dir/base.qcow2
    : > dir/base.qcow2
    refuses_to_start 'base.qcow2: ' dir/disk.qcow2
}

@test "the format of a backing file is never guessed" {
    base_and_overlay
    forget_format dir/disk.qcow2
    refuses_to_start 'backing-format=qcow2 or backing-format=raw' \
        dir/disk.qcow2
    serves qemu.raw dir/disk.qcow2 backing-format=qcow2

    # As raw, it is the file as it is.
    qemu-img create -q -f qcow2 -b base.qcow2 -F raw dir/raw.qcow2
    qemu_raw dir/raw.qcow2 qemu.raw -t unsafe
    forget_format dir/raw.qcow2
    serves qemu.raw dir/raw.qcow2 backing-format=raw

    # What the header says goes before the parameter.
    serves dir/base.qcow2 dir/raw.qcow2 backing-format=raw
    qemu_raw dir/base.qcow2 random.raw -t unsafe
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 dir/known.qcow2
    serves random.raw dir/known.qcow2 backing-format=raw

    refuses_to_start 'backing-format=vmdk: must be qcow2 or raw' \
        dir/disk.qcow2 backing-format=vmdk
    qemu-img create -q -u -f qcow2 -b base.qcow2 -F vmdk dir/vmdk.qcow2 1M
    refuses_to_start '"vmdk" is not supported' dir/vmdk.qcow2
}

@test "backing=none serves the image alone" {
    base_and_overlay
    rm dir/base.qcow2
    truncate -s 3000320 alone.raw
    qemu-io -t unsafe -f raw -c 'write -q -P 1 1M 100k' alone.raw
    # The rest of the clusters was copied from the backing file.
    start_nbdkit -r dir/disk.qcow2 backing=none
    nbd_raw "$uri" served.raw
    cmp -n $((1 << 20)) served.raw alone.raw
    cmp -n $((100 << 10)) -i $((1 << 20)) served.raw alone.raw
    cmp -i $(((1 << 20) + (128 << 10))) served.raw alone.raw
    stop_nbdkit
    refuses_to_start 'backing=no: the only value is none' dir/disk.qcow2 \
        backing=no
}

@test "an external data file is opened only when allowed" {
    mkdir dir
    (cd dir && make_image disk.qcow2 data=on seed=201)
    (cd dir && qemu_raw disk.qcow2 ../qemu.raw)
    # data-file= says so, even in the image's own directory.
    refuses_to_start "add (data-file=disk.qcow2.data|data-file=\
dir/disk.qcow2.data) or (allow-dir=$TEST_DIR/dir)" dir/disk.qcow2
    serves qemu.raw dir/disk.qcow2 "${BASH_REMATCH[2]}"
    serves qemu.raw dir/disk.qcow2 data-file=dir/disk.qcow2.data
    serves qemu.raw dir/disk.qcow2 allow-dir=dir
    QCOW2_ALLOW_DIR=$TEST_DIR serves qemu.raw dir/disk.qcow2

    # The operator's name is relative to where he is, and goes first.
    mv dir/disk.qcow2.data moved
    serves qemu.raw dir/disk.qcow2 data-file=moved
    refuses_to_start 'disk.qcow2.data: No such file' dir/disk.qcow2 \
        allow-dir=dir

    # Of an image in the chain.
    mv moved dir/disk.qcow2.data
    qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 dir/top.qcow2
    refuses_to_start 'allow-dir=' dir/top.qcow2
    serves qemu.raw dir/top.qcow2 allow-dir=dir
    refuses_to_start 'no external data file' dir/top.qcow2 \
        data-file=dir/disk.qcow2.data allow-dir=dir
}

@test "chains of 200 backing files and of 201" {
    chain_of 200
    qemu_raw disk.qcow2 qemu.raw
    serves qemu.raw disk.qcow2
    refuses_to_start 'chain is longer than 199 files' disk.qcow2 max-chain=199

    chain_of 201
    refuses_to_start 'chain is longer than 200 files' disk.qcow2
    serves qemu.raw disk.qcow2 max-chain=201
    refuses_to_start 'max-chain=1000: at most 250' disk.qcow2 max-chain=1000
    refuses_to_start 'longer than 0 files' disk.qcow2 max-chain=0
    serves qemu.raw b000 max-chain=0
}

@test "loops in the chain" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-img rebase -u -b disk.qcow2 -F qcow2 disk.qcow2
    refuses_to_start 'has a loop' disk.qcow2
    qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 -u a.qcow2 1M
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 -u b.qcow2 1M
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 -u disk.qcow2 1M
    refuses_to_start 'has a loop' disk.qcow2
    # The same file by another name.
    ln disk.qcow2 other.qcow2
    qemu-img rebase -u -b other.qcow2 -F qcow2 disk.qcow2
    refuses_to_start 'has a loop' disk.qcow2
}

@test "overlays longer and shorter than what they lie over" {
    local under over format
    for under in 1000448 5000192; do
        for over in 512 2000384 3000320 6000128; do
            for format in raw qcow2; do
                rm -f disk.qcow2*
                make_image disk.qcow2 size=$over backing=$format \
                    backing_size=$under writes=5 seed=$((under + over))
                qemu_raw disk.qcow2 qemu.raw -t unsafe
                serves qemu.raw disk.qcow2 || fail "$over over $under $format"
            done
        done
    done
}

# What lies beyond the end of a layer is not seen, also where the layers above
# are larger again.
@test "a short layer between long ones hides what is below it" {
    qemu-img create -q -f qcow2 bottom.qcow2 3M
    qemu-io -t unsafe -f qcow2 -c 'write -q -P 1 0 3M' bottom.qcow2
    qemu-img create -q -f qcow2 -b bottom.qcow2 -F qcow2 short.qcow2 1000448
    qemu-img create -q -f qcow2 -b short.qcow2 -F qcow2 disk.qcow2 3M
    qemu_raw disk.qcow2 qemu.raw
    [ "$(tr -d '\1' < qemu.raw | wc -c)" -eq $((3145728 - 1000448)) ]
    serves qemu.raw disk.qcow2
    qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
    serves qemu.raw top.qcow2
}

# pread64 calls while a client reads at random what is already cached.
preads_during_random_reads ()
{
    local tracer
    strace -f -q -e trace=pread64 -o trace -p "$server_pid" 3>&- &
    tracer=$!
    for _ in {1..100}; do
        [ "$(awk '/^TracerPid/ { print $2 }' "/proc/$server_pid/status")" = 0 ] \
            || break
        sleep 0.05
    done
    "$PYTHON" - "$uri" <<'END'
import random, sys, nbd

h = nbd.NBD ()
h.connect_uri (sys.argv[1])
r = random.Random (1)
for i in range (500):
    offset = r.randrange (h.get_size () // 4096) * 4096
    assert any (h.pread (4096, offset))
END
    kill "$tracer"
    wait "$tracer" || :
    grep -c 'pread64(' trace
}

@test "random reads through 8 overlays take one pread each" {
    local i
    head -c 16M /dev/urandom > base.raw
    qemu-img convert -t unsafe -f raw -O qcow2 base.raw base.qcow2
    mv base.qcow2 disk.qcow2
    for i in {1..8}; do
        mv disk.qcow2 layer$i.qcow2
        qemu-img create -q -f qcow2 -b layer$i.qcow2 -F qcow2 disk.qcow2
        qemu-io -t unsafe -f qcow2 -c "write -q -P $i ${i}M 256k" disk.qcow2
    done
    qemu_raw disk.qcow2 qemu.raw
    start_nbdkit -r disk.qcow2
    assert_same_content "$uri" qemu.raw
    i=$(preads_during_random_reads)
    echo "$i preads"
    [ "$i" -eq 500 ]
    stop_nbdkit
}
