#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Serves the image IMAGE on a Unix socket and prints the URI, until Ctrl-C.
# PARAMS holds further parameters and options, separated by spaces.

set -eu

[ -n "${IMAGE:-}" ] || {
    echo "Which image?  make serve IMAGE=disk.qcow2" >&2
    exit 2
}
read -r -a params <<< "${PARAMS:-}"

dir=$(mktemp -d "${TMPDIR:-/tmp}/qcow2-serve.XXXXXX")
sock=$dir/sock
trap 'rm -rf "$dir"' EXIT

# Nobody can write unless PARAMS says so.
case " ${PARAMS:-} " in
    *" write="*) readonly=() ;;
    *) readonly=(-r) ;;
esac

# In a process group of its own: Ctrl-C reaches it through the trap alone.
set -m
nbdkit -f "${readonly[@]}" -U "$sock" -P "$dir/pid" ./nbdkit-qcow2-plugin.so \
    file="$IMAGE" "${params[@]}" &
server=$!
set +m
trap 'kill -TERM $server 2> /dev/null || :' INT TERM HUP

while [ ! -s "$dir/pid" ] && kill -0 $server 2> /dev/null; do
    sleep 0.05
done
if [ -s "$dir/pid" ]; then
    echo "Serving $IMAGE until Ctrl-C at"
    echo "  nbd+unix:///?socket=$sock"
fi

# A signal interrupts the wait, but the server has to end: its own exit
# status is what counts.
while kill -0 $server 2> /dev/null; do
    wait $server || :
done
status=0
wait $server || status=$?
exit $status
