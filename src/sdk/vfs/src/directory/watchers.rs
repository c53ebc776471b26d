//! Clients that want to be told of changes in a directory.

use std::sync::{Mutex, PoisonError};

use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, AsHandleRef, Signals, Status, Time};

/// The watchers of one directory.
#[derive(Default)]
pub struct Watchers(Mutex<Vec<Watcher>>);

struct Watcher {
    mask: fio::WatchMask,
    channel: zx::Channel,
}

impl Watcher {
    /// Whether the client could be told, or did not want to be.
    fn send(&self, wanted: fio::WatchMask, event: fio::WatchEvent, names: &[&str]) -> bool {
        if !self.mask.contains(wanted) {
            return true;
        }
        let mut message = Vec::new();
        for name in names {
            let Ok(length) = u8::try_from(name.len()) else {
                continue;
            };
            if message.len() + 2 + name.len() > fio::MAX_BUF as usize {
                if self.channel.write(&message, &mut []).is_err() {
                    return false;
                }
                message.clear();
            }
            message.extend_from_slice(&[event.into_primitive(), length]);
            message.extend_from_slice(name.as_bytes());
        }
        message.is_empty() || self.channel.write(&message, &mut []).is_ok()
    }

    fn is_closed(&self) -> bool {
        let closed = Signals::CHANNEL_PEER_CLOSED;
        self.channel.wait_handle(closed, Time::INFINITE_PAST).is_ok()
    }
}

impl Watchers {
    /// Adds a watcher, which is first told of the entries that there are.
    ///
    /// # Errors
    /// `PEER_CLOSED` if it has gone.
    pub(crate) fn add<'a>(
        &self,
        mask: fio::WatchMask,
        channel: zx::Channel,
        existing: impl Iterator<Item = &'a str>,
    ) -> Result<(), Status> {
        let watcher = Watcher { mask, channel };
        let existing: Vec<&str> = std::iter::once(".").chain(existing).collect();
        let told = watcher.send(fio::WatchMask::EXISTING, fio::WatchEvent::Existing, &existing)
            && watcher.send(fio::WatchMask::IDLE, fio::WatchEvent::Idle, &[""]);
        if !told {
            return Err(Status::PEER_CLOSED);
        }
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of clients that have gone, in a directory that does not change.
        watchers.retain(|watcher| !watcher.is_closed());
        watchers.push(watcher);
        Ok(())
    }

    /// Tells of a new entry.
    pub fn added(&self, name: &str) {
        self.send(fio::WatchMask::ADDED, fio::WatchEvent::Added, name);
    }

    /// Tells of an entry that has gone.
    pub fn removed(&self, name: &str) {
        self.send(fio::WatchMask::REMOVED, fio::WatchEvent::Removed, name);
    }

    fn send(&self, wanted: fio::WatchMask, event: fio::WatchEvent, name: &str) {
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that does not read until its channel is full is given up, like one that has gone.
        watchers.retain(|watcher| watcher.send(wanted, event, &[name]));
    }
}
