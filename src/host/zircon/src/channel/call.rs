//! `zx_channel_call`: a message and its reply, recognized by the transaction identifier in the first four bytes.
//!
//! The first caller takes messages out of the socket for all: replies go to the caller they belong to, other messages to
//! the readers. So a call is one send and one blocking receive, and any number of threads can call at once.

use super::inbound::{Call, Inbound};
use super::message::Incoming;
use super::{CALLS, Channel, Outgoing};
use crate::object::{Object, lock};
use crate::status::{CANCELED, PEER_CLOSED, Result, SHOULD_WAIT, TIMED_OUT};
use crate::system::{now, until};
use fuchsia_zircon_types::*;
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// Identifiers with this bit are the kernel's.
const KERNEL_TXID: u32 = 1 << 31;
static NEXT_TXID: AtomicU32 = AtomicU32::new(1);

fn txid_of(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

impl Channel {
    /// Sends `message` under a new transaction identifier and waits for the reply with the same one.
    pub(super) fn call(
        &self,
        this: &Arc<Object>,
        message: Outgoing<'_>,
        deadline: zx_time_t,
    ) -> Result<Incoming> {
        let txid = NEXT_TXID.fetch_add(1, Ordering::Relaxed) | KERNEL_TXID;
        let message = message.with_txid(txid)?;
        {
            let mut inbound = lock(&self.inbound);
            inbound.calls.push(Call { txid, reply: None });
            self.flags.fetch_or(CALLS, Ordering::SeqCst);
        }
        let result =
            self.write(this, message).and_then(|()| self.await_reply(this, txid, deadline));
        let mut inbound = lock(&self.inbound);
        inbound.calls.retain(|call| call.txid != txid);
        self.calls_changed(&inbound);
        if !inbound.calls.is_empty() {
            // Someone else has to take over the socket.
            self.replied.notify_all();
        }
        let left = !inbound.stash.is_empty();
        drop(inbound);
        if left {
            this.notify();
        }
        result
    }

    fn await_reply(&self, this: &Arc<Object>, txid: u32, deadline: zx_time_t) -> Result<Incoming> {
        let mut inbound = lock(&self.inbound);
        loop {
            if inbound.canceled {
                return Err(CANCELED);
            }
            if let Some(reply) = inbound.take_reply(txid) {
                return Ok(reply);
            }
            if inbound.receiving {
                inbound = self.await_turn(inbound, deadline)?;
                continue;
            }
            inbound.receiving = true;
            drop(inbound);
            let received = self.receive_until(deadline);
            inbound = lock(&self.inbound);
            inbound.receiving = false;
            if inbound.canceled {
                return Err(CANCELED);
            }
            let message = received?;
            if txid_of(&message.bytes) == Some(txid) {
                return Ok(message);
            }
            if let Some(message) = inbound.give_reply(message) {
                self.stash(&mut inbound, message)?;
                drop(inbound);
                this.notify();
                inbound = lock(&self.inbound);
            } else {
                self.replied.notify_all();
            }
        }
    }

    /// Waits for another caller to find our reply or to leave the socket to us.
    fn await_turn<'a>(
        &self,
        inbound: MutexGuard<'a, Inbound>,
        deadline: zx_time_t,
    ) -> Result<MutexGuard<'a, Inbound>> {
        let Some(left) = until(deadline) else {
            return Ok(self.replied.wait(inbound).unwrap_or_else(PoisonError::into_inner));
        };
        let left = Duration::new(left.tv_sec.unsigned_abs(), left.tv_nsec as u32);
        if left.is_zero() {
            return Err(TIMED_OUT);
        }
        Ok(self.replied.wait_timeout(inbound, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn receive_until(&self, deadline: zx_time_t) -> Result<Incoming> {
        if deadline == ZX_TIME_INFINITE {
            match self.receive(true) {
                // Another process made the socket non-blocking.
                Err(SHOULD_WAIT) => {}
                other => return other,
            }
        }
        loop {
            match self.receive(false) {
                Err(SHOULD_WAIT) => {}
                other => return other,
            }
            if deadline <= now() {
                return Err(TIMED_OUT);
            }
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, until(deadline).as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Err(PEER_CLOSED),
            }
        }
    }
}

impl Inbound {
    fn take_reply(&mut self, txid: u32) -> Option<Incoming> {
        self.calls.iter_mut().find(|call| call.txid == txid)?.reply.take()
    }

    /// Hands a message to the caller that waits for it, or back when there is none.
    fn give_reply(&mut self, message: Incoming) -> Option<Incoming> {
        let Some(txid) = txid_of(&message.bytes) else { return Some(message) };
        match self.calls.iter_mut().find(|call| call.txid == txid && call.reply.is_none()) {
            Some(call) => {
                call.reply = Some(message);
                None
            }
            None => Some(message),
        }
    }
}
