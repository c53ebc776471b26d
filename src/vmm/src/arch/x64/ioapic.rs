//! The IO-APIC: 48 inputs to interrupt messages (Intel 82093AA datasheet §3; version 0x20 with an EOI register, as in
//! ICH9 datasheet §13.5).
//!
//! End-of-interrupt stays in the local APIC, which this machine's VMM does not see, so a level-triggered input keeps no
//! Remote IRR: it is delivered when the line rises, when it is unmasked while high, and when the guest writes the
//! EOI register while high. A device whose line is still high has a message under way already, whose handler will look
//! at the device's status after the change that would have re-raised the line; so nothing is lost.

use crate::bus::BusDevice;
use crate::interrupt::{InterruptController, InterruptSink};
use bitfield_struct::bitfield;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Inputs of the IO-APIC.
pub const INPUTS: usize = 48;
/// Size of the register page, in bytes.
pub const SIZE: u64 = 0x1000;

const REG_SELECT: u64 = 0x00;
const REG_WINDOW: u64 = 0x10;
const REG_EOI: u64 = 0x40;
const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_REDIRECTION: u8 = 0x10;
/// Version 0x20: has an EOI register. Bits 16..24 hold the highest redirection entry.
const VERSION: u32 = 0x20 | ((INPUTS as u32 - 1) << 16);
const DELIVERY_FIXED: u8 = 0;
const DELIVERY_LOWEST_PRIORITY: u8 = 1;
/// Vectors below this are reserved for exceptions and refused by a local APIC (SDM vol. 3 §11.5.2).
const FIRST_VECTOR: u8 = 16;

/// A redirection table entry (82093AA §3.2.4).
#[bitfield(u64)]
struct Redirection {
    vector: u8,
    #[bits(3)]
    delivery: u8,
    logical: bool,
    delivery_status: bool,
    active_low: bool,
    remote_irr: bool,
    level: bool,
    #[bits(default = true)]
    masked: bool,
    #[bits(39)]
    reserved: u64,
    destination: u8,
}

impl Redirection {
    /// Delivery status and Remote IRR are read-only.
    const WRITABLE: u64 = !((1 << 12) | (1 << 14));
}

#[derive(Clone, Copy)]
struct Input {
    redirection: Redirection,
    asserted: bool,
    /// An edge arrived while the input was masked.
    pending: bool,
}

struct State {
    id: u32,
    select: u8,
    inputs: [Input; INPUTS],
}

/// An interrupt message on the way to local APICs (SDM vol. 3 §11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    destination: u8,
    logical: bool,
    delivery: u8,
    vector: u8,
}

/// The IO-APIC and the MSI decoder.
pub struct IoApic {
    state: Mutex<State>,
    sink: Arc<dyn InterruptSink>,
}

impl IoApic {
    /// An IO-APIC with every input masked, delivering to `sink`.
    pub fn new(sink: Arc<dyn InterruptSink>) -> Self {
        let input = Input { redirection: Redirection::new(), asserted: false, pending: false };
        Self { state: Mutex::new(State { id: 0, select: 0, inputs: [input; INPUTS] }), sink }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, message: Message) {
        if message.vector < FIRST_VECTOR || message.delivery > DELIVERY_LOWEST_PRIORITY {
            tracing::debug!(?message, "Interrupt message is not deliverable");
            return;
        }
        let count = self.sink.cpu_count();
        let targets = (0..count).filter(|cpu| message.targets(*cpu));
        let limit = if message.delivery == DELIVERY_FIXED { usize::MAX } else { 1 };
        for cpu in targets.take(limit) {
            self.sink.interrupt(cpu, message.vector);
        }
    }
}

impl Message {
    /// Whether the local APIC with id `cpu` accepts the message. Logical destinations are the flat model's.
    fn targets(self, cpu: u32) -> bool {
        if self.logical {
            cpu < 8 && self.destination & (1 << cpu) != 0
        } else {
            self.destination == 0xff || u32::from(self.destination) == cpu
        }
    }
}

impl State {
    /// The message input `index` sends now, if it has a reason and is not masked.
    fn take_message(&mut self, index: usize) -> Option<Message> {
        let input = self.inputs.get_mut(index)?;
        if input.redirection.masked() || !input.pending {
            return None;
        }
        input.pending = false;
        Some(Message {
            destination: input.redirection.destination(),
            logical: input.redirection.logical(),
            delivery: input.redirection.delivery(),
            vector: input.redirection.vector(),
        })
    }

