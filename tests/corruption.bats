#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
#
# Damaged images that clients write to: nothing is made worse, the image is
# marked corrupt, and QEMU says the same of a twin.  Each structure and each
# kind of entry: tests/test-guard.c.

load lib

# patch FILE OFFSET HEX: overwrites bytes.
patch ()
{
    # shellcheck disable=SC2059
    printf "$(sed 's/../\\x&/g' <<< "$3")" |
        dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# number FILE OFFSET: the 8-byte number there.
number ()
{
    echo $((16#$(od -An -v -tx1 -j "$2" -N 8 "$1" | tr -d ' \n')))
}

# entry NUMBER: an 8-byte entry that owns what is at this offset.
entry ()
{
    printf '8%015x' "$1"
}

# make_image [OPTION ...]: disk.qcow2, 8 MiB with data in the first 512 KiB, and
# a snapshot that has become different from it.  Sets header, l1, l2, table,
# block, snapshots, snapshot_l1 to where these are.
make_image ()
{
    rm -f disk.qcow2
    qemu-img create -q -f qcow2 "$@" disk.qcow2 8M
    qemu-io -f qcow2 -c 'write -q -P 1 0 512k' disk.qcow2
    qemu-img snapshot -c before disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 2 0 512k' disk.qcow2
    header=0
    l1=$(number disk.qcow2 40)
    l2=$(($(number disk.qcow2 "$l1") & 0xfffffffffffe00))
    table=$(number disk.qcow2 48)
    block=$(number disk.qcow2 "$table")
    snapshots=$(number disk.qcow2 64)
    snapshot_l1=$(number disk.qcow2 "$snapshots")
}

# is_marked FILE: whether the corrupt bit is set.
is_marked ()
{
    (($(number "$1" 72) & 2))
}

# try_qemu FILE OPERATION: QEMU's own result on a twin must be an error, and
# the corrupt bit, where there is one.
try_qemu ()
{
    local status=0
    cp disk.qcow2 twin.qcow2
    qemu-io -f qcow2 -c "$1" twin.qcow2 > twin.log 2>&1 || status=$?
    cat twin.log
    [ $status -ne 0 ] || grep -q 'Input/output error' twin.log
    [ "$version" = 2 ] || is_marked twin.qcow2
}

# nbd CODE: runs Python with `h' connected to the server.
nbd ()
{
    timeout 60 "$PYTHON" -c "import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
$1" "$uri"
}

# client_meets_corruption OFFSET [read]: reads or writes there, which must fail,
# and then nothing may be written; but the cluster at 0 can be read.
client_meets_corruption ()
{
    timeout 60 "$PYTHON" - "$uri" "$1" "${2:-}" <<'END'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
offset = int(sys.argv[2])
def refused(what, f):
    try:
        f()
    except nbd.Error as e:
        if e.errnum == errno.EIO:
            return
        sys.exit("%s: %s" % (what, e))
    sys.exit("%s was not refused" % what)
before = h.pread(65536, 0)
assert before == b"\2" * 65536
if sys.argv[3] == "read":
    refused("the read", lambda: h.pread(512, offset))
refused("the write", lambda: h.pwrite(b"x" * 4096, offset))
refused("a write elsewhere", lambda: h.pwrite(b"x" * 4096, 4 << 20))
refused("a write in place", lambda: h.pwrite(b"x" * 512, 0))
refused("a zero", lambda: h.zero(65536, 65536))
refused("a trim", lambda: h.trim(65536, 65536))
refused("a flush", lambda: h.flush())
assert h.pread(65536, 0) == before
h.shutdown()
END
}

# refuses_writes OFFSET: what happens to disk.qcow2, damaged, when a client
# writes there.
refuses_writes ()
{
    local features=72-95
    cp disk.qcow2 before.qcow2
    start_nbdkit disk.qcow2 write=on
    client_meets_corruption "$1"
    stop_nbdkit
    cat "$server_stderr"
    [ "$(grep -c 'further writes are refused' "$server_stderr")" -eq 1 ]
    [ "$(stat -c %s disk.qcow2)" -eq "$(stat -c %s before.qcow2)" ]
    if [ "$version" = 2 ]; then
        grep -q 'disk.qcow2: the image is corrupt: ' "$server_stderr"
        cmp disk.qcow2 before.qcow2
        return
    fi
    grep -q 'disk.qcow2: marking image as corrupt: .*qcow2-img check -r all' \
        "$server_stderr"
    is_marked disk.qcow2
    cmp -n 72 disk.qcow2 before.qcow2
    cmp -i 96 disk.qcow2 before.qcow2
    qemu-img info disk.qcow2 | grep -q 'corrupt: true'

    # From then on it is read-only, here as in QEMU.
    start_nbdkit disk.qcow2 write=on
    grep -q 'disk.qcow2: the image is marked corrupt.*read-only' \
        "$server_stderr"
    nbdinfo --is readonly "$uri"
    nbd 'assert h.pread(65536, 0) == b"\2" * 65536'
    stop_nbdkit
    run ! qemu-io -f qcow2 -c 'write 0 64k' disk.qcow2
}

@test "an entry names the header, or another structure" {
    local version where
    for version in 3 2; do
        for where in l1 l2 table block snapshots snapshot_l1; do
            [ $version = 3 ] || [ $where = l1 ] || continue
            echo "version $version, $where"
            make_image -o compat=$([ $version = 2 ] && echo 0.10 || echo 1.1)
            patch disk.qcow2 $((l2 + 8)) "$(entry "${!where}")"
            try_qemu 'write -P 7 64k 4k'
            refuses_writes 65536
        done
    done
}

@test "a compressed cluster is in the header" {
    version=3
    make_image
    patch disk.qcow2 $((l2 + 8)) 4000000000000000
    refuses_writes 65536
}

@test "an L1 entry leads astray" {
    local where
    version=3
    for where in $((0x200)) l1 table block; do
        echo "$where"
        make_image -o cluster_size=4k
        # What 2 MiB and more map to.
        patch disk.qcow2 $((l1 + 8)) "$(entry $((where == 0x200 ? l2 + 512 :
                                                 where)))"
        try_qemu 'write -P 7 2M 4k'
        refuses_writes 2097152
    done
}

