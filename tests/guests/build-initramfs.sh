#!/bin/sh
# Builds a small Linux guest for boot tests: Debian's cloud kernel and an initramfs of busybox, the kernel's virtio
# modules and probe.c, from Debian packages and with the C compiler that Rust links with, without root.
#
#   build-initramfs.sh OUTPUT [KERNEL_PACKAGE [FILES]]
#
# KERNEL_PACKAGE is a package with a kernel, or one that depends on it: linux-image-amd64, or linux-image-cloud-amd64,
# which is the default. The directory FILES becomes /data of the guest.
# Writes OUTPUT/vmlinuz and OUTPUT/initramfs.cpio.gz. On the kernel command line of the guest:
#   guest.run=COMMAND   run COMMAND (spaces as commas) instead of a shell, then power off
#   guest.modules=off   load no virtio modules
#   guest.console=TTY   run on this terminal instead of the console
set -eu

source=$(cd "$(dirname "$0")" && pwd)/probe.c
output=${1:?usage: build-initramfs.sh OUTPUT [KERNEL_PACKAGE]}
package=${2:-linux-image-cloud-amd64}
newest=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
package=${newest:-$package}
files=${3:+$(cd "$3" && pwd)}
mkdir -p "$output"
output=$(cd "$output" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
cd "$work"

# A package downloaded and unpacked before is used again.
fetch() {
    if ! ls "$output/$1"_*.deb >/dev/null 2>&1; then
        (cd "$output" && apt-get download "$1" >/dev/null)
    fi
    if [ ! -d "$output/$1" ]; then
        dpkg -x "$output/$1"_*.deb "$work/$1"
        mv "$work/$1" "$output/$1"
    fi
    ln -s "$output/$1" "$work/$1"
}

fetch "$package"
fetch busybox-static
cp "$package"/boot/vmlinuz-* "$output/vmlinuz"

root=$work/root
mkdir -p "$root"/bin "$root"/dev "$root"/proc "$root"/sys "$root"/tmp "$root"/run "$root"/mnt "$root"/modules
cp busybox-static/bin/busybox "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cc -O2 -static -o "$root/bin/probe" "$source"
mkdir "$root/test_utils"
cc -O2 -static -pthread -o "$root/test_utils/virtio_vsock_test_util" "$(dirname "$source")/virtio_vsock_test_util.c"

# In the order in which they must be loaded; those that a flavour has built in are missing here.
modules="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console
    rng-core virtio-rng failover net_failover virtio_net virtio_balloon vsock vmw_vsock_virtio_transport_common
    vmw_vsock_virtio_transport"
number=10
for module in $modules; do
    find "$package"/lib/modules/ -name "$module.ko" -exec cp {} "$root/modules/$number-$module.ko" \;
    number=$((number + 1))
done

cat > "$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=linux PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
run=
modules=on
console=
for word in $(cat /proc/cmdline); do
    case $word in
        guest.run=*) run=$(echo "${word#guest.run=}" | tr , ' ') ;;
        guest.modules=*) modules=${word#guest.modules=} ;;
        guest.console=*) console=${word#guest.console=} ;;
    esac
done
if [ "$modules" = on ]; then
    for module in /modules/*.ko; do
        insmod "$module"
    done
fi
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s on $(grep -c ^processor /proc/cpuinfo) CPUs"
if [ -n "$run" ]; then
    sh -c "$run"
elif [ -n "$console" ]; then
    # The leader of a session gets the first terminal that it opens.
    setsid sh -c "exec sh <>/dev/$console >&0 2>&1"
else
    setsid cttyhack sh
fi
poweroff -f
INIT
chmod +x "$root/init"
if [ -n "$files" ]; then
    cp -r "$files" "$root/data"
fi
(cd "$root" && find . | LC_ALL=C sort | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1n) > "$output/initramfs.cpio.gz"
echo "$output/vmlinuz $output/initramfs.cpio.gz"
