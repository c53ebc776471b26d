//! Sizes in bytes: `512M`.

/// Reads a decimal number and optionally its unit: `b`, `k`, `M` or `G`, in powers of 1024.
///
/// # Errors
/// Says what a size looks like.
pub fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'b') => (&text[..text.len() - 1], 0),
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    let number: Option<u64> = digits.and_then(|d| d.parse().ok());
    number
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is not a size: a number, optionally with b, k, M or G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_units_of_the_facts() {
        for (text, bytes) in [("7", 7), ("7b", 7), ("2k", 2048), ("3M", 3 << 20), ("1G", 1 << 30)] {
            assert_eq!(parse(text), Ok(bytes));
        }
        for text in ["", "G", "1.5G", "+1", "0x10", " 1", "20000000000G"] {
            assert!(parse(text).unwrap_err().contains("is not a size"), "{text}");
        }
    }
}
