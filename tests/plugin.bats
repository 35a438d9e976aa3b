# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# The plugin beside the images: what nbdkit and NBD clients see of it.

load lib
load make-image

# Runs nbdkit with the plugin and ARGS behind it, not as a server; $output.
run_nbdkit ()
{
    run -0 env LD_PRELOAD="${NBDKIT_PRELOAD:-}" \
        ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" nbdkit "$@"
}

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

# Makes a block device of a file: $device.  OPTIONs are losetup's.
attach ()
{
    device=$(losetup --find --show "${2:---read-only}" "$1")
    loops+=("$device")
}

# A small disk with something in it, and what QEMU reads.
small_disk ()
{
    make_image disk.qcow2 seed=301 "$@"
    qemu_raw disk.qcow2 qemu.raw
}

# Waits until the file or socket exists.
wait_for ()
{
    for _ in {1..400}; do
        [ ! -e "$1" ] || return 0
        sleep 0.05
    done
    fail "$1 did not appear"
}

@test "--dump-plugin tells version, features and libraries" {
    local key
    run_nbdkit --dump-plugin "$plugin"
    for key in name=qcow2 thread_model=parallel magic_config_key=file \
        has_extents=1 has_cache=1 has_list_exports=1 has_block_size=1 \
        max_thread_model=parallel has_export_description=1; do
        grep -Fx "$key" <<< "$output"
    done
    grep -E '^version=[0-9]+\.[0-9]+\.[0-9]+$' <<< "$output"
    grep -E '^qcow2_features=read,write,snapshots,' <<< "$output"
    grep -E '^qcow2_.*(inflate|deflate|zlib)' <<< "$output"
    grep -E '^qcow2_.*zstd' <<< "$output"
    # It exports nothing but what nbdkit looks for.
    [ "$(nm -D --defined-only "$plugin" | awk '$2 == "T" { print $3 }' |
        grep -cv '^plugin_init$\|^_init$\|^_fini$\|^__[at]san\|^__ubsan')" \
        -eq 0 ]
}

@test "--help shows each parameter" {
    local name
    run_nbdkit "$plugin" --help
    for name in file= snapshot= backing=none backing-format= data-file= \
        allow-dir= max-chain= cache-size= compressed-cache-size= lock= \
        write= discard= lazy-refcounts= cache= detect-zeroes= create= \
        create-options=; do
        grep -F -- "$name" <<< "$output"
    done
    # ... and says what was built, as --dump-plugin does.
    cat > help <<< "$output"
    run_nbdkit "$plugin" --dump-plugin
    grep -Fx "Version $(sed -n 's/^version=//p' <<< "$output"), built with:" \
        help
    for name in qcow2_features= qcow2_inflate= qcow2_zstd=; do
        [ "$(grep "^$name" help)" = "$(grep "^$name" <<< "$output")" ]
    done
    [ "$(awk '{ print length }' help | sort -n | tail -1)" -le 80 ]
}

@test "parameters that are missing or wrong" {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    refuses_to_start 'file=DISK.qcow2 parameter is needed'
    refuses_to_start 'unknown parameter "fiel"' fiel=disk.qcow2
    refuses_to_start 'given twice' disk.qcow2 file=other.qcow2
    refuses_to_start 'could not parse' disk.qcow2 cache-size=lots
    refuses_to_start 'cannot be negative' disk.qcow2 compressed-cache-size=-1
    refuses_to_start 'cache-size=lots: must be a size' disk.qcow2 cache-size=lots
    refuses_to_start 'write=maybe: must be auto, on or off' disk.qcow2 write=maybe
    refuses_to_start 'lock=maybe: must be on or off' disk.qcow2 lock=maybe
    refuses_to_start 'lazy-refcounts=2: must be on or off' disk.qcow2 \
        lazy-refcounts=2
    refuses_to_start 'could not .*boolean' disk.qcow2 lock=perhaps
    refuses_to_start 'max-chain' disk.qcow2 max-chain=many
    refuses_to_start 'no external data file' disk.qcow2 data-file=disk.qcow2
}

