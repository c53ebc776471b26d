//! Ports: an epoll set for what objects and bells report, and a queue for packets that are ready.
//!
//! A packet of an asynchronous wait is made when a thread asks for one: `zx_port_wait` takes from the queue or else makes
//! one `epoll_wait` call. An object has one registration per port, which carries all waits made on it.

#[cfg(test)]
mod port_test;
mod registration;
mod sharing;
mod syscalls;

pub(crate) use registration::Number;
pub(crate) use sharing::Sharing;
pub use syscalls::*;

use crate::guest::BellSource;
use crate::object::{Kind, Object, Source, Waiter, lock, ring};
use crate::status::{CANCELED, NO_RESOURCES, NOT_FOUND, Result, SHOULD_WAIT, TIMED_OUT};
use crate::system::{now, until};
use fuchsia_zircon_types::*;
use registration::{Arm, Observer, Registration, Registrations};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fd::OwnedFd;
use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

/// Packets of `zx_port_queue` that may wait in one port; the number is Zircon's.
const MAX_USER_PACKETS: usize = 2048;
const BATCH: usize = 16;
const WAKE: u64 = u64::MAX;
const BELL: u64 = 1 << 63;

struct Queued {
    packet: zx_port_packet_t,
    /// The handle whose wait made the packet, for `zx_port_cancel`; 0 for other packets.
    source: zx_handle_t,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    user_packets: usize,
    registrations: Registrations,
    bells: HashMap<u32, BellSource>,
    next_bell: u32,
    /// Threads that are in `epoll_wait` or on the way to it.
    sleepers: u32,
    /// Wakes all threads that slept when it was made; and how many of them still do.
    alarm: Option<(OwnedFd, u32)>,
    /// How many alarms there have been.
    alarms: u32,
    /// Whether a thread sends packets on to the processes that share the port.
    forwarded: bool,
    /// There have been several of them at a time: what reports more than once would wake them all for the same thing.
    crowded: bool,
    closed: bool,
}

/// A port.
pub(crate) struct Port {
    epoll: OwnedFd,
    wake: OwnedFd,
    state: Mutex<State>,
    /// Registrations to look at again.
    later: Mutex<Vec<Number>>,
    /// Where the packets are once the port was sent, or if it came from another process.
    sharing: OnceLock<Sharing>,
}

fn epoll_flags(events: PollFlags, mode: EventFlags) -> EventFlags {
    EventFlags::from_bits_retain(events.bits().into()) | mode
}

impl State {
    fn push(&mut self, wake: &OwnedFd, packet: zx_port_packet_t, source: zx_handle_t) {
        self.queue.push_back(Queued { packet, source });
        if self.sleepers > 0 {
            ring(wake);
        }
    }

    /// A thread is awake that went to sleep after so many alarms.
    fn left(&mut self, alarms: u32) {
        if let Some((_, sleepers)) = self.alarm.as_mut().filter(|_| alarms != self.alarms) {
            *sleepers -= 1;
            if *sleepers == 0 {
                self.alarm = None;
            }
        }
    }

    /// The packet of what epoll reported, where that is what it mostly is: a message on a channel, for the one wait for it, with
    /// nothing else to do. As [`Port::dispatch`] otherwise.
    fn sole_packet(&mut self, data: u64, flags: EventFlags) -> Option<zx_port_packet_t> {
        if data & (BELL | 1) != 0 || !self.queue.is_empty() {
            return None;
        }
        let registration = self.registrations.get_mut(data >> 1)?;
        let [observer] = registration.observers.as_mut_slice() else { return None };
        if !matches!(registration.arms[0], Arm::Level(_)) {
            return None;
        }
        let object = registration.object.upgrade()?;
        let revents = PollFlags::from_bits_retain(flags.bits() as u16);
        let packet = observer.satisfied_plainly(object.channel_signals(revents)?)?;
        registration.observers.clear();
        Some(packet)
    }

    /// The next packet. Passes the wake-up on when there is another one and another thread for it.
    fn pop(&mut self, wake: &OwnedFd) -> Option<zx_port_packet_t> {
        let queued = self.queue.pop_front()?;
        if queued.packet.packet_type == zx_packet_type_t::ZX_PKT_TYPE_USER {
            self.user_packets = self.user_packets.saturating_sub(1);
        }
        if !self.queue.is_empty() && self.sleepers > 0 {
            ring(wake);
        }
        Some(queued.packet)
    }
}

