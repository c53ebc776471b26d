//! `fuchsia.memorypressure.Provider`, from the kernel's pressure stall information and what memory is left.

use fidl::endpoints::{ClientEnd, ServerEnd};
use fidl_fuchsia_memorypressure as fmemorypressure;
use fmemorypressure::Level;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::StreamExt;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;

/// How often the kernel's figures are read while somebody watches. The kernel averages over ten seconds, so oftener tells nothing.
const PERIOD: zx::Duration = zx::Duration::from_seconds(1);

/// Share of time in which some task waited for memory, in per cent over ten seconds, from which pressure is a warning.
const WARNING_STALL: f64 = 5.0;
/// The share from which it is critical.
const CRITICAL_STALL: f64 = 25.0;
/// Share of memory that is available, in per cent, below which pressure is a warning.
const WARNING_AVAILABLE: f64 = 10.0;
/// The share below which it is critical.
const CRITICAL_AVAILABLE: f64 = 4.0;

/// Where the figures are.
#[derive(Debug, Clone)]
pub struct MemoryPressure {
    /// `/proc`, or what a test puts in its place.
    proc: PathBuf,
    watchers: Rc<Cell<usize>>,
}

impl MemoryPressure {
    /// A provider that reads below `proc`.
    #[must_use]
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), watchers: Rc::default() }
    }

    fn level(&self) -> Level {
        let read = |name: &str| std::fs::read_to_string(self.proc.join(name)).unwrap_or_default();
        level_of(&read("pressure/memory"), &read("meminfo"))
    }

    /// Serves a connection.
    pub fn serve(&self, server: ServerEnd<fmemorypressure::ProviderMarker>) {
        let provider = self.clone();
        fasync::Task::local(async move {
            let mut requests = server.into_stream();
            while let Some(Ok(fmemorypressure::ProviderRequest::RegisterWatcher {
                watcher, ..
            })) = requests.next().await
            {
                provider.clone().watch(watcher);
            }
        })
        .detach();
    }

    /// Tells a watcher the level at once, and again whenever it has changed after the last was acknowledged.
    fn watch(self, watcher: ClientEnd<fmemorypressure::WatcherMarker>) {
        fasync::Task::local(async move {
            self.watchers.set(self.watchers.get() + 1);
            let watcher = watcher.into_proxy();
            let mut told = None;
            loop {
                let level = self.level();
                if told != Some(level) {
                    if watcher.on_level_changed(level).await.is_err() {
                        break;
                    }
                    told = Some(level);
                }
                fasync::Timer::new(fasync::Time::after(PERIOD)).await;
                if fidl::endpoints::Proxy::is_closed(&watcher) {
                    break;
                }
            }
            self.watchers.set(self.watchers.get() - 1);
        })
        .detach();
    }
}

/// The level by `/proc/pressure/memory` and `/proc/meminfo`. A kernel without the one is judged by the other.
fn level_of(pressure: &str, meminfo: &str) -> Level {
    let stall = stall_of(pressure).unwrap_or(0.0);
    let available = available_of(meminfo).unwrap_or(100.0);
    if stall >= CRITICAL_STALL || available < CRITICAL_AVAILABLE {
        Level::Critical
    } else if stall >= WARNING_STALL || available < WARNING_AVAILABLE {
        Level::Warning
    } else {
        Level::Normal
    }
}

/// `avg10` of the line `some`, in per cent.
fn stall_of(pressure: &str) -> Option<f64> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// MemAvailable of MemTotal, in per cent.
fn available_of(meminfo: &str) -> Option<f64> {
    let figure = |name: &str| -> Option<f64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let total = figure("MemTotal:").filter(|&total| total > 0.0)?;
    Some(figure("MemAvailable:")? * 100.0 / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressure(avg10: &str) -> String {
        format!(
            "some avg10={avg10} avg60=0.00 avg300=0.00 total=0\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"
        )
    }

    fn meminfo(available: u32) -> String {
        format!("MemTotal:       1000 kB\nMemFree:        1 kB\nMemAvailable:   {available} kB\n")
    }

    #[test]
    fn the_worse_figure_decides() {
        assert_eq!(level_of(&pressure("0.00"), &meminfo(500)), Level::Normal);
        assert_eq!(level_of(&pressure("5.00"), &meminfo(500)), Level::Warning);
        assert_eq!(level_of(&pressure("40.10"), &meminfo(500)), Level::Critical);
        assert_eq!(level_of(&pressure("0.00"), &meminfo(99)), Level::Warning);
        assert_eq!(level_of(&pressure("5.00"), &meminfo(39)), Level::Critical);
    }

    #[test]
    fn figures_that_are_missing_or_wrong_do_not_count() {
        assert_eq!(level_of("", ""), Level::Normal);
        assert_eq!(level_of("some avg10=x", "MemTotal: 0 kB\nMemAvailable: 0 kB"), Level::Normal);
        assert_eq!(level_of("", &meminfo(10)), Level::Critical);
    }
}