@test "files that are no images fail on the command line" {
    refuses_to_start 'absent.qcow2: No such file' absent.qcow2
    mkdir directory
    refuses_to_start 'directory: (not a regular file|Is a directory)' directory
    mkfifo fifo
    refuses_to_start 'fifo: not a regular file' fifo
    refuses_to_start '/dev/null: not a regular file' /dev/null
    : > empty
    refuses_to_start 'empty: ' empty
    head -c 100000 /dev/urandom > noise
    refuses_to_start 'noise: ' noise
    truncate -s 1M zeros
    refuses_to_start 'zeros: ' zeros
    qemu-img create -q -f qcow disk.qcow 1M
    refuses_to_start 'version 1|qcow' disk.qcow
    qemu-img create -q -f qcow2 disk.qcow2 1M
    truncate -s 100 disk.qcow2
    refuses_to_start 'disk.qcow2: ' disk.qcow2
    # One message says it all.
    [ "$(grep -c . <<< "$output")" -eq 1 ]
}

@test "what a connection can do" {
    local cluster readonly what changes
    while read -r cluster preferred; do
        qemu-img create -q -f qcow2 -o cluster_size="$cluster" disk.qcow2 1M
        for readonly in "" -r; do
            # shellcheck disable=SC2086
            start_nbdkit $readonly disk.qcow2
            nbdinfo --json "$uri" > info.json
            cat info.json
            what=$(jq -c '.exports[0] | [."block_size_minimum",
                ."block_size_preferred", ."block_size_maximum",
                ."can_multi_conn", ."can_cache", ."can_df", ."contexts"]' \
                info.json)
            [ "$what" = "[1,$preferred,33554432,true,true,true,\
[\"base:allocation\"]]" ]
            changes=$(jq -c '.exports[0] | [(."is_read_only" | not),
                ."can_flush", ."can_fua", ."can_trim", ."can_zero",
                ."can_fast_zero"] | unique' info.json)
            [ "$changes" = "[$([ "$readonly" ] && echo false || echo true)]" ]
            stop_nbdkit
            [ ! -s "$server_stderr" ]
        done
    done <<- 'END'
	512 4096
	4k 4096
	64k 65536
	2M 2097152
	END
}

@test "writing is refused, and the image stays as it was" {
    local before
    small_disk
    before=$(sha256sum disk.qcow2)
    start_nbdkit disk.qcow2 write=off
    "$PYTHON" - "$uri" <<'END'
import sys, nbd

h = nbd.NBD ()
h.set_strict_mode (0)
h.connect_uri (sys.argv[1])
for request in (lambda: h.pwrite (b"x" * 512, 0), lambda: h.zero (512, 0),
                lambda: h.trim (512, 0)):
    try:
        request ()
    except nbd.Error as error:
        print (error)
    else:
        sys.exit ("was not refused")
assert len (h.pread (512, 0)) == 512
END
    stop_nbdkit
    [ "$(sha256sum disk.qcow2)" = "$before" ]
}

@test "requests of all sizes, aligned or not" {
    make_image disk.qcow2 size=100000256 compression=zlib backing=raw seed=302
    qemu_raw disk.qcow2 qemu.raw
    start_nbdkit disk.qcow2
    "$PYTHON" - "$uri" qemu.raw <<'END'
import sys, nbd

h = nbd.NBD ()
h.set_strict_mode (0)
h.connect_uri (sys.argv[1])
raw = open (sys.argv[2], "rb").read ()
size = len (raw)
M = 1 << 20
for count in (1, 511, 512, 513, 65535, 65537, M + 1, 32 * M, 32 * M + 1,
              64 * M):
    for offset in (0, 1, 65535, 2 * M - 1, size - count):
        assert h.pread (count, offset) == raw[offset:offset + count], \
            (count, offset)
for count, offset in ((1, size), (2, size - 1), (512, size + 512),
                      (64 * M + 1, 0)):
    try:
        h.pread (count, offset)
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "ENOMEM", "ERANGE", None), error
    else:
        sys.exit ("%d bytes at %d were read" % (count, offset))
# After a refused request the connection goes on.
if h.aio_is_ready ():
    assert h.pread (1, 0) == raw[:1]
END
    stop_nbdkit
}

@test "prefetching" {
    small_disk cluster=4096 compression=zstd backing=qcow2
    start_nbdkit disk.qcow2
    "$PYTHON" - "$uri" qemu.raw <<'END'
import sys, nbd

h = nbd.NBD ()
h.connect_uri (sys.argv[1])
raw = open (sys.argv[2], "rb").read ()
assert h.can_cache ()
size = len (raw)
for count, offset in ((size, 0), (1, 0), (1, size - 1), (12345, 67890),
                      (size - 1, 1)):
    h.cache (count, offset)
    assert h.pread (count, offset) == raw[offset:offset + count]
END
    stop_nbdkit

    # Beyond what one request may read, and where there is nothing.
    qemu-img create -q -f qcow2 disk.qcow2 20G
    start_nbdkit disk.qcow2
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
h.cache ((1 << 32) - 1, 1)' "$uri"
    stop_nbdkit
}

