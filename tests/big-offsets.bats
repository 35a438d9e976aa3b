# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# Guest and host offsets past all powers of two where something could break:
# 4 GiB, 2 TiB, 8 TiB, and the largest disks that the format allows.  The files
# are sparse, but some end beyond 12 TiB: ext4 ends at 16 TiB.

load lib
load make-image

K=1024 M=$((1024 * 1024)) G=$((1 << 30)) T=$((1 << 40))

# The places that the tests look at: OFFSET LENGTH BYTE.
declare -a spots

# spot OFFSET LENGTH BYTE: QEMU writes there.
spot ()
{
    qemu-io -t unsafe -f qcow2 -c "write -q -P $3 $1 $2" disk.qcow2
    spots+=("$1" "$2" "$3")
}

# QEMU still reads what it wrote; so the image is one that it understands.
qemu_sees_the_spots ()
{
    local i
    for ((i = 0; i < ${#spots[@]}; i += 3)); do
        echo "read -q -P ${spots[i + 2]} ${spots[i]} ${spots[i + 1]}"
    done > commands
    qemu_io -r -f qcow2 disk.qcow2 < commands
}

serves_the_spots ()
{
    qemu_sees_the_spots
    start_nbdkit -r disk.qcow2 "$@"
    "$PYTHON" "$BATS_TEST_DIRNAME/nbd-spots.py" "$uri" "${spots[@]}"
    stop_nbdkit
}

@test "guest offsets past 4 GiB, 2 TiB and 8 TiB" {
    local cluster
    for cluster in 64k 2M; do
        spots=()
        qemu-img create -q -f qcow2 -o cluster_size=$cluster disk.qcow2 20T
        spot $((4 * G - 5 * K)) $((10 * K)) 1
        spot $((2 * T - 5 * K)) $((10 * K)) 2
        spot $((8 * T - 5 * K)) $((10 * K)) 3
        spot $((16 * T + 3)) 1000 4
        spot $((20 * T - 1000)) 1000 5
        serves_the_spots
    done
}

@test "the largest disks of each cluster size" {
    local cluster limit size
    while read -r cluster limit; do
        spots=()
        qemu-img create -q -f qcow2 -o cluster_size="$cluster" disk.qcow2 \
            "$limit"
        [ "$(number_at disk.qcow2 36 4)" -eq $((4 * M)) ] # L1 of 32 MiB
        size=$(number_at disk.qcow2 24 8)
        spot $((size / 3)) 5000 1
        spot $((size - 5000)) 5000 2
        serves_the_spots
    done <<- 'END'
	512 128G
	4k 8T
	64k 2P
	2M 2E
	END
    # One more sector would not be an image that QEMU opens.
    set_virtual_size disk.qcow2 $((size + 512))
    refuses_to_start 'L1 table is too small|too large' disk.qcow2
}

@test "host offsets past 4 GiB, 2 TiB and 8 TiB" {
    local guest
    spots=()
    qemu-img create -q -f qcow2 -o cluster_size=2M disk.qcow2 4T
    for guest in 0 1 2 3; do
        spot $((guest * 16 * M + 7)) 10000 $((guest + 1))
    done
    move_cluster disk.qcow2 0 $((4 * G))
    move_cluster disk.qcow2 $((16 * M)) $((2 * T))
    move_cluster disk.qcow2 $((32 * M)) $((8 * T - 2 * M))
    move_cluster disk.qcow2 $((48 * M)) $((8 * T + 4 * G))
    serves_the_spots

    # Below two overlays, so that answers are kept for the chain.
    mv disk.qcow2 base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2
    qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 disk.qcow2
    serves_the_spots
    mv base.qcow2 disk.qcow2

    # One after the other in the file, over a boundary.
    spots=()
    spot $((80 * M)) $((2 * M)) 5
    spot $((82 * M)) $((2 * M)) 5
    move_cluster disk.qcow2 $((80 * M)) $((4 * T - 2 * M))
    move_cluster disk.qcow2 $((82 * M)) $((4 * T))
    spots=($((80 * M)) $((4 * M)) 5)
    serves_the_spots
}

@test "L2 and L1 tables past 4 GiB, 2 TiB and 8 TiB" {
    spots=()
    qemu-img create -q -f qcow2 -o cluster_size=2M disk.qcow2 4T
    spot 12345 10000 1
    spot $((1 * T + 12345)) 10000 2
    spot $((3 * T + 12345)) 10000 3
    move_l2 disk.qcow2 0 $((4 * G))
    move_l2 disk.qcow2 $((1 * T)) $((2 * T))
    move_l2 disk.qcow2 $((3 * T)) $((12 * T))
    serves_the_spots
    move_l1 disk.qcow2 $((4 * G + 2 * M))
    serves_the_spots
    move_l1 disk.qcow2 $((8 * T + 2 * M))
    serves_the_spots
}

@test "compressed clusters past 4 GiB, 2 TiB and 8 TiB" {
    local type i
    for type in zlib zstd; do
        spots=()
        qemu-img create -q -f qcow2 \
            -o cluster_size=2M,compression_type=$type disk.qcow2 4T
        for i in 0 1 2; do
            # A new qemu-io begins a new host cluster.
            qemu-io -t unsafe -f qcow2 \
                -c "write -q -c -P $((i + 1)) $((8 * i * M)) 2M" disk.qcow2
            spots+=($((8 * i * M)) $((2 * M)) $((i + 1)))
        done
        move_compressed disk.qcow2 0 $((4 * G - 512))
        move_compressed disk.qcow2 $((8 * M)) $((2 * T))
        move_compressed disk.qcow2 $((16 * M)) $((8 * T + 512))
        serves_the_spots
    done
}

@test "offsets past 8 TiB in an external data file" {
    local raw
    for raw in off on; do
        spots=()
        rm -f data
        qemu-img create -q -f qcow2 \
            -o cluster_size=2M,data_file=data,data_file_raw=$raw disk.qcow2 12T
        spot $((4 * G - 5000)) 10000 1
        spot $((2 * T - 5000)) 10000 2
        spot $((8 * T - 5000)) 10000 3
        spot $((12 * T - 5000)) 5000 4
        serves_the_spots data-file=data
    done
}

@test "offsets past 8 TiB in a raw backing file" {
    spots=()
    truncate -s 12T base.raw
    qemu-io -t unsafe -f raw -c "write -q -P 1 $((8 * T - 5000)) 10000" \
        -c "write -q -P 2 $((12 * T - 5000)) 5000" base.raw
    spots=($((8 * T - 5000)) 10000 1 $((12 * T - 5000)) 5000 2)
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
    spot $((4 * G)) 10000 3
    serves_the_spots

    # Two overlays, so that answers are kept for the chain.
    mv disk.qcow2 middle.qcow2
    qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 disk.qcow2
    spot $((2 * T)) 10000 4
    serves_the_spots
}
