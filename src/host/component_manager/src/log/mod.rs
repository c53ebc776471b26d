//! What components write: their standard output and error line by line, and the structured records of `fuchsia.logger`. Kept in memory,
//! bounded for each component, readable as one sequence.

mod line;
mod record;
mod sink;

pub use sink::serve_log_sink;

use crate::moniker::Moniker;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::AsyncReadExt;
use futures::channel::oneshot;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// How many lines are kept of a component.
const MAX_LINES: usize = 2048;
/// How many bytes of text are kept of a component.
const MAX_BYTES: usize = 512 * 1024;
/// The longest line, in bytes. What is longer is cut.
pub const MAX_LINE: usize = 2048;
/// How many components' lines are kept; the ones that were silent longest go first.
const MAX_COMPONENTS: usize = 256;

/// How bad it is. The numbers are those of `fuchsia.logger/LogLevelFilter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Severity {
    /// Every step.
    Trace = 0x10,
    /// What a developer wants to know.
    Debug = 0x20,
    /// What happened.
    Info = 0x30,
    /// What should not have happened.
    Warn = 0x40,
    /// What failed.
    Error = 0x50,
    /// What ended the component.
    Fatal = 0x60,
}

impl Severity {
    /// The severity with this number, or the nearest below it.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            0..0x20 => Self::Trace,
            0x20..0x30 => Self::Debug,
            0x30..0x40 => Self::Info,
            0x40..0x50 => Self::Warn,
            0x50..0x60 => Self::Error,
            0x60.. => Self::Fatal,
        }
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it is in the sequence of all lines.
    pub number: u64,
    /// When, on the monotonic clock.
    pub time: zx::Time,
    /// How bad.
    pub severity: Severity,
    /// Whose.
    pub moniker: Rc<str>,
    /// What.
    pub message: String,
}

/// All lines that are kept. Clones are the same store.
#[derive(Clone, Default)]
pub struct LogStore(Rc<RefCell<Lines>>);

#[derive(Default)]
struct Lines {
    components: HashMap<Rc<str>, Component>,
    next: u64,
    readers: Vec<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Component {
    lines: VecDeque<Record>,
    bytes: usize,
}

impl LogStore {
    /// Adds a line.
    pub fn add(&self, moniker: &Moniker, severity: Severity, message: &str) {
        let mut message = message.to_owned();
        if message.len() > MAX_LINE {
            let end = (0..=MAX_LINE).rev().find(|&end| message.is_char_boundary(end)).unwrap_or(0);
            message.truncate(end);
        }
        let mut lines = self.0.borrow_mut();
        let number = lines.next;
        lines.next += 1;
        let moniker: Rc<str> = moniker.to_string().into();
        lines.make_room(&moniker);
        let component = lines.components.entry(Rc::clone(&moniker)).or_default();
        component.bytes += message.len();
        component.lines.push_back(Record {
            number,
            time: zx::Time::get_monotonic(),
            severity,
            moniker,
            message,
        });
        while component.lines.len() > MAX_LINES || component.bytes > MAX_BYTES {
            let Some(oldest) = component.lines.pop_front() else { break };
            component.bytes = component.bytes.saturating_sub(oldest.message.len());
        }
        for reader in std::mem::take(&mut lines.readers) {
            // A reader that stopped waiting does not want to know.
            let _gone = reader.send(());
        }
    }

    /// Notes what the component manager did with a component.
    pub(crate) fn note(&self, moniker: &Moniker, message: &str) {
        tracing::info!(%moniker, "{message}");
        self.add(moniker, Severity::Info, message);
    }

    /// Notes what the component manager could not do for a component.
    pub(crate) fn error(&self, moniker: &Moniker, message: &str) {
        tracing::warn!(%moniker, "{message}");
        self.add(moniker, Severity::Error, message);
    }