# What was prefetched is answered without reading the file again.
@test "prefetched compressed clusters are decompressed already" {
    local tracer
    pattern_file pattern1 3000320
    qemu-img convert -t unsafe -c -f raw -O qcow2 pattern1 disk.qcow2
    start_nbdkit disk.qcow2
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
h.cache (h.get_size (), 0)' "$uri"
    strace -f -q -e trace=pread64 -o trace -p "$server_pid" 3>&- &
    tracer=$!
    for _ in {1..100}; do
        [ "$(awk '/^TracerPid/ { print $2 }' "/proc/$server_pid/status")" = 0 ] \
            || break
        sleep 0.05
    done
    assert_same_content "$uri" pattern1
    kill $tracer
    wait $tracer || :
    [ "$(grep -c 'pread64(' trace)" -eq 0 ]
    stop_nbdkit
}

# ---- locks ----------------------------------------------------------------

# Runs qemu-io -f qcow2 ARGS and keeps it open until $qemu_stop is called.
qemu_start ()
{
    coproc QEMU_IO { exec qemu-io -f qcow2 "$@" 2>&1 3>&-; }
    # It has opened the image when it answers.
    echo 'length' >&"${QEMU_IO[1]}"
    local line
    until [[ ${line:-} == *MiB* || ${line:-} == *length* ]]; do
        read -r -t 20 -u "${QEMU_IO[0]}" line || fail "qemu-io: ${line:-}"
    done
}

qemu_stop ()
{
    local pid=$QEMU_IO_PID
    echo quit >&"${QEMU_IO[1]}"
    wait "$pid" || :
}

@test "an image that QEMU writes to is refused with one clear message" {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
    qemu_start disk.qcow2
    refuses_to_start 'Failed to get .*write.* lock.*disk.qcow2' disk.qcow2
    [ "$(grep -c . <<< "$output")" -eq 1 ]
    # lock=off is for those who know better.
    start_nbdkit disk.qcow2 lock=off
    [ "$(nbdinfo --size "$uri")" -eq $((1 << 20)) ]
    stop_nbdkit
    # Its backing file is only read.
    refuses_to_start 'Failed to get "write" lock.*write=off opens it' base.qcow2
    start_nbdkit -r base.qcow2
    stop_nbdkit
    qemu_stop

    qemu_start base.qcow2
    refuses_to_start 'Failed to get .*write.* lock.*base.qcow2' disk.qcow2
    start_nbdkit disk.qcow2 backing=none
    stop_nbdkit
    qemu_stop

    # Readers go together.
    qemu_start -r disk.qcow2
    start_nbdkit -r disk.qcow2
    start_nbdkit -r disk.qcow2
    refuses_to_start 'Failed to get "write" lock' disk.qcow2
    stop_nbdkit
    stop_nbdkit
    qemu_stop
}

@test "QEMU does not write to what is served with -r, but reads it" {
    local file
    make_image disk.qcow2 backing=qcow2 seed=311
    make_image data.qcow2 data=on seed=312
    qemu_raw disk.qcow2 qemu.raw
    start_nbdkit -r disk.qcow2
    start_nbdkit -r data.qcow2 data-file=data.qcow2.data
    for file in disk.qcow2 disk.qcow2.base data.qcow2; do
        run qemu-io -f qcow2 -c 'write 0 512' "$file"
        [[ $output == *'Failed to get'*lock* ]]
        run ! qemu-img snapshot -c s "$file"
    done
    run qemu-io -f raw -c 'write 0 512' data.qcow2.data
    [[ $output == *'Failed to get'*lock* ]]

    qemu-img info -f qcow2 disk.qcow2
    qemu-img convert -f qcow2 -O raw disk.qcow2 again.raw
    cmp qemu.raw again.raw
    qemu-img check -q -f qcow2 disk.qcow2
    stop_nbdkit
    stop_nbdkit

    # Afterwards it may again.
    qemu_io -f qcow2 -c 'write -q 0 512' disk.qcow2
    qemu_io -f qcow2 -c 'write -q 0 512' disk.qcow2.base

    start_nbdkit disk.qcow2 lock=off
    qemu_io -f qcow2 -c 'write -q 0 512' disk.qcow2
    stop_nbdkit
}

