# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# Who may write: what write=, nbdkit's command line and the files say, and
# which locks are taken by that.

load lib

# A program that writes to the image, and one that needs it to stay as it is.
hold_for_writing ()
{
    qemu-nbd --fork --persistent -k "$PWD/vm.sock" --pid-file=vm.pid \
        -f qcow2 "$1" 3>&- 4>&-
}

hold_for_reading ()
{
    qemu-nbd -r --fork --persistent -k "$PWD/vm.sock" --pid-file=vm.pid \
        -f qcow2 "$1" 3>&- 4>&-
}

release ()
{
    local pid
    pid=$(cat vm.pid)
    kill "$pid"
    while kill -0 "$pid" 2> /dev/null; do
        sleep 0.05
    done
    rm -f vm.sock vm.pid
}

teardown ()
{
    [ ! -s vm.pid ] || release
    common_teardown
}

# starts_as WORD ...: starts nbdkit with these words, the last of which make it
# end, beside a reader of the image: prints `reader' if that is possible,
# `writer' if the locks conflict.
starts_as ()
{
    local status=0
    rm -f run.sock
    timeout 60 env LD_PRELOAD="${NBDKIT_PRELOAD:-}" \
        ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" \
        nbdkit "$@" > started.err 2>&1 3>&- 4>&- < /dev/null || status=$?
    if [ $status -eq 0 ]; then
        echo reader
    elif grep -q 'Failed to get "write" lock' started.err; then
        echo writer
    else
        cat started.err
    fi
}

# writes URI: a client can write there.
writes ()
{
    qemu-io -f raw -c 'write -q -P 7 0 512' -c 'read -q -P 7 0 512' "$1"
}

# However it is said.
@test "the command line decides about locks" {
    local kind words
    qemu-img create -q -f qcow2 disk.qcow2 1M
    hold_for_reading disk.qcow2
    while read -r kind words; do
        words=${words//PLUGIN/$plugin disk.qcow2}
        [[ $words == *--run* ]] || words+=' --run true'
        # shellcheck disable=SC2086
        [ "$(starts_as $words)" = "$kind" ] ||
            fail "not a $kind: $words: $(cat started.err)"
    done <<'END'
reader -U run.sock -r PLUGIN
reader -U run.sock PLUGIN -r
reader -rU run.sock PLUGIN
reader -frU run.sock PLUGIN
reader -Urun.sock -fr PLUGIN
reader -U run.sock --readonly PLUGIN
reader -U run.sock --read-only PLUGIN
reader -U run.sock --re PLUGIN
reader -U run.sock PLUGIN --filter=log --readon logfile=/dev/null
reader --exit-with-parent -r --foreground --pidfile pid --unix run.sock --threads 16 PLUGIN
reader -U run.sock --filter=cow PLUGIN
reader -U run.sock --filter cow PLUGIN
reader -U run.sock --filter=log --filt=cow PLUGIN logfile=/dev/null
reader -U run.sock PLUGIN write=off
reader -U run.sock --run true -r -- PLUGIN
writer -U run.sock PLUGIN
writer --exit-with-parent --foreground --pidfile pid --unix run.sock --threads 16 PLUGIN
writer -U run.sock -e -r PLUGIN
writer -Ur.sock PLUGIN
writer -U run.sock -fPr PLUGIN
writer -U run.sock --filter=log PLUGIN logfile=cow
writer -U run.sock --filter=log --run true -- PLUGIN logfile=-r
writer -U run.sock PLUGIN write=on -r
writer -U run.sock --filter=cow PLUGIN write=on
END
}

@test "a filter given as a file" {
    local filters
    filters=$(nbdkit --dump-config | sed -n 's/^filterdir=//p')
    qemu-img create -q -f qcow2 disk.qcow2 1M
    hold_for_reading disk.qcow2
    [ "$(starts_as -U run.sock --filter="$filters/nbdkit-cow-filter.so" \
        "$plugin" disk.qcow2 --run true)" = reader ]
    [ "$(starts_as -U run.sock --filter="$filters/nbdkit-nozero-filter.so" \
        "$plugin" disk.qcow2 --run true)" = writer ]
}

@test "by default clients can write" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    start_nbdkit disk.qcow2
    writes "$uri"
    stop_nbdkit
    [ ! -s "$server_stderr" ]
    qemu-io -f qcow2 -c 'read -q -P 7 0 512' disk.qcow2
}

@test "write=off: clients can't write, and that needs no warning" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    start_nbdkit disk.qcow2 write=off
    nbdinfo --is read-only "$uri"
    stop_nbdkit
    [ ! -s "$server_stderr" ]
    refuses_to_start 'could not .*boolean' disk.qcow2 write=perhaps
}

@test "write=on with -r is read-only, write=auto is the default" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    start_nbdkit -r disk.qcow2 write=on
    nbdinfo --is read-only "$uri"
    stop_nbdkit
    start_nbdkit disk.qcow2 write=auto
    writes "$uri"
    stop_nbdkit
}

# A value that looks like an option.
@test "a command line that is misread gives one warning and a way out" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    start_nbdkit --exportname --read disk.qcow2
    nbdinfo --is read-only "$uri"
    nbdinfo --is read-only "$uri"
    stop_nbdkit
    [ "$(grep -c . "$server_stderr")" -eq 1 ]
    grep 'warning: disk.qcow2: .*served read-only; use write=on' \
        "$server_stderr"
    start_nbdkit --exportname --read disk.qcow2 write=on
    writes "$uri"
    stop_nbdkit
    [ ! -s "$server_stderr" ]
}