    fn read_register(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION,
            index => match self.redirection_index(index) {
                Some((input, high)) => {
                    let bits = self.inputs[input].redirection.into_bits();
                    if high { (bits >> 32) as u32 } else { bits as u32 }
                }
                None => 0,
            },
        }
    }

    fn redirection_index(&self, index: u8) -> Option<(usize, bool)> {
        let relative = index.checked_sub(INDEX_REDIRECTION)?;
        let input = usize::from(relative / 2);
        (input < INPUTS).then_some((input, relative % 2 == 1))
    }

    fn write_register(&mut self, value: u32) -> Option<Message> {
        if self.select == INDEX_ID {
            self.id = value & 0x0f00_0000;
            return None;
        }
        let (index, high) = self.redirection_index(self.select)?;
        let input = &mut self.inputs[index];
        let old = input.redirection.into_bits();
        let new = if high {
            (old & 0xffff_ffff) | (u64::from(value) << 32)
        } else {
            (old & !0xffff_ffff) | u64::from(value)
        };
        let was_masked = input.redirection.masked();
        input.redirection = Redirection::from_bits(new & Redirection::WRITABLE);
        if input.redirection.level() {
            // A masked level input remembers nothing but its level.
            input.pending = input.asserted && was_masked && !input.redirection.masked();
        }
        self.take_message(index)
    }

    /// The guest ended `vector`: level inputs on it that are still high send again.
    fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        for index in 0..INPUTS {
            let input = &mut self.inputs[index];
            if input.redirection.level() && input.redirection.vector() == vector && input.asserted {
                input.pending = true;
                messages.extend(self.take_message(index));
            }
        }
        messages
    }
}

impl InterruptController for IoApic {
    fn set_irq(&self, irq: u32, asserted: bool) {
        let message = {
            let mut state = self.lock();
            let Some(input) = state.inputs.get_mut(irq as usize) else { return };
            let rising = asserted && !input.asserted;
            input.asserted = asserted;
            if rising {
                input.pending = true;
            } else if !asserted && input.redirection.level() {
                input.pending = false;
            }
            state.take_message(irq as usize)
        };
        if let Some(message) = message {
            self.deliver(message);
        }
    }

