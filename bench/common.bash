# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# shellcheck disable=SC2034
#
# What bench/run and bench/profile share: the rows, the images they read, and
# the three servers.  A row is a set of variables (see row_settings).  Images
# are made on first use in $images; servers are started afresh for each
# measurement, so that luck with memory layout is averaged over the rounds.

bench=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
: "${BENCH_PLUGIN:=$bench/../nbdkit-qcow2-plugin.so}"
: "${BENCH_IMG:=$bench/../qcow2-img}"
: "${BENCH_SECONDS:=1}" "${BENCH_ROUNDS:=5}"

ramp_ms=250            # not counted, at the start of each run of fio
cluster_bytes=65536
area_mib=2048           # allocated, from offset 0
virtual_mib=8192
overlays=8
spare_mib=1024          # of memory, for the programs
check_gib=1024          # of the disk whose metadata is checked

all_rows=(random-read sequential-read small-cache overlays copy-out
          zstd-large zstd-fits copy-out-zstd copy-out-zlib
          write-in-place write-small-cache write-allocating write-flushing
          write-extended-l2 write-cow write-after-snapshot copy-in check)

images=           # directory of the images
where=            # tmpfs or disk
scratch=          # directory of sockets, samples and logs
memory=           # files of this name hold memory (see hold_memory)
server_pid=

die ()
{
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

say ()
{
  printf '%s\n' "$*" >&2
}

# row_settings ROW: sets what is measured, on what, and the goals.
#   tool       fio, nbdcopy or check
#   image raw  files in $images; raw has the content of image
#   read_mib   requests stay below this offset
#   writes     how many writes make one measurement; 0: as many as fit the time
#   fresh      how $work.qcow2 and $work.raw are made before each measurement
#              (see make_fresh), or nothing: the images are used as they are
#   fsync      a flush after so many writes, 0: none
#   fill_mib   more than what the servers' files grow by
#   ours_extra, l2_cache   parameters for our server and for qemu-nbd
#   goal_qemu, goal_raw    least ratios, or "null"
row_settings ()
{
  tool=fio rw=randread block=4k depth=16 read_mib=$area_mib
  image=plain.qcow2 raw=plain.raw
  ours_extra=() l2_cache='' goal_qemu=null goal_raw=null
  writable=no writes=0 fresh='' fsync=0 fill_mib=0

  case $1 in
    random-read) goal_qemu=1.6 goal_raw=0.95 ;;
    sequential-read)
      rw=read block=1m depth=8 goal_qemu=1.5 goal_raw=0.95 ;;
    small-cache)
      # One L2 table of 64 KiB maps 512 MiB.
      l2_cache=$((area_mib * cluster_bytes / 512 / 16))
      ours_extra=("cache-size=$l2_cache") goal_qemu=1.2 ;;
    overlays)
      image=chain$overlays.qcow2 goal_qemu=2.0 goal_raw=0.9 ;;
    copy-out) tool=nbdcopy goal_qemu=1.1 goal_raw=0.95 ;;
    zstd-large)
      image=zstd.qcow2 raw=system.raw read_mib=512 goal_qemu=1.6
      ours_extra=(compressed-cache-size=32M) ;;
    zstd-fits)
      image=zstd.qcow2 raw=system.raw read_mib=24 goal_qemu=3
      ours_extra=(compressed-cache-size=32M) ;;
    copy-out-zstd)
      tool=nbdcopy image=zstd.qcow2 raw=system.raw goal_qemu=1.4 ;;
    copy-out-zlib)
      tool=nbdcopy image=zlib.qcow2 raw=system.raw goal_qemu=2 ;;
    write-in-place)
      rw=randwrite writable=yes goal_qemu=2.5 goal_raw=0.95 ;;
    write-small-cache)
      l2_cache=$((area_mib * cluster_bytes / 512 / 16))
      ours_extra=("cache-size=$l2_cache") rw=randwrite writable=yes
      goal_qemu=1.2 ;;
    # Few enough writes that most of them find their cluster unallocated.
    write-allocating)
      fresh_row empty $virtual_mib 32768 4 0.85 ;;
    write-flushing)
      fresh_row empty $virtual_mib 8192 4 0.8
      fsync=32 ;;
    write-extended-l2)
      fresh_row extended $virtual_mib 16384 2.5 0.85 ;;
    write-cow) fresh_row overlay $area_mib 8192 2.5 null ;;
    write-after-snapshot) fresh_row snapshot $area_mib 8192 6 null ;;
    copy-in)
      fresh_row empty $virtual_mib 0 1.1 0.95
      tool=nbdcopy fill_mib=$((area_mib * 5 / 4)) ;;
    check) tool=check image=check.qcow2 raw=check.qcow2 goal_qemu=2 ;;
    *) die "unknown row '$1'; the rows are: ${all_rows[*]}" ;;
  esac
}

