//! Who is to be told of a packet that arrives on the executor's port.

use std::ops::Deref;
use std::sync::Arc;

use slab::Slab;

use crate::EHandle;
use crate::rwhandle::Wait;
use crate::zx;

/// The key of the packets that only wake a thread up.
pub(crate) const WAKEUP_KEY: u64 = u64::MAX;

/// Gets the packets that arrive with a key.
pub trait PacketReceiver: Send + Sync + 'static {
    /// Called on a thread of the executor. Must not block.
    fn receive_packet(&self, packet: zx::Packet);
}

/// What a packet is for.
pub(crate) enum Receiver {
    /// The end of a wait of an `RWHandle`: the most frequent packets, so that they need not be passed on.
    Wait(Wait),
    /// Somebody else who knows what it means.
    Packets(Arc<dyn PacketReceiver>),
}

/// The receivers of an executor. A key is an index into `entries` and, above it, a number that the next one there does not
/// have, so that a late packet does not reach it.
#[derive(Default)]
pub(crate) struct Receivers {
    entries: Slab<Entry>,
    next_generation: u32,
}

struct Entry {
    generation: u32,
    receiver: Receiver,
}

impl Receivers {
    pub(crate) fn insert(&mut self, receiver: Receiver) -> u64 {
        let generation = self.next_generation;
        // One generation is left out, since it would give WAKEUP_KEY.
        self.next_generation = (generation + 1) % u32::MAX;
        let index = self.entries.insert(Entry { generation, receiver });
        let index = u32::try_from(index).expect("fewer than 2^32 receivers");
        u64::from(generation) << 32 | u64::from(index)
    }

    pub(crate) fn get(&mut self, key: u64) -> Option<&mut Receiver> {
        let entry = self.entries.get_mut(key as u32 as usize)?;
        (u64::from(entry.generation) == key >> 32).then_some(&mut entry.receiver)
    }

    /// The wait with this key. `None` once the executor is closed.
    pub(crate) fn wait(&mut self, key: u64) -> Option<&mut Wait> {
        match self.get(key) {
            Some(Receiver::Wait(wait)) => Some(wait),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<Receiver> {
        self.get(key)?;
        Some(self.entries.remove(key as u32 as usize).receiver)
    }

    /// Forgets all receivers. Keys that are out no longer lead anywhere.
    pub(crate) fn clear(&mut self) -> Vec<Receiver> {
        self.entries.drain().map(|entry| entry.receiver).collect()
    }
}

/// A receiver that is registered with an executor, until dropped.
pub struct ReceiverRegistration<T: PacketReceiver> {
    receiver: Arc<T>,
    executor: EHandle,
    key: u64,
}

impl<T: PacketReceiver> ReceiverRegistration<T> {
    pub(crate) fn new(executor: EHandle, receiver: Arc<T>, key: u64) -> Self {
        ReceiverRegistration { receiver, executor, key }
    }

    /// The key with which packets reach the receiver.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The port that the packets are to be sent to.
    pub fn port(&self) -> &zx::Port {
        self.executor.port()
    }

    /// The receiver.
    pub fn receiver(&self) -> &Arc<T> {
        &self.receiver
    }
}

impl<T: PacketReceiver> Deref for ReceiverRegistration<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.receiver
    }
}

impl<T: PacketReceiver> Drop for ReceiverRegistration<T> {
    fn drop(&mut self) {
        self.executor.deregister_receiver(self.key);
    }
}