    /// SDM vol. 3 §11.11: address 0xfee in bits 20..32, destination in 12..20, mode in bit 2; data holds vector and delivery.
    fn signal_msi(&self, address: u64, data: u32) {
        if address >> 20 != 0xfee {
            tracing::debug!(address, "MSI outside the interrupt window");
            return;
        }
        self.deliver(Message {
            destination: (address >> 12) as u8,
            logical: address & (1 << 2) != 0,
            delivery: (data >> 8) as u8 & 7,
            vector: data as u8,
        });
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let value = match offset {
            REG_SELECT => u32::from(state.select),
            REG_WINDOW => state.read_register(),
            _ => 0,
        };
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (byte, value) in bytes.iter_mut().zip(data) {
            *byte = *value;
        }
        let value = u32::from_le_bytes(bytes);
        let messages = match offset {
            REG_SELECT => {
                self.lock().select = value as u8;
                return;
            }
            REG_WINDOW => self.lock().write_register(value).into_iter().collect(),
            REG_EOI => self.lock().end_of_interrupt(value as u8),
            _ => return,
        };
        for message in messages {
            self.deliver(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder {
        cpus: u32,
        seen: Mutex<Vec<(u32, u8)>>,
    }

    impl InterruptSink for Recorder {
        fn interrupt(&self, cpu: u32, vector: u8) {
            self.seen.lock().unwrap().push((cpu, vector));
        }
        fn cpu_count(&self) -> u32 {
            self.cpus
        }
    }

    fn ioapic(cpus: u32) -> (IoApic, Arc<Recorder>) {
        let recorder = Arc::new(Recorder { cpus, seen: Mutex::default() });
        (IoApic::new(recorder.clone()), recorder)
    }

    fn write_register(ioapic: &IoApic, index: u8, value: u32) {
        ioapic.write(REG_SELECT, &u32::from(index).to_le_bytes());
        ioapic.write(REG_WINDOW, &value.to_le_bytes());
    }

    fn read_register(ioapic: &IoApic, index: u8) -> u32 {
        ioapic.write(REG_SELECT, &u32::from(index).to_le_bytes());
        let mut data = [0; 4];
        ioapic.read(REG_WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn seen(recorder: &Recorder) -> Vec<(u32, u8)> {
        std::mem::take(&mut recorder.seen.lock().unwrap())
    }

    const MASKED: u32 = 1 << 16;
    const LEVEL: u32 = 1 << 15;

    #[test]
    fn version_reports_48_inputs() {
        let (ioapic, _) = ioapic(1);
        assert_eq!(read_register(&ioapic, INDEX_VERSION), 0x002f_0020);
    }

    #[test]
    fn inputs_reset_masked() {
        let (ioapic, recorder) = ioapic(1);
        assert_eq!(read_register(&ioapic, 0x10 + 2 * 47), MASKED);
        ioapic.set_irq(47, true);
        assert!(seen(&recorder).is_empty());
    }

    #[test]
    fn edge_while_masked_fires_on_unmask_once() {
        let (ioapic, recorder) = ioapic(2);
        write_register(&ioapic, 0x10 + 2 * 4 + 1, 1 << 24);
        ioapic.set_irq(4, true);
        ioapic.set_irq(4, false);
        write_register(&ioapic, 0x10 + 2 * 4, 0x31);
        assert_eq!(seen(&recorder), [(1, 0x31)]);
        write_register(&ioapic, 0x10 + 2 * 4, 0x31);
        assert!(seen(&recorder).is_empty());
    }

    #[test]
    fn edge_input_fires_on_rising_edges_only() {
        let (ioapic, recorder) = ioapic(1);
        write_register(&ioapic, 0x18, 0x31);
        ioapic.set_irq(4, true);
        ioapic.set_irq(4, true);
        ioapic.set_irq(4, false);
        ioapic.set_irq(4, true);
        assert_eq!(seen(&recorder), [(0, 0x31), (0, 0x31)]);
    }

    #[test]
    fn level_input_fires_again_on_eoi_while_high() {
        let (ioapic, recorder) = ioapic(1);
        write_register(&ioapic, 0x10 + 2 * 33, 0x41 | LEVEL);
        ioapic.set_irq(33, true);
        assert_eq!(seen(&recorder), [(0, 0x41)]);
        ioapic.write(REG_EOI, &0x41u32.to_le_bytes());
        assert_eq!(seen(&recorder), [(0, 0x41)]);
        ioapic.set_irq(33, false);
        ioapic.write(REG_EOI, &0x41u32.to_le_bytes());
        assert!(seen(&recorder).is_empty());
    }

    #[test]
    fn level_input_lowered_while_masked_is_forgotten() {
        let (ioapic, recorder) = ioapic(1);
        write_register(&ioapic, 0x10 + 2 * 33, 0x41 | LEVEL | MASKED);
        ioapic.set_irq(33, true);
        ioapic.set_irq(33, false);
        write_register(&ioapic, 0x10 + 2 * 33, 0x41 | LEVEL);
        assert!(seen(&recorder).is_empty());
        ioapic.set_irq(33, true);
        write_register(&ioapic, 0x10 + 2 * 33, 0x41 | LEVEL | MASKED);
        write_register(&ioapic, 0x10 + 2 * 33, 0x41 | LEVEL);
        assert_eq!(seen(&recorder), [(0, 0x41), (0, 0x41)]);
    }

    #[test]
    fn logical_lowest_priority_goes_to_one_cpu_and_fixed_to_all() {
        let (ioapic, recorder) = ioapic(4);
        write_register(&ioapic, 0x11, 0x0e << 24);
        write_register(&ioapic, 0x10, 0x50 | (1 << 11) | (1 << 8));
        ioapic.set_irq(0, true);
        assert_eq!(seen(&recorder), [(1, 0x50)]);
        ioapic.set_irq(0, false);
        write_register(&ioapic, 0x10, 0x50 | (1 << 11));
        ioapic.set_irq(0, true);
        assert_eq!(seen(&recorder), [(1, 0x50), (2, 0x50), (3, 0x50)]);
    }

    #[test]
    fn msi_reaches_its_destination() {
        let (ioapic, recorder) = ioapic(4);
        ioapic.signal_msi(0xfee0_2000, 0x61);
        ioapic.signal_msi(0xfed0_2000, 0x61);
        ioapic.signal_msi(0xfee0_2000, 0x04);
        assert_eq!(seen(&recorder), [(2, 0x61)]);
    }

    #[test]
    fn accesses_of_any_width_and_place_are_harmless() {
        let (ioapic, _) = ioapic(1);
        for offset in 0..SIZE {
            for width in [1, 2, 4, 8] {
                ioapic.write(offset, &[0xff; 8][..width]);
                ioapic.read(offset, &mut [0; 8][..width]);
            }
        }
        ioapic.set_irq(u32::MAX, true);
    }
}
