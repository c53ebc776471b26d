//! The 16550A UART (TI PC16550D datasheet §8): registers, FIFOs, interrupts and loopback, enough for an 8250 driver's
//! detection and for a console in both directions.
//!
//! Transmission takes no time: the transmitter is always empty. What the guest sends gathers in a bounded buffer that
//! whoever owns the other end drains as fast as it likes; when nobody does, the oldest output is dropped, because a
//! guest must not stall on a console that nobody reads.

use crate::bus::BusDevice;
use crate::interrupt::InterruptController;
use crate::serial::SerialPort;
use futures::task::AtomicWaker;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// Ports a UART occupies.
pub const SIZE: u64 = 8;
/// Output kept for a reader that is behind, in bytes.
const OUTPUT_CAPACITY: usize = 1 << 20;
/// Input accepted ahead of the guest, in bytes. The hardware has 16; more saves wake-ups and is invisible.
const INPUT_CAPACITY: usize = 256;

const REG_DATA: u64 = 0;
const REG_INTERRUPT_ENABLE: u64 = 1;
/// Interrupt identification when read, FIFO control when written.
const REG_INTERRUPT_ID: u64 = 2;
const REG_LINE_CONTROL: u64 = 3;
const REG_MODEM_CONTROL: u64 = 4;
const REG_LINE_STATUS: u64 = 5;
const REG_MODEM_STATUS: u64 = 6;
const REG_SCRATCH: u64 = 7;

const IER_RECEIVED_DATA: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_WRITABLE: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED_DATA: u8 = 0x04;
const IIR_CHARACTER_TIMEOUT: u8 = 0x0c;
const IIR_FIFO_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR_LATCH: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
/// Gates the interrupt onto the bus on a PC.
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

struct State {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    /// The transmitter became empty and the guest has not been told.
    transmitter_interrupt: bool,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    /// Last level driven on the interrupt line.
    asserted: bool,
}

/// One UART.
pub struct Uart16550 {
    state: Mutex<State>,
    output_ready: AtomicWaker,
    input_space: AtomicWaker,
    interrupts: Arc<dyn InterruptController>,
    irq: u32,
}