impl Port {
    /// A port that another process sent.
    pub(crate) fn shared(sharing: Sharing) -> Result<Port> {
        Ok(Port { sharing: OnceLock::from(sharing), ..Port::new()? })
    }

    /// What a message carries for this port, whose object is `this`. From now on its packets are with all who have it.
    pub(crate) fn share(&self, this: &Arc<Object>) -> Result<&Sharing> {
        let mut state = lock(&self.state);
        if self.sharing.get().is_none() {
            let sharing = Sharing::new()?;
            while let Some(queued) = state.queue.front()
                && sharing.queue(&queued.packet).is_ok()
            {
                state.pop(&self.wake);
            }
            // Nobody else sets it: this is under the lock.
            let _ = self.sharing.set(sharing);
            self.forward(&mut state, this)?;
            // Who waits here has to wait there.
            self.wake_all(&mut state)?;
        }
        self.sharing.get().ok_or(NO_RESOURCES)
    }

    /// Has a thread send packets on if the port is shared, this process has handles to it, and there is anything that makes
    /// packets.
    fn forward(&self, state: &mut State, this: &Arc<Object>) -> Result<()> {
        let quiet =
            state.queue.is_empty() && state.registrations.is_empty() && state.bells.is_empty();
        // Without a handle in this process there are no waits, but there may be packets that found no room yet.
        let done = state.closed && state.queue.is_empty();
        if self.sharing.get().is_none() || state.forwarded || quiet || done {
            return Ok(());
        }
        let object = this.clone();
        let forward = move || {
            let Ok(port) = object.port() else { return };
            let Some(sharing) = port.sharing.get() else { return };
            // Until the last handle of this process is closed.
            while let Ok(packet) = port.wait_here(ZX_TIME_INFINITE, true)
                && sharing.queue_patiently(&packet).is_ok()
            {}
        };
        let builder = std::thread::Builder::new().name("zx-port".into());
        builder.spawn(forward).map_err(|_| NO_RESOURCES)?;
        state.forwarded = true;
        Ok(())
    }

    /// Makes all threads that are in `epoll_wait` look again, which an edge does not: it is one thread's.
    fn wake_all(&self, state: &mut State) -> Result<()> {
        if state.sleepers > 0 {
            let alarm = eventfd(1, EventfdFlags::CLOEXEC)?;
            epoll::add(&self.epoll, &alarm, EventData::new_u64(WAKE), EventFlags::IN)?;
            state.alarm = Some((alarm, state.sleepers));
            state.alarms += 1;
        }
        Ok(())
    }

