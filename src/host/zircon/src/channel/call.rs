//! `zx_channel_call`: a message and its reply, recognized by the transaction identifier in the first four bytes.
//!
//! The first caller takes messages out of the socket for all: replies go to the caller they belong to, other messages to
//! the readers. So a call is one send and one blocking receive, and any number of threads can call at once.

use super::inbound::{Call, Delivered, Destination, Inbound, ReadError};
use super::receive::{Incoming, Packet};
use super::{Channel, Outgoing};
use crate::handle_table::Held;
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
    /// Sends a message of at least four bytes under a new transaction identifier and waits for the reply with the same one.
    pub(super) fn call(
        &self,
        this: &Arc<Object>,
        bytes: &[u8],
        handles: Vec<Held>,
        destination: &Destination,
        deadline: zx_time_t,
    ) -> std::result::Result<Delivered, ReadError> {
        let txid = NEXT_TXID.fetch_add(1, Ordering::Relaxed) | KERNEL_TXID;
        let receiving = {
            let mut inbound = lock(&self.inbound);
            inbound.calls.push(Call { txid, reply: None });
            !std::mem::replace(&mut inbound.receiving, true)
        };
        let first = Some(txid.to_ne_bytes());
        let sent = if handles.is_empty() {
            self.write_bytes(this, first, bytes)
        } else {
            self.write(this, Outgoing::new(bytes, handles).with_txid(first))
        };
        let (mut inbound, result) = match sent {
            Ok(()) => self.await_reply(this, txid, destination, deadline, receiving),
            Err(status) => {
                let mut inbound = lock(&self.inbound);
                inbound.receiving &= !receiving;
                (inbound, Err(status.into()))
            }
        };
        if let Some(index) = inbound.calls.iter().position(|call| call.txid == txid) {
            inbound.calls.swap_remove(index);
        }
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

    /// `receiving` says that the socket is left to this caller.
    fn await_reply(
        &self,
        this: &Arc<Object>,
        txid: u32,
        destination: &Destination,
        deadline: zx_time_t,
        mut receiving: bool,
    ) -> (MutexGuard<'_, Inbound>, std::result::Result<Delivered, ReadError>) {
        loop {
            let received = receiving.then(|| self.receive_until(deadline));
            let mut inbound = lock(&self.inbound);
            if receiving {
                inbound.receiving = false;
            }
            if inbound.canceled {
                return (inbound, Err(CANCELED.into()));
            }
            match received {
                Some(Ok(reply)) if txid_of(reply.bytes()) == Some(txid) => {
                    return (inbound, destination.deliver_or_drop(reply));
                }
                Some(Ok(message)) => match self.pass_on(&mut inbound, message.into_incoming()) {
                    Ok(true) => {
                        drop(inbound);
                        this.notify();
                        inbound = lock(&self.inbound);
                    }
                    Ok(false) => {}
                    Err(status) => return (inbound, Err(status.into())),
                },
                Some(Err(status)) => return (inbound, Err(status.into())),
                None => {}
            }
            if let Some(reply) = inbound.take_reply(txid) {
                return (inbound, destination.deliver_or_drop(Packet::Whole(Box::new(reply))));
            }
            receiving = !std::mem::replace(&mut inbound.receiving, true);
            if !receiving && let Err(status) = self.await_turn(inbound, deadline) {
                return (lock(&self.inbound), Err(status.into()));
            }
        }
    }

    /// Gives a message to another caller, or keeps it for the readers. Whether these are to be told.
    fn pass_on(&self, inbound: &mut Inbound, message: Incoming) -> Result<bool> {
        if let Some(message) = inbound.give_reply(message) {
            self.stash(inbound, message)?;
            return Ok(true);
        }
        self.replied.notify_all();
        Ok(false)
    }

    /// Waits for another caller to find our reply or to leave the socket to us.
    fn await_turn(&self, inbound: MutexGuard<'_, Inbound>, deadline: zx_time_t) -> Result<()> {
        let Some(left) = until(deadline) else {
            drop(self.replied.wait(inbound).unwrap_or_else(PoisonError::into_inner));
            return Ok(());
        };
        let left = Duration::new(left.tv_sec.unsigned_abs(), left.tv_nsec as u32);
        if left.is_zero() {
            return Err(TIMED_OUT);
        }
        drop(self.replied.wait_timeout(inbound, left).unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn receive_until(&self, deadline: zx_time_t) -> Result<Packet> {
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
