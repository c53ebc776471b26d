//! Fuchsia's structured log records: 64-bit words, little endian; a header, a time, then arguments.

use super::Severity;

/// The record type of a log message.
const LOG_RECORD: u64 = 9;

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Structured {
    pub(super) severity: Severity,
    pub(super) message: String,
}

/// Reads one datagram; `None` for anything that is not a valid record.
pub(super) fn parse(datagram: &[u8]) -> Option<Structured> {
    let mut words = Words(datagram);
    let header = words.next()?;
    if header & 0xf != LOG_RECORD {
        return None;
    }
    // The size counts the header and is in words.
    let size = usize::try_from((header >> 4) & 0xfff).ok()?;
    let mut words = Words(datagram.get(8..size.checked_mul(8)?)?);
    let severity = Severity::from_number(u8::try_from(header >> 56).ok()?);
    let _time = words.next()?;
    let mut message = String::new();
    let mut rest = String::new();
    while !words.0.is_empty() {
        let (name, value) = argument(&mut words)?;
        match name.as_str() {
            "message" => message = value,
            "pid" | "tid" | "tag" | "num_dropped" => {}
            _ => {
                rest.push(' ');
                rest.push_str(&name);
                rest.push('=');
                rest.push_str(&value);
            }
        }
    }
    message.push_str(&rest);
    Some(Structured { severity, message })
}

fn argument(words: &mut Words<'_>) -> Option<(String, String)> {
    let header = words.next()?;
    let name = words.string((header >> 16) & 0xffff)?;
    let value = match header & 0xf {
        3 => words.next()?.cast_signed().to_string(),
        4 => words.next()?.to_string(),
        5 => f64::from_bits(words.next()?).to_string(),
        6 => words.string((header >> 32) & 0xffff)?,
        9 => ((header >> 32) & 1 == 1).to_string(),
        _ => return None,
    };
    Some((name, value))
}

struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    /// A string by its reference: the top bit says that it stands here, the others are its length in bytes. It is padded to a word.
    fn string(&mut self, reference: u64) -> Option<String> {
        if reference == 0 {
            return Some(String::new());
        }
        if reference & 0x8000 == 0 {
            return None;
        }
        let length = usize::try_from(reference & 0x7fff).ok()?;
        let text = String::from_utf8_lossy(self.0.get(..length)?).into_owned();
        self.0 = self.0.get(length.checked_next_multiple_of(8)?..)?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn record(severity: u64, arguments: &[Vec<u8>]) -> Vec<u8> {
        let body: Vec<u8> = arguments.concat();
        let words = (16 + body.len()) as u64 / 8;
        let mut bytes = (LOG_RECORD | words << 4 | severity << 56).to_le_bytes().to_vec();
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    fn string_argument(name: &str, value: &str) -> Vec<u8> {
        let (name_ref, value_ref) = (0x8000 | name.len() as u64, 0x8000 | value.len() as u64);
        let body = [text(name), text(value)].concat();
        let header = 6 | ((8 + body.len()) as u64 / 8) << 4 | name_ref << 16 | value_ref << 32;
        [header.to_le_bytes().to_vec(), body].concat()
    }

    fn integer_argument(name: &str, value: i64) -> Vec<u8> {
        let body = [text(name), value.to_le_bytes().to_vec()].concat();
        let header = 3 | ((8 + body.len()) as u64 / 8) << 4 | (0x8000 | name.len() as u64) << 16;
        [header.to_le_bytes().to_vec(), body].concat()
    }

    #[test]
    fn a_record_becomes_a_line() {
        let bytes = record(
            0x40,
            &[
                integer_argument("pid", 1),
                string_argument("message", "hello there"),
                integer_argument("count", -3),
            ],
        );
        let expected =
            Structured { severity: Severity::Warn, message: "hello there count=-3".to_owned() };
        assert_eq!(parse(&bytes), Some(expected));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_survived() {
        let bytes = record(0x30, &[string_argument("message", "hello"), integer_argument("x", 1)]);
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), None, "{length}");
        }
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[index] ^= 1 << bit;
                let _any = parse(&changed);
            }
        }
    }
}
