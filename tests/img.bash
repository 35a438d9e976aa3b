# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154
#
# What the tests of qcow2-img share: running it beside qemu-img.  A bats file
# says `load img' after `load lib'.

# Files that images name may be opened in the test's directory: what happens
# otherwise is tested where it is the subject.
img_setup ()
{
    common_setup
    export QCOW2_ALLOW_DIR=$TEST_DIR
}

# What is on its way to the disk takes no space yet.
settle ()
{
    find . -type f \( -name '*.raw' -o -name '*.qcow2*' \) -exec sync {} +
}

# run_img ARG ...: runs qcow2-img.  Sets $status; out and err hold what it said.
# Fails if a sanitizer has found something, or it died.
run_img ()
{
    status=0
    "$img" "$@" > out 2> err || status=$?
    no_sanitizer_report err || return 1
    [ "$status" -lt 64 ] || fail "qcow2-img $*: status $status: $(cat err)"
}

# twin COMMAND ARG ...: qemu-img and qcow2-img, with the same arguments, print
# the same and end with the same status; where one says something on stderr, so
# does the other.  Sets $status, out and err as run_img does.
twin ()
{
    local theirs=0
    settle
    qemu-img "$@" > out.qemu 2> err.qemu || theirs=$?
    run_img "$@" || return 1
    if [ "$status" -ne "$theirs" ] || ! cmp out.qemu out; then
        echo "$*: status $theirs and $status" >&2
        diff out.qemu out >&2
        cat err.qemu err >&2
        return 1
    fi
    if [ -s err ] && [ ! -s err.qemu ] || [ -s err.qemu ] && [ ! -s err ]; then
        fail "$*: $(cat err.qemu err)"
    fi
}

# refuses STATUS REGEX ARG ...: qcow2-img ends with this status and one message,
# which matches the extended regular expression.
refuses ()
{
    local wanted=$1 regex=$2
    shift 2
    run_img "$@" || return 1
    [ "$status" -eq "$wanted" ] ||
        fail "qcow2-img $*: status $status, not $wanted: $(cat out err)" ||
        return 1
    if [ "$(grep -vc "^Try 'qcow2-img --help'" err)" -ne 1 ] ||
        ! grep -Eq "^qcow2-img: .*$regex" err; then
        fail "qcow2-img $*: not one message like '$regex': $(cat err)"
    fi
}

# hold_open IMAGE [OPTION ...]: like a virtual machine that writes to it, until
# let_go.
hold_open ()
{
    local image=$1
    shift
    qemu-nbd --fork --persistent -k "$PWD/vm.sock" --pid-file=vm.pid \
        -f qcow2 "$@" "$image" 3>&- 4>&-
}

let_go ()
{
    local pid
    pid=$(cat vm.pid)
    kill "$pid"
    for _ in {1..600}; do
        kill -0 "$pid" 2> /dev/null || return 0
        sleep 0.05
    done
    fail "qemu-nbd does not end"
}

# make_luks FILE [OPTION...]: an encrypted image of 1 MiB; qemu-img's options
# -o.  QEMU measures its speed, and gives up where it gets too little of it.
make_luks ()
{
    local file=$1 option options=()
    for option in encrypt.iter-time=200 "${@:2}"; do
        options+=(-o "$option")
    done
    for _ in {1..20}; do
        qemu-img create -q -f qcow2 --object secret,id=s,data=x \
                 -o encrypt.format=luks -o encrypt.key-secret=s \
                 "${options[@]}" "$file" 1M && return
    done
}