@test "snapshot=: nothing can be written, so the locks are a reader's" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-img snapshot -c s disk.qcow2
    hold_for_reading disk.qcow2
    start_nbdkit disk.qcow2 snapshot=s
    nbdinfo --is read-only "$uri"
    nbdinfo --is read-only "nbd+unix:///s?socket=$sock"
    stop_nbdkit
    [ ! -s "$server_stderr" ]
    refuses_to_start "snapshot=s: .*write=on can't" disk.qcow2 snapshot=s \
        write=on
}

@test "snapshots beside a disk that is written to stay as they are" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-img snapshot -c s disk.qcow2
    start_nbdkit disk.qcow2
    nbdinfo --is read-only "nbd+unix:///s?socket=$sock"
    writes "$uri"
    qemu-io -r -f raw -c 'read -q -P 0 0 1M' "nbd+unix:///s?socket=$sock"
    stop_nbdkit
    qemu-img check -q disk.qcow2
}

# ---- one base, many servers -----------------------------------------------

@test "servers with -r and QEMU's readers share an image" {
    head -c 3M /dev/urandom > disk.raw
    qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
    hold_for_reading disk.qcow2
    start_nbdkit -r disk.qcow2
    start_nbdkit disk.qcow2 write=off
    start_nbdkit --filter=cow disk.qcow2
    assert_same_content "$uri" disk.raw
    qemu-img convert -f qcow2 -O raw disk.qcow2 copy.raw
    cmp copy.raw disk.raw
    stop_nbdkit
    stop_nbdkit
    stop_nbdkit

    # A writer keeps all of them out.
    release
    hold_for_writing disk.qcow2
    for words in -r write=off --filter=cow; do
        refuses_to_start 'shared "write" lock' disk.qcow2 "$words"
    done
}

@test "two temporary copies of one base at the same time" {
    local base copy1 copy2
    head -c 3M /dev/urandom > base.raw
    qemu-img convert -f raw -O qcow2 base.raw base.qcow2
    base=$(sha256sum base.qcow2)
    start_nbdkit --filter=cow base.qcow2
    copy1=$uri
    start_nbdkit --filter=cow base.qcow2
    copy2=$uri
    qemu-io -f raw -c 'write -q -P 1 1M 1M' "$copy1"
    qemu-io -f raw -c 'write -q -P 2 0 2M' "$copy2"
    qemu-io -f raw -c 'read -q -P 1 1M 1M' "$copy1"
    qemu-io -f raw -c 'read -q -P 2 0 2M' "$copy2"
    cmp -n 1048576 <(nbdcopy "$copy1" -) base.raw
    stop_nbdkit
    stop_nbdkit
    [ "$(sha256sum base.qcow2)" = "$base" ]
}

# ---- files that can't be written ------------------------------------------

# start_powerless ARGS: as start_nbdkit, but file modes count for root, too.
start_powerless ()
{
    local wrapper=
    [ "$(id -u)" -ne 0 ] || wrapper="setpriv --bounding-set -dac_override"
    TEST_WRAPPER=$wrapper start_nbdkit "$@"
}

@test "an image that may not be written is read-only, with a warning" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    chmod 444 disk.qcow2
    hold_for_reading disk.qcow2
    for words in '' write=on; do
        # shellcheck disable=SC2086
        start_powerless disk.qcow2 $words
        nbdinfo --is read-only "$uri"
        stop_nbdkit
        [ "$(cat "$server_stderr")" = "nbdkit: error: warning: disk.qcow2: \
Permission denied; the image is served read-only" ]
    done
    start_powerless -r disk.qcow2
    stop_nbdkit
    [ ! -s "$server_stderr" ]
}

@test "the same goes for its data file" {
    qemu-img create -q -f qcow2 -o data_file=disk.data disk.qcow2 1M
    chmod 444 disk.data
    for words in data-file=disk.data allow-dir=.; do
        # shellcheck disable=SC2086
        start_powerless disk.qcow2 $words
        nbdinfo --is read-only "$uri"
        # The locks are a reader's.
        qemu-img convert -f qcow2 -O raw disk.qcow2 copy.raw
        stop_nbdkit
        cat "$server_stderr"
        [ "$(grep -c . "$server_stderr")" -eq 1 ]
        grep 'disk.qcow2: data file: disk.data: Permission denied; .*read-only' \
            "$server_stderr"
    done
    # What is not allowed at all is another matter.
    refuses_to_start 'add data-file=disk.data or allow-dir=' disk.qcow2
    [ "$(grep -c . <<< "$output")" -eq 1 ]
}

@test "a backing file need not be writable" {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
    chmod 444 base.qcow2
    start_powerless disk.qcow2
    writes "$uri"
    stop_nbdkit
    [ ! -s "$server_stderr" ]
}

@test "an image that is marked corrupt is read-only, with a warning" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    # The last byte of incompatible_features: the corrupt bit.
    printf '\002' | dd of=disk.qcow2 bs=1 seek=79 conv=notrunc status=none
    start_nbdkit disk.qcow2
    nbdinfo --is read-only "$uri"
    stop_nbdkit
    [ "$(grep -c . "$server_stderr")" -eq 1 ]
    grep 'warning: disk.qcow2: .*corrupt.*served read-only' "$server_stderr"
}
