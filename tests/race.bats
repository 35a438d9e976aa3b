# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2086
#
# Requests that fight over a few clusters damage no others: see nbd-race.py for
# what is done and looked at.
#
#   RACE_SECONDS    how long for each kind of image (default 4)
#   RACE_CLUSTERS   innocent clusters, for each of these seconds (default 90)
#   RACE_SEED       default 1

load lib

# race CLUSTER OPTIONS [PARAM ...]: a race on an empty image with clusters of
# CLUSTER bytes, made with qemu-img's OPTIONS and served with PARAMs.
race ()
{
    local cluster=$1 options=$2 seconds=${RACE_SECONDS:-4} innocents
    shift 2
    innocents=$((seconds * ${RACE_CLUSTERS:-90}))

    qemu-img create -q -f qcow2 -o "cluster_size=$cluster$options" disk.qcow2 \
        $(((innocents + 32) * cluster))
    ${before_race:-true}
    start_nbdkit disk.qcow2 "$@"
    nbd_race run "$uri" state "$cluster" "$seconds" "$innocents" \
        "${RACE_SEED:-1}"
    stop_nbdkit

    # A clean close leaks nothing.
    qemu-img check -f qcow2 disk.qcow2
    start_nbdkit -r disk.qcow2 "$@"
    nbd_race verify "$uri" state
    stop_nbdkit
}

nbd_race ()
{
    "$PYTHON" "$BATS_TEST_DIRNAME/nbd-race.py" "$@"
}

@test "64 KiB clusters, freed space goes back to the host" {
    race 65536 '' discard=unmap
}

@test "version 2, 4 KiB clusters" {
    race 4096 ,compat=0.10 discard=ignore
}

@test "512-byte clusters, a cache of a few slices" {
    race 512 ,refcount_bits=1 cache-size=64k
}

@test "extended L2 entries" {
    race 131072 ,extended_l2=on discard=unmap
}

@test "clusters that are preallocated" {
    race 65536 ,preallocation=metadata
}

@test "an external data file" {
    race 65536 ,data_file=data data-file=data discard=unmap
}

# Nothing is written to the clusters that the snapshot has but zeros.
take_snapshot ()
{
    qemu-io -f qcow2 -c "write -q -P 0 0 2M" disk.qcow2
    qemu-img snapshot -c before disk.qcow2
}

@test "a snapshot shares the hammered clusters" {
    before_race=take_snapshot
    race 65536 '' discard=unmap
    qemu-img convert -f qcow2 -l before disk.qcow2 before.raw
    run -0 cmp -n $((2 << 20)) before.raw /dev/zero
}
