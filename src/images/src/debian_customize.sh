# mmdebstrap's hook for the debian package: $1 is the new root file system.
set -eu
root="$1"
in_root() { chroot "$root" "$@"; }

# The kernel, without the initramfs generator that its package would pull in.
kernel=$(in_root apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
[ -n "$kernel" ] || { echo "no cloud kernel in the archive" >&2; exit 1; }
in_root sh -ec "cd /tmp
apt-get -q -o APT::Sandbox::User=root download $kernel
dpkg-deb --fsys-tarfile linux-image-*.deb | tar --extract --directory / --keep-directory-symlink
rm linux-image-*.deb
depmod \$(ls /lib/modules)"

# What is measured with, copied in by the next hook.
mkdir "$root/test_utils"

echo debian > "$root/etc/hostname"
printf '127.0.0.1\tlocalhost debian\n::1\tlocalhost\n' > "$root/etc/hosts"
echo '/dev/vda / ext4 defaults,discard 0 1' > "$root/etc/fstab"
tr -d - < /proc/sys/kernel/random/uuid > "$root/etc/machine-id"
in_root passwd --quiet --delete root

# The network: DHCP on any Ethernet port, and the resolver that the guest's user-mode network offers.
cat > "$root/etc/systemd/network/80-ethernet.network" <<'NETWORK'
[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
ClientIdentifier=mac
NETWORK
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
in_root systemctl --quiet enable systemd-networkd.service
in_root systemctl --quiet mask systemd-networkd-wait-online.service

# A root shell on the virtio console; on the serial port only where there is no such console.
mkdir -p "$root/etc/systemd/system/serial-getty@.service.d" "$root/etc/systemd/system/serial-getty@ttyS0.service.d"
cat > "$root/etc/systemd/system/serial-getty@.service.d/autologin.conf" <<'GETTY'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
GETTY
printf '[Unit]\nConditionPathExists=!/dev/hvc0\n' > "$root/etc/systemd/system/serial-getty@ttyS0.service.d/console.conf"
in_root systemctl --quiet enable serial-getty@hvc0.service

# Work that a guest which runs for an hour should not begin with.
in_root systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service getty@tty1.service
