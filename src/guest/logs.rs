//! `guest logs`: what the components of a guest have logged.

use crate::outcome::Outcome;
use serde::{Serialize, Serializer};
use std::fmt;

/// A line of a component's log.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// When, in nanoseconds of the monotonic clock.
    pub(crate) time_nanos: i64,
    /// How bad, as `fuchsia.diagnostics.types` counts; shown in its words.
    #[serde(serialize_with = "serialize_severity")]
    pub(crate) severity: u8,
    /// Which component.
    pub(crate) moniker: String,
    /// What.
    pub(crate) message: String,
}

/// What `guest logs` says.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct LogsOutcome {
    /// The lines, oldest first.
    pub(crate) lines: Vec<LogLine>,
}

/// The name of a severity of `fuchsia.diagnostics.types`.
fn severity_name(severity: u8) -> &'static str {
    match severity {
        0..0x20 => "TRACE",
        0x20..0x30 => "DEBUG",
        0x30..0x40 => "INFO",
        0x40..0x50 => "WARN",
        0x50..0x60 => "ERROR",
        _ => "FATAL",
    }
}

fn serialize_severity<S: Serializer>(severity: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(severity_name(*severity))
}

impl Outcome for LogsOutcome {
    fn exit_code(&self) -> u8 {
        0
    }
}

impl fmt::Display for LogsOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| {
            let seconds = line.time_nanos / 1_000_000_000;
            let micros = line.time_nanos % 1_000_000_000 / 1_000;
            let LogLine { severity, moniker, message, .. } = line;
            let severity = severity_name(*severity);
            writeln!(f, "[{seconds:05}.{micros:06}][{moniker}] {severity}: {message}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_component_and_severity() {
        let lines = vec![LogLine {
            time_nanos: 12_000_034_567,
            severity: 0x40,
            moniker: "debian-guest-manager/vmm".to_owned(),
            message: "low on coffee".to_owned(),
        }];
        let text = LogsOutcome { lines }.to_string();
        assert_eq!(text, "[00012.000034][debian-guest-manager/vmm] WARN: low on coffee\n");
    }
}