    /// Up to `most` lines from number `from` on, oldest first, that `wanted` takes; and the number to go on from.
    #[must_use]
    pub fn read(
        &self,
        from: u64,
        most: usize,
        wanted: impl Fn(&Record) -> bool,
    ) -> (Vec<Record>, u64) {
        let lines = self.0.borrow();
        let mut found: Vec<&Record> = lines
            .components
            .values()
            .flat_map(|component| component.lines.iter().skip_while(|line| line.number < from))
            .filter(|line| wanted(line))
            .collect();
        found.sort_unstable_by_key(|line| line.number);
        let more = found.len() > most;
        found.truncate(most);
        let next =
            if more { found.last().map_or(from, |line| line.number + 1) } else { lines.next };
        (found.into_iter().cloned().collect(), next)
    }

    /// Ends when the next line comes.
    pub fn on_line(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().readers.push(sender);
        receiver
    }

    /// Reads a component's standard output or error until it ends, a line at a time.
    pub(crate) fn capture(
        &self,
        moniker: &Moniker,
        socket: zx::Socket,
        default: Severity,
    ) -> fasync::Task<()> {
        let (store, moniker) = (self.clone(), moniker.clone());
        fasync::Task::local(async move {
            let mut socket = fasync::Socket::from_socket(socket);
            let mut lines = line::Splitter::default();
            let mut buffer = vec![0; 8192];
            loop {
                // An error is the end, too: nothing more will come.
                let length = socket.read(&mut buffer).await.unwrap_or(0);
                for text in lines.add(buffer.get(..length).unwrap_or_default(), length == 0) {
                    let (severity, message) = line::severity(&text, default);
                    store.add(&moniker, severity, message);
                }
                if length == 0 {
                    return;
                }
            }
        })
    }
}

impl Lines {
    fn make_room(&mut self, newcomer: &Rc<str>) {
        if self.components.len() < MAX_COMPONENTS || self.components.contains_key(newcomer) {
            return;
        }
        let last = |component: &Component| component.lines.back().map_or(0, |line| line.number);
        let silent = self
            .components
            .iter()
            .min_by_key(|(_, component)| last(component))
            .map(|(moniker, _)| Rc::clone(moniker));
        if let Some(silent) = silent {
            self.components.remove(&silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moniker(text: &str) -> Moniker {
        text.parse().unwrap()
    }

    fn texts(store: &LogStore, from: u64, most: usize) -> (Vec<String>, u64) {
        let (records, next) = store.read(from, most, |_| true);
        (records.into_iter().map(|record| record.message).collect(), next)
    }

    #[test]
    fn lines_of_all_components_come_in_order_and_in_pieces() {
        let store = LogStore::default();
        for (index, name) in ["a", "b", "a", "c"].into_iter().enumerate() {
            store.add(&moniker(name), Severity::Info, &index.to_string());
        }
        assert_eq!(texts(&store, 0, 3), (vec!["0".to_owned(), "1".to_owned(), "2".to_owned()], 3));
        assert_eq!(texts(&store, 3, 3), (vec!["3".to_owned()], 4));
        assert_eq!(texts(&store, 4, 3), (Vec::new(), 4));
    }

    #[test]
    fn a_talkative_component_loses_its_own_lines_only() {
        let store = LogStore::default();
        store.add(&moniker("quiet"), Severity::Info, "still here");
        for _ in 0..MAX_LINES + 10 {
            store.add(&moniker("loud"), Severity::Info, &"x".repeat(MAX_LINE * 2));
        }
        let (records, _) = store.read(0, usize::MAX, |_| true);
        assert_eq!(records[0].message, "still here");
        assert!(
            records.iter().map(|record| record.message.len()).sum::<usize>() <= MAX_BYTES + 100
        );
    }

    #[test]
    fn the_number_of_components_is_bounded() {
        let store = LogStore::default();
        for index in 0..MAX_COMPONENTS + 5 {
            store.add(&moniker(&format!("c{index}")), Severity::Info, "x");
        }
        assert_eq!(store.0.borrow().components.len(), MAX_COMPONENTS);
    }
}
