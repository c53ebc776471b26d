//! Carrying out an instruction on device memory: registers and flags in and out, one or more bus accesses between.

use super::instruction::{
    Alu, BitOperation, Decoded, Operation, RegisterOperand, Source, StringOperation, Unary,
};
use super::page_table::{self, TranslateError};
use crate::bus::Bus;
use crate::memory::{GuestMemory, PAGE_SIZE};
use iced_x86::ConditionCode;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const ARITHMETIC_FLAGS: u64 = CF | PF | AF | ZF | SF | OF;

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// General-purpose registers in instruction-encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15), and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// The sixteen registers.
    pub gpr: [u64; 16],
    /// RFLAGS; only the arithmetic flags are changed.
    pub rflags: u64,
}

/// Why an instruction on device memory could not be carried out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EmulateError {
    /// The other operand of a string move does not translate.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// Neither operand of a string move is at the trapped address.
    #[error("String move does not touch the trapped address {address:#x}")]
    StringOperand {
        /// The trapped guest-physical address.
        address: u64,
    },
    /// A repeated string instruction runs out of the trapped page.
    #[error(
        "Repeated string instruction of {count} elements leaves the trapped page at {address:#x}"
    )]
    StringTooLong {
        /// The trapped guest-physical address.
        address: u64,
        /// Elements left to do.
        count: u64,
    },
}

impl Registers {
    fn get(&self, register: RegisterOperand) -> u64 {
        let value = self.gpr[register.number & 15];
        let value = if register.high_byte { value >> 8 } else { value };
        value & mask(register.width)
    }

    /// Writes as the architecture does: 32-bit writes clear the upper half, narrower ones leave the rest alone.
    fn set(&mut self, register: RegisterOperand, value: u64) {
        let shift = if register.high_byte { 8 } else { 0 };
        let slot = &mut self.gpr[register.number & 15];
        let value = value & mask(register.width);
        *slot = match register.width {
            4 | 8 => value,
            width => (*slot & !(mask(width) << shift)) | (value << shift),
        };
    }

    fn source(&self, source: Source, width: usize) -> u64 {
        match source {
            Source::Register(register) => self.get(register),
            Source::Immediate(value) => value & mask(width),
        }
    }

    fn flag(&self, flag: u64) -> bool {
        self.rflags & flag != 0
    }

    fn set_flags(&mut self, changed: u64, values: u64) {
        self.rflags = (self.rflags & !changed) | (values & changed);
    }

    fn condition(&self, condition: ConditionCode) -> bool {
        let (cf, zf, sf, of, pf) =
            (self.flag(CF), self.flag(ZF), self.flag(SF), self.flag(OF), self.flag(PF));
        match condition {
            ConditionCode::None => true,
            ConditionCode::o => of,
            ConditionCode::no => !of,
            ConditionCode::b => cf,
            ConditionCode::ae => !cf,
            ConditionCode::e => zf,
            ConditionCode::ne => !zf,
            ConditionCode::be => cf || zf,
            ConditionCode::a => !cf && !zf,
            ConditionCode::s => sf,
            ConditionCode::ns => !sf,
            ConditionCode::p => pf,
            ConditionCode::np => !pf,
            ConditionCode::l => sf != of,
            ConditionCode::ge => sf == of,
            ConditionCode::le => zf || sf != of,
            ConditionCode::g => !zf && sf == of,
        }
    }
}

fn mask(width: usize) -> u64 {
    if width >= 8 { u64::MAX } else { (1 << (width * 8)) - 1 }
}

fn sign_bit(width: usize) -> u64 {
    1 << (width * 8 - 1)
}

fn sign_extend(value: u64, width: usize) -> u64 {
    if width < 8 && value & sign_bit(width) != 0 { value | !mask(width) } else { value }
}

fn swap_bytes(value: u64, width: usize) -> u64 {
    value.swap_bytes() >> (64 - width * 8)
}

fn result_flags(result: u64, width: usize) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if result & sign_bit(width) != 0 {
        flags |= SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

/// Computes `a op b` and the arithmetic flags (SDM vol. 1 §3.4.3.1).
fn arithmetic(operation: Alu, a: u64, b: u64, carry_in: bool, width: usize) -> (u64, u64) {
    let carry = u128::from(carry_in);
    let (wide, subtract) = match operation {
        Alu::Add => (u128::from(a) + u128::from(b), false),
        Alu::Adc => (u128::from(a) + u128::from(b) + carry, false),
        Alu::Sub | Alu::Cmp => (u128::from(a).wrapping_sub(u128::from(b)), true),
        Alu::Sbb => (u128::from(a).wrapping_sub(u128::from(b) + carry), true),
        Alu::And | Alu::Test => return (a & b, result_flags(a & b, width)),
        Alu::Or => return (a | b, result_flags(a | b, width)),
        Alu::Xor => return (a ^ b, result_flags(a ^ b, width)),
    };
    let result = wide as u64 & mask(width);
    let mut flags = result_flags(result, width);
    if (wide >> (width * 8)) & 1 != 0 {
        flags |= CF;
    }
    if (a ^ b ^ result) & 0x10 != 0 {
        flags |= AF;
    }
    let overflow = if subtract { (a ^ b) & (a ^ result) } else { !(a ^ b) & (a ^ result) };
    if overflow & sign_bit(width) != 0 {
        flags |= OF;
    }
    (result, flags)
}

/// The world an instruction acts on.
pub struct Emulator<'a> {
    /// Devices by guest-physical address.
    pub bus: &'a Bus,
    /// RAM, for the other operand of string moves.
    pub memory: &'a dyn GuestMemory,
    /// The guest's page table root.
    pub cr3: u64,
    /// Guest-physical address that trapped.
    pub address: u64,
}