@test "QEMU keeps away from what is served for writing, not from its backing" {
    local file
    make_image disk.qcow2 backing=qcow2 seed=313
    make_image data.qcow2 data=on seed=314
    start_nbdkit disk.qcow2
    start_nbdkit data.qcow2 data-file=data.qcow2.data
    for file in disk.qcow2 data.qcow2; do
        run ! qemu-img convert -f qcow2 -O raw "$file" copy.raw
        [[ $output == *'Failed to get shared "write" lock'* ]]
    done
    run ! qemu-img convert -f raw -O raw data.qcow2.data copy.raw
    [[ $output == *'Failed to get shared "write" lock'* ]]

    qemu-img convert -f qcow2 -O raw disk.qcow2.base copy.raw
    run ! qemu-img snapshot -c s disk.qcow2.base
    stop_nbdkit
    stop_nbdkit
    qemu-img convert -f qcow2 -O raw disk.qcow2 copy.raw
}

# ---- starting -------------------------------------------------------------

# Started as a daemon, nbdkit changes its directory to /.
@test "relative names when nbdkit goes into the background" {
    mkdir dir
    (cd dir && make_image disk.qcow2 backing=qcow2 snapshots=1 seed=321 &&
        qemu_raw disk.qcow2 ../qemu.raw)
    env LD_PRELOAD="${NBDKIT_PRELOAD:-}" TSAN_OPTIONS=die_after_fork=0 \
        nbdkit -U "$TEST_DIR/sock" -P "$TEST_DIR/pid" "$plugin" \
        dir/disk.qcow2 allow-dir=dir 3>&- 4>&-
    wait_for pid
    server_pid=$(cat pid)
    [ "$(readlink "/proc/$server_pid/cwd")" = / ]
    # The locks have survived the fork.
    run qemu-io -f qcow2 -c 'write 0 512' dir/disk.qcow2
    [[ $output == *'Failed to get'*lock* ]]
    assert_same_content "nbd+unix:///?socket=$TEST_DIR/sock" qemu.raw
    nbdinfo "nbd+unix:///s1?socket=$TEST_DIR/sock"
    kill "$server_pid"
    for _ in {1..200}; do
        kill -0 "$server_pid" 2> /dev/null || break
        sleep 0.05
    done
    run ! kill -0 "$server_pid"
}

# What is preloaded into nbdkit is not meant for the command it runs.
@test "--run, and a socket passed by systemd's rules" {
    small_disk
    # shellcheck disable=SC2016
    run_nbdkit -U - "$plugin" disk.qcow2 \
        --run 'unset LD_PRELOAD; nbdcopy "$uri" run.raw'
    cmp run.raw qemu.raw
    run -0 nbdcopy -- [ env LD_PRELOAD="${NBDKIT_PRELOAD:-}" \
        nbdkit "$plugin" disk.qcow2 ] copy.raw
    cmp copy.raw qemu.raw
}

@test "images on block devices" {
    local device
    small_disk snapshots=1 compression=zlib cluster=4096
    # A device is larger than the image on it.
    truncate -s 64M disk.qcow2
    attach disk.qcow2
    start_nbdkit "$device"
    nbdinfo --is read-only "$uri"
    assert_same_content "$uri" qemu.raw
    qemu_raw disk.qcow2 s1.raw -l snapshot.id=1
    assert_same_content "nbd+unix:///s1?socket=$sock" s1.raw
    stop_nbdkit
    grep "warning: $device: Read-only .*; the image is served read-only" \
        "$server_stderr"
}

# In a mount namespace of the server's own.
@test "images on a filesystem that is mounted read-only" {
    small_disk
    mkdir mounted
    mv disk.qcow2 mounted
    cat > mount-and-run <<'END'
#!/bin/sh
mount --bind mounted mounted && mount -o remount,bind,ro mounted && exec "$@"
END
    chmod +x mount-and-run
    TEST_WRAPPER="unshare --mount ./mount-and-run" \
        start_nbdkit mounted/disk.qcow2
    nbdinfo --is read-only "$uri"
    assert_same_content "$uri" qemu.raw
    stop_nbdkit
    [ "$(grep -c . "$server_stderr")" -eq 1 ]
    grep 'mounted/disk.qcow2: Read-only .*; the image is served read-only' \
        "$server_stderr"
}

