//! A device's interrupts: a vector for each queue and for configuration changes with MSI-X, otherwise the ISR status
//! register and INTx (virtio 1.2 §4.1.5).

use crate::interrupt::InterruptController;
use crate::memory::GuestMemory;
use crate::pci::{Msix, NO_VECTOR};
use std::sync::Arc;

/// ISR status: a queue has used buffers (§4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
/// ISR status: the configuration changed.
const ISR_CONFIG: u8 = 1 << 1;
/// Offset of the index in a used ring (§2.7.8).
const USED_INDEX: u64 = 2;

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
    /// Where the used ring's index is, and what it was at the last interrupt; only while the queue is enabled.
    used: Option<(u64, u16)>,
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

    /// Queue `queue` was enabled with its used ring at `used`.
    pub(super) fn enable_queue(&mut self, queue: u16, used: u64) {
        if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
            queue.used = Some((used.saturating_add(USED_INDEX), 0));
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
            let Some((address, last)) = &mut queue.used else { continue };
            if !exact {
                // An index that cannot be read was never written: the device checked the same addresses.
                let now = self.memory.read_u16(*address).unwrap_or(*last);
                if std::mem::replace(last, now) == now {
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
