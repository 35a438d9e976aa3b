# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# qcow2-img snapshot --save-vmstate and --load-vmstate: the state of real
# virtual machines, which QEMU saves and loads.

load lib
load img
load make-image

setup () { img_setup; }

# machine IMAGE COMMAND ... [-- ARG ...]: a virtual machine with this disk, which
# never runs, gets these commands of QEMU's monitor.
machine ()
{
    local image=$1 commands=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        commands+=("$1")
        shift
    done
    [ $# -eq 0 ] || shift
    printf '%s\n' "${commands[@]}" quit |
        timeout 300 qemu-system-x86_64 -M pc -accel tcg -m 16 -S -nodefaults \
            -display none -drive "if=none,format=qcow2,file=$image" \
            -monitor stdio "$@" > monitor.log 2>&1 ||
        fail "qemu: $(cat monitor.log)" || return 1
    ! grep -a '^Error' monitor.log || fail "qemu: $(cat monitor.log)"
}

# save_machine IMAGE NAME: a machine with random memory; memory.bin is part of
# that.
save_machine ()
{
    head -c 3M /dev/urandom > memory.bin
    machine "$1" "savevm $2" -- \
        -device loader,file=memory.bin,addr=0x100000,force-raw=on
}

# has_memory IMAGE NAME: QEMU loads the snapshot, and has memory.bin there.
has_memory ()
{
    rm -f dump.bin
    cp "$1" loaded.qcow2
    machine loaded.qcow2 "loadvm $2" "pmemsave 0x100000 0x300000 dump.bin"
    cmp memory.bin dump.bin
}

# state_bytes IMAGE NAME: as qemu-img info tells.
state_bytes ()
{
    qemu-img info --output=json "$1" |
        jq ".snapshots[] | select(.name == \"$2\") | .\"vm-state-size\""
}

# no_active_state IMAGE: nothing is left in the active layer of what a snapshot
# has taken.
no_active_state ()
{
    qemu-io -f qcow2 -c "read -b -P 0 0 8M" "$1" > io.log
    ! grep -i fail io.log
}

@test "VM state moves from QEMU's image to others, where QEMU loads it" {
    qemu-img create -q -f qcow2 from.qcow2 3M
    qemu-io -f qcow2 -c 'write -q -P 1 0 3M' from.qcow2
    save_machine from.qcow2 one
    "$img" snapshot -s one --save-vmstate state.bin from.qcow2 > out
    [ ! -s out ]
    [ "$(stat -c %s state.bin)" -eq "$(state_bytes from.qcow2 one)" ]
    [ "$(stat -c %a state.bin)" = 600 ]
    qemu-img create -q -f qcow2 base.qcow2 600M
    qemu-io -f qcow2 -c 'write -q -P 7 0 80M' base.qcow2

    while read -r options; do
        rm -f to.qcow2 again.bin
        # shellcheck disable=SC2086
        qemu-img create -q -f qcow2 $options to.qcow2 3M
        qemu-io -f qcow2 -c 'write -q -P 1 0 1M' -c 'write -q -P 2 2M 512' \
            to.qcow2
        qemu-img snapshot -c before to.qcow2
        # As after a crash, more than there will be.
        qemu-io -f qcow2 -c 'write -q -b -P 9 0 8M' to.qcow2
        qemu_raw to.qcow2 before.raw

        "$img" snapshot -c two --load-vmstate state.bin to.qcow2
        qemu-img check -q to.qcow2 || fail "$options"
        [ "$(state_bytes to.qcow2 two)" -eq "$(stat -c %s state.bin)" ]
        "$img" snapshot -s two --save-vmstate again.bin to.qcow2
        cmp state.bin again.bin
        [[ $options == *base* ]] || no_active_state to.qcow2
        qemu_raw to.qcow2 after.raw
        cmp before.raw after.raw
        has_memory to.qcow2 two || fail "$options"
    done <<'END'
-o cluster_size=512
-o cluster_size=64k
-o cluster_size=4k,compat=0.10
-o cluster_size=2M,lazy_refcounts=on
-o extended_l2=on,cluster_size=16k
-o cluster_size=4k -F qcow2 -b base.qcow2
END
}

@test "through pipes" {
    qemu-img create -q -f qcow2 from.qcow2 3M
    qemu-img create -q -f qcow2 -o cluster_size=4k to.qcow2 1M
    save_machine from.qcow2 one
    "$img" snapshot -s 1 --save-vmstate - from.qcow2 |
        cat | "$img" snapshot -c two --load-vmstate - to.qcow2
    "$img" snapshot -s two --save-vmstate - to.qcow2 > to.bin
    "$img" snapshot -s one --save-vmstate - from.qcow2 > from.bin
    cmp from.bin to.bin
    has_memory to.qcow2 two
    # A file that was longer before.
    head -c 9M /dev/zero > from2.bin
    "$img" snapshot -s one --save-vmstate from2.bin from.qcow2
    cmp from.bin from2.bin
}

@test "a snapshot of another size of the disk" {
    qemu-img create -q -f qcow2 disk.qcow2 3M
    save_machine disk.qcow2 one
    "$img" snapshot -s one --save-vmstate before.bin disk.qcow2
    qemu-img resize -q disk.qcow2 3G
    "$img" snapshot -s one --save-vmstate after.bin disk.qcow2
    cmp before.bin after.bin
    "$img" snapshot -c two --load-vmstate after.bin disk.qcow2
    qemu-img check -q disk.qcow2
    has_memory disk.qcow2 two
    "$img" snapshot -s one --save-vmstate again.bin disk.qcow2
    cmp before.bin again.bin
}

@test "QEMU goes on with what is there" {
    qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 3M
    save_machine disk.qcow2 one
    "$img" snapshot -s one --save-vmstate state.bin disk.qcow2
    "$img" snapshot -c two --load-vmstate state.bin disk.qcow2
    machine disk.qcow2 "loadvm two" "savevm three" "delvm one" "delvm two"
    qemu-img check -q disk.qcow2
    has_memory disk.qcow2 three
    machine disk.qcow2 "delvm three"
    qemu-img check -q disk.qcow2
}

@test "what can't be saved" {
    qemu-img create -q -f qcow2 disk.qcow2 3M
    qemu-img snapshot -c none disk.qcow2
    save_machine disk.qcow2 one
    cp disk.qcow2 before.qcow2

    refuses 1 "Could not save the VM state of snapshot 'none': it has no VM state" \
        snapshot -s none --save-vmstate state.bin disk.qcow2
    [ ! -e state.bin ]
    refuses 1 "'nosuch': snapshot not found" \
        snapshot -s nosuch --save-vmstate state.bin disk.qcow2
    [ ! -e state.bin ]
    refuses 1 "'disk.qcow2' is the image itself" \
        snapshot -s one --save-vmstate disk.qcow2 disk.qcow2
    refuses 1 "can't open 'no/such': No such file" \
        snapshot -s one --save-vmstate no/such disk.qcow2
    refuses 1 "can't write '/dev/full': No space left" \
        snapshot -s one --save-vmstate /dev/full disk.qcow2
    run_img snapshot -s one disk.qcow2
    [ "$status" -eq 1 ]
    grep -e "-s needs --save-vmstate" err
    run_img snapshot --save-vmstate state.bin disk.qcow2
    [ "$status" -eq 1 ]
    run_img snapshot -l --save-vmstate state.bin disk.qcow2
    [ "$status" -eq 1 ]
    cmp before.qcow2 disk.qcow2
}

@test "a state that would be longer than its tables" {
    local table
    qemu-img create -q -f qcow2 disk.qcow2 3M
    save_machine disk.qcow2 one
    table=$(od -An -j64 -N8 -tu8 --endian=big disk.qcow2)
    echo precious > state.bin
    for bytes in $((1 << 40)) $((1 << 62)); do
        put_number disk.qcow2 $((table + 40)) 8 "$bytes"
        refuses 1 "has no room for a VM state of $bytes bytes" \
            snapshot -s one --save-vmstate state.bin disk.qcow2
        [ "$(cat state.bin)" = precious ]
    done
}

@test "killed while it loads: the image is sound, and it can be done again" {
    qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 3M
    qemu-io -f qcow2 -c 'write -q -P 1 0 3M' disk.qcow2
    qemu_raw disk.qcow2 before.raw
    head -c 9M /dev/urandom > state.bin
    mkfifo pipe
    for part in 1 5000000; do
        "$img" snapshot -c one --load-vmstate pipe disk.qcow2 3>&- &
        exec 5> pipe
        head -c "$part" state.bin >&5
        sleep 0.3
        kill -KILL $!
        wait $! || [ $? -eq 137 ]
        exec 5>&-
        status=0
        qemu-img check -q disk.qcow2 || status=$?
        [ "$status" -eq 0 ] || [ "$status" -eq 3 ]
        [ -z "$(qemu-img snapshot -l disk.qcow2)" ]
        qemu_raw disk.qcow2 after.raw
        cmp before.raw after.raw
    done
    "$img" snapshot -c one --load-vmstate state.bin disk.qcow2
    "$img" snapshot -s one --save-vmstate again.bin disk.qcow2
    cmp state.bin again.bin
    no_active_state disk.qcow2
    qemu-img check -q -r leaks disk.qcow2
}

@test "what can't be loaded" {
    qemu-img create -q -f qcow2 disk.qcow2 3M
    qemu-io -f qcow2 -c 'write -q -P 1 0 3M' disk.qcow2
    cp disk.qcow2 before.qcow2
    : > empty.bin
    head -c 1M /dev/urandom > state.bin

    refuses 1 "Could not create snapshot 'one': 'empty.bin' is empty" \
        snapshot -c one --load-vmstate empty.bin disk.qcow2
    refuses 1 "can't open 'nosuch': No such file" \
        snapshot -c one --load-vmstate nosuch disk.qcow2
    refuses 1 "can't read '.': Is a directory" \
        snapshot -c one --load-vmstate . disk.qcow2
    refuses 1 "'disk.qcow2' is the image itself" \
        snapshot -c one --load-vmstate disk.qcow2 disk.qcow2
    run_img snapshot -d one --load-vmstate state.bin disk.qcow2
    [ "$status" -eq 1 ]
    run_img snapshot --load-vmstate state.bin disk.qcow2
    [ "$status" -eq 1 ]
    cmp before.qcow2 disk.qcow2

    qemu-img create -q -f qcow2 -o data_file=data.raw external.qcow2 3M
    run_img snapshot -c one --load-vmstate state.bin external.qcow2
    [ "$status" -eq 1 ]
    [ "$(wc -l < err)" -eq 1 ]
}

@test "no room: nothing is left behind" {
    qemu-img create -q -f qcow2 disk.qcow2 3M
    qemu-io -f qcow2 -c 'write -q -P 1 0 3M' disk.qcow2
    head -c 9M /dev/urandom > state.bin
    # A limit of the size of files stands for a full disk.
    (ulimit -f 6144; trap '' XFSZ
     "$img" snapshot -c one --load-vmstate state.bin disk.qcow2) \
        2> err && fail "there was room"
    [ "$(wc -l < err)" -eq 1 ]
    qemu-img check -q disk.qcow2
    [ -z "$(qemu-img snapshot -l disk.qcow2)" ]
    no_active_state disk.qcow2
}

@test "with VM state, check, map, info and measure tell what QEMU tells" {
    for options in cluster_size=512 cluster_size=4k,compat=0.10 \
            cluster_size=64k extended_l2=on; do
        rm -f disk.qcow2
        qemu-img create -q -f qcow2 -o "$options" disk.qcow2 3M
        qemu-io -f qcow2 -c 'write -q 100k 700k' -c 'write -q -b 0 2M' disk.qcow2
        for command in check map info "measure -O qcow2"; do
            # shellcheck disable=SC2086
            twin $command disk.qcow2
            # shellcheck disable=SC2086
            twin $command --output=json disk.qcow2
        done
    done
}
