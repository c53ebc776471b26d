//! User signals of two endpoints: of each by itself and by its peer, wherever the two are.
//!
//! They are made when first needed: while both endpoints are in one process, nobody may ever ask for them. When an endpoint
//! is sent away they are made at the latest, since after that its peer could not be told of them.

use crate::event::new_broadcast;
use crate::object::Source;
use crate::shared_signals::SharedSignals;
use crate::status::{NOT_SUPPORTED, Result};
use fuchsia_zircon_types::*;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

struct Shared {
    signals: SharedSignals,
    changed: OwnedFd,
}

impl Shared {
    fn signal(&self, side: usize, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        self.signals.signal(side, clear, set, ZX_USER_SIGNAL_ALL, &self.changed)
    }
}

/// One endpoint's view.
pub(crate) struct PairSignals {
    /// Shared with the peer while it is in this process; `None` for endpoints of which the host has the peer.
    shared: Option<Arc<OnceLock<Shared>>>,
    /// 0 or 1.
    side: usize,
}

impl PairSignals {
    /// Those of both endpoints of a new pair.
    pub(crate) fn pair() -> (PairSignals, PairSignals) {
        let shared = Arc::new(OnceLock::new());
        let side = |side| PairSignals { shared: Some(Arc::clone(&shared)), side };
        (side(0), side(1))
    }

    /// Those of an endpoint whose peer knows of no signals.
    pub(crate) fn none() -> PairSignals {
        PairSignals { shared: None, side: 0 }
    }

    /// Those that another process sent.
    pub(crate) fn from_fds(memory: OwnedFd, changed: OwnedFd, side: usize) -> PairSignals {
        let shared = Shared { signals: SharedSignals::from_fd(memory), changed };
        PairSignals { shared: Some(Arc::new(OnceLock::from(shared))), side: side & 1 }
    }

    pub(crate) fn side(&self) -> usize {
        self.side
    }

    /// Whether the peer shares them.
    pub(crate) fn are_shared(&self) -> bool {
        self.shared.is_some()
    }

    fn shared(&self) -> Result<&Shared> {
        let shared = self.shared.as_ref().ok_or(NOT_SUPPORTED)?;
        if shared.get().is_none() {
            // Of two threads that come here at once, one made signals for nothing.
            let _ =
                shared.set(Shared { signals: SharedSignals::new()?, changed: new_broadcast()? });
        }
        shared.get().ok_or(NOT_SUPPORTED)
    }

    /// The descriptors for a message, in the order of [`PairSignals::from_fds`]; none where there is no peer to share with.
    pub(crate) fn fds(&self) -> Result<Option<[BorrowedFd<'_>; 2]>> {
        if !self.are_shared() {
            return Ok(None);
        }
        let shared = self.shared()?;
        Ok(Some([shared.signals.fd(), shared.changed.as_fd()]))
    }

    /// What to watch for a change of this endpoint's signals, if any is in `interest`.
    pub(crate) fn source(&self, interest: zx_signals_t) -> Result<Option<Source<'_>>> {
        if interest & ZX_USER_SIGNAL_ALL == 0 || !self.are_shared() {
            return Ok(None);
        }
        let shared = self.shared()?;
        // Look now, where a bad page is an error, rather than when a wait ends.
        shared.signals.load(self.side)?;
        Ok(Some(Source { fd: shared.changed.as_fd(), events: PollFlags::IN, edge: true }))
    }

    /// The signals of this endpoint.
    pub(crate) fn load(&self) -> zx_signals_t {
        let shared = self.shared.as_ref().and_then(|shared| shared.get());
        shared.map_or(0, |shared| shared.signals.load(self.side).unwrap_or(0)) & ZX_USER_SIGNAL_ALL
    }

    /// `zx_object_signal`.
    pub(crate) fn signal(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        self.shared()?.signal(self.side, clear, set)
    }

    /// `zx_object_signal_peer` where the peer is known to be there.
    pub(crate) fn signal_peer(&self, clear: zx_signals_t, set: zx_signals_t) -> Result<()> {
        self.shared()?.signal(1 - self.side, clear, set)
    }
}