# fresh_row KIND MIB WRITES GOAL_QEMU GOAL_RAW
fresh_row ()
{
  rw=randwrite writable=yes fresh=$1 read_mib=$2 writes=$3 fill_mib=1024
  goal_qemu=$4 goal_raw=$5
}

# set_up tmpfs|disk: checks the tools, makes $images and $scratch.
set_up ()
{
  local t
  for t in nbdkit qemu-nbd qemu-img fio nbdcopy jq openssl awk; do
    command -v "$t" > /dev/null || die "$t is not installed"
  done
  [ -f "$BENCH_PLUGIN" ] || die "$BENCH_PLUGIN does not exist: run make"

  trap tear_down EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  local parent=/dev/shm type
  memory=$(mktemp -u -p "$parent" qcow2-bench.memory.XXXXXX)
  [ "$1" = tmpfs ] || parent=${TMPDIR:-/var/tmp}
  scratch=$(mktemp -d -p "$parent" qcow2-bench.XXXXXX)
  images=$scratch
  if [ -n "${BENCH_DIR-}" ]; then
    mkdir -p "$BENCH_DIR"
    images=$(cd -- "$BENCH_DIR" && pwd)
  fi

  type=$(stat -f -c %T "$images")
  where=$1
  case $where:$type in
    tmpfs:tmpfs) ;;
    tmpfs:*) die "$images is on $type, which is not a tmpfs" ;;
    disk:tmpfs | disk:ramfs)
      die "$images is on $type, which is not a disk" ;;
    disk:*) ;;
    *) die "BENCH_WHERE is tmpfs or disk, not '$where'" ;;
  esac
  local free_kib
  free_kib=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
  [ "$free_kib" -ge $((9 << 20)) ] || die "needs 9 GiB of free memory"
}

tear_down ()
{
  stop_server
  drop_memory
  [ -z "$scratch" ] || rm -rf -- "$scratch"
  scratch=
}

# ---- Images

# make_image FILE...: makes those of the files that are not there yet.
make_image ()
{
  local f
  for f in "$@"; do
    [ ! -e "$images/$f" ] || continue
    say "making $f"
    case $f in
      plain.raw) make_plain_raw ;;
      system.raw) make_system_raw ;;
      plain.qcow2) make_image plain.raw; convert plain.raw "$f" ;;
      zlib.qcow2 | zstd.qcow2)
        make_image system.raw
        convert system.raw "$f" -c -o "compression_type=${f%.qcow2}"
        check_compressed "$f" ;;
      chain*.qcow2) make_image plain.raw; make_chain ;;
      check.qcow2)
        qemu-img create -q -f qcow2 -o preallocation=metadata \
                 "$images/$f" ${check_gib}G ;;
      *) die "no way to make $f" ;;
    esac || die "cannot make $f"
  done
}

# convert RAW QCOW2 [OPTION...]
convert ()
{
  local from=$1 to=$2
  shift 2
  qemu-img convert -f raw -O qcow2 "$@" "$images/$from" "$images/$to.new" &&
    mv "$images/$to.new" "$images/$to"
}

make_plain_raw ()
{
  local new=$images/plain.raw.new
  head -c "${area_mib}M" /dev/zero |
    openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f \
            -iv 00000000000000000000000000000000 > "$new" &&
    truncate -s "${virtual_mib}M" "$new" && mv "$new" "$images/plain.raw"
}

# What the disks of guests are full of: programs and libraries, here those of
# this system, one behind the other and again from the start; the odd length of
# the whole puts them at other places of a cluster each time.
make_system_raw ()
{
  local new=$images/system.raw.new piece=$images/system.piece size=0
  local piece_bytes=$(((256 << 20) - 4099))
  { find /usr/lib /usr/bin -xdev -type f \( -perm -u+x -o -name '*.so*' \) \
      -size +16k -print0 | LC_ALL=C sort -z | xargs -0 cat; } 2> /dev/null |
    head -c $piece_bytes > "$piece"
  [ -s "$piece" ] && : > "$new" || return
  while [ $size -lt $((area_mib << 20)) ]; do
    cat "$piece" >> "$new" || return
    size=$((size + $(stat -c %s "$piece")))
  done
  rm "$piece"
  truncate -s "${area_mib}M" "$new" && truncate -s "${virtual_mib}M" "$new" &&
    mv "$new" "$images/system.raw"
}

