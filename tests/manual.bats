# SPDX-License-Identifier: BSD-3-Clause
#
# Every example of the manuals and of the README, taken out of these documents
# and run as it stands there.
#
# An example is a verbatim paragraph (pod) or a ```console block (README) whose
# first line begins with `$ '.  A line that begins with `> ' goes on with the
# command, all others are what it prints, where `...' stands for anything and
# line breaks and spaces don't matter.  A command must succeed unless what it
# prints has an error in it.
#
# What is not literal: `qcow2' as a plugin's name means the plugin under test,
# and `qcow2-img' the tool under test;
# another TCP port is used; nbdkit has no right of root's to ignore file modes;
# after kill, the end of the server, which removes its socket, is waited for; and
# guestfish is a stand-in that reads the file with debugfs, for the real one boots
# a virtual machine (guest.bats does that).

load lib

manual=$TOP/nbdkit-qcow2-plugin.pod
tool_manual=$TOP/qcow2-img.pod
readme=$TOP/README.md

# The images that the examples speak of, made once.
setup_file ()
{
    IMAGES=$(mktemp -d "${TMPDIR:-/tmp}/images.XXXXXX")
    export IMAGES
    cd "$IMAGES"
    mkdir -p files/etc machines templates
    echo "Welcome." > files/etc/motd
    truncate -s 32M base.raw
    mke2fs -q -F -t ext4 -d files base.raw

    # disk.qcow2: a filesystem and two snapshots, each of another content.
    qemu-img convert -O qcow2 base.raw disk.qcow2
    qemu-img snapshot -c before-upgrade disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 1 20M 64k' disk.qcow2
    qemu-img snapshot -c monday disk.qcow2
    qemu-io -f qcow2 -c 'write -q -P 2 20M 128k' disk.qcow2

    qemu-img convert -c -O qcow2 base.raw compressed.qcow2
    qemu-img create -q -f qcow2 base.qcow2 32M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
    qemu-io -f qcow2 -c 'write -q -P 3 1M 64k' overlay.qcow2
    cp base.qcow2 templates
    qemu-img create -q -f qcow2 -b ../templates/base.qcow2 -F qcow2 \
        machines/web.qcow2

    # An overlay without the header extension that tells the format.
    qemu-img create -q -f qcow2 -b base.raw -F raw formatless.qcow2
    replace formatless.qcow2 e2792aca 00000001

    qemu-img create -q -f qcow2 -o data_file=external.raw external.qcow2 1M
    qemu-img create -q -f qcow2 running.qcow2 1M
    cp running.qcow2 machine.qcow2
    # The last byte of crypt_method: LUKS.  (A key takes QEMU seconds.)
    cp running.qcow2 encrypted.qcow2
    printf '\002' | dd of=encrypted.qcow2 bs=1 seek=35 conv=notrunc status=none
    # The last byte of incompatible_features: the dirty bit.
    cp running.qcow2 unclean.qcow2
    printf '\001' | dd of=unclean.qcow2 bs=1 seek=79 conv=notrunc status=none

    qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1M

    # The second cluster's L2 entry (of the table at 0x40000) names the L1 table.
    qemu-img create -q -f qcow2 damaged.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 4 0 128k' damaged.qcow2
    printf '\200\0\0\0\0\003\0\0' |
        dd of=damaged.qcow2 bs=1 seek=$((0x40008)) conv=notrunc status=none

    # An MBR: one partition of Linux's type (83), from sector 2048, 79872 long.
    truncate -s 40M partitioned.raw
    xxd -r -p <<< '00 000000 83 000000 00080000 00380100' |
        dd of=partitioned.raw bs=1 seek=446 conv=notrunc status=none
    printf '\125\252' |
        dd of=partitioned.raw bs=1 seek=510 conv=notrunc status=none
    dd if=base.raw of=partitioned.raw bs=1M seek=1 conv=notrunc status=none
    qemu-img convert -c -O qcow2 partitioned.raw partitioned.qcow2
    rm -r files partitioned.raw

    mkdir bin
    cat > bin/nbdkit <<'END'
#!/usr/bin/env bash
for arg; do
    shift
    [ "$arg" != qcow2 ] || arg=$QCOW2_PLUGIN
    set -- "$@" "$arg"
done
powerless=
[ "$(id -u)" -ne 0 ] || powerless='setpriv --bounding-set -dac_override'
exec $powerless "$NBDKIT" "$@"
END
    cat > bin/guestfish <<'END'
#!/usr/bin/env bash
[[ "$*" =~ ^--ro\ --format=raw\ -a\ nbd://(.*)\ -m\ /dev/sda\ cat\ (.*)$ ]] ||
    exit 2
nbdcopy "nbd+unix:///${BASH_REMATCH[1]}" guest.raw
debugfs -R "cat ${BASH_REMATCH[2]}" guest.raw 2> /dev/null
rm guest.raw
END
    chmod +x bin/*
    ln -s "$PYTHON" bin/python3
    ln -s "$TOP/examples" examples
}

teardown_file ()
{
    rm -rf "$IMAGES"
}

setup ()
{
    common_setup
    export QCOW2_PLUGIN=$plugin
    NBDKIT=$(command -v nbdkit)
    export NBDKIT
    cp -r "$IMAGES"/. .
    ln -s "$img" bin/qcow2-img
    PATH=$PWD/bin:$PATH:/usr/sbin:/sbin
    port=$(python3 -c 'import socket
with socket.create_server (("localhost", 0)) as s:
    print (s.getsockname ()[1])')
}

teardown ()
{
    local file
    for file in *.pid; do
        [ ! -s "$file" ] || kill "$(cat "$file")" 2> /dev/null || :
    done
    common_teardown
}

# replace FILE FROM TO: replaces bytes, given in hex.
replace ()
{
    xxd -p "$1" | tr -d '\n' | sed "s/$2/$3/" | xxd -r -p > replaced
    mv replaced "$1"
}

# ---- examples -------------------------------------------------------------

# sections DOCUMENT: the headings below which it has examples.
sections ()
{
    case $1 in
    *.pod) awk '/^=head1 / { heading = substr ($0, 8) }
                /^ \$ / { print heading }' "$1" | uniq ;;
    *.md) awk '/^## / { heading = substr ($0, 4) }
               /^```console/ { print heading }' "$1" | uniq ;;
    esac
}

# examples DOCUMENT HEADING: the examples of a section, without indentation.
examples ()
{
    case $1 in
    *.pod) awk -v heading="$2" '
        /^=head1 / { here = substr ($0, 8) == heading }
        /^[^ ]|^$/ { example = 0 }
        here && /^ \$ / { example = 1 }
        example { print substr ($0, 2) }' "$1" ;;
    *.md) awk -v heading="$2" '
        /^## / { here = substr ($0, 4) == heading }
        /^```/ { example = here && $0 == "```console"; next }
        example' "$1" ;;
    esac
}

# one_line: the text on one line, with single spaces.
one_line ()
{
    tr -s '[:space:]' ' ' | sed 's/^ //; s/ $//'
}

# run_command COMMAND EXPECTED: in this shell, so that `cd' and the like last.
run_command ()
{
    local status=0 output expected pattern

    [ -n "$1" ] || return 0
    eval "$1" > printed 2>&1 < /dev/null 3>&- 4>&- || status=$?
    output=$(one_line < printed)
    expected=$(one_line <<< "$2")
    pattern=$(sed 's/[][\*?]/\\&/g; s/\.\.\./*/g' <<< "$expected")
    if [[ $output != $pattern ]]; then
        printf '%s\n' "\$ $1" "printed (status $status):" "$output" \
            "but the document says:" "$expected" >&2
        return 1
    fi
    if [ $status -ne 0 ] && ! grep -Eiq 'error|could not' <<< "$output"; then
        fail "exit status $status: $1"
    fi
    rm printed
}

# run_section DOCUMENT HEADING: runs its examples, one after the other.
run_section ()
{
    local line command='' expected=''

    examples "$1" "$2" |
        sed "s/10809/$port/g; s/^\\$ kill /$ end_servers /" > example.txt
    [ -s example.txt ] || fail "$1 has no examples under '$2'" || return 1
    while IFS= read -r line <&5; do
        case $line in
        '$ '*)
            run_command "$command" "$expected" || return 1
            command=${line#'$ '} expected='' ;;
        '> '*) command+=$'\n'${line#'> '} ;;
        *) expected+=$line$'\n' ;;
        esac
    done 5< example.txt
    run_command "$command" "$expected"
}

# end_servers PID ...
end_servers ()
{
    kill "$@" || return 1
    for _ in {1..600}; do
        kill -0 "$@" 2> /dev/null || return 0
        sleep 0.05
    done
    fail "a server does not end"
}

# hold_open IMAGE: like a virtual machine that writes to it.
hold_open ()
{
    qemu-nbd --fork --persistent -k "$PWD/vm.sock" --pid-file=vm.pid \
        -f qcow2 "$1" 3>&- 4>&-
}

@test "manual: EXAMPLES" {
    qemu_raw disk.qcow2 qemu.raw
    qemu_raw disk.qcow2 qemu-before.raw -l before-upgrade
    run_section "$manual" "EXAMPLES"
    cmp disk.raw qemu.raw
    cmp before.raw qemu-before.raw
    # What was written through the cow filter is gone.
    qemu_raw disk.qcow2 after.raw
    cmp after.raw qemu.raw
}

@test "manual: PARAMETERS" {
    hold_open running.qcow2
    qemu_raw compressed.qcow2 qemu.raw
    qemu-img create -q -f qcow2 new.qcow2 32M
    run_section "$manual" "PARAMETERS"
    cmp disk.raw qemu.raw
    qemu-img check -q new.qcow2
    qemu_raw new.qcow2 written.raw
    cmp written.raw disk.raw
}

@test "manual: EXPORTS" {
    run_section "$manual" "EXPORTS"
    qemu_raw disk.qcow2 qemu.raw -l monday
    cmp monday.raw qemu.raw
}

@test "manual: WHICH FILES AN IMAGE MAY NAME" {
    run_section "$manual" "WHICH FILES AN IMAGE MAY NAME"
}

@test "manual: CREATING IMAGES" {
    qemu_raw disk.qcow2 disk.raw
    run_section "$manual" "CREATING IMAGES"
    for image in new.qcow2 top.qcow2 split.qcow2; do
        qemu-img check -q -f qcow2 $image
    done
}

@test "manual: WRITING" {
    qemu_raw disk.qcow2 disk.raw
    qemu-img create -q -f qcow2 new.qcow2 32M
    run_section "$manual" "WRITING"
    qemu_raw copy.qcow2 written.raw
    cmp written.raw disk.raw
    qemu-img check -q disk.qcow2
}

@test "manual: LOCKS" {
    hold_open running.qcow2
    cp disk.qcow2 live.qcow2
    run_section "$manual" "LOCKS"
    nbdkit -U - -r qcow2 disk.qcow2 --run 'nbdcopy "$uri" nbd.raw'
    cmp disk.raw nbd.raw
}

@test "manual: DAMAGED IMAGES" {
    run_section "$manual" "DAMAGED IMAGES"
}

@test "manual: DUMP PLUGIN OUTPUT" {
    run_section "$manual" "DUMP PLUGIN OUTPUT"
}

@test "qcow2-img: COMMANDS" {
    qemu_raw disk.qcow2 disk.raw
    run_section "$tool_manual" "COMMANDS"
}

@test "qcow2-img: STATE OF VIRTUAL MACHINES" {
    printf 'savevm running\nquit\n' |
        timeout 60 qemu-system-x86_64 -S -display none -monitor stdio \
            -drive if=none,file=machine.qcow2,format=qcow2 > /dev/null
    run_section "$tool_manual" "STATE OF VIRTUAL MACHINES"
}

@test "qcow2-img: WHICH FILES AN IMAGE MAY NAME" {
    run_section "$tool_manual" "WHICH FILES AN IMAGE MAY NAME"
}

@test "qcow2-img: LOCKS" {
    hold_open running.qcow2
    run_section "$tool_manual" "LOCKS"
}

@test "README: Look at an image" {
    run_section "$readme" "Look at an image"
}

@test "README: Serve an image" {
    run_section "$readme" "Serve an image"
    qemu_raw disk.qcow2 qemu.raw
    cmp disk.raw qemu.raw
}

@test "README: Write to an image" {
    qemu_raw disk.qcow2 disk.raw
    run_section "$readme" "Write to an image"
}

@test "README: Make an image" {
    qemu_raw disk.qcow2 disk.raw
    run_section "$readme" "Make an image"
    qemu-img check -q -f qcow2 new.qcow2
}

@test "README: Snapshots" {
    run_section "$readme" "Snapshots"
    qemu_raw disk.qcow2 qemu-monday.raw -l monday
    qemu_raw disk.qcow2 qemu-before.raw -l before-upgrade
    cmp monday.raw qemu-monday.raw
    cmp before.raw qemu-before.raw
}

@test "README: Backing files elsewhere" {
    run_section "$readme" "Backing files elsewhere"
}

@test "README: With nbdkit's filters" {
    cp disk.qcow2 before.qcow2
    run_section "$readme" "With nbdkit's filters"
    cmp disk.qcow2 before.qcow2
}

@test "README: Other programs" {
    run_section "$readme" "Other programs"
    qemu_raw disk.qcow2 qemu.raw
    qemu-img check -q out.qcow2
    qemu_raw out.qcow2 out.raw
    cmp out.raw qemu.raw
    qemu_raw disk.qcow2 qemu-monday.raw -l monday
    cmp copies/monday.raw qemu-monday.raw
}

@test "README: the commands of make are there, and make demo succeeds" {
    awk '/^```/ { here = $0 == "```sh"; next } here' "$readme" |
        sed 's/^sudo //' > commands
    grep -x 'make demo' commands
    while IFS= read -r line; do
        [[ $line == 'make'* ]] || fail "not a command of make: $line"
        $line -n -C "$TOP" > plan 2>&1 || { cat plan; fail "$line"; }
    done < commands

    make -C "$TOP" demo > demo.out 2>&1 || { cat demo.out; false; }
    grep -x 'Equal: all 134217728 bytes.' demo.out
    grep -x 'Images are identical.' demo.out
    grep -x 'backing file format: qcow2' demo.out
    sed '1,/qcow2-img check/d' demo.out > checked.out
    grep -x 'No errors were found on the image.' checked.out
    grep '^\[{ "start": 0, .*"data": true}' checked.out
    make -C "$TOP" demo IMAGE="$PWD/disk.qcow2" > demo.out 2>&1 ||
        { cat demo.out; false; }
    grep -x 'Equal: all 33554432 bytes.' demo.out
}

# ---- example scripts ------------------------------------------------------

@test "examples: copy-snapshots leaves no server, and overwrites nothing" {
    mkdir copies
    echo mine > copies/monday.raw
    export TMPDIR=$PWD/tmp
    mkdir tmp
    run ! examples/copy-snapshots disk.qcow2 copies
    [[ $output == *"copies/monday.raw: is already there"* ]]
    [ "$(cat copies/monday.raw)" = mine ]
    [ -z "$(ls tmp)" ]
    for _ in {1..600}; do
        grep -lq "$TMPDIR" /proc/[0-9]*/cmdline 2> /dev/null || break
        sleep 0.05
    done
    run ! grep -l "$TMPDIR" /proc/[0-9]*/cmdline

    # Parameters reach the plugin.
    run ! examples/copy-snapshots machines/web.qcow2 none
    examples/copy-snapshots machines/web.qcow2 none allow-dir=templates
}

@test "examples: changed-ranges.py finds changes of zeros, size and nothing" {
    qemu-img create -q -f qcow2 changed.qcow2 1M
    qemu-io -f qcow2 -c 'write -q -P 1 0 320k' -c 'write -q -P 1 960k 1k' \
        changed.qcow2
    qemu-img snapshot -c one changed.qcow2
    qemu-io -f qcow2 -c 'write -q -z 64k 100k' -c 'write -q -P 2 511k 2k' \
        changed.qcow2
    qemu-img snapshot -c two changed.qcow2
    qemu-img resize -q changed.qcow2 1100k

    run examples/changed-ranges.py changed.qcow2 one two
    [ "$output" = "65536 131072
458752 131072" ]
    run examples/changed-ranges.py changed.qcow2 two ''
    [ "$output" = "1048576 77824" ]
    run examples/changed-ranges.py changed.qcow2 two two
    [ "$status" -eq 0 ]
    [ -z "$output" ]
}

@test "each example script is in the README" {
    for file in "$TOP"/examples/*; do
        grep -F "\$ examples/$(basename "$file") " "$readme"
    done
}

# ---- whole documents ------------------------------------------------------

@test "each section with examples has a test" {
    {
        sections "$manual" | sed 's/.*/@test "manual: &" {/'
        sections "$tool_manual" | sed 's/.*/@test "qcow2-img: &" {/'
        sections "$readme" | sed 's/.*/@test "README: &" {/'
    } > wanted
    [ "$(wc -l < wanted)" -gt 10 ]
    while IFS= read -r line; do
        grep -Fx "$line" "$BATS_TEST_FILENAME" ||
            fail "no test begins with: $line"
    done < wanted
}

@test "the documents show no command that is not run" {
    awk '/^=head1 / { heading = substr ($0, 8) }
         /^ / && before !~ /^ / && !/^ \$ / { print heading ": " $0 }
         { before = $0 }' "$manual" > other
    run ! grep -v -e '^SYNOPSIS:' -e '^COMPARED TO OTHER SERVERS:' other
    awk '/^=head1 / { heading = substr ($0, 8) }
         /^ / && before !~ /^ / && !/^ \$ / { print heading ": " $0 }
         { before = $0 }' "$tool_manual" > other
    run ! grep -v -e '^SYNOPSIS:' other
    awk '/^```/ { here = !here; kind = $0 }
         here && kind != "```sh" && kind != "```console"' "$readme" > other
    [ ! -s other ]
}

@test "files that the README links to are there" {
    grep -o '](\([^)]*\))' "$readme" | sed 's/^](//; s/)$//' |
        grep -v '^http' | sort -u > links
    grep -x LICENSE links
    while IFS= read -r link; do
        [ -e "$TOP/$link" ] || fail "$link is not there"
    done < links
}
@test "the manual has each parameter that the plugin has, and no other" {
    nbdkit --help qcow2 |
        sed -n 's/^\[\{0,1\}\([a-z-]*=\).*/\1/p' | sort -u > parameters
    sed -n 's/^=item \[\{0,1\}B<\([a-z-]*=\).*/\1/p' "$manual" |
        sort -u > documented
    grep -x 'cache-size=' parameters
    diff parameters documented

    # Also in the synopsis.
    while IFS= read -r name; do
        sed -n '/^=head1 SYNOPSIS/,/^=head1 DESC/p' "$manual" |
            grep -F "[$name" || fail "SYNOPSIS lacks $name"
    done < parameters
}

@test "the manual of qcow2-img has each command and option, and no other" {
    qcow2-img --help | sed -n '/^Command syntax:/,/^$/s/^  //p' > usage
    awk '{ print $1 }' usage > commands
    sed -n '/^=head1 COMMANDS/,/^=head1 O/s/^=head2 //p' "$tool_manual" |
        diff commands -
    while IFS= read -r command; do
        sed -n '/^=head1 COMMANDS/,/^=head1 OPTIONS/p' "$tool_manual" |
            grep -E "^ \\$ qcow2-img $command " ||
            fail "there is no example of $command"
        sed -n '/^=head1 SYNOPSIS/,/^=head1 DESC/p' "$tool_manual" |
            grep "^ qcow2-img $command "
    done < commands

    {
        while IFS= read -r command; do
            qcow2-img "$command" --help | sed 1d
        done < commands
        qcow2-img --help | sed '/^Command syntax/,$d'
    } | grep -Eo -e "(^  | ')--?[A-Za-z][a-z0-9-]*|, --?[A-Za-z][a-z-]*" |
        grep -Eo -e '-.*' | sort -u > options
    sed -n "s/^=item B<\\(-[A-Za-z0-9-]*\\).*/\\1/p" "$tool_manual" |
        sort -u > documented
    grep -x -e --backing-chain documented
    diff options documented
}

@test "the manuals are sound pod" {
    for pod in "$manual" "$tool_manual"; do
        podchecker -warnings -warnings "$pod" > checked 2>&1 ||
            { cat checked; false; }
        run ! grep -E 'WARNING|ERROR' checked
    done
}
