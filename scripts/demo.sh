#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Serves a qcow2 image with nbdkit on a Unix socket, shows what NBD clients see,
# copies the disk out and compares with what QEMU reads from the image; then
# copies it into a new image in the same way.  Exit status 0 only if every byte
# is equal, both times.
#
#   IMAGE    the image; without it, a small one is made: an ext4 filesystem as
#            a zlib-compressed overlay over a backing file
#   PARAMS   further parameters of the plugin, separated by spaces

set -eu
PATH=$PATH:/usr/sbin:/sbin
image=${IMAGE:-}
read -r -a params <<< "${PARAMS:-}"

dir=$(mktemp -d "${TMPDIR:-/tmp}/qcow2-demo.XXXXXX")
server=
finish ()
{
    [ -z "$server" ] || kill -TERM "$server" 2> /dev/null || :
    wait
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

bold='' plain=''
TIMEFORMAT='(%R seconds)'
if [ -t 1 ]; then
    bold=$'\e[1m' plain=$'\e[0m'
fi
heading ()
{
    printf '\n%s== %s ==%s\n' "$bold" "$*" "$plain"
}

# Shows a command and runs it.
show ()
{
    echo "\$ $*"
    "$@"
}

# A disk as it is found in practice: installed once, then used.  base.qcow2
# holds the filesystem as it was; disk.qcow2 only the clusters that differ now.
make_image ()
{
    mkdir "$dir/files"
    cp -R qcow2 tests Makefile "$dir/files"
    cp -RL /usr/share/common-licenses "$dir/files" 2> /dev/null || :
    echo "installed" > "$dir/files/state"
    truncate -s 128M "$dir/installed.raw"
    mke2fs -q -F -t ext4 -d "$dir/files" "$dir/installed.raw"
    qemu-img convert -c -O qcow2 "$dir/installed.raw" "$dir/base.qcow2"

    cp --sparse=always "$dir/installed.raw" "$dir/used.raw"
    seq 200000 > "$dir/log"
    echo "used" > "$dir/state"
    debugfs -w "$dir/used.raw" > /dev/null 2>&1 << END
rm state
write $dir/state state
write $dir/log log
rm Makefile
END
    qemu-img create -q -f qcow2 -b used.raw -F raw "$dir/difference.qcow2"
    qemu-img rebase -b base.qcow2 -F qcow2 "$dir/difference.qcow2"
    qemu-img convert -c -O qcow2 -B base.qcow2 -F qcow2 \
        "$dir/difference.qcow2" "$dir/disk.qcow2"
    rm -r "$dir"/*.raw "$dir/difference.qcow2" "$dir/files" \
       "$dir/state" "$dir/log"
    image=$dir/disk.qcow2
}

# start_server ARGS: for the plugin, and options of nbdkit.
start_server ()
{
    local command=(nbdkit -f -U "$dir/sock" -P "$dir/pid"
                   ./nbdkit-qcow2-plugin.so "$@")
    echo "\$ ${command[*]} &"
    "${command[@]}" &
    server=$!
    while [ ! -s "$dir/pid" ]; do
        kill -0 $server 2> /dev/null || {
            server=
            echo "nbdkit did not start." >&2
            exit 1
        }
        sleep 0.05
    done
}

stop_server ()
{
    echo "\$ kill $server"
    kill -TERM "$server"
    wait "$server"
    server=
    rm -f "$dir/pid" "$dir/sock"
}

if [ -z "$image" ]; then
    heading "An image: a filesystem, zlib-compressed, over a backing file"
    make_image
fi
show qemu-img info -U -f qcow2 "$image"

heading "Served by nbdkit"
start_server -r "$image" "${params[@]}"
uri="nbd+unix:///?socket=$dir/sock"
show nbdinfo "$uri"

heading "Copied out with nbdcopy, and by QEMU"
time show nbdcopy "$uri" "$dir/nbd.raw"
time show qemu-img convert -U -f qcow2 -O raw "$image" "$dir/qemu.raw"

heading "Compared"
# QEMU makes raw files of whole sectors; the disk may end within one.
size=$(nbdinfo --size "$uri")
if [ "$(stat -c %s "$dir/qemu.raw")" -eq $(((size + 511) / 512 * 512)) ] &&
   [ "$(stat -c %s "$dir/nbd.raw")" -eq "$size" ] &&
   cmp -n "$size" "$dir/nbd.raw" "$dir/qemu.raw"
then
    echo "Equal: all $size bytes."
else
    echo "DIFFERENT" >&2
    exit 1
fi
stop_server

heading "Written into a new image with nbdcopy"
show qemu-img create -q -f qcow2 "$dir/new.qcow2" "$size"
start_server "$dir/new.qcow2"
time show nbdcopy --flush "$dir/nbd.raw" "$uri"
stop_server
show qemu-img check -f qcow2 "$dir/new.qcow2"
show qemu-img compare -f raw -F qcow2 "$dir/qemu.raw" "$dir/new.qcow2"

heading "Looked at with qcow2-img"
options=()
for param in "${params[@]}"; do
    case $param in
        allow-dir=*|data-file=*|backing-format=*) options+=("--$param") ;;
    esac
done
show ./qcow2-img info -U "$image"
# What it finds in a user's image is no failure of this program.
show ./qcow2-img check -U "$image" || echo "(exit status $?)"
show ./qcow2-img map -U --output=json "${options[@]}" "$image" > "$dir/map"
sed -n '1,16p; 17s/.*/.../p' "$dir/map"