    fn new() -> Result<Port> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN | EventFlags::ET)?;
        Ok(Port {
            epoll,
            wake,
            state: Mutex::default(),
            later: Mutex::default(),
            sharing: OnceLock::new(),
        })
    }

    /// `zx_port_queue`.
    fn queue(&self, packet: zx_port_packet_t) -> Result<()> {
        let mut state = lock(&self.state);
        // What is still on its way from here to there comes first.
        if let Some(sharing) = self.sharing.get().filter(|_| state.user_packets == 0) {
            return sharing.queue(&packet);
        }
        if state.user_packets >= MAX_USER_PACKETS {
            return Err(SHOULD_WAIT);
        }
        state.user_packets += 1;
        state.push(&self.wake, packet, ZX_HANDLE_INVALID);
        Ok(())
    }

    /// `zx_port_wait`.
    fn wait(&self, deadline: zx_time_t) -> Result<zx_port_packet_t> {
        self.wait_here(deadline, false)
    }

    /// Waits for what this process makes packets of; unless `forwarding`, only as long as the port is not shared.
    fn wait_here(&self, deadline: zx_time_t, forwarding: bool) -> Result<zx_port_packet_t> {
        let mut events = [MaybeUninit::<Event>::uninit(); BATCH];
        loop {
            if let Some(sharing) = self.sharing.get().filter(|_| !forwarding) {
                return sharing.wait(deadline);
            }
            let alarms = {
                let mut state = lock(&self.state);
                if !forwarding && self.sharing.get().is_some() {
                    continue;
                }
                if let Some(packet) = state.pop(&self.wake) {
                    return Ok(packet);
                }
                if state.closed {
                    return Err(CANCELED);
                }
                state.sleepers += 1;
                state.crowded |= state.sleepers > 1;
                state.alarms
            };
            let timeout = until(deadline);
            let ready = epoll::wait(&self.epoll, &mut events[..], timeout.as_ref());
            let mut state = lock(&self.state);
            state.sleepers -= 1;
            state.left(alarms);
            let expired = match ready {
                Ok((events, _)) => {
                    if let [event] = &*events
                        && let Some(packet) = state.sole_packet(event.data.u64(), event.flags)
                    {
                        return Ok(packet);
                    }
                    for event in &*events {
                        self.dispatch(&mut state, event.data.u64(), event.flags);
                    }
                    events.is_empty()
                }
                Err(rustix::io::Errno::INTR) => false,
                Err(errno) => return Err(errno.into()),
            };
            if let Some(packet) = state.pop(&self.wake) {
                return Ok(packet);
            }
            if expired && deadline != ZX_TIME_INFINITE && now() >= deadline {
                return Err(TIMED_OUT);
            }
        }
    }

    /// Turns what epoll reported into packets.
    fn dispatch(&self, state: &mut State, data: u64, flags: EventFlags) {
        if data == WAKE {
            let later = std::mem::take(&mut *lock(&self.later));
            later.into_iter().for_each(|number| self.evaluate_in(state, number));
            return;
        }
        if data & BELL != 0 {
            let State { bells, queue, .. } = state;
            let Some(bell) = bells.get(&(data as u32)) else { return };
            // The calling thread takes the first, and wakes another if there are more.
            bell.take(|packet| queue.push_back(Queued { packet, source: ZX_HANDLE_INVALID }));
            return;
        }
        let (number, index) = (data >> 1, (data & 1) as usize);
        let Some(registration) = state.registrations.get_mut(number) else { return };
        if let Arm::Once(_) = registration.arms[index] {
            registration.arms[index] = Arm::Disarmed;
        }
        let Some(object) = registration.object.upgrade() else { return };
        let revents = PollFlags::from_bits_retain(flags.bits() as u16);
        object.observe(index, revents);
        let signals = object.signals_given(if index == 0 { revents } else { PollFlags::empty() });
        let satisfied = self.deliver(state, number, &object, signals);
        let observed = state.registrations.get(number).is_some_and(Registration::is_observed);
        match (satisfied, observed) {
            (true, false) => {}
            (false, false) => self.silence(state, number, &object),
            // What fires without satisfying anyone would fire for ever: from then on only arrivals count.
            _ => {
                self.arm(state, number, &object, !satisfied);
            }
        }
    }

    /// Has the sources of a registration without a wait report no more.
    fn silence(&self, state: &mut State, number: Number, object: &Arc<Object>) {
        let Some(registration) = state.registrations.get_mut(number) else { return };
        let Ok(sources) = object.sources(ZX_OBJECT_SIGNAL_ALL) else { return };
        for (index, source) in sources.iter().enumerate() {
            if let (Some(source), Arm::Level(_)) = (source, registration.arms[index]) {
                // A hang-up is reported all the same, but once.
                let once = Arm::Once(PollFlags::empty());
                if self.control(source, once, false, number, index).is_ok() {
                    registration.arms[index] = Arm::Disarmed;
                }
            }
        }
    }

    /// Queues the packets of all waits of a registration that `signals` satisfy; whether there were any.
    fn deliver(
        &self,
        state: &mut State,
        number: Number,
        object: &Arc<Object>,
        signals: zx_signals_t,
    ) -> bool {
        let State { registrations, queue, sleepers, .. } = state;
        let Some(registration) = registrations.get_mut(number) else { return false };
        let before = queue.len();
        registration.observers.retain_mut(|observer| match observer.satisfied(object, signals) {
            Some(packet) => {
                queue.push_back(Queued { packet, source: observer.handle });
                false
            }
            None => true,
        });
        let satisfied = queue.len() > before;
        if satisfied && *sleepers > 0 {
            ring(&self.wake);
        }
        satisfied
    }

    /// Puts the sources that the waits of a registration need into the epoll set.
    /// Whether that worked; epoll knows nothing of regular files, for one.
    fn arm(&self, state: &mut State, number: Number, object: &Arc<Object>, patient: bool) -> bool {
        // A channel is read until its messages have been seen, so that its next wait needs no call.
        let level = matches!(object.kind, Kind::Channel(_)) && !state.crowded;
        let Some(registration) = state.registrations.get_mut(number) else { return false };
        let interest =
            registration.observers.iter().fold(0, |all, observer| all | observer.signals);
        if interest == 0 {
            return true;
        }
        let edge = patient || registration.observers.iter().any(|observer| observer.edge.is_some());
        let Ok(sources) = object.sources(interest) else { return false };
        let mut armed = true;
        for (index, source) in sources.iter().enumerate() {
            let Some(source) = source else { continue };
            let wanted = if source.edge || edge {
                Arm::Edge(source.events)
            } else if level {
                Arm::Level(source.events)
            } else {
                Arm::Once(source.events)
            };
            let arm = &mut registration.arms[index];
            if *arm != wanted {
                match self.control(source, wanted, *arm == Arm::Absent, number, index) {
                    Ok(()) => *arm = wanted,
                    Err(_) => armed = false,
                }
            }
        }
        armed
    }

    fn control(
        &self,
        source: &Source<'_>,
        arm: Arm,
        absent: bool,
        number: Number,
        index: usize,
    ) -> Result<()> {
        let flags = match arm {
            Arm::Edge(events) => epoll_flags(events, EventFlags::ET),
            Arm::Once(events) => epoll_flags(events, EventFlags::ONESHOT),
            Arm::Level(events) => epoll_flags(events, EventFlags::empty()),
            Arm::Absent | Arm::Disarmed => return Ok(()),
        };
        let data = EventData::new_u64(number << 1 | index as u64);
        if absent {
            epoll::add(&self.epoll, source.fd, data, flags)?;
        } else {
            epoll::modify(&self.epoll, source.fd, data, flags)?;
        }
        Ok(())
    }

    /// Looks at an object again because something changed that no descriptor tells about.
    pub(crate) fn evaluate(&self, number: Number) {
        self.evaluate_in(&mut lock(&self.state), number);
    }

    /// As [`Port::evaluate`], when a thread next waits for a packet.
    pub(crate) fn evaluate_later(&self, number: Number) {
        let mut later = lock(&self.later);
        if !later.contains(&number) {
            later.push(number);
            ring(&self.wake);
        }
    }

    fn evaluate_in(&self, state: &mut State, number: Number) {
        let Some(registration) = state.registrations.get(number) else { return };
        let interest =
            registration.observers.iter().fold(0, |all, observer| all | observer.signals);
        let Some(object) = registration.object.upgrade() else { return };
        if interest != 0
            && let Ok(signals) = object.signals(interest)
        {
            self.deliver(state, number, &object, signals);
        }
    }

    /// As [`Port::observe`], if all that is asked for is the next message of a channel, `object`, and the port watches for that
    /// already. Whether so.
    #[inline]
    fn observe_messages(
        &self,
        object: &Object,
        handle: zx_handle_t,
        key: u64,
        signals: zx_signals_t,
    ) -> bool {
        const MESSAGES: zx_signals_t = ZX_CHANNEL_READABLE | ZX_CHANNEL_PEER_CLOSED;
        let Kind::Channel(channel) = &object.kind else { return false };
        if signals & !MESSAGES != 0 {
            return false;
        }
        let mut state = lock(&self.state);
        // Under the lock: who stashes a message afterwards finds the wait.
        if channel.has_stash() || self.sharing.get().is_some() {
            return false;
        }
        let crowded = state.crowded;
        let Some((number, registration)) = state.registrations.last_of(object) else {
            return false;
        };
        if crowded || registration.arms != [Arm::Level(PollFlags::IN), Arm::Absent] {
            return false;
        }
        registration.observers.push(Observer::plain(handle, key, signals));
        drop(state);
        self.check_handle(handle, object, number);
        true
    }

    /// `zx_object_wait_async`, after the checks. `this` is the object of this port.
    fn observe(&self, this: &Arc<Object>, object: &Arc<Object>, observer: Observer) -> Result<()> {
        let mut state = lock(&self.state);
        let handle = observer.handle;
        let number = state.registrations.number_of(object).unwrap_or_else(|| {
            let number = state.registrations.insert(object);
            object.add_waiter(Waiter::Port { port: Arc::downgrade(this), registration: number });
            number
        });
        // Descriptors report what is ready already when they are armed; this is for signals without a descriptor,
        // and for those that an edge-triggered source has reported before.
        let (signals, edge) = (observer.signals, observer.edge.is_some());
        let Some(registration) = state.registrations.get_mut(number) else { return Err(CANCELED) };
        registration.observers.push(observer);
        if matches!(registration.arms[0], Arm::Edge(_))
            && !edge
            && !matches!(object.kind, Kind::Event(_) | Kind::Fifo(_))
        {
            // Arrivals may have been reported before this wait: arming anew reports the present state.
            registration.arms[0] = Arm::Disarmed;
        }
        let writable =
            matches!(object.kind, Kind::Channel(_)) && signals & ZX_CHANNEL_WRITABLE != 0;
        let armed = self.arm(&mut state, number, object, false);
        self.forward(&mut state, this)?;
        if !edge {
            let current = if writable || !armed {
                object.signals(signals)?
            } else {
                object.signals_given(PollFlags::empty())
            };
            self.deliver(&mut state, number, object, current);
        }
        drop(state);
        self.check_handle(handle, object, number);
        Ok(())
    }

    /// Ends a wait that was made through a handle while that was closed, as nobody else will.
    #[inline]
    fn check_handle(&self, handle: zx_handle_t, object: &Object, number: Number) {
        if !crate::handle_table::is_valid(handle) {
            self.handle_closed(object, number, handle, object.handles.load(Ordering::SeqCst) == 0);
        }
    }

    /// Ends the waits made through a handle; with the object's last handle takes the object out of the port.
    pub(crate) fn handle_closed(
        &self,
        object: &Object,
        number: Number,
        handle: zx_handle_t,
        last: bool,
    ) {
        let mut state = lock(&self.state);
        let Some(registration) = state.registrations.get_mut(number) else { return };
        registration.observers.retain(|observer| observer.handle != handle);
        if !last {
            return;
        }
        // The descriptors may live on in other processes, so closing ours would not take them out. What is watched for the
        // user signals alone is the second source, and made when first asked for.
        let user = if registration.arms[1] == Arm::Absent { 0 } else { ZX_USER_SIGNAL_ALL };
        if let Ok(sources) = object.sources(ZX_OBJECT_SIGNAL_ALL | user) {
            for (source, arm) in sources.iter().zip(registration.arms) {
                if let Some(source) = source.as_ref().filter(|_| arm != Arm::Absent) {
                    let _ = epoll::delete(&self.epoll, source.fd);
                }
            }
        }
        state.registrations.remove(number);
    }

    /// `zx_port_cancel`: removes waits and packets of this handle and key.
    fn cancel(&self, source: zx_handle_t, object: &Arc<Object>, key: u64) -> Result<()> {
        let mut state = lock(&self.state);
        let before = state.queue.len();
        state.queue.retain(|queued| queued.source != source || queued.packet.key != key);
        let mut found = state.queue.len() != before;
        let number = state.registrations.number_of(object);
        if let Some(registration) = number.and_then(|number| state.registrations.get_mut(number)) {
            let before = registration.observers.len();
            registration
                .observers
                .retain(|observer| observer.handle != source || observer.key != key);
            found |= registration.observers.len() != before;
        }
        if found { Ok(()) } else { Err(NOT_FOUND) }
    }

    /// Adds a bell; its rings become packets of this port, whose object is `this`, until this process closes it.
    pub(crate) fn add_bell(&self, this: &Arc<Object>, bell: BellSource) -> Result<()> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(CANCELED);
        }
        let number = state.next_bell;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, bell.fd(), EventData::new_u64(BELL | u64::from(number)), flags)?;
        state.next_bell = number.wrapping_add(1);
        // What rang before the bell was in the set.
        bell.take(|packet| state.push(&self.wake, packet, ZX_HANDLE_INVALID));
        state.bells.insert(number, bell);
        self.forward(&mut state, this)
    }

    /// The last handle is gone: bells learn it, waiting threads return.
    pub(crate) fn retire(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for bell in std::mem::take(&mut state.bells).into_values() {
            let _ = epoll::delete(&self.epoll, bell.fd());
        }
        // Without an alarm they would learn it from the next packet, which will not come.
        if self.wake_all(&mut state).is_err() {
            (0..state.sleepers).for_each(|_| ring(&self.wake));
        }
        if let Some(sharing) = self.sharing.get() {
            sharing.close();
        }
    }
}
