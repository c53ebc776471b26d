#!/bin/sh
# What a launch costs: time to the login prompt against QEMU's TCG with the same kernel, initramfs and disk, everything around the
# guest's own execution, `guest list`, and the memory of all processes beyond the guest's.
#
#   launch.sh PACKAGE [RUNS]
#
# PACKAGE is the directory of a debian package, such as `guest image list` shows; it is only read. Prints a table, and ends with an
# error where a limit of the table is exceeded. GUEST in the environment names a built program; without it one is built.
set -eu

package=${1:?usage: launch.sh PACKAGE [RUNS]}
runs=${2:-3}
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${GUEST:-}" ]; then
    cargo build --quiet --release --manifest-path "$here/../../Cargo.toml"
    GUEST=${CARGO_TARGET_DIR:-$here/../../target}/release/guest
fi
exec python3 "$here/launch.py" "$GUEST" "$package" "$runs"
