//! The ACPI PM1 registers (ACPI 6.5 §4.8.3): power-off through S5, and nothing else, for there are no fixed events.

use crate::bus::BusDevice;
use crate::interrupt::{PowerControl, PowerRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Port of the event block: status, then enable.
pub const EVENT_PORT: u16 = 0x1000;
/// Size of the event block, in bytes.
pub const EVENT_SIZE: u8 = 4;
/// Port of the control block.
pub const CONTROL_PORT: u16 = 0x2000;
/// Size of the control block, in bytes.
pub const CONTROL_SIZE: u8 = 2;
/// SLP_TYP of S5, as the DSDT's `\_S5` announces.
pub const SLP_TYP_S5: u8 = 5;

const EVENT_ENABLE: u64 = 2;
const SCI_EN: u16 = 1 << 0;
const SLP_EN: u16 = 1 << 13;

/// The PM1a event block.
#[derive(Default)]
pub struct Pm1Event {
    enable: AtomicU16,
}

impl BusDevice for Pm1Event {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Status in the low half: no event is ever pending.
        let block = u32::from(self.enable.load(Ordering::Relaxed)) << 16;
        read_bytes(&block.to_le_bytes(), offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (EVENT_ENABLE, [low, high]) = (offset, data) {
            self.enable.store(u16::from_le_bytes([*low, *high]), Ordering::Relaxed);
        }
    }
}

/// The PM1a control block.
pub struct Pm1Control {
    value: AtomicU16,
    power: Arc<dyn PowerControl>,
}

impl Pm1Control {
    /// A control block in ACPI mode that asks `power` to turn off.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { value: AtomicU16::new(SCI_EN), power }
    }
}

impl BusDevice for Pm1Control {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.value.load(Ordering::Relaxed).to_le_bytes(), offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, [low, high]) = (offset, data) else { return };
        let value = u16::from_le_bytes([*low, *high]);
        // SLP_EN is write-only. S5 is the only sleep state there is, so any other type powers off too.
        self.value.store((value & !SLP_EN) | SCI_EN, Ordering::Relaxed);
        if value & SLP_EN != 0 {
            self.power.request(PowerRequest::Off);
        }
    }
}

fn read_bytes(block: &[u8], offset: u64, data: &mut [u8]) {
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = block.get(offset as usize + index).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Requests(Mutex<Vec<PowerRequest>>);

    impl PowerControl for Requests {
        fn request(&self, request: PowerRequest) {
            self.0.lock().unwrap().push(request);
        }
    }

    #[test]
    fn sleep_enable_powers_off() {
        let requests = Arc::new(Requests::default());
        let control = Pm1Control::new(requests.clone());
        let sleep_type = u16::from(SLP_TYP_S5) << 10;
        control.write(0, &sleep_type.to_le_bytes());
        assert!(requests.0.lock().unwrap().is_empty());
        control.write(0, &(sleep_type | SLP_EN).to_le_bytes());
        assert_eq!(*requests.0.lock().unwrap(), [PowerRequest::Off]);
        let mut data = [0; 2];
        control.read(0, &mut data);
        assert_eq!(u16::from_le_bytes(data), sleep_type | SCI_EN);
    }

    #[test]
    fn enable_register_holds_its_value_and_status_is_clear() {
        let event = Pm1Event::default();
        event.write(2, &[0x20, 0x01]);
        event.write(0, &[0xff, 0xff]);
        let mut data = [0; 4];
        event.read(0, &mut data);
        assert_eq!(data, [0, 0, 0x20, 0x01]);
    }
}
