# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# Makes qcow2 images of all kinds with qemu-img and qemu-io.  A bats file says
# `load make-image' after `load lib'.
#
#   make_image FILE [KEY=VALUE ...]
#
# makes an image and gives it a random but always equal history of writes of
# data, zeros and compressed clusters, and of discards; for the same SEED it is
# the same.  Keys and their defaults:
#
#   version=3       2 or 3
#   cluster=65536   bytes
#   refcount=16     bits
#   extended=off    on: extended L2 entries
#   compression=    empty: no compressed clusters; or zlib, zstd
#   size=3000320    bytes, a multiple of 512
#   backing=none    raw, qcow2: made as FILE.base, with a history of its own
#   backing_size=   default: SIZE
#   backing_cluster=65536
#   data=none       on, raw: an external data file FILE.data, with the raw bit
#   snapshots=0     that many snapshots s1, s2, ... are spread over the history
#   prealloc=off    as qemu-img's preallocation=
#   writes=50       how long the history is
#   seed=1

# A file of NUMBER bytes that compress a bit, but repeat nowhere.
pattern_file ()
{
    head -c $(($2 * 3 / 4 + 3)) /dev/urandom | base64 -w 0 | head -c "$2" > "$1"
}

# qemu-io's commands for $1 writes to a disk of $2 bytes with clusters of $3; $4
# is not empty if there may be compressed clusters.  The files pattern1 to 4 are
# what is written.
write_commands ()
{
    local count=$1 size=$2 cluster=$3 compress=$4
    local span=$((cluster * 3)) i offset length pattern kind
    [ $span -le 400000 ] || span=400000
    [ $span -le "$size" ] || span=$size

    for ((i = 0; i < count; i++)); do
        offset=$(((RANDOM << 15 | RANDOM) % size))
        length=$(((RANDOM << 15 | RANDOM) % span + 1))
        pattern=pattern$((RANDOM % 4 + 1))
        kind=$((RANDOM % 10))
        # Half of them along clusters.
        if [ $((RANDOM % 2)) -eq 0 ] || [ "$kind" -le 2 ]; then
            offset=$((offset / cluster * cluster))
            length=$(((length + cluster - 1) / cluster * cluster))
        fi
        [ $((offset + length)) -le "$size" ] || length=$((size - offset))
        if [ "$kind" -le 2 ] && [ -n "$compress" ]; then
            [ "$length" -le "$cluster" ] || length=$cluster
            echo "write -q -c -s $pattern $offset $length"
            continue
        fi
        case $kind in
            3 | 4) echo "write -q -z $offset $length" ;;
            5) echo "write -q -z -u $offset $length" ;;
            6) echo "discard -q $offset $length" ;;
            *) echo "write -q -s $pattern $offset $length" ;;
        esac
    done
}

# Runs qemu-io's commands from stdin; fails if one of them does.  What it writes
# need not be on the disk.
qemu_io ()
{
    local said
    said=$(qemu-io -t unsafe "$@" 2>&1 | sed 's/^\(qemu-io> *\)*//; /^$/d' |
               grep -vx "${ignore:-}" || true)
    [ -z "$said" ] || fail "qemu-io: $said"
}

# random_history FORMAT FILE COUNT SIZE CLUSTER COMPRESS
random_history ()
{
    # QEMU refuses compressed writes to clusters that have data of their own.
    local ignore=${6:+write failed: Input/output error}
    write_commands "$3" "$4" "$5" "$6" > commands
    qemu_io -f "$1" "$2" < commands
}

