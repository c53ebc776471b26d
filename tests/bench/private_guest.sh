# For the benchmarks to source: a `guest` ($guest) whose data and processes are this run's alone, and a package for it
# ($package) with the tests' kernel and initramfs. Takes the directory of the run from $work, and with it ends everything
# when the script ends. $GUEST and $IMAGES name a program and images that were built before.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export XDG_DATA_HOME=$work/data XDG_RUNTIME_DIR=$work/run
guest=${GUEST:-}
if [ -z "$guest" ]; then
    cargo build --quiet --release --manifest-path "$root/Cargo.toml" --bin guest
    guest=${CARGO_TARGET_DIR:-$root/target}/release/guest
fi

# The component manager of this run; nothing where there is none.
manager() {
    local process
    for process in $(pgrep -f 'component_manager( |$)'); do
        if grep -qszx "XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR" "/proc/$process/environ"; then echo "$process"; fi
    done
}
# That, and all processes below it.
processes() {
    ps -e -o pid=,ppid= | awk -v manager="$(manager)" '{ parent[$1] = $2 }
        END { for (process in parent) {
            above = process
            while (above && above != manager) above = parent[above]
            if (above) print process
        } }'
}
# The components' processes end with their manager.
stop() {
    local process
    for process in $(manager); do kill "$process"; done
    rm -rf "$work"
}
trap stop EXIT

package=$XDG_DATA_HOME/guest/packages/debian_guest/data
mkdir -p "$package" "$XDG_RUNTIME_DIR"
images=${IMAGES:-$work/images}
[ -e "$images/initramfs.cpio.gz" ] || sh "$root/tests/guests/build-initramfs.sh" "$images" >/dev/null
cp "$images/vmlinuz" "$images/initramfs.cpio.gz" "$package"
