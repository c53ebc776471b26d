//! One guest instruction at a time, in Rust: everything privileged or with implicit system memory in any mode, and the
//! integer instructions that real-mode, 32-bit and compatibility-mode code consists of.
//!
//! An instruction either completes, or fails without an effect that its restart would repeat. RIP is at the instruction
//! when [`execute`] is called; on success it is past it or at the target.

mod alu;
mod branch;
mod data;
mod far;
mod flags_asm;
pub(crate) mod io;
mod operand;
mod stack;
mod string;
mod system;

use crate::cpu::Cpu;
use crate::debug::StopCause;
use crate::exception::{Event, Exception, Fault, Shutdown, deliver};
use crate::exit::Exit;
use crate::memory::{self, Span};
use crate::mmu::AccessKind;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};

/// Longest x86 instruction in bytes.
const MAX_INSTRUCTION: usize = 15;

/// What follows a completed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next instruction in memory; nothing changed that decides how it is translated or fetched.
    Next,
    /// Look up what to execute at RIP afresh.
    Jump,
    /// HLT: wait for an interrupt.
    Halt,
    /// Leave the guest.
    Exit(Exit),
    /// Not executed: this instruction is best run by the host CPU itself. RIP still points at it.
    Native,
}

type Outcome = Result<Flow, Fault>;

/// The value of a general-purpose register, zero-extended.
pub(crate) fn register_value(cpu: &Cpu, register: iced_x86::Register) -> u64 {
    operand::read_register(cpu, register)
}

/// Linear address of an explicit memory operand of `size` bytes, its segment's rights and limit checked.
pub(crate) fn linear_address(
    cpu: &Cpu,
    instruction: &Instruction,
    size: usize,
    kind: AccessKind,
) -> Result<u64, Exception> {
    operand::linear(cpu, instruction, size, kind)
}

/// Translates an explicit memory operand of `size` bytes.
pub(crate) fn operand_span(
    cpu: &mut Cpu,
    instruction: &Instruction,
    size: usize,
    kind: AccessKind,
) -> Result<Span, Fault> {
    operand::span(cpu, instruction, size, kind)
}

/// Fetches and decodes the instruction at RIP.
pub(crate) fn fetch(cpu: &mut Cpu) -> Result<Instruction, Fault> {
    let bits = cpu.code_bits();
    let mut bytes = [0; MAX_INSTRUCTION];
    let va = cpu.linear_ip();
    if bits != 64 {
        let code = cpu.state.segments[crate::state::seg::CS];
        crate::segment::check_limit(&code, cpu.state.rip, 1).map_err(|()| Exception::gp(0))?;
    }
    let len = memory::fetch(cpu, va, &mut bytes)?;
    let mut decoder = Decoder::with_ip(bits, &bytes[..len], cpu.state.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if !instruction.is_invalid() {
        return Ok(instruction);
    }
    if decoder.last_error() != iced_x86::DecoderError::NoMoreBytes {
        return Err(Exception::ud().into());
    }
    if len == MAX_INSTRUCTION {
        // SDM vol. 3 §6.15, "Interrupt 13": an instruction longer than 15 bytes.
        return Err(Exception::gp(0).into());
    }
    // The rest lies on a page that cannot be fetched: its fault, at its address.
    let next = cpu.wrap_linear(va.wrapping_add(len as u64));
    memory::fetch(cpu, next, &mut bytes[..1])?;
    Err(Exception::ud().into())
}

/// Executes one decoded instruction whose `ip` is RIP.
pub(crate) fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    cpu.stats.interpreted += 1;
    let next = cpu.wrap_ip(instruction.next_ip());
    match dispatch(cpu, instruction) {
        Ok(Flow::Next) => {
            cpu.state.rip = next;
            Ok(Flow::Next)
        }
        Ok(Flow::Halt) => {
            cpu.state.rip = next;
            Ok(Flow::Halt)
        }
        Ok(Flow::Exit(exit)) => {
            cpu.state.rip = next;
            Ok(Flow::Exit(exit))
        }
        Err(Fault::MemTrap { key, gpa }) => {
            Ok(Flow::Exit(mem_exit(cpu, key, gpa, instruction.len() as u8)))
        }
        other => other,
    }
}

/// Leaves the guest for a MEM trap hit by the instruction at RIP: moves RIP past it.
pub(crate) fn mem_exit(cpu: &mut Cpu, key: u64, gpa: u64, length: u8) -> Exit {
    let exit = Exit::Mem {
        key,
        addr: gpa,
        cr3: cpu.state.cr3,
        rip: cpu.linear_ip(),
        instruction_size: length,
        default_operand_size: if cpu.code_bits() == 16 { 2 } else { 4 },
    };
    cpu.state.rip = cpu.wrap_ip(cpu.state.rip.wrapping_add(length.into()));
    exit
}

/// Delivers a software interrupt from the instruction at RIP.
fn software_interrupt(cpu: &mut Cpu, event: Event) -> Outcome {
    match deliver(cpu, event) {
        Ok(()) => Ok(Flow::Jump),
        // The run loop meets the same fault again when it delivers this exception, and stops there.
        Err(Shutdown) => Err(Exception::df(0).into()),
    }
}

