#!/bin/bash
# Compares the devices with QEMU's: same kernel, same initramfs, same disk contents, one vCPU, medians of several runs.
#
# usage: tests/bench/devices.sh [RUNS]
#
# The guest reads and writes a disk past its page cache, in order and at random places, and fills the console and a
# stream to a program on the host. For the latter we have vsock; QEMU's needs a kernel module (vhost-vsock), so where
# that is missing QEMU's virtio-serial port stands in for it. Fails when the two guests did not read the same bytes, or
# when the host did not get all that the guest wrote.
set -euo pipefail
runs=${1:-5}
here=$(cd "$(dirname "$0")" && pwd)
# In memory, so that it is not the host's disk that is measured.
work=$(TMPDIR=${TMPDIR:-/dev/shm} mktemp -d)
. "$here/private_guest.sh"

size=$((256 << 20))
stream=$((256 << 20))
console=$((32 << 20))
python3 -c "
import random, sys
numbers = random.Random(1)
for _ in range($size >> 20):
    sys.stdout.buffer.write(numbers.randbytes(1 << 20))" >"$work/disk"

# Words of guest.run are divided by commas.
disk() { echo "echo,=$1;probe,$2,/dev/vda,$3,$4,$5"; }
script="exec,9<>/dev/hvc0;stty,raw,<&9"
script+=";$(disk seq-read read 1048576 256 0);$(disk rand-read read 4096 20000 $size)"
script+=";$(disk seq-write write 1048576 256 0);$(disk rand-write write 4096 20000 $size)"
script+=";echo,=console;probe,fill,/dev/hvc0,$console;echo,=stream"
common="console=ttyS0 quiet nokaslr"

ours() {
    cp "$work/disk" "$package/disk"
    cat >"$package/guest.cfg" <<CFG
{ "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cpus": 1, "memory": "512M",
  "cmdline": "$common guest.run=$script;until,probe,vsock,fill,9000,$stream;do,sleep,0.1;done",
  "block": ["data/disk,rw,file"], "virtio-console": true, "virtio-vsock": true }
CFG
    "$guest" launch debian --detach >/dev/null
    "$guest" socat listen debian 9000 >"$work/stream" &
    listener=$!
    timeout 60 "$guest" attach debian </dev/null >"$work/out"
    wait $listener
}

qemu() {
    cp "$work/disk" "$package/disk"
    truncate -s 0 "$work/stream" "$work/console"
    timeout 600 qemu-system-x86_64 -accel tcg,thread=single -M q35 -cpu max -m 512 -smp 1 -nographic -nodefaults \
        -kernel "$package/vmlinuz" -initrd "$package/initramfs.cpio.gz" \
        -append "$common tsc=unstable guest.run=$script;probe,fill,/dev/vport*p2,$stream" -serial stdio \
        -drive "file=$package/disk,if=none,id=disk,format=raw" -device virtio-blk-pci,drive=disk \
        -device virtio-serial-pci -chardev "file,id=console,path=$work/console" -device virtconsole,chardev=console,nr=1 \
        -chardev "file,id=stream,path=$work/stream" -device virtserialport,chardev=stream,nr=2 </dev/null >"$work/out"
    cat "$work/console" >>"$work/out"
}

# Keeps what the guest measured, once it is clear that the host got what was sent.
keep() {
    [ "$(stat -c %s "$work/stream")" = "$stream" ] || { echo "$1: the host got $(stat -c %s "$work/stream") bytes of the stream" >&2; exit 1; }
    [ "$(tr -dc x <"$work/out" | wc -c)" -ge "$console" ] || { echo "$1: the console lost bytes" >&2; exit 1; }
    tr -d 'x\r' <"$work/out" >"$work/$1.$2"
    sha256sum <"$package/disk" >>"$work/$1.$2"
}

for ((run = 1; run <= runs; run++)); do
    echo "run $run of $runs" >&2
    ours
    keep ours "$run"
    qemu
    keep qemu "$run"
done
python3 "$here/devices_table.py" "$work" "$runs"