impl Emulator<'_> {
    /// Carries out `decoded`, changing `registers` as the processor would.
    ///
    /// # Errors
    ///
    /// [`EmulateError`]; device state may have changed by then.
    pub fn run(&self, decoded: Decoded, registers: &mut Registers) -> Result<(), EmulateError> {
        let width = decoded.width;
        match decoded.operation {
            Operation::Load { register, sign_extend: signed, swap } => {
                let value = self.load(width);
                let value = if swap { swap_bytes(value, width) } else { value };
                registers.set(register, if signed { sign_extend(value, width) } else { value });
            }
            Operation::LoadIf { register, condition } => {
                let loaded = self.load(width);
                // A 32-bit CMOV clears the upper half even if the condition is false.
                let value =
                    if registers.condition(condition) { loaded } else { registers.get(register) };
                registers.set(register, value);
            }
            Operation::Store { source, swap } => {
                let value = registers.source(source, width);
                self.store(width, if swap { swap_bytes(value, width) } else { value });
            }
            Operation::StoreCondition(condition) => {
                self.store(width, u64::from(registers.condition(condition)));
            }
            Operation::AluToMemory(alu, source) => {
                let b = registers.source(source, width);
                self.alu(alu, self.load(width), b, width, registers, |_, result| {
                    self.store(width, result);
                });
            }
            Operation::AluToRegister(alu, register) => {
                let a = registers.get(register);
                self.alu(alu, a, self.load(width), width, registers, |registers, result| {
                    registers.set(register, result);
                });
            }
            Operation::Unary(unary) => self.unary(unary, width, registers),
            Operation::Bit(bit, source) => {
                let index = registers.source(source, width) % (width as u64 * 8);
                self.bit(bit, index, width, registers);
            }
            Operation::Exchange(register) => {
                let old = self.load(width);
                self.store(width, registers.get(register));
                registers.set(register, old);
            }
            Operation::ExchangeAdd(register) => {
                let old = self.load(width);
                let (sum, flags) = arithmetic(Alu::Add, old, registers.get(register), false, width);
                self.store(width, sum);
                registers.set(register, old);
                registers.set_flags(ARITHMETIC_FLAGS, flags);
            }
            Operation::CompareExchange(register) => {
                self.compare_exchange(register, width, registers);
            }
            Operation::String { operation, repeat, address_size } => {
                return self.string(operation, repeat, address_size, width, registers);
            }
        }
        Ok(())
    }

    fn load(&self, width: usize) -> u64 {
        self.load_at(self.address, width)
    }

    fn store(&self, width: usize, value: u64) {
        self.store_at(self.address, width, value);
    }

    fn load_at(&self, address: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.bus.read(address, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    fn store_at(&self, address: u64, width: usize, value: u64) {
        self.bus.write(address, &value.to_le_bytes()[..width]);
    }

    fn alu(
        &self,
        alu: Alu,
        a: u64,
        b: u64,
        width: usize,
        registers: &mut Registers,
        store: impl FnOnce(&mut Registers, u64),
    ) {
        let (result, flags) = arithmetic(alu, a, b, registers.flag(CF), width);
        registers.set_flags(ARITHMETIC_FLAGS, flags);
        if alu.has_result() {
            store(registers, result);
        }
    }

    fn unary(&self, unary: Unary, width: usize, registers: &mut Registers) {
        let value = self.load(width);
        let (result, flags, changed) = match unary {
            Unary::Not => (!value & mask(width), 0, 0),
            Unary::Neg => {
                let (result, flags) = arithmetic(Alu::Sub, 0, value, false, width);
                (result, flags, ARITHMETIC_FLAGS)
            }
            Unary::Inc => {
                let (result, flags) = arithmetic(Alu::Add, value, 1, false, width);
                (result, flags, ARITHMETIC_FLAGS & !CF)
            }
            Unary::Dec => {
                let (result, flags) = arithmetic(Alu::Sub, value, 1, false, width);
                (result, flags, ARITHMETIC_FLAGS & !CF)
            }
        };
        self.store(width, result);
        registers.set_flags(changed, flags);
    }

    fn bit(&self, operation: BitOperation, index: u64, width: usize, registers: &mut Registers) {
        let value = self.load(width);
        let bit = 1 << index;
        let result = match operation {
            BitOperation::Test => None,
            BitOperation::Set => Some(value | bit),
            BitOperation::Reset => Some(value & !bit),
            BitOperation::Complement => Some(value ^ bit),
        };
        if let Some(result) = result {
            self.store(width, result);
        }
        registers.set_flags(CF, if value & bit != 0 { CF } else { 0 });
    }

    fn compare_exchange(&self, register: RegisterOperand, width: usize, registers: &mut Registers) {
        let accumulator = RegisterOperand { number: RAX, width, high_byte: false };
        let old = self.load(width);
        let (_, flags) = arithmetic(Alu::Cmp, registers.get(accumulator), old, false, width);
        registers.set_flags(ARITHMETIC_FLAGS, flags);
        if flags & ZF != 0 {
            self.store(width, registers.get(register));
        } else {
            // The processor writes the old value back, which a device sees as a write.
            self.store(width, old);
            registers.set(accumulator, old);
        }
    }

    /// Runs all iterations: the processor resumes after the instruction. The trapped operand must stay in its page, for
    /// only that page's translation is known.
    fn string(
        &self,
        operation: StringOperation,
        repeat: bool,
        address_size: usize,
        width: usize,
        registers: &mut Registers,
    ) -> Result<(), EmulateError> {
        let counter = RegisterOperand { number: RCX, width: address_size, high_byte: false };
        let count = if repeat { registers.get(counter) } else { 1 };
        let step = if registers.flag(DF) { (width as u64).wrapping_neg() } else { width as u64 };
        let page = self.address / PAGE_SIZE;
        let last = self.address.wrapping_add(step.wrapping_mul(count.saturating_sub(1)));
        if count > PAGE_SIZE || last / PAGE_SIZE != page {
            return Err(EmulateError::StringTooLong { address: self.address, count });
        }
        let trapped_is_destination = match operation {
            StringOperation::Store => true,
            StringOperation::Load => false,
            StringOperation::Move => self.destination_trapped(address_size, registers)?,
        };
        for index in 0..count {
            let device = self.address.wrapping_add(step.wrapping_mul(index));
            self.string_element(
                operation,
                device,
                trapped_is_destination,
                width,
                address_size,
                registers,
            )?;
            for number in [RSI, RDI] {
                let uses = match operation {
                    StringOperation::Store => number == RDI,
                    StringOperation::Load => number == RSI,
                    StringOperation::Move => true,
                };
                if uses {
                    let index = RegisterOperand { number, width: address_size, high_byte: false };
                    registers.set(index, registers.get(index).wrapping_add(step));
                }
            }
        }
        if repeat {
            registers.set(counter, 0);
        }
        Ok(())
    }

    fn destination_trapped(
        &self,
        address_size: usize,
        registers: &Registers,
    ) -> Result<bool, EmulateError> {
        for (number, destination) in [(RDI, true), (RSI, false)] {
            let linear =
                registers.get(RegisterOperand { number, width: address_size, high_byte: false });
            if page_table::translate(self.memory, self.cr3, linear) == Ok(self.address) {
                return Ok(destination);
            }
        }
        Err(EmulateError::StringOperand { address: self.address })
    }

    fn string_element(
        &self,
        operation: StringOperation,
        device: u64,
        to_device: bool,
        width: usize,
        address_size: usize,
        registers: &mut Registers,
    ) -> Result<(), EmulateError> {
        let accumulator = RegisterOperand { number: RAX, width, high_byte: false };
        match operation {
            StringOperation::Store => self.store_at(device, width, registers.get(accumulator)),
            StringOperation::Load => registers.set(accumulator, self.load_at(device, width)),
            StringOperation::Move if to_device => {
                let linear = registers.get(RegisterOperand {
                    number: RSI,
                    width: address_size,
                    high_byte: false,
                });
                let mut bytes = [0; 8];
                self.read_operand(linear, &mut bytes[..width])?;
                self.bus.write(device, &bytes[..width]);
            }
            StringOperation::Move => {
                let linear = registers.get(RegisterOperand {
                    number: RDI,
                    width: address_size,
                    high_byte: false,
                });
                let mut bytes = [0; 8];
                self.bus.read(device, &mut bytes[..width]);
                page_table::write_linear(self.memory, self.cr3, linear, &bytes[..width])?;
            }
        }
        Ok(())
    }

    /// Reads the source of a move to a device; it may itself be a device.
    fn read_operand(&self, linear: u64, data: &mut [u8]) -> Result<(), EmulateError> {
        let physical = page_table::translate(self.memory, self.cr3, linear)?;
        if self.bus.ranges().any(|range| range.contains(&physical)) {
            self.bus.read(physical, data);
            return Ok(());
        }
        Ok(page_table::read_linear(self.memory, self.cr3, linear, data)?)
    }
}

#[cfg(test)]
#[path = "emulate_test.rs"]
mod tests;