@test "two L1 entries name one L2 table" {
    version=3
    make_image -o cluster_size=4k
    patch disk.qcow2 $((l1 + 8)) "$(entry "$l2")"
    refuses_writes 2097152
}

@test "metadata at the end of the file with refcount 0" {
    version=3
    # The next cluster at the end would be the first to be handed out.
    qemu-img create -q -f qcow2 disk.qcow2 1G
    qemu-io -f qcow2 -c 'write -q -P 2 0 192k' disk.qcow2
    l1=$(number disk.qcow2 40)
    end=$((($(stat -c %s disk.qcow2) + 65535) / 65536 * 65536))
    patch disk.qcow2 $((l1 + 8)) "$(entry "$end")"
    try_qemu 'write -P 7 1M 4k'
    refuses_writes 1048576
}

@test "a read meets corruption" {
    version=3
    make_image
    patch disk.qcow2 $((l2 + 8)) "$(entry $((l2 + 512)))"
    try_qemu 'read 64k 4k'
    cp disk.qcow2 before.qcow2
    start_nbdkit disk.qcow2 write=on
    client_meets_corruption 65536 read
    # Who comes later is told at once.
    nbdinfo --is read-only "$uri"
    stop_nbdkit
    is_marked disk.qcow2
    cmp -i 96 disk.qcow2 before.qcow2

    # Opened for reading only, nothing is marked.
    cp before.qcow2 disk.qcow2
    start_nbdkit -r disk.qcow2
    run ! nbd 'h.pread(512, 65536)'
    stop_nbdkit
    grep -q 'disk.qcow2: the image is corrupt: guest offset 0x10000: data' \
        "$server_stderr"
    cmp disk.qcow2 before.qcow2
}

@test "qemu-img check -r all makes the image writable again" {
    version=3
    make_image
    patch disk.qcow2 $((l2 + 8)) "$(entry "$table")"
    refuses_writes 65536
    qemu-img check -q -r all disk.qcow2 || :
    qemu-img check disk.qcow2
    start_nbdkit disk.qcow2 write=on
    nbd 'h.pwrite(b"y" * 65536, 1 << 20)
h.flush()
assert h.pread(65536, 0) == b"\2" * 65536'
    stop_nbdkit
    qemu-img check disk.qcow2
}
