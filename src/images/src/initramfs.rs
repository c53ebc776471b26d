//! The initramfs of the `debian` package: busybox, the modules without which Debian's kernels see no disk, and a
//! script that mounts the root file system and hands over. It is a hundredth of what Debian's own generator makes,
//! and so costs a boot next to nothing.

use crate::cpio::Archive;
use crate::error::Error;
use std::fs;
use std::io::BufWriter;
use std::path::Path;

/// What the guest cannot mount its root without, or what should be there before its init runs. Modules that a kernel
/// has built in are not in its `modules.dep` and are left out.
const WANTED: &[&str] =
    &["crc32c-intel", "crc32c_generic", "ext4", "virtio_pci", "virtio_blk", "virtio_console"];

const INIT: &str = r#"#!/bin/busybox sh
# Mounts the root file system that root= names and starts its init.
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
for module in /modules/*.ko; do
	$bb insmod "$module" || echo "initramfs: cannot load $module"
done
root=/dev/vda mode=ro init=/sbin/init type=ext4
for word in $($bb cat /proc/cmdline); do
	case "$word" in
	root=*) root=${word#root=} ;;
	rootfstype=*) type=${word#rootfstype=} ;;
	init=*) init=${word#init=} ;;
	rw) mode=rw ;;
	ro) mode=ro ;;
	esac
done
tries=0
while [ ! -b "$root" ] && [ $tries -lt 500 ]; do
	$bb sleep 0.02
	tries=$((tries + 1))
done
if $bb mount -t "$type" -o "$mode" "$root" /root; then
	$bb mount --move /dev /root/dev
	$bb umount /proc
	exec $bb switch_root /root "$init"
fi
echo "initramfs: cannot mount $root as the root file system; here is a shell"
$bb ls -l /dev
exec $bb sh
"#;

/// Writes the initramfs to `output`.
///
/// `modules` is the kernel's module tree (`.../lib/modules/<version>`), `busybox` a statically linked busybox.
pub(crate) fn write(output: &Path, busybox: &Path, modules: &Path) -> Result<(), Error> {
    let file = fs::File::create(output).map_err(Error::io("create", output))?;
    let mut archive = Archive::new(BufWriter::new(file));
    let busybox = fs::read(busybox).map_err(Error::io("read", busybox))?;
    let dependencies = modules.join("modules.dep");
    let dependencies =
        fs::read_to_string(&dependencies).map_err(Error::io("read", &dependencies))?;
    let order = load_order(&dependencies);
    let mut fill = || {
        for directory in ["bin", "dev", "proc", "root", "modules"] {
            archive.directory(directory)?;
        }
        archive.character_device("dev/console", 5, 1)?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        archive.file("init", 0o755, INIT.as_bytes())?;
        for (index, module) in order.iter().enumerate() {
            let data = fs::read(modules.join(module))?;
            let name = module.rsplit('/').next().unwrap_or(module);
            archive.file(&format!("modules/{index:02}-{name}"), 0o644, &data)?;
        }
        Ok(())
    };
    fill().map_err(Error::io("write", output))?;
    let writer = archive.finish().map_err(Error::io("write", output))?;
    let file = writer.into_inner().map_err(|e| Error::io("write", output)(e.into_error()))?;
    file.sync_all().map_err(Error::io("write", output))
}

/// The files of [`WANTED`] and of what they need, each after its dependencies.
///
/// A line of depmod's `modules.dep` names a module and all that it needs, the last to be loaded first
/// (modules.dep(5)).
fn load_order(dependencies: &str) -> Vec<&str> {
    let mut order: Vec<&str> = Vec::new();
    for wanted in WANTED {
        let line = dependencies.lines().find_map(|line| {
            let (module, needs) = line.split_once(':')?;
            let name = module.rsplit('/').next()?.strip_suffix(".ko")?;
            (name.replace('-', "_") == wanted.replace('-', "_")).then_some((module, needs))
        });
        let Some((module, needs)) = line else { continue };
        for file in needs.split_whitespace().rev().chain([module]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_busybox_the_script_and_only_the_modules_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let busybox = dir.path().join("busybox");
        fs::write(&busybox, b"binary").unwrap();
        let block = dir.path().join("m/kernel");
        fs::create_dir_all(&block).unwrap();
        for module in ["virtio_blk", "virtio", "virtio_ring"] {
            fs::write(block.join(module).with_extension("ko"), module).unwrap();
        }
        fs::write(
            dir.path().join("m/modules.dep"),
            "kernel/virtio.ko: kernel/virtio_ring.ko\nkernel/virtio_ring.ko:\n\
             kernel/virtio_blk.ko: kernel/virtio.ko kernel/virtio_ring.ko\n",
        )
        .unwrap();
        let image = dir.path().join("initrd.img");
        write(&image, &busybox, &dir.path().join("m")).unwrap();
        let bytes = fs::read(&image).unwrap();
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
        assert!(has(b"bin/busybox\0") && has(b"binary"));
        assert!(has(b"switch_root"));
        assert!(has(b"modules/00-virtio_ring.ko\0"));
        assert!(has(b"modules/01-virtio.ko\0"));
        assert!(has(b"modules/02-virtio_blk.ko\0"));
        assert!(!has(b"virtio_console.ko\0"));
    }

    #[test]
    fn a_missing_busybox_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(&dir.path().join("i"), Path::new("/nonexistent/bb"), dir.path());
        assert!(error.unwrap_err().to_string().contains("/nonexistent/bb"));
    }
}
