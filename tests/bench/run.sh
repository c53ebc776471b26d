#!/bin/bash
# Compares this hypervisor with QEMU's TCG: same kernel, same initramfs, one vCPU, medians of several runs.
#
# usage: [RUNS=5] tests/bench/run.sh KERNEL [WORKLOAD...]
#
# Builds the workloads and the minimal machine, runs both in turn, prints a table, and fails when the two did not
# compute the same results. QEMU runs with both CPU models; the better one counts for each workload. Needs Debian's
# qemu-system-x86, gcc, libc6-dev, libssl-dev, python3, gzip and dash.
set -euo pipefail
kernel=${1:?usage: run.sh KERNEL [WORKLOAD...]}
shift
set -- "${@/#/+}"
runs=${RUNS:-5}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --quiet --release --manifest-path "$here/../../Cargo.toml" -p hypervisor --example linux
ours=${CARGO_TARGET_DIR:-$here/../../target}/release/examples/linux
"$here/root.sh" "$work"
options="console=ttyS0 panic=-1 nokaslr pci=off"
measured="$options quiet printk.devkmsg=on ignore_loglevel${*:+ -- $*}"
# A guest under TCG distrusts its TSC sooner or later and then measures with a worse clock; so from the start.
tcg="tsc=unstable $options"
qemu() {
    qemu-system-x86_64 -accel tcg,thread=single -M q35 -m 1024 -smp 1 -nographic -nodefaults -serial stdio \
        -device isa-debug-exit,iobase=0xf4 -kernel "$kernel" "$@"
}
export -f qemu
export kernel

# Runs a command whose output goes to a file; 0 and the odd status that the exit port gives QEMU are success.
finish() {
    local out=$1 status=0
    shift
    timeout 600 "$@" >"$out" 2>"$out.errors" </dev/null || status=$?
    if [ $status -ne 0 ] && [ $status -ne 1 ] || ! grep -q 'RESULT end' "$out"; then
        echo "$out: status $status, and these last lines:" >&2
        tail -n 5 "$out" "$out.errors" >&2
        exit 1
    fi
}

for ((run = 1; run <= runs; run++)); do
    echo "run $run of $runs" >&2
    (cd "$work/root" && finish "$work/native.$run" ./init "$@")
    finish "$work/ours.$run" "$ours" "$kernel" "$work/initramfs" "$measured"
    python3 "$here/prompt.py" "$work/ours.log" "$ours" "$kernel" "$work/shell.initramfs" "$options rdinit=/bin/sh" \
        >"$work/ours.boot.$run"
    for cpu in max qemu64; do
        finish "$work/$cpu.$run" bash -c 'qemu "$@"' qemu -cpu "$cpu" -initrd "$work/initramfs" -append "tsc=unstable $measured"
        python3 "$here/prompt.py" "$work/$cpu.log" bash -c 'qemu "$@"' qemu -cpu "$cpu" -initrd "$work/shell.initramfs" \
            -append "$tcg rdinit=/bin/sh" >"$work/$cpu.boot.$run"
    done
done
python3 "$here/table.py" "$work" "$runs"
