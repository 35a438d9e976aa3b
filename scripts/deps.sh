#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Sees to it that everything is there that building, testing, measuring and the
# demonstration need.  What counts is whether a program or library is found,
# wherever it came from; where all are, this takes a moment and changes nothing.
# Otherwise root on Debian and Ubuntu gets the packages from apt, and everyone
# else a list.

set -u
PATH=$PATH:/usr/sbin:/sbin

packages=(
    # building
    gcc libc6-dev make pkg-config perl nbdkit nbdkit-plugin-dev
    zlib1g-dev libjansson-dev libdeflate-dev libisal-dev libzstd-dev
    # testing
    bats clang e2fsprogs file jq libc6-dbg libnbd-bin libnbd-dev python3
    python3-libnbd qemu-utils strace util-linux valgrind xxd guestfish
    qemu-system-x86
    # measuring
    fio
)

programs=(
    "gcc" "clang" "make" "pkg-config" "pod2man" "nbdkit"
    "bats" "file" "fio" "jq" "strace" "valgrind" "xxd" "setarch"
    "mke2fs" "debugfs" "e2fsck"
    "qemu-img" "qemu-io" "qemu-nbd" "qemu-system-x86_64"
    "nbdinfo" "nbdcopy" "guestfish"
)

libraries=(
    "nbdkit >= 1.32" "libnbd" "zlib" "jansson" "libdeflate" "libisal" "libzstd"
)

# Sets the array `missing'.
look ()
{
    local name
    missing=()
    for name in "${programs[@]}"; do
        command -v "$name" > /dev/null || missing+=("program $name")
    done
    for name in "${libraries[@]}"; do
        pkg-config --exists "$name" 2> /dev/null ||
            missing+=("development files of $name (pkg-config)")
    done
    for name in libasan.so libubsan.so libtsan.so; do
        [[ $(gcc -print-file-name=$name 2> /dev/null) == /* ]] ||
            missing+=("gcc's runtime library $name")
    done
    /usr/bin/python3 -c 'import nbd' 2> /dev/null ||
        missing+=("module nbd (libnbd) of /usr/bin/python3")
    has_kernel || missing+=("a Linux kernel with its modules, for guestfish")
    [ ${#missing[@]} -eq 0 ]
}

# Guests boot the kernel that is installed here.  In a container there is none.
has_kernel ()
{
    local modules
    for modules in /lib/modules/*/kernel; do
        [ ! -e "/boot/vmlinuz-$(basename "$(dirname "$modules")")" ] || return 0
    done
    return 1
}

# The smallest package with a kernel that this distribution has.
kernel_package ()
{
    local name arch
    arch=$(dpkg --print-architecture)
    for name in "linux-image-cloud-$arch" linux-image-virtual \
        "linux-image-$arch" linux-image-generic; do
        ! apt-cache show "$name" > /dev/null 2>&1 || break
    done
    echo "$name"
}

is_debian ()
{
    command -v apt-get > /dev/null &&
        grep -Eq '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release 2> /dev/null
}

# Quiet unless it fails.
apt ()
{
    local log status=0
    log=$(mktemp)
    DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 "$@" \
        > "$log" 2>&1 < /dev/null || status=$?
    [ $status -eq 0 ] || cat "$log" >&2
    rm -f "$log"
    return $status
}

look && exit 0

if is_debian && [ "$(id -u)" -eq 0 ]; then
    echo "Installing what is missing:"
    printf '  %s\n' "${missing[@]}"
    # A stale package list may still do.
    apt update || echo "apt-get update failed, going on" >&2
    has_kernel || packages+=("$(kernel_package)")
    apt install --no-install-recommends "${packages[@]}" || exit 1
    hash -r
    look && exit 0
    echo "Still missing after installing ${packages[*]}:" >&2
else
    echo "Missing:" >&2
fi
printf '  %s\n' "${missing[@]}" >&2
if is_debian; then
    has_kernel || packages+=("$(kernel_package)")
    echo "Run as root, or: sudo apt-get install ${packages[*]}" >&2
else
    echo "Please install these with your system's package manager." >&2
fi
exit 1
