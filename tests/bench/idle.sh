#!/bin/bash
# What a guest costs that does nothing: CPU time of all its processes over some seconds, as a part of one core. Fails
# from 1 % on.
#
# usage: tests/bench/idle.sh [SECONDS]
set -euo pipefail
seconds=${1:-30}
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=$(mktemp -d)
export XDG_DATA_HOME=$work/data XDG_RUNTIME_DIR=$work/run
guest=${GUEST:-}
if [ -z "$guest" ]; then
    cargo build --quiet --release --manifest-path "$root/Cargo.toml" --bin guest
    guest=${CARGO_TARGET_DIR:-$root/target}/release/guest
fi

# The component manager of this run, and all below it.
processes() {
    local found="" process
    for process in $(pgrep -f 'component_manager( |$)'); do
        if tr '\0' '\n' <"/proc/$process/environ" 2>/dev/null | grep -qx "XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR"; then
            found="$found $process"
        fi
    done
    local next=$found
    while [ -n "${next// /}" ]; do
        next=$(for process in $next; do pgrep -P "$process" || true; done | tr '\n' ' ')
        found="$found $next"
    done
    echo "$found"
}
stop() {
    kill $(processes) 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT

package=$XDG_DATA_HOME/guest/packages/debian_guest/data
mkdir -p "$package" "$XDG_RUNTIME_DIR"
images=${IMAGES:-$work/images}
[ -e "$images/initramfs.cpio.gz" ] || sh "$root/tests/guests/build-initramfs.sh" "$images" >/dev/null
cp "$images/vmlinuz" "$images/initramfs.cpio.gz" "$package"
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
