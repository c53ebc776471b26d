//! The signals by which device processes ask for interrupts, for all devices of a machine on one thread.

use super::VirtioPciDevice;
use super::interrupts::Cause;
use fuchsia_zircon::{self as zx, AsHandleRef};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// `EVENT_SET_QUEUE` of `fuchsia.virtualization.hardware`: sets the ISR's queue bit.
const SET_QUEUE: zx::Signals = zx::Signals::USER_0;
/// `EVENT_SET_CONFIG`: sets the ISR's configuration bit.
const SET_CONFIG: zx::Signals = zx::Signals::USER_1;
/// `EVENT_SET_INTERRUPT`: interrupts.
const SET_INTERRUPT: zx::Signals = zx::Signals::USER_2;
/// `EVENT_NEEDS_RESET`: the driver broke the protocol.
const NEEDS_RESET: zx::Signals = zx::Signals::USER_3;
/// `EVENT_QUEUE_FIRST` and on: which queue, modulo four.
const LANES: [zx::Signals; 4] =
    [zx::Signals::USER_4, zx::Signals::USER_5, zx::Signals::USER_6, zx::Signals::USER_7];

/// Key of the packet that ends the thread; devices have their index.
const STOP: u64 = u64::MAX;

struct Source {
    event: zx::Event,
    device: Arc<VirtioPciDevice>,
}

/// Waits for the devices' signals and turns them into interrupts.
pub struct DeviceEvents {
    port: Arc<zx::Port>,
    sources: Arc<Mutex<Vec<Arc<Source>>>>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceEvents {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// What starting a thread fails with.
    pub fn new() -> std::io::Result<Self> {
        let port = Arc::new(zx::Port::create());
        let sources = Arc::new(Mutex::new(Vec::new()));
        let thread = {
            let (port, sources) = (port.clone(), sources.clone());
            thread::Builder::new()
                .name("device-events".to_owned())
                .spawn(move || serve(&port, &sources))?
        };
        Ok(Self { port, sources, thread: Some(thread) })
    }

    /// Turns signals on `event` into interrupts of `device`.
    ///
    /// # Errors
    ///
    /// The status of waiting for the event.
    pub fn add(&self, event: zx::Event, device: Arc<VirtioPciDevice>) -> Result<(), zx::Status> {
        let source = Arc::new(Source { event, device });
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let key = sources.len() as u64;
        sources.push(source.clone());
        wait(&self.port, key, &source.event)
    }
}

impl Drop for DeviceEvents {
    fn drop(&mut self) {
        let packet = zx::Packet::from_user_packet(STOP, 0, zx::UserPacket::from_u8_array([0; 32]));
        if let Err(status) = self.port.queue(&packet) {
            tracing::error!(%status, "Could not stop the thread of device events");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("The thread of device events panicked");
        }
    }
}

fn wait(port: &zx::Port, key: u64, event: &zx::Event) -> Result<(), zx::Status> {
    // A configuration change or a queue alone only sets the ISR; it interrupts when SET_INTERRUPT comes.
    let signals = SET_INTERRUPT | NEEDS_RESET;
    event.wait_async_handle(port, key, signals, zx::WaitAsyncOpts::empty())
}

fn serve(port: &zx::Port, sources: &Mutex<Vec<Arc<Source>>>) {
    loop {
        let packet = match port.wait(zx::Time::INFINITE) {
            Ok(packet) => packet,
            Err(status) => {
                tracing::error!(%status, "Waiting for device events failed; devices are without interrupts now");
                return;
            }
        };
        if packet.key() == STOP {
            return;
        }
        let source = {
            let sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
            usize::try_from(packet.key()).ok().and_then(|key| sources.get(key).cloned())
        };
        let Some(source) = source else { continue };
        let taken = take(&source.event);
        if let Ok(signals) = taken {
            raise(&source.device, signals);
        }
        if let Err(status) = taken.and_then(|_| wait(port, packet.key(), &source.event)) {
            tracing::error!(device = source.device.name(), %status, "A device's event is unusable");
            source.device.set_dead();
        }
    }
}

/// Takes what the device has signalled.
///
/// First the signal that asks for an interrupt, then what it is about: a cause that comes in between is either seen here or
/// asks again. The other way round a cause that comes just before the asking is taken back would wait for the next one.
fn take(event: &zx::Event) -> Result<zx::Signals, zx::Status> {
    let causes = LANES.iter().fold(SET_QUEUE | SET_CONFIG | NEEDS_RESET, |all, lane| all | *lane);
    event.signal_handle(SET_INTERRUPT, zx::Signals::NONE)?;
    let signals = match event.wait_handle(causes, zx::Time::INFINITE_PAST) {
        Ok(signals) => signals & causes,
        Err(zx::Status::TIMED_OUT) => zx::Signals::NONE,
        Err(status) => return Err(status),
    };
    event.signal_handle(signals, zx::Signals::NONE)?;
    Ok(signals)
}

fn raise(device: &VirtioPciDevice, observed: zx::Signals) {
    if observed.contains(NEEDS_RESET) {
        device.set_needs_reset();
    }
    let lanes = LANES.iter().enumerate().filter(|(_, signal)| observed.contains(**signal));
    let lanes = lanes.fold(0, |lanes, (index, _)| lanes | (1 << index));
    device.raise(Cause {
        // The signal may have been taken with that of another queue.
        queues: lanes != 0 || observed.contains(SET_QUEUE),
        lanes,
        config: observed.contains(SET_CONFIG),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const ROUNDS: u32 = 5_000;

    /// A device's thread: signals for its queue, and again only when that has been taken.
    fn signal(event: &zx::Event, lane: zx::Signals, taken: &AtomicU32) {
        for round in 0..ROUNDS {
            let set = SET_QUEUE | SET_INTERRUPT | lane;
            event.signal_handle(zx::Signals::NONE, set).unwrap();
            while taken.load(Ordering::SeqCst) == round {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn no_queue_waits_for_the_interrupt_of_another() {
        let event = zx::Event::create();
        let taken = [const { AtomicU32::new(0) }; 2];
        thread::scope(|scope| {
            for (lane, taken) in LANES.iter().zip(&taken) {
                let event = &event;
                scope.spawn(move || signal(event, *lane, taken));
            }
            while taken.iter().any(|taken| taken.load(Ordering::SeqCst) < ROUNDS) {
                let patience = zx::Time::after(zx::Duration::from_seconds(60));
                if event.wait_handle(SET_INTERRUPT, patience).is_err() {
                    // Lost. The threads, which wait for it, shall end.
                    taken.iter().for_each(|taken| taken.store(u32::MAX, Ordering::SeqCst));
                    break;
                }
                let signals = take(&event).unwrap();
                for (lane, taken) in LANES.iter().zip(&taken) {
                    if signals.contains(*lane) {
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        assert_eq!(taken.map(AtomicU32::into_inner), [ROUNDS; 2]);
    }
}
