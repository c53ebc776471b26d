use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Default)]
struct Line {
    rising: AtomicU32,
    falling: AtomicU32,
}

impl InterruptController for Line {
    fn set_irq(&self, irq: u32, asserted: bool) {
        assert_eq!(irq, 4);
        if asserted { &self.rising } else { &self.falling }.fetch_add(1, Ordering::Relaxed);
    }
    fn signal_msi(&self, _address: u64, _data: u32) {}
}

fn uart() -> (Uart16550, Arc<Line>) {
    let line = Arc::new(Line::default());
    (Uart16550::new(line.clone(), 4), line)
}

fn read(uart: &Uart16550, offset: u64) -> u8 {
    let mut byte = [0];
    uart.read(offset, &mut byte);
    byte[0]
}

fn output(uart: &Uart16550) -> Option<Vec<u8>> {
    match uart.poll_output(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(bytes) => Some(bytes),
        Poll::Pending => None,
    }
}

fn input(uart: &Uart16550, data: &[u8]) -> Option<usize> {
    match uart.poll_input(&mut Context::from_waker(std::task::Waker::noop()), data) {
        Poll::Ready(taken) => Some(taken),
        Poll::Pending => None,
    }
}

#[test]
fn output_is_coalesced() {
    let (uart, _) = uart();
    assert_eq!(output(&uart), None);
    for byte in b"hello" {
        uart.write(REG_DATA, &[*byte]);
    }
    assert_eq!(output(&uart).as_deref(), Some(&b"hello"[..]));
    assert_eq!(output(&uart), None);
}

#[test]
fn unread_output_drops_the_oldest_and_stays_bounded() {
    let (uart, _) = uart();
    for index in 0..OUTPUT_CAPACITY + 10 {
        uart.write(REG_DATA, &[index as u8]);
    }
    let bytes = output(&uart).unwrap();
    assert_eq!(bytes.len(), OUTPUT_CAPACITY);
    assert_eq!(bytes[0], 10);
}

#[test]
fn enabling_the_transmitter_interrupt_raises_it_every_time() {
    let (uart, line) = uart();
    uart.write(REG_MODEM_CONTROL, &[MCR_OUT2]);
    for expected in 1..=2 {
        uart.write(REG_INTERRUPT_ENABLE, &[IER_TRANSMITTER_EMPTY]);
        assert_eq!(line.rising.load(Ordering::Relaxed), expected);
        assert_eq!(read(&uart, REG_INTERRUPT_ID), IIR_TRANSMITTER_EMPTY);
        assert_eq!(read(&uart, REG_INTERRUPT_ID), IIR_NONE);
        assert_eq!(line.falling.load(Ordering::Relaxed), expected);
        uart.write(REG_INTERRUPT_ENABLE, &[0]);
    }
}

#[test]
fn received_data_has_priority_and_is_gated_by_out2() {
    let (uart, line) = uart();
    uart.write(REG_INTERRUPT_ENABLE, &[IER_RECEIVED_DATA | IER_TRANSMITTER_EMPTY]);
    assert_eq!(input(&uart, b"ab"), Some(2));
    assert_eq!(line.rising.load(Ordering::Relaxed), 0);
    uart.write(REG_MODEM_CONTROL, &[MCR_OUT2]);
    assert_eq!(line.rising.load(Ordering::Relaxed), 1);
    assert_eq!(read(&uart, REG_INTERRUPT_ID), IIR_RECEIVED_DATA);
    assert_eq!(read(&uart, REG_LINE_STATUS) & LSR_DATA_READY, LSR_DATA_READY);
    assert_eq!(read(&uart, REG_DATA), b'a');
    assert_eq!(read(&uart, REG_DATA), b'b');
    assert_eq!(read(&uart, REG_LINE_STATUS) & LSR_DATA_READY, 0);
    assert_eq!(read(&uart, REG_INTERRUPT_ID), IIR_TRANSMITTER_EMPTY);
}

#[test]
fn fifo_below_its_trigger_reports_a_timeout() {
    let (uart, _) = uart();
    uart.write(REG_INTERRUPT_ID, &[FCR_ENABLE | 0xc0]);
    uart.write(REG_INTERRUPT_ENABLE, &[IER_RECEIVED_DATA]);
    input(&uart, b"x");
    assert_eq!(read(&uart, REG_INTERRUPT_ID), IIR_FIFO_ENABLED | IIR_CHARACTER_TIMEOUT);
    input(&uart, &[b'x'; 13]);
    assert_eq!(read(&uart, REG_INTERRUPT_ID), IIR_FIFO_ENABLED | IIR_RECEIVED_DATA);
}

#[test]
fn input_pushes_back_when_full() {
    let (uart, _) = uart();
    assert_eq!(input(&uart, &[0; INPUT_CAPACITY + 5]), Some(INPUT_CAPACITY));
    assert_eq!(input(&uart, &[0]), None);
    read(&uart, REG_DATA);
    assert_eq!(input(&uart, &[0; 5]), Some(1));
}

/// The sequence of Linux's 8250 autoconfiguration.
#[test]
fn detected_as_16550a() {
    let (uart, _) = uart();
    uart.write(REG_INTERRUPT_ENABLE, &[0x0f]);
    assert_eq!(read(&uart, REG_INTERRUPT_ENABLE), 0x0f);
    uart.write(REG_INTERRUPT_ENABLE, &[0]);
    uart.write(REG_MODEM_CONTROL, &[MCR_LOOPBACK | MCR_OUT2 | MCR_RTS]);
    assert_eq!(read(&uart, REG_MODEM_STATUS) & 0xf0, MSR_DCD | MSR_CTS);
    uart.write(REG_INTERRUPT_ID, &[FCR_ENABLE]);
    assert_eq!(read(&uart, REG_INTERRUPT_ID) >> 6, 3);
    // The extended registers of later chips must not appear behind the divisor latch.
    for line_control in [0x80, 0xbf] {
        uart.write(REG_LINE_CONTROL, &[line_control]);
        assert_ne!(read(&uart, REG_INTERRUPT_ID), 0);
    }
}

#[test]
fn loopback_returns_what_is_sent() {
    let (uart, _) = uart();
    uart.write(REG_MODEM_CONTROL, &[MCR_LOOPBACK]);
    uart.write(REG_DATA, b"z");
    assert_eq!(output(&uart), None);
    assert_eq!(read(&uart, REG_DATA), b'z');
}

#[test]
fn accesses_of_any_width_are_harmless() {
    let (uart, _) = uart();
    for offset in 0..16 {
        for width in [1, 2, 4, 8] {
            uart.write(offset, &[0xff; 8][..width]);
            uart.read(offset, &mut [0; 8][..width]);
        }
    }
}
