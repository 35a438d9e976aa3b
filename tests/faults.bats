# SPDX-License-Identifier: BSD-3-Clause
#
# What a client sees when the files can't be read: EIO, never zeros; and the
# server goes on.

load lib

# reads_survive ARGS: serves with ARGS while reads go wrong; content.raw is
# what must come out.  Requests must fail when reads fail, and must not when
# these just come short.
reads_survive ()
{
    head -c 8 /dev/zero > control
    TEST_PRELOAD=$BUILD_DIR/tests/preload-read-fault.so \
    READ_FAULT_CONTROL=$PWD/control \
        start_nbdkit -r "$@"
    "$PYTHON" "$TOP/tests/nbd-read-faults.py" "$uri" content.raw control \
        > result
    # EIO, no bytes once, half once, no bytes from then on
    mapfile -t lines < result
    [ "${#lines[@]}" -eq 4 ]
    [[ ${lines[0]} != *failed=0 ]]
    [[ ${lines[0]} != reads=0* ]]
    [[ ${lines[1]} == *failed=0 ]]
    [[ ${lines[2]} == *failed=0 ]]
    [[ ${lines[3]} != *failed=0 ]]
    grep -q "Input/output error" "$server_stderr"

    # All is well again.
    assert_same_content "$uri" content.raw
    stop_nbdkit
}

@test "failing reads of a standard image" {
    qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 300k
    qemu-io -f qcow2 -c 'write -P 1 0 100k' -c 'write -z 20k 30k' \
        -c 'write -P 3 150k 100k' disk.qcow2
    qemu_raw disk.qcow2 content.raw
    reads_survive disk.qcow2 cache-size=1
}

@test "failing reads of a compressed image" {
    qemu-img create -q -f raw source.raw 500k
    qemu-io -f raw -c 'write -P 1 0 100k' -c 'write -P 2 170k 300k' source.raw
    for type in zlib zstd; do
        qemu-img convert -c -f raw -O qcow2 \
            -o cluster_size=16k,compression_type=$type source.raw disk.qcow2
        qemu_raw disk.qcow2 content.raw
        reads_survive disk.qcow2 compressed-cache-size=0
    done
}

@test "failing reads of an external data file" {
    qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=data.raw \
        disk.qcow2 400k
    qemu-io -f qcow2 -c 'write -P 1 0 100k' -c 'write -z 20k 30k' \
        -c 'write -P 3 150k 100k' disk.qcow2
    qemu_raw disk.qcow2 content.raw
    reads_survive disk.qcow2 data-file=data.raw
}

@test "failing reads of backing files" {
    qemu-img create -q -f raw base.raw 300k
    qemu-io -f raw -c 'write -P 1 0 300k' base.raw
    qemu-img create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw \
        mid.qcow2 350k
    qemu-io -f qcow2 -c 'write -P 2 30k 60k' -c 'write -c -P 4 200k 8k' \
        -c 'write -z 240k 30k' mid.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=512 -b mid.qcow2 -F qcow2 \
        top.qcow2 400k
    qemu-io -f qcow2 -c 'write -P 3 70k 60k' -c 'write -P 5 250k 3k' top.qcow2
    qemu_raw top.qcow2 content.raw
    reads_survive top.qcow2 cache-size=1 compressed-cache-size=0
}
