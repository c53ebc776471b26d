//! The VMM's side of a device component, for tests: guest memory, the event, and a thread that the device runs on.

use std::sync::Arc;

use fidl::endpoints::{ProtocolMarker, ServerEnd, create_sync_proxy};
use fidl_fuchsia_virtualization_hardware as hardware;
use fuchsia_zircon::{self as zx, AsHandleRef as _, HandleBased as _};

use crate::fake_queue::FakeDriver;
use crate::features::{Features, RING_FEATURES};
use crate::memory::GuestMemory;
use crate::ring::QueueConfig;

/// Bytes of guest memory that each queue and its buffers get.
pub const QUEUE_AREA: u64 = 1 << 20;

/// A transport without a guest: notifications go by `NotifyQueue`. Methods panic where a test would be wrong.
#[derive(Debug)]
pub struct FakeTransport {
    vmo: zx::Vmo,
    memory: Arc<GuestMemory>,
    event: zx::Event,
}

impl FakeTransport {
    /// Guest memory for `queues` queues, with the queues' drivers.
    pub fn new(queues: u16) -> (Self, Vec<FakeDriver>) {
        let vmo = zx::Vmo::create(u64::from(queues) * QUEUE_AREA).expect("memory for a test");
        let duplicate = vmo.duplicate_handle(zx::Rights::SAME_RIGHTS).expect("our own handle");
        let memory = Arc::new(GuestMemory::map(duplicate).expect("address space for a test"));
        let drivers = (0..u64::from(queues))
            .map(|n| {
                FakeDriver::new(&memory, n * QUEUE_AREA..(n + 1) * QUEUE_AREA, 64, RING_FEATURES)
            })
            .collect();
        (Self { vmo, memory, event: zx::Event::create() }, drivers)
    }

    /// What `Start` carries.
    pub fn start_info(&self) -> hardware::StartInfo {
        hardware::StartInfo {
            trap: hardware::Trap { addr: 0xf820_1000, size: 0x1000 },
            guest: None,
            event: self.event.duplicate_handle(zx::Rights::SAME_RIGHTS).expect("our own handle"),
            vmo: self.vmo.duplicate_handle(zx::Rights::SAME_RIGHTS).expect("our own handle"),
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Waits for an interrupt and takes it; the event's signals at that time.
    pub fn interrupt(&self) -> zx::Signals {
        let signals =
            self.event.wait_handle(zx::Signals::USER_2, zx::Time::INFINITE).expect("an event");
        self.event.signal_handle(signals, zx::Signals::NONE).expect("our own handle");
        signals
    }

    /// Waits until the device has returned a chain of `driver`'s queue; that chain.
    pub fn answer(&self, driver: &mut FakeDriver) -> crate::fake_queue::Used {
        loop {
            if let Some(used) = driver.take_used() {
                return used;
            }
            if !driver.enable_interrupts(true) {
                self.interrupt();
            }
        }
    }
}

/// Starts a thread with an executor on which `serve` serves `P`; the client's end.
pub fn serve_in_thread<P: ProtocolMarker>(
    serve: impl AsyncFnOnce(ServerEnd<P>) + Send + 'static,
) -> P::SynchronousProxy {
    let (client, server) = create_sync_proxy::<P>();
    std::thread::spawn(move || {
        fuchsia_async::LocalExecutor::new().run_singlethreaded(serve(server));
    });
    client
}

/// The arguments of `ConfigureQueue` after the queue's index.
pub fn configure_arguments(config: QueueConfig) -> (u16, u64, u64, u64) {
    (config.size, config.desc, config.avail, config.used)
}

/// The argument of `Ready`.
pub fn ready_argument(features: Features) -> u32 {
    (features | RING_FEATURES).bits()
}
