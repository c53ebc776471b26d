//! Lists of entries as they are sent: (inode u64, length u8, type u8, name), packed.

use fidl_fuchsia_io as fio;
use fuchsia_zircon::Status;

use crate::entry::EntryInfo;

/// A directory as it was when a client began to read it, and how far the client has come.
#[derive(Default)]
pub(crate) struct Listing {
    entries: Vec<(String, EntryInfo)>,
    next: usize,
}

impl Listing {
    /// A listing of `entries` that begins with the directory itself.
    pub(crate) fn new(mut entries: Vec<(String, EntryInfo)>) -> Listing {
        entries.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        entries.insert(0, (".".to_owned(), EntryInfo::of_kind(fio::DirentType::Directory)));
        Listing { entries, next: 0 }
    }

    /// The next entries, as many as go into `max_bytes`; empty at the end.
    ///
    /// # Errors
    /// `BUFFER_TOO_SMALL` if not even one does.
    pub(crate) fn read(&mut self, max_bytes: u64) -> Result<Vec<u8>, Status> {
        let max_bytes = usize::try_from(max_bytes.min(fio::MAX_BUF)).unwrap_or(usize::MAX);
        let mut packed = Vec::new();
        while let Some((name, info)) = self.entries.get(self.next) {
            // A host may have names that are longer than fuchsia.io can say; they cannot be opened either.
            if let Ok(length) = u8::try_from(name.len()) {
                if packed.len() + 10 + name.len() > max_bytes {
                    if packed.is_empty() {
                        return Err(Status::BUFFER_TOO_SMALL);
                    }
                    break;
                }
                packed.extend_from_slice(&info.inode.to_le_bytes());
                packed.push(length);
                packed.push(info.kind.into_primitive());
                packed.extend_from_slice(name.as_bytes());
            }
            self.next += 1;
        }
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_packed_whole() {
        let file = EntryInfo { inode: 7, kind: fio::DirentType::File };
        let entries = [("bb".to_owned(), file), ("a".to_owned(), file), ("x".repeat(300), file)];
        let mut listing = Listing::new(entries.into());
        assert_eq!(listing.read(10), Err(Status::BUFFER_TOO_SMALL));
        let first = listing.read(22).expect("two fit");
        let expected = [&[0xff; 8][..], b"\x01\x04.", &7u64.to_le_bytes(), b"\x01\x08a"].concat();
        assert_eq!(first, expected);
        let second = listing.read(u64::MAX).expect("one is left");
        assert_eq!(second, [&7u64.to_le_bytes()[..], b"\x02\x08bb"].concat());
        assert_eq!(listing.read(100), Ok(Vec::new()));
    }
}
