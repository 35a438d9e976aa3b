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

nbdkit -f -U "$sock" -P "$dir/pid" ./nbdkit-qcow2-plugin.so \
    file="$IMAGE" "${params[@]}" &
server=$!
trap 'kill -TERM $server 2> /dev/null || :' INT TERM HUP

while [ ! -s "$dir/pid" ] && kill -0 $server 2> /dev/null; do
    sleep 0.05
done
if [ -s "$dir/pid" ]; then
    echo "Serving $IMAGE until Ctrl-C at"
    echo "  nbd+unix:///?socket=$sock"
fi

# A signal interrupts the first wait, but the server has to end.
status=0
wait $server || status=$?
while kill -0 $server 2> /dev/null; do
    status=0
    wait $server || status=$?
done
exit $status
