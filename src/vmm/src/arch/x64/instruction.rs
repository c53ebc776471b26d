//! Decoding the instruction behind a trapped memory access into what the VMM has to do for it.
//!
//! The processor has computed the operand's address and found it trapped; what is left is the operation: which register
//! or immediate goes in or out, in what width, and how flags change. Every form that kernels use on device memory is
//! here; others are an error, which stops the vCPU with a report.

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register,
};

/// Longest x86 instruction, in bytes (SDM vol. 2 §2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// Why an instruction cannot be emulated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes are no instruction.
    #[error("Invalid instruction {bytes:02x?}")]
    Invalid {
        /// The instruction's bytes.
        bytes: Vec<u8>,
    },
    /// The instruction is valid but not one that can access device memory here.
    #[error("Instruction {code:?} cannot access device memory")]
    Unsupported {
        /// The instruction's opcode form.
        code: Code,
    },
}

/// A general-purpose register of some width: full register number 0..=15 (RAX, RCX, RDX, RBX, RSP, ...), and where its
/// bits lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterOperand {
    /// Number of the 64-bit register.
    pub number: usize,
    /// Width in bytes: 1, 2, 4 or 8.
    pub width: usize,
    /// AH, CH, DH or BH: bits 8 to 15.
    pub high_byte: bool,
}

/// A value the instruction takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From a register.
    Register(RegisterOperand),
    /// From the instruction, sign-extended.
    Immediate(u64),
}

/// Two-operand arithmetic that sets flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alu {
    /// ADD
    Add,
    /// OR
    Or,
    /// ADC
    Adc,
    /// SBB
    Sbb,
    /// AND
    And,
    /// SUB
    Sub,
    /// XOR
    Xor,
    /// CMP: like SUB without a result
    Cmp,
    /// TEST: like AND without a result
    Test,
}

impl Alu {
    /// Whether the operation has a result besides flags.
    pub fn has_result(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }
}

/// One-operand arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    /// INC, which keeps CF
    Inc,
    /// DEC, which keeps CF
    Dec,
    /// NEG
    Neg,
    /// NOT, which keeps all flags
    Not,
}

/// What a bit instruction does to the bit it tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitOperation {
    /// BT
    Test,
    /// BTS
    Set,
    /// BTR
    Reset,
    /// BTC
    Complement,
}

/// A string instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StringOperation {
    /// STOS: the accumulator to memory.
    Store,
    /// LODS: memory to the accumulator.
    Load,
    /// MOVS: memory to memory.
    Move,
}

/// What an instruction does with its (trapped) memory operand of `width` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Memory to a register, extended to the register's width.
    Load {
        /// Where the value goes.
        register: RegisterOperand,
        /// Sign instead of zero extension.
        sign_extend: bool,
        /// Bytes are reversed (MOVBE).
        swap: bool,
    },
    /// Memory to a register if a condition holds (CMOVcc); the access happens anyhow.
    LoadIf {
        /// Where the value goes.
        register: RegisterOperand,
        /// The condition, as iced-x86 names it.
        condition: ConditionCode,
    },
    /// A value to memory.
    Store {
        /// The value.
        source: Source,
        /// Bytes are reversed (MOVBE).
        swap: bool,
    },
    /// A condition as a byte to memory (SETcc).
    StoreCondition(ConditionCode),
    /// memory = memory op source, with flags.
    AluToMemory(Alu, Source),
    /// register = register op memory, with flags.
    AluToRegister(Alu, RegisterOperand),
    /// memory = op memory.
    Unary(Unary),
    /// Tests and changes bit `source` modulo the width.
    Bit(BitOperation, Source),
    /// Exchanges register and memory.
    Exchange(RegisterOperand),
    /// XADD
    ExchangeAdd(RegisterOperand),
    /// CMPXCHG with the accumulator.
    CompareExchange(RegisterOperand),
    /// A string instruction; with `repeat` it runs RCX times.
    String {
        /// Which.
        operation: StringOperation,
        /// Has a REP prefix.
        repeat: bool,
        /// Address size in bytes, which is also the width of the counter: 4 or 8.
        address_size: usize,
    },
}

/// A decoded instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// What to do.
    pub operation: Operation,
    /// Width of the memory operand in bytes: 1, 2, 4 or 8.
    pub width: usize,
}

/// Decodes the 64-bit-mode instruction at the start of `bytes`.
///
/// # Errors
///
/// [`DecodeError`]
pub fn decode(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(DecodeError::Invalid { bytes: bytes.to_vec() });
    }
    let unsupported = DecodeError::Unsupported { code: instruction.code() };
    let width = instruction.memory_size().size();
    if !matches!(width, 1 | 2 | 4 | 8) {
        return Err(unsupported);
    }
    operation(&instruction).map(|operation| Decoded { operation, width }).ok_or(unsupported)
}

fn operation(instruction: &Instruction) -> Option<Operation> {
    if let Some(operation) = string_operation(instruction) {
        return Some(operation);
    }
    let to_memory = instruction.op0_kind() == OpKind::Memory;
    let from_memory = instruction.op1_kind() == OpKind::Memory;
    if to_memory == from_memory {
        return None;
    }
    if to_memory { memory_first(instruction) } else { register_first(instruction) }
}

