//! Waiting for signals: `zx_object_wait_one`, `wait_many` and `wait_async`.

use crate::handle_table::{Held, get};
use crate::object::{Source, Waiter};
use crate::status::{INVALID_ARGS, OUT_OF_RANGE, Result, TIMED_OUT, answer, set_optional};
use crate::system::{now, until};
use fuchsia_zircon_types::*;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use std::cell::OnceCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// The most objects in one wait, as on Zircon.
const MAX_ITEMS: usize = 64;

thread_local! {
    /// Rings for what no descriptor of an object tells about.
    static WAKE_FD: OnceCell<Arc<OwnedFd>> = const { OnceCell::new() };
}

fn wake_fd() -> Result<Arc<OwnedFd>> {
    WAKE_FD.with(|cell| {
        if let Some(wake) = cell.get() {
            return Ok(wake.clone());
        }
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(cell.get_or_init(|| wake).clone())
    })
}

struct Item {
    held: Held,
    signals: zx_signals_t,
    snapshot: Option<crate::event::Snapshot>,
}

impl Item {
    /// Whether the first descriptor says at any time what the item waits for. A channel is writable when its descriptor says
    /// nothing, so that is another case.
    fn is_pollable(&self) -> Result<bool> {
        let writable_channel =
            self.signals & ZX_CHANNEL_WRITABLE != 0 && self.held.channel().is_ok();
        let sources = self.held.sources(self.signals)?;
        Ok(!writable_channel
            && !matches!(sources, [Some(Source { edge: true, .. }), _] | [_, Some(_)])
            && self.held.snapshot()?.is_none())
    }

    fn pending(&self) -> Result<zx_signals_t> {
        Ok(self.held.signals(self.signals)? | self.held.asserted_since(self.snapshot.as_ref()))
    }
}

/// Registers a thread with the objects it waits for, and takes it out again however the wait ends.
struct Watching<'a> {
    items: &'a [Item],
    wake: Arc<OwnedFd>,
}

impl<'a> Watching<'a> {
    fn new(items: &'a [Item]) -> Result<Self> {
        let wake = wake_fd()?;
        for item in items {
            item.held.add_waiter(Waiter::Thread { wake: wake.clone() });
        }
        Ok(Watching { items, wake })
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        for item in self.items {
            item.held.remove_waiters(
                |waiter| matches!(waiter, Waiter::Thread { wake } if Arc::ptr_eq(wake, &self.wake)),
            );
        }
        // Whatever rang belongs to this wait.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
    }
}

/// Waits until one of the items is satisfied or the deadline passes; stores what is pending either way.
fn wait(items: &[Item], deadline: zx_time_t, pending: &mut [zx_signals_t]) -> Result<()> {
    let mut pollable = true;
    for item in items {
        pollable &= item.is_pollable()?;
    }
    match pollable.then(|| wait_in_one_call(items, deadline, pending)).transpose()? {
        Some(Some(result)) => result,
        _ => wait_for_arrivals(items, deadline, pending),
    }
}

