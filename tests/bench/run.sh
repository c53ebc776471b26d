#!/bin/bash
# Compares this hypervisor with QEMU's TCG: same kernel, same initramfs, one vCPU, medians of several runs.
#
# usage: tests/bench/run.sh KERNEL [RUNS]
#
# Builds the workloads and the minimal machine, runs both in turn, prints a table, and fails when the two did not
# compute the same results. QEMU runs with both CPU models; the better one counts for each workload.
set -euo pipefail
kernel=${1:?usage: run.sh KERNEL [RUNS]}
runs=${2:-5}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --quiet --release --manifest-path "$here/../../Cargo.toml" -p hypervisor --example linux
target=${CARGO_TARGET_DIR:-$here/../../target}
gcc -O2 -static -o "$work/init" "$here/workloads.c" -lm
python3 "$here/initramfs.py" "$work/init" "$work/initramfs"
options="console=ttyS0 panic=-1 nokaslr quiet printk.devkmsg=on ignore_loglevel"

for ((run = 1; run <= runs; run++)); do
    echo "run $run of $runs" >&2
    "$work/init" >"$work/native.$run"
    timeout 600 "$target/release/examples/linux" "$kernel" "$work/initramfs" "$options pci=off" \
        >"$work/ours.$run" 2>/dev/null
    for cpu in max qemu64; do
        # QEMU's exit device ends it with status 1.
        timeout 600 qemu-system-x86_64 -accel tcg,thread=single -M q35 -cpu "$cpu" -m 1024 -smp 1 -nographic -nodefaults \
            -kernel "$kernel" -initrd "$work/initramfs" -append "$options tsc=unstable" \
            -serial stdio -device isa-debug-exit,iobase=0xf4 >"$work/$cpu.$run" 2>/dev/null || status=$?
        # The guest ends the run through the debug port, which QEMU turns into an odd status.
        if [ $((${status:-0} % 2)) -ne 1 ]; then
            echo "QEMU ($cpu, run $run) did not finish the workloads: status ${status:-0}" >&2
            exit 1
        fi
        status=
    done
done
python3 "$here/table.py" "$work" "$runs"
