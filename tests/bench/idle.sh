#!/bin/bash
# What a guest costs that does nothing: CPU time of all its processes over some seconds, as a part of one core. Fails
# from 1 % on.
#
# usage: tests/bench/idle.sh [SECONDS]
set -euo pipefail
seconds=${1:-30}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
. "$here/private_guest.sh"

truncate -s 64M "$package/disk"
cat >"$package/guest.cfg" <<CFG
{ "linux": "data/vmlinuz", "ramdisk": "data/initramfs.cpio.gz", "cpus": 1, "memory": "512M", "cmdline": "console=ttyS0",
  "block": ["data/disk,rw,file"], "virtio-balloon": true, "virtio-console": true, "virtio-rng": true,
  "virtio-vsock": true, "default-net": true }
CFG
"$guest" launch debian --detach >/dev/null
# Long after it has booted.
sleep 20

ticks() {
    for process in $(processes); do
        sed 's/.*) //' "/proc/$process/stat"
    done | awk '{ sum += $12 + $13 } END { print sum }'
}
before=$(ticks)
sleep "$seconds"
after=$(ticks)
for process in $(processes); do
    printf '%s: %s ticks in all\n' "$(tr '\0' ' ' <"/proc/$process/cmdline")" \
        "$(sed 's/.*) //' "/proc/$process/stat" | awk '{ print $12 + $13 }')"
done
awk -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v seconds="$seconds" 'BEGIN {
    percent = 100 * ticks / hz / seconds
    printf "%.2f %% of a core, idle\n", percent
    exit percent >= 1
}'
