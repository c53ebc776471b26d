//! Ports of PC devices that this machine does not have but that kernels touch anyway, and the keyboard controller's
//! reset line.

use crate::bus::BusDevice;
use crate::interrupt::{PowerControl, PowerRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// i8042 command: pulse the reset line.
pub const I8042_RESET: u8 = 0xfe;

const I8042_SELF_TEST: u8 = 0xaa;
const I8042_SELF_TEST_PASSED: u8 = 0x55;
const I8042_STATUS_OUTPUT_FULL: u8 = 1 << 0;

/// A port whose reads give a constant and whose writes vanish: the 8259A PICs (0xff makes Linux choose its null PIC),
/// the 8254 PIT, DMA page registers, POST codes.
pub struct ConstantPort(
    /// What every byte reads as.
    pub u8,
);

impl BusDevice for ConstantPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// System control port B (0x61): the low four bits hold what was written, the others read 0.
#[derive(Default)]
pub struct SystemControlB(AtomicU8);

impl BusDevice for SystemControlB {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0.load(Ordering::Relaxed));
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let [byte] = data {
            self.0.store(byte & 0x0f, Ordering::Relaxed);
        }
    }
}

/// The keyboard controller at 0x60 and 0x64, without a keyboard: it passes its self-test and resets the machine.
pub struct I8042 {
    output: AtomicU8,
    power: Arc<dyn PowerControl>,
}

impl I8042 {
    /// A controller whose reset line is `power`'s.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { output: AtomicU8::new(0), power }
    }

    /// The data port, 0x60.
    pub fn data_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(I8042Data(self.clone()))
    }

    /// The command and status port, 0x64.
    pub fn command_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(I8042Command(self.clone()))
    }
}

struct I8042Data(Arc<I8042>);

impl BusDevice for I8042Data {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            *byte = self.0.output.load(Ordering::Relaxed);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

struct I8042Command(Arc<I8042>);

impl BusDevice for I8042Command {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            *byte = I8042_STATUS_OUTPUT_FULL;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        match *data {
            [I8042_SELF_TEST] => self.0.output.store(I8042_SELF_TEST_PASSED, Ordering::Relaxed),
            [I8042_RESET] => self.0.power.request(PowerRequest::Reset),
            _ => {}
        }
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
    fn self_test_passes() {
        let controller = Arc::new(I8042::new(Arc::new(Requests::default())));
        controller.command_port().write(0, &[I8042_SELF_TEST]);
        let mut byte = [0];
        controller.data_port().read(0, &mut byte);
        assert_eq!(byte, [I8042_SELF_TEST_PASSED]);
    }

    #[test]
    fn pulsing_the_reset_line_resets() {
        let requests = Arc::new(Requests::default());
        let controller = Arc::new(I8042::new(requests.clone()));
        controller.command_port().write(0, &[0xf0]);
        assert!(requests.0.lock().unwrap().is_empty());
        controller.command_port().write(0, &[I8042_RESET]);
        assert_eq!(*requests.0.lock().unwrap(), [PowerRequest::Reset]);
    }

    #[test]
    fn system_control_b_keeps_its_low_nibble() {
        let port = SystemControlB::default();
        port.write(0, &[0xff]);
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, [0x0f]);
    }
}