/// Whether the INT3 at RIP is the debugger's.
fn is_breakpoint(cpu: &mut Cpu) -> bool {
    let address = cpu.linear_ip();
    let breakpoint = cpu.guest.debugger.breakpoint(address);
    breakpoint.is_some_and(|breakpoint| memory::physical(cpu, address) == Some(breakpoint.gpa))
}

fn dispatch(cpu: &mut Cpu, instruction: &Instruction) -> Outcome {
    use Mnemonic as M;
    if instruction.is_string_instruction() {
        return string::execute(cpu, instruction);
    }
    match instruction.mnemonic() {
        M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test => {
            alu::binary(cpu, instruction)
        }
        M::Inc | M::Dec | M::Not | M::Neg => alu::unary(cpu, instruction),
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Sal | M::Shr | M::Sar => {
            alu::shift(cpu, instruction)
        }
        M::Shld | M::Shrd => alu::double_shift(cpu, instruction),
        M::Mul | M::Imul => alu::multiply(cpu, instruction),
        M::Div | M::Idiv => alu::divide(cpu, instruction),
        M::Bt | M::Bts | M::Btr | M::Btc => alu::bit_test(cpu, instruction),
        M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt | M::Popcnt => alu::bit_scan(cpu, instruction),
        M::Aaa | M::Aas | M::Aam | M::Aad | M::Daa | M::Das => alu::decimal(cpu, instruction),
        M::Xadd => alu::exchange_add(cpu, instruction),
        M::Cmpxchg => alu::compare_exchange(cpu, instruction),
        M::Cmpxchg8b | M::Cmpxchg16b => alu::compare_exchange_wide(cpu, instruction),

        M::Mov if far::is_segment_move(instruction) => far::move_segment(cpu, instruction),
        M::Mov if system::is_control_move(instruction) => system::move_control(cpu, instruction),
        M::Mov
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Movbe
        | M::Bswap
        | M::Lea
        | M::Xchg
        | M::Xlatb
        | M::Movnti => data::execute(cpu, instruction),
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo | M::Lahf | M::Sahf | M::Salc => {
            data::convert(cpu, instruction)
        }
        M::Clc | M::Stc | M::Cmc | M::Cld | M::Std => data::flag(cpu, instruction),
        M::Nop
        | M::Pause
        | M::Fnop
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1
        | M::Endbr32
        | M::Endbr64
        | M::Reservednop
        | M::Cldemote => Ok(Flow::Next),
        M::Lfence | M::Sfence | M::Mfence => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            Ok(Flow::Next)
        }
        M::Bound => data::bound(cpu, instruction),

        M::Push
        | M::Pop
        | M::Pushf
        | M::Pushfd
        | M::Pushfq
        | M::Popf
        | M::Popfd
        | M::Popfq
        | M::Pusha
        | M::Pushad
        | M::Popa
        | M::Popad
        | M::Enter
        | M::Leave => stack::execute(cpu, instruction),

        M::Jmp | M::Call if branch::is_far(instruction) => far::branch(cpu, instruction),
        M::Jmp | M::Call | M::Ret => branch::near(cpu, instruction),
        M::Retf => far::ret(cpu, instruction),
        M::Iret | M::Iretd | M::Iretq => far::interrupt_return(cpu, instruction),
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
            branch::counted(cpu, instruction)
        }
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => far::load_pointer(cpu, instruction),
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Arpl => far::examine(cpu, instruction),

        M::Int => software_interrupt(
            cpu,
            Event::Software { vector: instruction.immediate8(), length: instruction.len() as u8 },
        ),
        M::Int3 if is_breakpoint(cpu) => {
            cpu.stop_for_debugger(StopCause::Breakpoint);
            Ok(Flow::Jump)
        }
        M::Int3 => software_interrupt(
            cpu,
            Event::Software {
                vector: crate::exception::vector::BP,
                length: instruction.len() as u8,
            },
        ),
        M::Into => {
            if cpu.state.flag(crate::state::Rflags::OF) {
                let event = Event::Software {
                    vector: crate::exception::vector::OF,
                    length: instruction.len() as u8,
                };
                software_interrupt(cpu, event)
            } else {
                Ok(Flow::Next)
            }
        }
        M::Int1 => {
            software_interrupt(cpu, Event::PrivilegedSoftware { length: instruction.len() as u8 })
        }
        M::Ud0 | M::Ud1 | M::Ud2 => Err(Exception::ud().into()),

        M::In | M::Out => io::port(cpu, instruction),

        _ if instruction.is_jcc_short_or_near() => branch::conditional(cpu, instruction),
        _ if instruction.code().is_jcc_short() => branch::conditional(cpu, instruction),
        mnemonic if data::is_conditional(mnemonic) => data::conditional(cpu, instruction),
        _ => system::execute(cpu, instruction),
    }
}

/// Whether the instruction has a 16-, 32- or 64-bit operand size by its code, for forms without operands.
fn is_code(instruction: &Instruction, codes: &[Code]) -> bool {
    codes.contains(&instruction.code())
}