# An image on a device has no directory, and a device that an image names is
# not in one.
@test "backing files of and on block devices" {
    local device base
    head -c 3000320 /dev/urandom > base.raw
    attach base.raw
    base=$device
    qemu-img create -q -f qcow2 -b "$base" -F raw disk.qcow2 3000320
    refuses_to_start 'allow-dir=/dev' disk.qcow2
    start_nbdkit disk.qcow2 allow-dir=/dev
    assert_same_content "$uri" base.raw
    stop_nbdkit

    qemu-img create -q -f qcow2 -b "$TEST_DIR/base.raw" -F raw disk.qcow2 3000320
    truncate -s 1M disk.qcow2
    attach disk.qcow2
    refuses_to_start 'allow-dir=' "$device"
    start_nbdkit "$device" allow-dir=.
    assert_same_content "$uri" base.raw
    stop_nbdkit
}

# What was there would be lost, or show on the disk.
@test "create= on block devices that hold nothing" {
    local device
    truncate -s 64M new.raw
    attach new.raw --nooverlap
    start_nbdkit "$device" create=1G
    qemu-io -f raw -c 'write -q -P 7 500M 5M' "$uri"
    stop_nbdkit
    qemu-img check -f qcow2 "$device"
    qemu-io -r -f qcow2 -c 'read -P 7 500M 5M' "$device" | grep 'read 5242880'
    cp new.raw before.raw
    refuses_to_start 'there is something on the device' "$device" create=1M
    cmp new.raw before.raw

    # A filesystem begins further on.
    truncate -s 64M fs.raw
    mke2fs -q -F fs.raw
    attach fs.raw --nooverlap
    cmp -n 1024 "$device" /dev/zero
    cp fs.raw before.raw
    refuses_to_start 'there is something on the device' "$device" \
        create=1M create-options=cluster_size=512
    cmp fs.raw before.raw

    truncate -s 1M small.raw
    attach small.raw --nooverlap
    refuses_to_start 'the device is too small' "$device" create=100T
}

@test "create= on a block device shows nothing of what was there" {
    local device
    truncate -s 1M old.raw
    tr '\0' '\377' < /dev/zero | head -c 63M >> old.raw
    attach old.raw --nooverlap
    cp old.raw before.raw
    refuses_to_start 'preallocation is not possible on a device' "$device" \
        create=1M create-options=preallocation=full
    refuses_to_start 'made anew, this is a device' other.qcow2 \
        create=1M create-options=data_file="$device"
    [ ! -e other.qcow2 ]
    cmp old.raw before.raw
    start_nbdkit "$device" create=40M create-options=cluster_size=512
    nbdcopy "$uri" zeros.raw
    cmp -n 41943040 zeros.raw /dev/zero
    qemu-io -f raw -c 'write -q -P 7 100 30M' "$uri"
    stop_nbdkit
    qemu-img check -f qcow2 "$device"
    qemu-img convert -f qcow2 -O raw "$device" out.raw
    cmp -n 100 out.raw /dev/zero
    cmp -i 31457380 -n 10485660 out.raw /dev/zero
    qemu-io -r -f raw -c 'read -P 7 100 30M' out.raw | grep 'read 31457280'
}

# ---- many clients ---------------------------------------------------------

@test "clients come and go while others read" {
    local i readers=()
    small_disk compression=zlib snapshots=2 cluster=4096
    start_nbdkit -t 4 disk.qcow2 cache-size=64k
    for i in 1 2 3; do
        "$PYTHON" "$BATS_TEST_DIRNAME/nbd-random-reads.py" "$uri" qemu.raw \
            100 4 $i 3>&- &
        readers+=($!)
    done
    for i in {1..20}; do
        nbdinfo --list "$uri" > /dev/null
        nbdinfo --size "nbd+unix:///s$((i % 2 + 1))?socket=$sock" > /dev/null
    done
    for i in "${readers[@]}"; do
        wait "$i"
    done
    stop_nbdkit
}

@test "the server ends while clients are connected" {
    small_disk
    start_nbdkit disk.qcow2
    "$PYTHON" -c 'import sys, nbd
h = nbd.NBD ()
h.connect_uri (sys.argv[1])
h.pread (512, 0)
open ("connected", "w")
try:
    while True:
        h.pread (100000, 0)
except nbd.Error:
    pass' "$uri" 3>&- &
    wait_for connected
    stop_nbdkit
    wait $!
}