fn memory_first(instruction: &Instruction) -> Option<Operation> {
    let mnemonic = instruction.mnemonic();
    let conditional = instruction.condition_code() != ConditionCode::None;
    if let Some(unary) = unary(mnemonic) {
        return Some(Operation::Unary(unary));
    }
    if conditional && instruction.op_count() == 1 {
        return Some(Operation::StoreCondition(instruction.condition_code()));
    }
    let source = source(instruction, 1)?;
    if let Some(alu) = alu(mnemonic) {
        return Some(Operation::AluToMemory(alu, source));
    }
    if let Some(bit) = bit_operation(mnemonic) {
        return Some(Operation::Bit(bit, source));
    }
    match (mnemonic, source) {
        (Mnemonic::Mov | Mnemonic::Movnti, source) => {
            Some(Operation::Store { source, swap: false })
        }
        (Mnemonic::Movbe, source) => Some(Operation::Store { source, swap: true }),
        (Mnemonic::Xchg, Source::Register(register)) => Some(Operation::Exchange(register)),
        (Mnemonic::Xadd, Source::Register(register)) => Some(Operation::ExchangeAdd(register)),
        (Mnemonic::Cmpxchg, Source::Register(register)) => {
            Some(Operation::CompareExchange(register))
        }
        _ => None,
    }
}

fn register_first(instruction: &Instruction) -> Option<Operation> {
    let mnemonic = instruction.mnemonic();
    let register = register(instruction.op0_register())?;
    if let Some(alu) = alu(mnemonic) {
        return Some(Operation::AluToRegister(alu, register));
    }
    if instruction.condition_code() != ConditionCode::None && instruction.op_count() == 2 {
        return Some(Operation::LoadIf { register, condition: instruction.condition_code() });
    }
    let (sign_extend, swap) = match mnemonic {
        Mnemonic::Mov | Mnemonic::Movzx => (false, false),
        Mnemonic::Movsx | Mnemonic::Movsxd => (true, false),
        Mnemonic::Movbe => (false, true),
        Mnemonic::Xchg => return Some(Operation::Exchange(register)),
        _ => return None,
    };
    Some(Operation::Load { register, sign_extend, swap })
}

fn string_operation(instruction: &Instruction) -> Option<Operation> {
    let operation = match instruction.mnemonic() {
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            StringOperation::Store
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            StringOperation::Load
        }
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            StringOperation::Move
        }
        _ => return None,
    };
    // MOVSD is also an SSE instruction, and FS and GS bases are not the VMM's to know.
    let mut kinds = [instruction.op0_kind(), instruction.op1_kind()].into_iter();
    let segment_known = matches!(
        instruction.segment_prefix(),
        Register::None | Register::CS | Register::DS | Register::ES | Register::SS
    );
    if !segment_known || kinds.any(|kind| kind == OpKind::Memory) {
        return None;
    }
    let short = [instruction.op0_kind(), instruction.op1_kind()]
        .into_iter()
        .any(|kind| matches!(kind, OpKind::MemoryESEDI | OpKind::MemorySegESI));
    Some(Operation::String {
        operation,
        repeat: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
        address_size: if short { 4 } else { 8 },
    })
}

fn source(instruction: &Instruction, operand: u32) -> Option<Source> {
    match instruction.op_kind(operand) {
        OpKind::Register => register(instruction.op_register(operand)).map(Source::Register),
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some(Source::Immediate(instruction.immediate(operand))),
        _ => None,
    }
}

fn register(register: Register) -> Option<RegisterOperand> {
    if !register.is_gpr() {
        return None;
    }
    let high_byte = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    Some(RegisterOperand {
        number: register.full_register().number(),
        width: register.size(),
        high_byte,
    })
}

fn alu(mnemonic: Mnemonic) -> Option<Alu> {
    Some(match mnemonic {
        Mnemonic::Add => Alu::Add,
        Mnemonic::Or => Alu::Or,
        Mnemonic::Adc => Alu::Adc,
        Mnemonic::Sbb => Alu::Sbb,
        Mnemonic::And => Alu::And,
        Mnemonic::Sub => Alu::Sub,
        Mnemonic::Xor => Alu::Xor,
        Mnemonic::Cmp => Alu::Cmp,
        Mnemonic::Test => Alu::Test,
        _ => return None,
    })
}

fn unary(mnemonic: Mnemonic) -> Option<Unary> {
    Some(match mnemonic {
        Mnemonic::Inc => Unary::Inc,
        Mnemonic::Dec => Unary::Dec,
        Mnemonic::Neg => Unary::Neg,
        Mnemonic::Not => Unary::Not,
        _ => return None,
    })
}

fn bit_operation(mnemonic: Mnemonic) -> Option<BitOperation> {
    Some(match mnemonic {
        Mnemonic::Bt => BitOperation::Test,
        Mnemonic::Bts => BitOperation::Set,
        Mnemonic::Btr => BitOperation::Reset,
        Mnemonic::Btc => BitOperation::Complement,
        _ => return None,
    })
}