# check_compressed FILE: fails unless nearly all clusters are compressed; the
# few others hold what programs keep compressed already, or nothing but zeros.
check_compressed ()
{
  local clusters=$(((area_mib << 20) / cluster_bytes))
  qemu-img check --output=json "$images/$1" |
    jq -e --argjson n $clusters \
       '."allocated-clusters" >= $n * 0.9 and
        ."compressed-clusters" >= $n * 0.9' > /dev/null
}

# make_fresh SERVER: makes the file that SERVER is to write.
make_fresh ()
{
  [ -n "$fresh" ] || return 0
  local work=$images/work
  rm -f "$work.raw" "$work.qcow2"
  if [ "$1" = raw ]; then
    case $fresh in
      empty | extended) truncate -s "${virtual_mib}M" "$work.raw" ;;
      *) cp --sparse=always "$images/plain.raw" "$work.raw" ;;
    esac
  else
    case $fresh in
      empty) create "${virtual_mib}M" ;;
      extended)
        create -o extended_l2=on,cluster_size=128k "${virtual_mib}M" ;;
      overlay) create -b plain.qcow2 -F qcow2 ;;
      snapshot)
        cp "$images/plain.qcow2" "$work.qcow2" &&
          qemu-img snapshot -c before "$work.qcow2" ;;
    esac
  fi || die "cannot make an image for $1 to write"
}

# create OPTION...
create ()
{
  local size=()
  [ "$1" = -b ] || { size=("${@: -1}"); set -- "${@:1:$#-1}"; }
  qemu-img create -q -f qcow2 "$@" "$images/work.qcow2" "${size[@]}"
}

# Each layer is made from a sparse file that holds the layer's part of
# plain.raw, then told its backing file.
make_chain ()
{
  local layer part=$images/layer.raw name first count
  for ((layer = 0; layer <= overlays; layer++)); do
    name=chain$layer.qcow2
    rm -f "$part"
    truncate -s "${virtual_mib}M" "$part" || return
    while read -r first count; do
      dd if="$images/plain.raw" of="$part" bs=$cluster_bytes status=none \
         conv=notrunc skip="$first" seek="$first" count="$count" || return
    done < <(awk -v clusters=$(((area_mib << 20) / cluster_bytes)) \
                 -v overlays=$overlays -v layer=$layer \
                 -f "$bench/layers.awk")
    convert layer.raw "$name" || return
    [ $layer -eq 0 ] ||
      qemu-img rebase -u -f qcow2 -F qcow2 -b "chain$((layer - 1)).qcow2" \
               "$images/$name" || return
  done
  rm "$part"
}

