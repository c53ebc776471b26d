//! The `zircon` package: a small kernel that follows Zircon's boot contract and is built with this crate. A real Zircon
//! takes its place when `guest.cfg` names another boot image.

use crate::error::Error;
use crate::store::Store;
use std::fs;
use std::path::PathBuf;

/// The boot image, made by the build script from `tests/guests/zircon`.
const KERNEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/zircon.zbi"));

const GUEST_CFG: &str = include_str!("zircon_guest.cfg");

/// Makes the `zircon` package in `store` and returns its directory. Takes no time and no tools. `replace` says whether
/// an existing package may be replaced.
///
/// # Errors
/// [`Error::Exists`], [`Error::Busy`], [`Error::Io`]; the store then is as it was.
pub fn build_zircon(store: &Store, replace: bool) -> Result<PathBuf, Error> {
    if store.contains("zircon")? && !replace {
        return Err(Error::Exists("zircon".to_owned()));
    }
    let staging = store.stage("zircon")?;
    for (name, contents) in [("kernel.zbi", KERNEL), ("guest.cfg", GUEST_CFG.as_bytes())] {
        let path = staging.data().join(name);
        fs::write(&path, contents).map_err(Error::io("write", path))?;
    }
    staging.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(at: usize) -> u32 {
        u32::from_le_bytes(KERNEL[at..at + 4].try_into().unwrap())
    }

    /// zbi.h: a container whose first item is a kernel, with its entry point inside.
    #[test]
    fn the_kernel_is_a_boot_image() {
        assert_eq!(&KERNEL[..4], b"BOOT");
        assert_eq!(word(4) as usize, KERNEL.len() - 32);
        assert_eq!(&KERNEL[32..36], b"KRNL");
        assert_eq!(word(36) as usize, KERNEL.len() - 64);
        let (entry, reserve) = (word(64) as usize, word(72));
        assert!((80..KERNEL.len()).contains(&entry), "{entry:#x}");
        assert!(reserve > 0, "stacks and page tables take memory");
    }

    #[test]
    fn the_package_is_replaced_only_where_that_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let path = build_zircon(&store, false).unwrap();
        assert_eq!(fs::read(path.join("data/kernel.zbi")).unwrap(), KERNEL);
        assert!(matches!(build_zircon(&store, false), Err(Error::Exists(_))));
        assert_eq!(build_zircon(&store, true).unwrap(), path);
    }
}
