//! Method ordinals (RFC-0029, and RFC-0020 for the hash).

use sha2::{Digest as _, Sha256};

/// The ordinal of a method: the first eight bytes of the SHA-256 of `library/Protocol.Method`,
/// little endian, with the top bit cleared.
pub fn method_ordinal(selector: &str) -> u64 {
    let digest = Sha256::digest(selector.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first) & (u64::MAX >> 1)
}

/// Whether text has the form of a full selector, `library.name/Protocol.Method`.
pub fn is_full_selector(text: &str) -> bool {
    let Some((library, rest)) = text.split_once('/') else { return false };
    let Some((protocol, method)) = rest.split_once('.') else { return false };
    library.split('.').all(is_identifier) && is_identifier(protocol) && is_identifier(method)
}

/// Whether text has the form of a name.
pub fn is_identifier(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(inner)
}
