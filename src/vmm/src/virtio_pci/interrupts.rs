//! A device's interrupts: a vector for each queue and for configuration changes with MSI-X, otherwise the ISR status
//! register and INTx (virtio 1.2 §4.1.5).

use super::QueueConfig;
use crate::interrupt::InterruptController;
use crate::memory::{GuestMemory, MemoryError};
use crate::pci::{Msix, NO_VECTOR};
use std::sync::Arc;

/// ISR status: a queue has used buffers (§4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
/// ISR status: the configuration changed.
const ISR_CONFIG: u8 = 1 << 1;
/// Offsets of the index and of the entries in a used ring (§2.7.8).
const USED_INDEX: u64 = 2;
const USED_ENTRIES: u64 = 4;
/// A used entry that no driver can take for one of its own: no table has so many descriptors.
const IMPOSSIBLE_ENTRY: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// What a device has to tell its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cause {
    /// Some queue has used buffers.
    pub(super) queues: bool,
    /// Which queues, as a set of indices modulo four; empty if the device does not say.
    pub(super) lanes: u8,
    /// The configuration changed.
    pub(super) config: bool,
}

struct Queue {
    vector: u16,
    /// Only while the queue is enabled.
    used: Option<UsedRing>,
}

#[derive(Debug, Clone, Copy)]
struct UsedRing {
    address: u64,
    size: u16,
    /// The index at the last interrupt.
    last: u16,
}

impl UsedRing {
    /// An index that cannot be read was never written: the device checked the same addresses.
    fn index(&self, memory: &dyn GuestMemory) -> u16 {
        memory.read_u16(self.address.saturating_add(USED_INDEX)).unwrap_or(self.last)
    }

    fn break_it(&self, memory: &dyn GuestMemory) -> Result<(), MemoryError> {
        let index = self.index(memory);
        let place = USED_ENTRIES + 8 * u64::from(index % self.size.max(1));
        memory.write(self.address.saturating_add(place), &IMPOSSIBLE_ENTRY)?;
        let next = index.wrapping_add(1).to_le_bytes();
        memory.write(self.address.saturating_add(USED_INDEX), &next)
    }
}

/// The interrupt state.
pub(super) struct Interrupts {
    msix: Msix,
    isr: u8,
    config_vector: u16,
    queues: Vec<Queue>,
    intx_disabled: bool,
    line: bool,
    irq: u32,
    controller: Arc<dyn InterruptController>,
    memory: Arc<dyn GuestMemory>,
}

impl Interrupts {
    pub(super) fn new(
        queues: usize,
        vectors: u16,
        irq: u32,
        controller: Arc<dyn InterruptController>,
        memory: Arc<dyn GuestMemory>,
    ) -> Self {
        Self {
            msix: Msix::new(vectors),
            isr: 0,
            config_vector: NO_VECTOR,
            queues: (0..queues).map(|_| Queue { vector: NO_VECTOR, used: None }).collect(),
            intx_disabled: false,
            line: false,
            irq,
            controller,
            memory,
        }
    }

    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    /// The driver wrote the MSI-X control register.
    pub(super) fn set_msix_control(&mut self, control: u16) {
        for message in self.msix.set_control(control) {
            self.controller.signal_msi(message.address, message.data);
        }
        self.update_line();
    }

    /// The driver wrote the MSI-X table.
    pub(super) fn write_msix_table(&mut self, offset: usize, data: &[u8]) {
        if let Some(message) = self.msix.write_table(offset, data) {
            self.controller.signal_msi(message.address, message.data);
        }
    }

    /// The driver turned INTx on or off.
    pub(super) fn set_intx_disabled(&mut self, disabled: bool) {
        self.intx_disabled = disabled;
        self.update_line();
    }

    /// Whether the interrupt status bit of configuration space is set.
    pub(super) fn pending(&self) -> bool {
        self.isr != 0
    }

    /// The driver reads the ISR status, which clears it.
    pub(super) fn take_isr(&mut self) -> u8 {
        let isr = std::mem::take(&mut self.isr);
        self.update_line();
        isr
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector
    }

    pub(super) fn set_config_vector(&mut self, vector: u16) {
        self.config_vector = self.checked(vector);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(NO_VECTOR, |queue| queue.vector)
    }

    pub(super) fn set_queue_vector(&mut self, queue: u16, vector: u16) {
        let vector = self.checked(vector);
        if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
            queue.vector = vector;
        }
    }

    /// A vector that is not in the table reads back as none, which tells the driver that it cannot have it
    /// (§4.1.5.1.2.1).
    fn checked(&self, vector: u16) -> u16 {
        if self.msix.has_vector(vector) { vector } else { NO_VECTOR }
    }

    /// Queue `queue` was enabled with this configuration.
    pub(super) fn enable_queue(&mut self, queue: u16, config: &QueueConfig) {
        if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
            queue.used = Some(UsedRing { address: config.used, size: config.size, last: 0 });
        }
    }

    /// Puts an entry into each used ring by which a driver takes the queue for broken.
    pub(super) fn break_queues(&mut self) {
        for used in self.queues.iter().filter_map(|queue| queue.used) {
            if let Err(error) = used.break_it(self.memory.as_ref()) {
                tracing::debug!(%error, "A used ring of a dead device");
            }
        }
    }

    /// The device was reset.
    pub(super) fn reset(&mut self) {
        self.isr = 0;
        self.config_vector = NO_VECTOR;
        for queue in &mut self.queues {
            *queue = Queue { vector: NO_VECTOR, used: None };
        }
        self.msix.clear_pending();
        self.update_line();
    }

    /// Tells the driver about `cause`.
    pub(super) fn raise(&mut self, cause: Cause) {
        if !self.msix.enabled() {
            if cause.queues {
                self.isr |= ISR_QUEUE;
            }
            if cause.config {
                self.isr |= ISR_CONFIG;
            }
            self.update_line();
            return;
        }
        if cause.config {
            self.signal(self.config_vector);
        }
        if cause.queues {
            self.raise_queues(cause.lanes);
        }
    }

    /// Signals the vectors of the queues that `lanes` names; where that is ambiguous, of those whose used ring moved.
    fn raise_queues(&mut self, lanes: u8) {
        let exact = lanes != 0 && self.queues.len() <= 4;
        let mut raised = [NO_VECTOR; 64];
        let mut count = 0;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if lanes != 0 && lanes & (1 << (index % 4)) == 0 {
                continue;
            }
            if !exact {
                let Some(used) = &mut queue.used else { continue };
                let now = used.index(self.memory.as_ref());
                if std::mem::replace(&mut used.last, now) == now {
                    continue;
                }
            }
            // Queues that share a vector interrupt once.
            if !raised[..count].contains(&queue.vector) && count < raised.len() {
                raised[count] = queue.vector;
                count += 1;
            }
        }
        for vector in &raised[..count] {
            self.signal(*vector);
        }
    }

    fn signal(&mut self, vector: u16) {
        if let Some(message) = self.msix.signal(vector) {
            self.controller.signal_msi(message.address, message.data);
        }
    }

    fn update_line(&mut self) {
        let line = self.isr != 0 && !self.intx_disabled && !self.msix.enabled();
        if line != self.line {
            self.line = line;
            self.controller.set_irq(self.irq, line);
        }
    }
}
