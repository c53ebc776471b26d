//! Who is to be told of a packet that arrives on the executor's port.

use std::ops::Deref;
use std::sync::Arc;

use crate::EHandle;
use crate::zx;

/// The key of the packets that only wake a thread up.
pub(crate) const WAKEUP_KEY: u64 = u64::MAX;

/// Gets the packets that arrive with a key.
pub trait PacketReceiver: Send + Sync + 'static {
    /// Called on a thread of the executor. Must not block.
    fn receive_packet(&self, packet: zx::Packet);
}

/// The receivers of an executor. A key is an index into `slots` and, above it, how often the slot has been given out, so
/// that a late packet does not reach the next one in the slot.
#[derive(Default)]
pub(crate) struct Receivers {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    generation: u32,
    receiver: Option<Arc<dyn PacketReceiver>>,
}

impl Receivers {
    pub(crate) fn insert(&mut self, receiver: Arc<dyn PacketReceiver>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, receiver: None });
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 receivers")
        });
        let slot = &mut self.slots[index as usize];
        slot.receiver = Some(receiver);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    pub(crate) fn get(&self, key: u64) -> Option<Arc<dyn PacketReceiver>> {
        self.slot(key).and_then(|slot| slot.receiver.clone())
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<Arc<dyn PacketReceiver>> {
        self.slot(key)?;
        let index = key as u32;
        let slot = &mut self.slots[index as usize];
        // One generation is left out, since it would give WAKEUP_KEY.
        slot.generation = (slot.generation + 1) % u32::MAX;
        self.free.push(index);
        slot.receiver.take()
    }

    fn slot(&self, key: u64) -> Option<&Slot> {
        let slot = self.slots.get(key as u32 as usize)?;
        (u64::from(slot.generation) == key >> 32).then_some(slot)
    }

    /// Forgets all receivers. Keys that are out no longer lead anywhere.
    pub(crate) fn clear(&mut self) -> Vec<Arc<dyn PacketReceiver>> {
        self.slots.iter_mut().filter_map(|slot| slot.receiver.take()).collect()
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
