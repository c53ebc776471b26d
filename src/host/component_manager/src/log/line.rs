//! Lines of text: where they end, and how bad what they say is.

use super::{MAX_LINE, Severity};

/// Cuts what comes in pieces into lines. A line that does not end is cut at [`MAX_LINE`] bytes.
#[derive(Default)]
pub(super) struct Splitter(Vec<u8>);

impl Splitter {
    /// The lines that `bytes` complete; at the end, also what is left.
    pub(super) fn add(&mut self, bytes: &[u8], at_end: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                self.take(&mut lines);
            } else {
                self.0.push(byte);
                if self.0.len() >= MAX_LINE {
                    self.take(&mut lines);
                }
            }
        }
        if at_end {
            self.take(&mut lines);
        }
        lines
    }

    fn take(&mut self, lines: &mut Vec<String>) {
        let bytes = std::mem::take(&mut self.0);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end();
        if !text.is_empty() {
            lines.push(text.to_owned());
        }
    }
}

/// Takes the severity off the front of a line, as `tracing` and others write it: `ERROR text`, ` WARN text`, `[INFO] text`.
pub(super) fn severity(line: &str, default: Severity) -> (Severity, &str) {
    let trimmed = line.trim_start();
    let (word, rest) =
        trimmed.split_once(|c: char| c.is_whitespace() || c == ':').unwrap_or((trimmed, ""));
    let severity = match word.trim_matches(['[', ']']) {
        "TRACE" => Severity::Trace,
        "DEBUG" => Severity::Debug,
        "INFO" => Severity::Info,
        "WARN" | "WARNING" => Severity::Warn,
        "ERROR" => Severity::Error,
        "FATAL" => Severity::Fatal,
        _ => {
            // A panic's first line.
            let is_panic = trimmed.starts_with("thread '") && trimmed.contains("panicked at");
            return (if is_panic { Severity::Fatal } else { default }, line);
        }
    };
    (severity, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.add(b"one\ntw", false), ["one"]);
        assert_eq!(splitter.add(b"o\r\n\n", false), ["two"]);
        assert_eq!(splitter.add(b"rest", false), Vec::<String>::new());
        assert_eq!(splitter.add(b"", true), ["rest"]);
    }

    #[test]
    fn an_endless_line_is_cut_and_bad_utf8_replaced() {
        let mut splitter = Splitter::default();
        let lines = splitter.add(&vec![b'x'; MAX_LINE * 2 + 1], true);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 1]);
        assert_eq!(splitter.add(b"\xff!\n", false), ["\u{fffd}!"]);
    }

    #[test]
    fn the_severity_comes_off_the_front() {
        assert_eq!(severity(" WARN vmm: late", Severity::Info), (Severity::Warn, "vmm: late"));
        assert_eq!(severity("[ERROR] no", Severity::Info), (Severity::Error, "no"));
        assert_eq!(severity("plain text", Severity::Info), (Severity::Info, "plain text"));
        assert_eq!(severity("thread 'main' panicked at x", Severity::Info).0, Severity::Fatal);
    }
}
