# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154,SC2054
#
# A Linux kernel as the client: it makes filesystems on disks that are served,
# fills, trims and checks them.  guestfish boots it, with all disks at once,
# for that is what takes the time.
#
#   GUEST_KINDS   "all": each kind of image (default: two)

load lib

# Software emulation works everywhere.  The appliance that libguestfs makes of
# the kernel and programs installed here is kept for the next time.
export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg
export LIBGUESTFS_CACHEDIR=$BUILD_DIR/guestfs

declare -gA options=(
    [overlay]=cluster_size=64k
    [extended]=extended_l2=on,cluster_size=128k,lazy_refcounts=on
    [version2]=compat=0.10,cluster_size=4k
    [tiny]=cluster_size=512,refcount_bits=1
    [huge]=cluster_size=2M
    [snapshot]=cluster_size=16k
    [prepared]=preallocation=metadata
    [data]=data_file=data.data
    [rawdata]=data_file=rawdata.data,data_file_raw=on
)

kinds=(overlay extended)
[ "${GUEST_KINDS:-}" != all ] || kinds=("${!options[@]}")

disk_bytes=$((160 << 20))

# make_files DIR SEED: 30 MiB in files of all sizes, some of them compressible.
make_files ()
{
    "$PYTHON" - "$1" "$2" <<'END'
import os, random, sys

directory, seed = sys.argv[1:]
r = random.Random (seed)
os.mkdir (directory)
left, i = 30 << 20, 0
while left > 0:
    count = r.randrange (r.choice ((300, 20000, 1 << 20)))
    with open ("%s/%04d" % (directory, i), "wb") as f:
        f.write (r.randbytes (count) if i % 3 else bytes ([i % 256]) * count)
    left -= count
    i += 1
END
}

# make_kind KIND: KIND.qcow2.  What is there before is junk.
make_kind ()
{
    local create=(qemu-img create -q -f qcow2 -o "${options[$1]}")
    case $1 in
    overlay)
        "${create[@]}" -b junk.qcow2 -F qcow2 "$1.qcow2" ;;
    *)
        "${create[@]}" "$1.qcow2" $disk_bytes ;;
    esac
    case $1 in
    snapshot)
        qemu-io -f qcow2 -c 'write -q -P 213 0 80M' "$1.qcow2"
        qemu-img snapshot -c before "$1.qcow2" ;;
    esac
}

# The file that holds the guest's data.
storage ()
{
    [ -e "$1.data" ] && echo "$1.data" || echo "$1.qcow2"
}

# The blocks of 512 bytes that it takes.
blocks ()
{
    stat -c %b "$(storage "$1")"
}

# guest_commands KIND DEVICE: what the guest does, in guestfish's language.  A
# command that fails ends it.
guest_commands ()
{
    cat <<END
echo $1
part-disk $2 gpt
mkfs ext4 ${2}1
mount ${2}1 /
tar-in files.tar /
sync
!stat -c %b $(storage "$1") > $1.filled
rm-rf /removed
sync
fstrim /
sync
umount /
e2fsck ${2}1 forceall:true
drop-caches 3
mount-ro ${2}1 /
checksums-out sha256 /kept $1.sums
umount /
END
}

# same_files KIND RAW: the filesystem in the raw disk is sound and has the
# files, as e2fsprogs read it here.
same_files ()
{
    local offset
    # The first entry of the partition table says where it begins.
    offset=$(($(od -A n -t u8 -j 1056 -N 8 "$2") * 512))
    e2fsck -fn "$2?offset=$offset" > e2fsck.log 2>&1 ||
        fail "$1: $(cat e2fsck.log)"
    rm -rf dumped
    mkdir dumped
    debugfs -R "rdump /kept dumped" "$2?offset=$offset" 2> /dev/null
    diff -r kept dumped/kept
}

@test "a kernel's filesystems are what it has written, and trimming shrinks" {
    local kind letters=(a b c d e f g h i j k) parameters
    make_files kept 1
    make_files removed 2
    tar -cf files.tar kept removed
    (cd kept && sha256sum ./*) > want.sums
    truncate -s $disk_bytes junk.raw
    tr '\0' '\325' < junk.raw > junk1.raw
    qemu-img convert -c -f raw -O qcow2 junk1.raw junk.qcow2
    rm removed/* junk1.raw

    mkdir -p "$LIBGUESTFS_CACHEDIR"
    for kind in "${kinds[@]}"; do
        make_kind "$kind"
        parameters=()
        [ ! -e "$kind.data" ] || parameters=(data-file="$kind.data")
        start_nbdkit "$kind.qcow2" "${parameters[@]}"
        echo "add '' protocol:nbd server:unix:$sock format:raw discard:enable"
    done > disks
    {
        cat disks
        echo run
        for kind in "${kinds[@]}"; do
            guest_commands "$kind" "/dev/sd${letters[0]}"
            letters=("${letters[@]:1}")
        done
    } > script
    guestfish -f script 3>&- 4>&-
    for kind in "${kinds[@]}"; do
        stop_nbdkit
        [ ! -s "$server_stderr" ]
    done

    for kind in "${kinds[@]}"; do
        echo "$kind: $(cat "$kind.filled") blocks, now $(blocks "$kind")"
        # 30 MiB were removed, not in whole clusters of all sizes.
        [ $(($(cat "$kind.filled") - $(blocks "$kind"))) -gt \
            "$([ "$kind" = huge ] && echo 20000 || echo 50000)" ]
        sort -k 2 "$kind.sums" | diff - <(sort -k 2 want.sums)
        qemu-img check -f qcow2 "$kind.qcow2"
        qemu_raw "$kind.qcow2" qemu.raw
        same_files "$kind" qemu.raw
        parameters=()
        [ ! -e "$kind.data" ] || parameters=(data-file="$kind.data")
        start_nbdkit -r "$kind.qcow2" "${parameters[@]}"
        assert_same_content "$uri" qemu.raw
        stop_nbdkit
        # What was there before is not touched.
        case $kind in
        snapshot)
            qemu_raw "$kind.qcow2" before.raw -l before
            qemu-io -r -f raw -c 'read -q -P 213 0 80M' -c 'read -q -P 0 80M 80M' \
                before.raw ;;
        overlay)
            qemu-io -r -f qcow2 -c "read -q -P 213 0 $disk_bytes" junk.qcow2 ;;
        rawdata)
            cmp rawdata.data qemu.raw ;;
        esac
    done
}