/// Waits with one poll call: most waits are for a single object whose descriptor says all. `None` when that did not settle
/// it: a descriptor can be ready without satisfying anyone.
fn wait_in_one_call(
    items: &[Item],
    deadline: zx_time_t,
    pending: &mut [zx_signals_t],
) -> Result<Option<Result<()>>> {
    let watching = Watching::new(items)?;
    // What no descriptor tells, after registering: a change before that woke nobody.
    if items.iter().any(|item| item.held.signals_given(PollFlags::empty()) & item.signals != 0) {
        return Ok(None);
    }
    let mut fds = Vec::with_capacity(items.len() + 1);
    fds.push(PollFd::from_borrowed_fd(watching.wake.as_fd(), PollFlags::IN));
    for item in items {
        if let [Some(source), _] = item.held.sources(item.signals)? {
            fds.push(PollFd::from_borrowed_fd(source.fd, source.events));
        }
    }
    let ready = match poll(&mut fds, until(deadline).as_ref()) {
        Ok(ready) => ready,
        Err(rustix::io::Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut revents = fds.iter().skip(1).map(PollFd::revents);
    let mut satisfied = false;
    for (item, pending) in items.iter().zip(pending) {
        let polled = matches!(item.held.sources(item.signals)?, [Some(_), _]);
        let revents = if polled { revents.next() } else { None };
        *pending = item.held.signals_settled(revents.unwrap_or(PollFlags::empty()));
        satisfied |= *pending & item.signals != 0;
    }
    Ok(match (satisfied, ready) {
        (true, _) => Some(Ok(())),
        (false, 0) if deadline <= now() => Some(Err(TIMED_OUT)),
        _ => None,
    })
}

/// Waits whatever the objects are.
fn wait_for_arrivals(
    items: &[Item],
    deadline: zx_time_t,
    pending: &mut [zx_signals_t],
) -> Result<()> {
    let mut check = || -> Result<bool> {
        let mut satisfied = false;
        for (item, pending) in items.iter().zip(&mut *pending) {
            *pending = item.pending()?;
            satisfied |= *pending & item.signals != 0;
        }
        Ok(satisfied)
    };
    if check()? {
        return Ok(());
    }
    if deadline <= now() {
        return Err(TIMED_OUT);
    }
    let watching = Watching::new(items)?;
    let mut arrivals = None;
    loop {
        // A descriptor can be ready without satisfying anyone, so from here on only arrivals wake. Look after
        // registering: a change before that woke nobody.
        if check()? {
            return Ok(());
        }
        if deadline <= now() {
            return Err(TIMED_OUT);
        }
        match &arrivals {
            None => arrivals = Some(watching.arrivals()?),
            Some(set) => watching.sleep(set, deadline)?,
        }
    }
}

impl Watching<'_> {
    /// An epoll set of everything to watch, which reports arrivals.
    fn arrivals(&self) -> Result<OwnedFd> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        let data = EventData::new_u64(0);
        epoll::add(&set, &*self.wake, data, EventFlags::IN | EventFlags::ET)?;
        for item in self.items {
            for source in item.held.sources(item.signals)?.into_iter().flatten() {
                let flags =
                    EventFlags::from_bits_retain(source.events.bits().into()) | EventFlags::ET;
                match epoll::add(&set, source.fd, data, flags) {
                    // The same object twice: one registration that asks for all wakes for both.
                    Err(rustix::io::Errno::EXIST) => {
                        let all =
                            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                        epoll::modify(&set, source.fd, data, all)?;
                    }
                    other => other?,
                }
            }
        }
        Ok(set)
    }

    fn sleep(&self, set: &OwnedFd, deadline: zx_time_t) -> Result<()> {
        let mut events = [MaybeUninit::<Event>::uninit(); 8];
        match epoll::wait(set, &mut events[..], until(deadline).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// See the Zircon documentation of `zx_object_wait_one`. Unlike on Zircon, closing the handle from another thread does
/// not end the wait.
///
/// # Safety
/// `observed` is null or valid for writing.
pub unsafe fn zx_object_wait_one(
    handle: zx_handle_t,
    signals: zx_signals_t,
    deadline: zx_time_t,
    observed: *mut zx_signals_t,
) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.require(ZX_RIGHT_WAIT)?;
        let snapshot = held.snapshot()?;
        let mut pending = [0];
        let result = wait(&[Item { held, signals, snapshot }], deadline, &mut pending);
        if result.is_ok() || result == Err(TIMED_OUT) {
            // SAFETY: the caller's promise.
            unsafe { set_optional(observed, pending[0]) };
        }
        result
    })())
}

/// See the Zircon documentation of `zx_object_wait_many`. Unlike on Zircon, closing a handle from another thread does
/// not end the wait.
///
/// # Safety
/// `items` is valid for reading and writing `num_items` items.
pub unsafe fn zx_object_wait_many(
    items: *mut zx_wait_item_t,
    num_items: usize,
    deadline: zx_time_t,
) -> zx_status_t {
    answer((|| {
        if num_items == 0 {
            // SAFETY: always safe.
            unsafe { crate::system::zx_nanosleep(deadline) };
            return Err(TIMED_OUT);
        }
        if num_items > MAX_ITEMS {
            return Err(OUT_OF_RANGE);
        }
        if items.is_null() {
            return Err(INVALID_ARGS);
        }
        // SAFETY: the caller's promise.
        let items = unsafe { std::slice::from_raw_parts_mut(items, num_items) };
        let mut waits = Vec::with_capacity(num_items);
        for item in &*items {
            let held = get(item.handle)?;
            held.require(ZX_RIGHT_WAIT)?;
            let snapshot = held.snapshot()?;
            waits.push(Item { held, signals: item.waitfor, snapshot });
        }
        let mut pending = [0; MAX_ITEMS];
        let result = wait(&waits, deadline, &mut pending[..num_items]);
        for (item, pending) in items.iter_mut().zip(pending) {
            item.pending = pending;
        }
        result
    })())
}

/// See the Zircon documentation of `zx_object_wait_async`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_object_wait_async(
    handle: zx_handle_t,
    port: zx_handle_t,
    key: u64,
    signals: zx_signals_t,
    options: u32,
) -> zx_status_t {
    answer(crate::port::wait_async(handle, port, key, signals, options))
}