# number_at FILE OFFSET BYTES: the big-endian number that is there.
number_at ()
{
    echo $((16#$(xxd -p -s "$2" -l "$3" "$1" | tr -d '\n')))
}

# put_number FILE OFFSET BYTES NUMBER: overwrites it.
put_number ()
{
    printf "%0$(($3 * 2))x" "$4" | xxd -r -p |
        dd of="$1" bs="$3" seek="$2" oflag=seek_bytes conv=notrunc status=none
}

# Sets the virtual size in the header, which qemu-img rounds to sectors.
set_virtual_size ()
{
    put_number "$1" 24 8 "$2"
}

make_base ()
{
    local file=$1 format=$2 size=$3 cluster=$4

    if [ "$format" = raw ]; then
        truncate -s "$size" "$file"
        random_history raw "$file" 30 "$size" 65536 ''
    else
        qemu-img create -q -f qcow2 -o cluster_size="$cluster" "$file" "$size"
        random_history qcow2 "$file" 30 "$size" "$cluster" compress
    fi
}

make_image ()
{
    local file=$1 arg i create=()
    local -A o=([version]=3 [cluster]=65536 [refcount]=16 [extended]=off
                [compression]='' [size]=3000320 [backing]=none
                [backing_size]='' [backing_cluster]=65536 [data]=none
                [snapshots]=0 [prealloc]=off [writes]=50 [seed]=1)
    shift
    for arg in "$@"; do
        [ "${o[${arg%%=*}]+known}" ] || fail "make_image: $arg?" || return 1
        o[${arg%%=*}]=${arg#*=}
    done

    RANDOM=${o[seed]}
    for i in 1 2 3 4; do
        [ -e pattern$i ] || pattern_file pattern$i 500009
    done

    if [ "${o[backing]}" != none ]; then
        make_base "$file.base" "${o[backing]}" \
            "${o[backing_size]:-${o[size]}}" "${o[backing_cluster]}" || return 1
        create+=(-b "${file##*/}.base" -F "${o[backing]}")
    fi
    [ "${o[version]}" = 3 ] || create+=(-o compat=0.10)
    [ "${o[refcount]}" = 16 ] || create+=(-o refcount_bits="${o[refcount]}")
    [ "${o[extended]}" = off ] || create+=(-o extended_l2=on)
    [ "${o[compression]}" != zstd ] || create+=(-o compression_type=zstd)
    [ "${o[prealloc]}" = off ] || create+=(-o preallocation="${o[prealloc]}")
    [ "${o[data]}" = none ] || create+=(-o data_file="$file.data")
    [ "${o[data]}" != raw ] || create+=(-o data_file_raw=on)
    rm -f "$file.data"
    qemu-img create -q -f qcow2 -o cluster_size="${o[cluster]}" \
        "${create[@]}" "$file" "${o[size]}" || return 1

    for ((i = 0; i <= o[snapshots]; i++)); do
        [ "$i" -eq 0 ] || qemu-img snapshot -c "s$i" "$file" || return 1
        random_history qcow2 "$file" $((o[writes] / (o[snapshots] + 1))) \
            "${o[size]}" "${o[cluster]}" "${o[compression]}" || return 1
    done
}

# ---- comparing ------------------------------------------------------------

# same_as_qemu [odd=N] KIND ...: makes an image of this kind, cuts N bytes off
# its end, and compares.
same_as_qemu ()
{
    local params=() odd=0 size=
    if [[ $1 == odd=* ]]; then odd=${1#odd=}; shift; fi
    rm -f disk.qcow2* qemu.raw

    make_image disk.qcow2 "$@"
    qemu_raw disk.qcow2 qemu.raw
    if [ "$odd" -gt 0 ]; then
        # For QEMU a disk ends with a sector.
        size=$(($(stat -c %s qemu.raw) - odd))
        set_virtual_size disk.qcow2 $size
        truncate -s $size qemu.raw
    fi
    [ ! -e disk.qcow2.data ] || params+=(data-file=disk.qcow2.data)
    serves_as qemu.raw disk.qcow2 "${params[@]}" || fail "kind: $*"
}

# serves_as RAW ARG ...: a server with these ARGs shows the disk RAW.
serves_as ()
{
    local raw=$1
    shift
    start_nbdkit -r "$@" &&
        assert_same_content "$uri" "$raw" &&
        "$PYTHON" "$BATS_TEST_DIRNAME/nbd-random-reads.py" "$uri" "$raw" &&
        stop_nbdkit
}

# ---- changing what is where -----------------------------------------------

# l1_entry_at FILE GUEST, l2_entry_at FILE GUEST: where in the file the entry is
# that covers the guest offset.  Standard L2 entries only; the L2 table exists.
l1_entry_at ()
{
    local bits
    bits=$(number_at "$1" 20 4)
    echo $(($(number_at "$1" 40 8) + ($2 >> (2 * bits - 3)) * 8))
}

l2_entry_at ()
{
    local bits table
    bits=$(number_at "$1" 20 4)
    table=$(number_at "$1" "$(l1_entry_at "$1" "$2")" 8)
    echo $(((table & 0xfffffffffffe00) +
            (($2 >> bits) & ((1 << (bits - 3)) - 1)) * 8))
}

# move_bytes FILE FROM TO COUNT: what was there reads as 0xff afterwards, so
# that nobody finds it in the old place.
move_bytes ()
{
    # shellcheck disable=SC2054
    local io=(bs=64k iflag=skip_bytes,count_bytes oflag=seek_bytes
              conv=notrunc status=none)
    dd if="$1" of="$1" skip="$2" seek="$3" count="$4" "${io[@]}"
    tr '\0' '\377' < /dev/zero |
        dd of="$1" iflag=fullblock,count_bytes seek="$2" count="$4" \
            bs=64k oflag=seek_bytes conv=notrunc status=none
}

# move_cluster FILE GUEST TO: moves a data cluster to another host offset.
move_cluster ()
{
    local file=$1 to=$3 at entry
    at=$(l2_entry_at "$file" "$2")
    entry=$(number_at "$file" "$at" 8)
    move_bytes "$file" $((entry & 0xfffffffffffe00)) "$to" \
        $((1 << $(number_at "$file" 20 4)))
    put_number "$file" "$at" 8 $((entry & ~0xfffffffffffe00 | to))
}

# move_compressed FILE GUEST TO: the same for a compressed cluster.
move_compressed ()
{
    local file=$1 to=$3 at entry mask from
    at=$(l2_entry_at "$file" "$2")
    entry=$(number_at "$file" "$at" 8)
    mask=$(((1 << (70 - $(number_at "$file" 20 4))) - 1))
    from=$((entry & mask))
    # As many sectors as it says, and no further than the entry's first one may
    # begin.
    move_bytes "$file" $((from & ~511)) $((to & ~511)) \
        $((((((entry & ~(3 << 62)) & ~mask) >> \
             (70 - $(number_at "$file" 20 4))) + 1) * 512))
    put_number "$file" "$at" 8 $((entry & ~mask | (to & ~511) | (from & 511)))
}

# move_l2 FILE GUEST TO: moves an L2 table.
move_l2 ()
{
    local file=$1 to=$3 at entry
    at=$(l1_entry_at "$file" "$2")
    entry=$(number_at "$file" "$at" 8)
    move_bytes "$file" $((entry & 0xfffffffffffe00)) "$to" \
        $((1 << $(number_at "$file" 20 4)))
    put_number "$file" "$at" 8 $((entry & ~0xfffffffffffe00 | to))
}

# move_l1 FILE TO: moves the active L1 table.
move_l1 ()
{
    move_bytes "$1" "$(number_at "$1" 40 8)" "$2" \
        $(($(number_at "$1" 36 4) * 8))
    put_number "$1" 40 8 "$2"
}
