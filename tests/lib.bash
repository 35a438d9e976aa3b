# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# What the bats tests share.  A test file begins with `load lib' and gets:
#
#   $TEST_DIR   an empty directory for each test, which is also the current
#               one; removed when the test ends
#   $plugin     the plugin under test
#   $img        qcow2-img under test
#   $TOP, $BUILD_DIR  the source tree and the build directory
#   $PYTHON     a Python that has libnbd's module `nbd'
#
# and the functions below.  A file with its own setup or teardown calls
# common_setup first or common_teardown last.
# shellcheck disable=SC2034
#
# Servers run in the foreground on a Unix socket, never with --run, so that
# they can be sanitized: NBDKIT_PRELOAD names libraries to preload for that and
# NBDKIT_WRAPPER a command (valgrind) to run nbdkit under; tests/run sets both.
# Programs other than nbdkit run as they are.

TOP=${TOP:-$(cd "$BATS_TEST_DIRNAME/.." && pwd)}
BUILD_DIR=${BUILD_DIR:-$TOP/build}
plugin=${QCOW2_PLUGIN:-$TOP/nbdkit-qcow2-plugin.so}
img=${QCOW2_IMG:-$TOP/qcow2-img}
PYTHON=/usr/bin/python3
PATH=$PATH:/usr/sbin:/sbin

export TOP BUILD_DIR PYTHON

setup ()    { common_setup; }
teardown () { common_teardown; }

# bats notes the whole call stack before each command, which takes a third of
# the time of a test that calls many.  Here only the place is noted, and the
# stack when a command fails.  (When that is handled the place is noted once
# more, perhaps wrongly: the one before is meant.)
light_traces ()
{
    place='' place_before=''
    # In one line, lest the second has a number of its own.
    trap 'place_before=$place;'\
'place="$LINENO ${FUNCNAME[0]} ${BASH_SOURCE[0]}"' DEBUG
    trap 'note_failure "$place_before"' ERR
}

# note_failure PLACE: leaves to bats the stack from PLACE up, which may be in a
# function that has returned already.
note_failure ()
{
    local status=$? above
    trap - DEBUG
    bats_capture_stack_trace
    above=("${BATS_DEBUG_LAST_STACK_TRACE[@]}")
    [ "${1#* }" != "${above[0]#* }" ] || above=("${above[@]:1}")
    BATS_DEBUG_LAST_STACK_TRACE=("$1" "${above[@]}")
    BATS_DEBUG_LAST_STACK_TRACE_IS_VALID=1
    return "$status"
}

common_setup ()
{
    bats_require_minimum_version 1.5.0
    light_traces
    TEST_DIR=$(mktemp -d "${TMPDIR:-/tmp}/qcow2.XXXXXX")
    cd "$TEST_DIR" || return 1
    server_count=0
    server_pids=()
    declare -gA server_log=()
}

