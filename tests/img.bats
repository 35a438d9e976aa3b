# SPDX-License-Identifier: BSD-3-Clause
#
# qcow2-img as such: help, bad usage, bash completion.

load lib
load img

setup () { img_setup; }

commands ()
{
    "$img" --help | sed -n '/^Command syntax:/,/^$/s/^  \([a-z]*\) .*/\1/p'
}

@test "--help lists each command, and COMMAND --help each of its options" {
    run_img --help
    [ "$status" -eq 0 ]
    [ ! -s err ]
    commands > all
    grep -x info all
    while IFS= read -r command; do
        run_img "$command" --help
        [ "$status" -eq 0 ]
        [ ! -s err ]
        "$img" --help | grep "^  $command " | grep -Eo -e '--?[A-Za-z][a-z0-9-]*' |
            sort -u > options
        [ -s options ]
        while IFS= read -r option; do
            sed 1d out | grep -Eq -e "(^|[ ,])$option([ =,]|$)" ||
                fail "$command --help does not explain $option"
        done < options
        # The letter does the same.
        cp out long
        run_img "$command" -h
        cmp out long
    done < all
}

@test "--version is the Makefile's" {
    version=$(sed -n 's/^VERSION := //p' "$TOP/Makefile")
    for option in --version -V; do
        run_img $option
        [ "$(cat out)" = "qcow2-img version $version" ]
        [ ! -s err ]
    done
}

@test "bad usage: one message, qemu-img's status" {
    qemu-img create -q -f qcow2 a.qcow2 1M
    while read -r args; do
        # shellcheck disable=SC2086
        twin $args
        [ "$status" -eq 1 ]
        # shellcheck disable=SC2086
        refuses 1 . $args
    done <<'END'

nonsense
-z
--nonsense info a.qcow2
info
info -z a.qcow2
info --nonsense a.qcow2
info -f
info --output
info --output=xml a.qcow2
info a.qcow2 a.qcow2
map
map a.qcow2 a.qcow2
compare
compare a.qcow2
compare a.qcow2 a.qcow2 a.qcow2
measure
measure a.qcow2 a.qcow2
check
check --output=xml a.qcow2
END
}

@test "what qemu-img has, and this tool has not, is refused with a reason" {
    qemu-img create -q -f qcow2 a.qcow2 1M
    refuses 1 '--image-opts is not supported: .*-f' info --image-opts driver=qcow2,file.filename=a.qcow2
    refuses 1 '--object is not supported' info --object secret,id=s,data=x a.qcow2
    refuses 1 'nothing to trace' -T bdrv_open info a.qcow2
    refuses 1 'the format "vmdk" is not supported' info -f vmdk a.qcow2
    refuses 1 '--backing-format must be' info --backing-format=vmdk a.qcow2
}

@test "output that can't be written is an error" {
    qemu-img create -q -f qcow2 a.qcow2 1M
    for command in info map check "measure -O qcow2"; do
        status=0
        # shellcheck disable=SC2086
        "$img" $command a.qcow2 > /dev/full 2> err || status=$?
        [ $status -eq 1 ]
        grep -x "qcow2-img: can't write to the standard output: .*" err
    done
}

@test "bash completion: commands, options, values, files" {
    # shellcheck disable=SC1091
    source "$TOP/img/bash-completion"
    complete -p qcow2-img
    # completes WORD ...: what the last word may become.
    completes ()
    {
        COMP_WORDS=(qcow2-img "$@")
        COMP_CWORD=$#
        _qcow2_img "$img" "${COMP_WORDS[COMP_CWORD]}" \
            "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    }
    completes '' > words
    commands | while IFS= read -r command; do
        grep -x "$command" words
    done
    grep -x -e --version words

    [ "$(completes compare --data | sort)" = "--data-file2=
--data-file=" ]
    completes info - > words
    grep -x -e --backing-chain words
    grep -x -e -U words
    run ! grep -x -e --data-file= words
    [ "$(completes info --output = j)" = json ]
    [ "$(completes map -f r)" = raw ]
    touch disk.qcow2
    [ "$(completes map d)" = disk.qcow2 ]
    mkdir directory
    [ "$(completes map --allow-dir = d)" = directory ]
}