# keep_images FILE...: unless BENCH_DIR keeps them, removes all but these.
keep_images ()
{
  local path f keep
  [ -z "${BENCH_DIR-}" ] || return 0
  for path in "$images"/*.raw "$images"/*.qcow2; do
    [ -e "$path" ] || continue
    keep=no
    for f in "$@"; do
      [ "${path##*/}" != "$f" ] || keep=yes
      [[ $f != chain* || ${path##*/} != chain* ]] || keep=yes
    done
    [ $keep = yes ] || rm -- "$path"
  done
}

# A virtual machine gives memory that has been free for a second or two back to
# its host, and to get it again costs several times what a write does.  So what
# a measurement fills is in use until just before.  What else is free is in use
# as long as the row lasts: nobody can tell which of it the kernel would take.
#
#   hold_memory     at the start of a row: leaves room for its images
#   fill_memory     before a measurement, release_memory when it begins
#   drop_memory     at the end of a row
hold_memory ()
{
  [ "$fill_mib" -gt 0 ] || return 0
  rm -f "$images"/work.*
  hold "$memory.rest" $((spare_mib + fill_mib + area_mib * 5 / 4))
}

fill_memory ()
{
  [ "$fill_mib" -eq 0 ] || hold "$memory.fill" $spare_mib
}

release_memory ()
{
  rm -f "$memory.fill"
}

drop_memory ()
{
  [ -z "$memory" ] || rm -f "$memory.fill" "$memory.rest"
}

# hold FILE MIB: takes all free memory but so much.
hold ()
{
  local mib
  mib=$(awk '/^MemFree/ { print int ($2 / 1024) }' /proc/meminfo)
  mib=$((mib - $2))
  [ $mib -le 0 ] || head -c "${mib}M" /dev/zero > "$1" ||
    die "cannot take $mib MiB of memory"
}

# warm_images: reads the row's images into the page cache.  What is there from
# when they were made goes first: on ext4 a small write costs three times as
# much where a larger one has put larger folios.
warm_images ()
{
  local files=("$images/$raw" "$images/$image") f
  [[ $image != chain* ]] || files+=("$images"/chain*.qcow2)
  [ "$where" = tmpfs ] || for f in "${files[@]}"; do
    dd of="$f" oflag=nocache conv=notrunc,fdatasync count=0 status=none
    cat -- "$f" > /dev/null
  done
}

# ---- Servers

# start_server ours|qemu|raw: serves the row's image on $scratch/socket.
start_server ()
{
  local socket=$scratch/socket pidfile=$scratch/pid command
  local qemu=(qemu-nbd -e 16 --aio=io_uring --cache=writeback --discard=unmap
              --persistent -k "$socket" --pid-file="$pidfile")
  local nbdkit=(nbdkit -f -U "$socket" -P "$pidfile")
  [ $writable = yes ] || { qemu+=(-r) nbdkit+=(-r); }
  [ -z "$fresh" ] || local image=work.qcow2 raw=work.raw
  make_fresh "$1"
  fill_memory

  case $1 in
    ours) command=("${nbdkit[@]}" "$BENCH_PLUGIN" file="$images/$image"
                   "${ours_extra[@]}") ;;
    raw) command=("${nbdkit[@]}" file "$images/$raw") ;;
    qemu)
      if [ -n "$l2_cache" ]; then
        local opts=driver=qcow2,l2-cache-size=$l2_cache
        opts+=,file.driver=file,file.filename=$images/$image
        command=("${qemu[@]}" --image-opts "$opts")
      else
        command=("${qemu[@]}" -f qcow2 "$images/$image")
      fi ;;
  esac

  rm -f "$socket" "$pidfile"
  "${command[@]}" > "$scratch/server.log" 2>&1 &
  server_pid=$!
  uri="nbd+unix:///?socket=$socket"
  local i
  for ((i = 0; i < 200; i++)); do
    [ ! -s "$pidfile" ] || return 0
    kill -0 "$server_pid" 2> /dev/null || break
    sleep 0.05
  done
  cat "$scratch/server.log" >&2
  die "the server does not start: ${command[*]}"
}

stop_server ()
{
  [ -n "$server_pid" ] || return 0
  kill "$server_pid" 2> /dev/null
  wait "$server_pid" 2> /dev/null
  server_pid=
}

# run_fio CONNECTIONS SECONDS: leaves the result in $scratch/fio.json.
run_fio ()
{
  local size=$read_mib step=0
  # Sequential readers each take a part of their own.
  if [ "$rw" = read ]; then
    size=$((read_mib / $1)) step=$size
  fi
  local length=(--time_based --ramp_time="${ramp_ms}ms" --runtime="$2")
  [ "$writes" -eq 0 ] || length=(--number_ios=$((writes / $1)))
  timeout $(($2 + 60)) \
    fio --name=row --ioengine=nbd --uri="$uri" --rw="$rw" --bs="$block" \
        --iodepth="$depth" --numjobs="$1" --group_reporting \
        --size="${size}m" --offset_increment="${step}m" --norandommap \
        --fsync="$fsync" "${length[@]}" \
        --output-format=json --output="$scratch/fio.json" \
        > "$scratch/fio.log" 2>&1 ||
    { cat "$scratch/fio.log" >&2; die "fio failed"; }
}

# run_nbdcopy CONNECTIONS: copies the image to nowhere, or into the image.
run_nbdcopy ()
{
  local what=("$uri" null:)
  [ $writable = no ] || what=("$images/plain.raw" "$uri")
  timeout 300 nbdcopy --connections="$1" -- "${what[@]}" \
          > "$scratch/nbdcopy.log" 2>&1 ||
    { cat "$scratch/nbdcopy.log" >&2; die "nbdcopy failed"; }
}