# Servers that a test has not stopped are stopped here, and fail the test just
# as stop_nbdkit does.
common_teardown ()
{
    local status=0
    while [ ${#server_pids[@]} -gt 0 ]; do
        stop_nbdkit || status=1
    done
    cd / && rm -rf "$TEST_DIR"
    return $status
}

# fail MESSAGE: fails the test with this message.
fail ()
{
    echo "$*" >&2
    return 1
}

# ---- servers --------------------------------------------------------------

# nbdkit_command ARGS: sets the array `nbdkit_cmd' to nbdkit in the foreground
# on the socket $sock with the plugin and ARGS.
nbdkit_command ()
{
    local preload=${NBDKIT_PRELOAD:-}${TEST_PRELOAD:+:$TEST_PRELOAD}
    # shellcheck disable=SC2206
    nbdkit_cmd=(${TEST_WRAPPER:-} env ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0"
                ${preload:+"LD_PRELOAD=${preload#:}"} ${NBDKIT_WRAPPER:-}
                nbdkit -f -U "$sock" "$plugin" "$@")
}

# start_nbdkit ARGS: starts a server for the plugin with ARGS, which are
# parameters of the plugin and of filters, and options of nbdkit, in any order:
#
#   start_nbdkit disk.qcow2
#   start_nbdkit --filter=cow -t 4 disk.qcow2 cache-size=1M
#
# Returns when it listens; fails with what it said if it does not start.  Sets
# $sock, $uri, $server_pid and $server_stderr (a file).  TEST_PRELOAD names a
# library to preload ($BUILD_DIR/tests/preload-NAME.so), TEST_WRAPPER a command
# that becomes nbdkit.  Several servers may run at a time.
start_nbdkit ()
{
    local pidfile

    server_count=$((server_count + 1))
    sock=$TEST_DIR/sock$server_count
    uri="nbd+unix:///?socket=$sock"
    server_stderr=$TEST_DIR/server$server_count.err
    pidfile=$TEST_DIR/server$server_count.pid

    nbdkit_command -P "$pidfile" "$@"
    "${nbdkit_cmd[@]}" < /dev/null > "$server_stderr" 2>&1 3>&- 4>&- &
    server_pid=$!
    server_pids+=("$server_pid")
    server_log[$server_pid]=$server_stderr

    for _ in {1..1200}; do
        [ ! -s "$pidfile" ] || return 0
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.05
    done
    echo "nbdkit did not start: ${nbdkit_cmd[*]}" >&2
    stop_nbdkit "$server_pid" || :
    return 1
}

# stop_nbdkit [PID]: stops the server started last, or this one, with SIGTERM.
# Fails if it does not end by itself with exit status 0, or if a sanitizer
# found something.  What it wrote stays in $server_stderr.
stop_nbdkit ()
{
    local pid=${1:-${server_pids[-1]}} status=0 other left=()

    for other in "${server_pids[@]}"; do
        [ "$other" = "$pid" ] || left+=("$other")
    done
    server_pids=("${left[@]}")

    kill -TERM "$pid" 2>/dev/null || :
    for _ in {1..1200}; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || :
    wait "$pid" || status=$?

    server_stderr=${server_log[$pid]}
    if [ "$status" -ne 0 ]; then
        echo "nbdkit ended with status $status:" >&2
        cat "$server_stderr" >&2
        return 1
    fi
    no_sanitizer_report "$server_stderr"
}

# kill_nbdkit [PID]: ends a server at once, with SIGKILL.
kill_nbdkit ()
{
    local pid=${1:-${server_pids[-1]}} other left=()

    for other in "${server_pids[@]}"; do
        [ "$other" = "$pid" ] || left+=("$other")
    done
    server_pids=("${left[@]}")
    kill -KILL "$pid"
    wait "$pid" || true
}

# no_sanitizer_report FILE: fails if FILE has a sanitizer's or valgrind's
# report.
no_sanitizer_report ()
{
    if grep -E 'Sanitizer|runtime error:|^==[0-9]+== ' "$1" >&2; then
        cat "$1" >&2
        return 1
    fi
}

# refuses_to_start REGEX ARGS: runs nbdkit as start_nbdkit does and expects it
# to fail by itself with a message that matches the extended regular expression.
# $output holds what it said.
refuses_to_start ()
{
    local regex=$1 status=0
    shift

    sock=$TEST_DIR/refused
    nbdkit_command "$@"
    timeout 60 "${nbdkit_cmd[@]}" < /dev/null > refused.err 2>&1 3>&- 4>&- ||
        status=$?
    rm -f "$sock"
    output=$(cat refused.err)
    no_sanitizer_report refused.err || return 1
    [ "$status" -eq 1 ] ||
        fail "nbdkit ended with status $status, not 1: $output" || return 1
    [[ $output =~ $regex ]] || fail "no message like '$regex' in: $output"
}

# ---- content --------------------------------------------------------------

# qemu_raw IMAGE OUT [OPTION ...]: what QEMU reads from a qcow2 image, as a raw
# file.  OPTIONs go to qemu-img convert.
qemu_raw ()
{
    local image=$1 out=$2
    shift 2
    qemu-img convert -f qcow2 -O raw "$@" "$image" "$out"
}

# nbd_raw URI OUT: what the server gives, as a raw file.
nbd_raw ()
{
    rm -f "$2"
    nbdcopy "$1" "$2"
}

# assert_same_content A B: A and B are raw files or NBD URIs, and must be equal
# to the last byte.
assert_same_content ()
{
    local a=$1 b=$2 copy_a copy_b status=0

    copy_a=$(mktemp "$TEST_DIR/same.XXXXXX")
    copy_b=$(mktemp "$TEST_DIR/same.XXXXXX")
    if [[ $a == nbd*:* ]]; then nbd_raw "$a" "$copy_a"; a=$copy_a; fi
    if [[ $b == nbd*:* ]]; then nbd_raw "$b" "$copy_b"; b=$copy_b; fi
    cmp "$a" "$b" >&2 || status=1
    rm -f "$copy_a" "$copy_b"
    return $status
}
