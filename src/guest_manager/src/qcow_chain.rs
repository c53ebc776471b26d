//! QCOW images with backing files. Which files an image names is its maker's wish; which of them are opened is decided
//! here, and only files of the guest package are. The device gets them as channels and opens nothing itself.

use fidl_fuchsia_io as fio;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_zircon as zx;
use qcow::BackingName;

use crate::package::{PackageError, closed, open_locked, open_proxy};

/// Bytes of an image that hold its header and the name of its backing file, for every ordinary cluster size.
const FRONT_BYTES: usize = 64 * 1024;

/// Opens the image at `path` and its backing files. An image that cannot be understood goes on as it is: the device
/// says what is wrong with it.
pub(crate) async fn open_chain(
    package: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fvirt::BlockFormat, PackageError> {
    let mut files = vec![open_locked(package, path, flags).await?];
    let mut path = path.to_owned();
    while let Ok(Some(backing)) = BackingName::read(&read_front(package, &path).await?) {
        let refused = |status| PackageError::Open { path: backing.name.clone(), status };
        if files.len() >= usize::from(fvirt::MAX_QCOW_CHAIN) {
            return Err(refused(zx::Status::OUT_OF_RANGE));
        }
        path = beside(&path, &backing.name).ok_or_else(|| refused(zx::Status::ACCESS_DENIED))?;
        // Backing files are shared between overlays: nobody writes them.
        files.push(open_locked(package, &path, fio::PERM_READABLE).await?);
        if backing.format.as_deref() == Some("raw") {
            break;
        }
    }
    Ok(match files.len() {
        1 => fvirt::BlockFormat::Qcow(files.remove(0).into_channel()),
        _ => fvirt::BlockFormat::QcowChain(files),
    })
}

/// The path of `name` as seen from the folder of `path`; none if that is not surely inside the package.
fn beside(path: &str, name: &str) -> Option<String> {
    if name.starts_with('/')
        || name.contains(':')
        || name.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        return None;
    }
    Some(match path.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    })
}

async fn read_front(package: &fio::DirectoryProxy, path: &str) -> Result<Vec<u8>, PackageError> {
    let file = open_proxy(package, path, fio::PERM_READABLE)?;
    let mut front = Vec::new();
    while front.len() < FRONT_BYTES {
        let chunk = file
            .read_at(fio::MAX_TRANSFER_SIZE, front.len() as u64)
            .await
            .map_err(|error| closed(path, error))?
            .map_err(|raw| PackageError::Open {
                path: path.to_owned(),
                status: zx::Status::from_raw(raw),
            })?;
        if chunk.is_empty() {
            break;
        }
        front.extend_from_slice(&chunk);
    }
    Ok(front)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_files_are_beside_their_images() {
        assert_eq!(
            beside("data/disks/top.qcow2", "base.img").as_deref(),
            Some("data/disks/base.img")
        );
        assert_eq!(beside("top.qcow2", "below/base.img").as_deref(), Some("below/base.img"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in
            ["/etc/shadow", "../secret", "a/../../b", "nbd:host:1", "json:{}", "", "a//b", "./a"]
        {
            assert_eq!(beside("data/top", name), None, "{name}");
        }
    }
}
