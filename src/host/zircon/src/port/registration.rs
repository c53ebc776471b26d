//! What a port knows of the objects that are waited for through it.

use crate::event::Snapshot;
use crate::object::Object;
use crate::system::now;
use fuchsia_zircon_types::*;
use rustix::event::PollFlags;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// How a source is in the epoll set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    Absent,
    /// Reports once; then it must be armed again.
    Once(PollFlags),
    /// Fired, or not wanted now.
    Disarmed,
    /// Reports each arrival.
    Edge(PollFlags),
    /// Reports for as long as there is something to report, without being armed again.
    Level(PollFlags),
}

/// One `zx_object_wait_async`.
pub(super) struct Observer {
    pub(super) handle: zx_handle_t,
    pub(super) key: u64,
    pub(super) signals: zx_signals_t,
    pub(super) timestamp: bool,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) edge: Option<Edge>,
}

/// What an edge-triggered wait must not report.
pub(super) struct Edge {
    /// Signals of the wait that are active and have been since it last looked.
    pub(super) active: zx_signals_t,
    /// How often the object was seen empty or full; see [`Object::drains`].
    pub(super) drains: u32,
}

pub(super) struct Registration {
    pub(super) object: Weak<Object>,
    pub(super) arms: [Arm; 2],
    pub(super) observers: Vec<Observer>,
}

impl Registration {
    pub(super) fn is_observed(&self) -> bool {
        !self.observers.is_empty()
    }
}

/// Names a registration, also after it is gone: its index in the low half, how often that was given out before in the high
/// half, of which the two highest bits are clear.
pub(crate) type Number = u64;

const GENERATIONS: u32 = 1 << 30;

struct Slot {
    generation: u32,
    registration: Option<Registration>,
}

/// The registrations of a port, by number and by object.
#[derive(Default)]
pub(super) struct Registrations {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_object: Addressed<Number>,
}

impl Registrations {
    pub(super) fn is_empty(&self) -> bool {
        self.by_object.is_empty()
    }

    #[inline]
    pub(super) fn get(&self, number: Number) -> Option<&Registration> {
        let slot = self.slots.get(number as u32 as usize)?;
        slot.registration.as_ref().filter(|_| u64::from(slot.generation) == number >> 32)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: Number) -> Option<&mut Registration> {
        let slot = self.slots.get_mut(number as u32 as usize)?;
        slot.registration.as_mut().filter(|_| u64::from(slot.generation) == number >> 32)
    }

    /// The registration of an object. Where it was found last is with the object: mostly that is in this port.
    pub(super) fn number_of(&self, object: &Object) -> Option<Number> {
        let number = *self.by_object.get(&(std::ptr::from_ref(object) as usize))?;
        object.registration.store(number, Ordering::Relaxed);
        Some(number)
    }

    /// The registration of an object, if it is where that was looked for last.
    #[inline]
    pub(super) fn last_of(&mut self, object: &Object) -> Option<(Number, &mut Registration)> {
        let number = object.registration.load(Ordering::Relaxed);
        let found = self.get_mut(number)?;
        std::ptr::eq(found.object.as_ptr(), object).then_some((number, found))
    }

    /// A registration for an object without one.
    pub(super) fn insert(&mut self, object: &Arc<Object>) -> Number {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, registration: None });
            // More than there are handles in a process there cannot be.
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.registration = Some(Registration {
            object: Arc::downgrade(object),
            arms: [Arm::Absent; 2],
            observers: Vec::new(),
        });
        let number = u64::from(slot.generation) << 32 | u64::from(index);
        object.registration.store(number, Ordering::Relaxed);
        self.by_object.insert(Arc::as_ptr(object) as usize, number);
        number
    }

    pub(super) fn remove(&mut self, number: Number) {
        let Some(registration) = self.get(number) else { return };
        self.by_object.remove(&(registration.object.as_ptr() as usize));
        let slot = &mut self.slots[number as u32 as usize];
        slot.registration = None;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push(number as u32);
    }
}

/// A map whose keys are addresses of ours, which nobody chooses to collide.
type Addressed<V> = HashMap<usize, V, BuildHasherDefault<AddressHasher>>;

/// Spreads a number over all bits, by multiplication with the golden ratio.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The product's high bits depend on all of the number, its low bits do not.
        self.0 = mixed ^ (mixed >> 32);
    }
}

impl Observer {
    /// A wait without any options, for signals of an object that has no history of them.
    #[inline]
    pub(super) fn plain(handle: zx_handle_t, key: u64, signals: zx_signals_t) -> Observer {
        Observer { handle, key, signals, timestamp: false, snapshot: None, edge: None }
    }

    /// As [`Observer::satisfied`], where nothing but the present signals counts.
    #[inline]
    pub(super) fn satisfied_plainly(&self, signals: zx_signals_t) -> Option<zx_port_packet_t> {
        let plain = self.edge.is_none() && self.snapshot.is_none();
        (plain && signals & self.signals != 0)
            .then(|| signal_packet(self.key, self.signals, signals, self.timestamp))
    }

    /// The packet of this wait if `signals`, or what was asserted since it began, satisfy it.
    pub(super) fn satisfied(
        &mut self,
        object: &Object,
        signals: zx_signals_t,
    ) -> Option<zx_port_packet_t> {
        let risen = object.asserted_since(self.snapshot.as_ref());
        let mut observed = signals | risen;
        if let Some(edge) = &mut self.edge {
            if self.snapshot.is_some() {
                observed = risen | (signals & ZX_EVENTPAIR_PEER_CLOSED & !edge.active);
            } else {
                let drains = object.drains();
                let drained = drains != edge.drains;
                let active = std::mem::replace(&mut edge.active, signals & self.signals);
                edge.drains = drains;
                if !drained {
                    observed &= !active;
                }
            }
        }
        (observed & self.signals != 0)
            .then(|| signal_packet(self.key, self.signals, observed, self.timestamp))
    }
}

/// A `ZX_PKT_TYPE_SIGNAL_ONE` packet.
fn signal_packet(
    key: u64,
    trigger: zx_signals_t,
    observed: zx_signals_t,
    timestamp: bool,
) -> zx_port_packet_t {
    let mut union = [0; 32];
    union[0..4].copy_from_slice(&trigger.to_ne_bytes());
    union[4..8].copy_from_slice(&observed.to_ne_bytes());
    union[8..16].copy_from_slice(&1_u64.to_ne_bytes());
    let time = if timestamp { now() } else { 0 };
    union[16..24].copy_from_slice(&time.to_ne_bytes());
    zx_port_packet_t {
        key,
        packet_type: zx_packet_type_t::ZX_PKT_TYPE_SIGNAL_ONE,
        status: ZX_OK,
        union,
    }
}
