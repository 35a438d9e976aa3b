# SPDX-License-Identifier: BSD-3-Clause
#
# Building and installing, on a copy of the tree: what ends up where, that
# nbdkit finds it there, and what the plugin exports and was built with.

load lib

# All tests of the file share one built copy.
setup_file ()
{
    COPY=$(mktemp -d "${TMPDIR:-/tmp}/copy.XXXXXX")
    export COPY
    export CFLAGS=-O0
    tar -C "$TOP" --exclude=./.git --exclude=./build --exclude='*.so' \
        --exclude=./qcow2-img -cf - . |
        tar -C "$COPY" -xf -
    files_in "$COPY" > "$COPY.files"
    make -C "$COPY" -j2 > "$COPY.log" 2>&1 || { cat "$COPY.log"; return 1; }
}

teardown_file ()
{
    rm -rf "$COPY" "$COPY.log" "$COPY.files"
}

# make_quietly ARGS: make in the copy; shows its output only if it fails.
make_quietly ()
{
    make -C "$COPY" "$@" > make.log 2>&1 || { cat make.log; return 1; }
}

# as_root COMMAND: system directories need root.
as_root ()
{
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# files_in DIR: the names of all files in it, sorted.
files_in ()
{
    (cd "$1" && find . -type f | sort)
}

# dump_plugin: what the plugin of the copy says about itself.
dump_plugin ()
{
    nbdkit --dump-plugin "$COPY/nbdkit-qcow2-plugin.so"
}

@test "install: DESTDIR gets plugin, tool and manuals, and nothing else" {
    plugindir=$(pkg-config --variable=plugindir nbdkit)
    prefix=$(pkg-config --variable=prefix nbdkit)

    make_quietly install DESTDIR="$TEST_DIR/root"
    run files_in root
    [ "$output" = "$(sort <<END
.$plugindir/nbdkit-qcow2-plugin.so
.$prefix/bin/qcow2-img
.$prefix/share/bash-completion/completions/qcow2-img
.$prefix/share/man/man1/nbdkit-qcow2-plugin.1
.$prefix/share/man/man1/qcow2-img.1
END
)" ]
    nbdkit --dump-plugin "root$plugindir/nbdkit-qcow2-plugin.so" > dump
    grep -x 'name=qcow2' dump
    "root$prefix/bin/qcow2-img" --version

    make_quietly uninstall DESTDIR="$TEST_DIR/root"
    [ -z "$(files_in root)" ]
}

@test "install: prefix= puts everything below it" {
    make_quietly install DESTDIR="$TEST_DIR/root" prefix=/opt/qcow2
    run files_in root
    [ "$output" = "./opt/qcow2/bin/qcow2-img
./opt/qcow2/lib/nbdkit/plugins/nbdkit-qcow2-plugin.so
./opt/qcow2/share/bash-completion/completions/qcow2-img
./opt/qcow2/share/man/man1/nbdkit-qcow2-plugin.1
./opt/qcow2/share/man/man1/qcow2-img.1" ]

    make_quietly uninstall DESTDIR="$TEST_DIR/root" prefix=/opt/qcow2
    [ -z "$(files_in root)" ]
}

@test "install: afterwards 'nbdkit qcow2 disk.qcow2' serves the image" {
    plugindir=$(pkg-config --variable=plugindir nbdkit)
    prefix=$(pkg-config --variable=prefix nbdkit)
    mandir=$prefix/share/man/man1
    installed=("$plugindir/nbdkit-qcow2-plugin.so"
               "$mandir/nbdkit-qcow2-plugin.1" "$mandir/qcow2-img.1"
               "$prefix/bin/qcow2-img"
               "$prefix/share/bash-completion/completions/qcow2-img")

    # What somebody has installed before is put back afterwards.
    for file in "${installed[@]}"; do
        [ ! -e "$file" ] || tar -rPf before.tar "$file"
    done
    qemu-img create -q -f qcow2 disk.qcow2 3M
    qemu-io -f qcow2 -c 'write -P 7 1M 100k' disk.qcow2
    qemu_raw disk.qcow2 qemu.raw

    status=0
    as_root make -C "$COPY" install || status=1
    nbdkit -U - -r qcow2 disk.qcow2 \
        --run 'nbdinfo "$uri" && nbdcopy "$uri" nbd.raw' || status=2
    qcow2-img compare -F raw disk.qcow2 nbd.raw || status=2
    man_page=$(cat "$mandir/nbdkit-qcow2-plugin.1") || status=3
    as_root make -C "$COPY" uninstall || status=4
    for file in "${installed[@]}"; do
        [ ! -e "$file" ] || status=5
    done
    as_root rm -f "${installed[@]}"
    [ ! -e before.tar ] || as_root tar -xPf before.tar

    [ $status -eq 0 ]
    cmp nbd.raw qemu.raw
    grep -E '^\.TH .*NBDKIT-QCOW2-PLUGIN.* 1' -i <<< "$man_page"
}

@test "the plugin exports plugin_init and nothing else" {
    run nm -D --defined-only "$COPY/nbdkit-qcow2-plugin.so"
    [[ $output =~ ^[0-9a-f]+\ T\ plugin_init$ ]]
}

@test "the version is the Makefile's everywhere" {
    "$COPY/qcow2-img" --version | grep -F " $(sed -n 's/^VERSION := //p' \
        "$TOP/Makefile")"
    version=$(sed -n 's/^VERSION := //p' "$TOP/Makefile")
    dump_plugin > dump
    grep -x "version=$version" dump
    grep -F "nbdkit-qcow2-plugin $version" \
        "$COPY/build/nbdkit-qcow2-plugin.1"
}

@test "a missing library is named, with what to do" {
    run ! make -C "$COPY" VARIANT=none PKG_CONFIG=false
    [[ $output == *"Missing:"*"jansson"*"make deps"* ]]
}

@test "make serve serves an image until it is told to end" {
    local uri make_pid status=0
    qemu-img create -q -f qcow2 disk.qcow2 1M
    make -C "$COPY" serve IMAGE="$PWD/disk.qcow2" > serve.log 2>&1 3>&- &
    make_pid=$!
    for _ in {1..600}; do
        uri=$(grep -o 'nbd+unix.*' serve.log) && break
        sleep 0.05
    done
    nbdinfo --is read-only "$uri"
    [ "$(nbdinfo --size "$uri")" -eq 1048576 ]
    kill -TERM "$make_pid"
    wait "$make_pid" || status=$?
    [ $status -ne 0 ]
    for _ in {1..200}; do
        [ -S "${uri#*socket=}" ] || break
        sleep 0.05
    done
    [ ! -e "${uri#*socket=}" ]
    # Nobody has the image open any more.
    qemu-io -f qcow2 -c 'write -q 0 512' disk.qcow2
}

@test "make builds nothing anew when nothing has changed" {
    make_quietly
    run make -C "$COPY" --no-print-directory all
    [[ ! $output =~ CC|LINK|AR|MAN ]]
}

@test "WITHOUT= leaves out libraries, and --dump-plugin tells" {
    dump_plugin > dump
    grep -E '^qcow2_inflate=(libdeflate|isa-l) [0-9.]+$' dump
    run ! grep -x 'qcow2_zstd=no' dump

    # What was built with them is built anew.
    make_quietly -j2 WITHOUT="libdeflate libisal libzstd"
    dump_plugin > dump
    grep -E '^qcow2_inflate=zlib' dump
    grep -x 'qcow2_zstd=no' dump
    ldd "$COPY/nbdkit-qcow2-plugin.so" > libraries
    run ! grep -E 'libdeflate|libisal|libzstd' libraries
}

@test "make clean leaves the tree as it was" {
    make_quietly -j2 VARIANT=other plugin bench-programs
    [ -e "$COPY/build/other/nbdkit-qcow2-plugin.so" ]
    make_quietly clean
    files_in "$COPY" | diff "$COPY.files" -
}