impl Uart16550 {
    /// A UART after power-on, driving `irq`.
    pub fn new(interrupts: Arc<dyn InterruptController>, irq: u32) -> Self {
        Self {
            state: Mutex::new(State {
                interrupt_enable: 0,
                fifo_control: 0,
                line_control: 0,
                modem_control: 0,
                scratch: 0,
                divisor: 12,
                transmitter_interrupt: false,
                input: VecDeque::new(),
                output: VecDeque::new(),
                asserted: false,
            }),
            output_ready: AtomicWaker::new(),
            input_space: AtomicWaker::new(),
            interrupts,
            irq,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transmit(&self, state: &mut State, byte: u8) {
        if state.modem_control & MCR_LOOPBACK != 0 {
            if state.input.len() < INPUT_CAPACITY {
                state.input.push_back(byte);
            }
        } else {
            let was_empty = state.output.is_empty();
            if state.output.len() == OUTPUT_CAPACITY {
                state.output.pop_front();
            }
            state.output.push_back(byte);
            if was_empty {
                self.output_ready.wake();
            }
        }
        state.transmitter_interrupt = true;
    }

    /// Drives the interrupt line from the state. Holding the lock keeps the order of edges.
    fn update_interrupt(&self, state: &mut State) {
        let asserted = state.interrupt_id() != IIR_NONE && state.modem_control & MCR_OUT2 != 0;
        if asserted != state.asserted {
            state.asserted = asserted;
            self.interrupts.set_irq(self.irq, asserted);
        }
    }
}

impl SerialPort for Uart16550 {
    fn poll_output(&self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        self.output_ready.register(cx.waker());
        let mut state = self.lock();
        if state.output.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(std::mem::take(&mut state.output).into())
        }
    }

    fn poll_input(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<usize> {
        self.input_space.register(cx.waker());
        let mut state = self.lock();
        let taken = data.len().min(INPUT_CAPACITY.saturating_sub(state.input.len()));
        if taken == 0 && !data.is_empty() {
            return Poll::Pending;
        }
        state.input.extend(data.iter().take(taken));
        self.update_interrupt(&mut state);
        Poll::Ready(taken)
    }
}

impl State {
    /// The pending interrupt of highest priority, without the FIFO bits.
    fn interrupt_id(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED_DATA != 0 && !self.input.is_empty() {
            let trigger = match self.fifo_control >> 6 {
                _ if self.fifo_control & FCR_ENABLE == 0 => 1,
                0 => 1,
                1 => 4,
                2 => 8,
                _ => 14,
            };
            return if self.input.len() >= trigger {
                IIR_RECEIVED_DATA
            } else {
                IIR_CHARACTER_TIMEOUT
            };
        }
        if self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 && self.transmitter_interrupt {
            return IIR_TRANSMITTER_EMPTY;
        }
        IIR_NONE
    }

    /// A terminal is always connected: CTS, DSR and DCD are on. In loopback the modem control outputs come back.
    fn modem_status(&self) -> u8 {
        if self.modem_control & MCR_LOOPBACK == 0 {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let wires =
            [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
        wires
            .iter()
            .filter(|(output, _)| self.modem_control & output != 0)
            .fold(0, |status, (_, input)| status | input)
    }

    fn divisor_latched(&self) -> bool {
        self.line_control & LCR_DIVISOR_LATCH != 0
    }
}

impl BusDevice for Uart16550 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let [byte] = data else { return };
        let mut state = self.lock();
        *byte = match offset {
            REG_DATA if state.divisor_latched() => state.divisor as u8,
            REG_DATA => {
                let received = state.input.pop_front().unwrap_or(0);
                if state.input.len() <= INPUT_CAPACITY / 2 {
                    self.input_space.wake();
                }
                received
            }
            REG_INTERRUPT_ENABLE if state.divisor_latched() => (state.divisor >> 8) as u8,
            REG_INTERRUPT_ENABLE => state.interrupt_enable,
            REG_INTERRUPT_ID => {
                let id = state.interrupt_id();
                if id == IIR_TRANSMITTER_EMPTY {
                    state.transmitter_interrupt = false;
                }
                id | if state.fifo_control & FCR_ENABLE != 0 { IIR_FIFO_ENABLED } else { 0 }
            }
            REG_LINE_CONTROL => state.line_control,
            REG_MODEM_CONTROL => state.modem_control,
            REG_LINE_STATUS => {
                LSR_TRANSMITTER_EMPTY | if state.input.is_empty() { 0 } else { LSR_DATA_READY }
            }
            REG_MODEM_STATUS => state.modem_status(),
            REG_SCRATCH => state.scratch,
            _ => 0xff,
        };
        self.update_interrupt(&mut state);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [byte] = *data else { return };
        let mut state = self.lock();
        match offset {
            REG_DATA if state.divisor_latched() => {
                state.divisor = (state.divisor & 0xff00) | u16::from(byte);
            }
            REG_DATA => self.transmit(&mut state, byte),
            REG_INTERRUPT_ENABLE if state.divisor_latched() => {
                state.divisor = (state.divisor & 0x00ff) | (u16::from(byte) << 8);
            }
            REG_INTERRUPT_ENABLE => {
                // Enabling the interrupt while the transmitter is empty raises it (PC16550D §8.6).
                if byte & !state.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 {
                    state.transmitter_interrupt = true;
                }
                state.interrupt_enable = byte & IER_WRITABLE;
            }
            REG_INTERRUPT_ID => {
                if byte & FCR_CLEAR_RECEIVER != 0 {
                    state.input.clear();
                    self.input_space.wake();
                }
                state.fifo_control = byte;
            }
            REG_LINE_CONTROL => state.line_control = byte,
            REG_MODEM_CONTROL => state.modem_control = byte & MCR_WRITABLE,
            REG_SCRATCH => state.scratch = byte,
            _ => {}
        }
        self.update_interrupt(&mut state);
    }
}

#[cfg(test)]
#[path = "uart16550_test.rs"]
mod tests;
