//! What a vCPU's packets mean on x64: memory accesses are decoded here, port accesses arrive decoded.

use super::Platform;
use super::emulate::{EmulateError, Emulator, Registers};
use super::instruction::{DecodeError, MAX_INSTRUCTION, decode};
use super::page_table::{TranslateError, read_linear};
use crate::arch::Entry;
use crate::bus::Bus;
use crate::memory::{GuestMemory, PAGE_SIZE};
use fuchsia_zircon as zx;

/// Flags an instruction may change; the rest of RFLAGS is not the VMM's.
const ARITHMETIC_FLAGS: u64 = 0x8d5;

/// Why a trapped access could not be completed. The guest did something that hardware would do, and this VMM does not.
#[derive(Debug, thiserror::Error)]
pub enum TrapError {
    /// The packet is not one that this architecture sends.
    #[error("Unexpected packet {0:?}")]
    Packet(zx::PacketContents),
    /// The instruction at RIP could not be fetched.
    #[error("Fetching the instruction at {rip:#x}: {source}")]
    Fetch {
        /// The instruction's linear address.
        rip: u64,
        /// What failed.
        source: TranslateError,
    },
    /// The instruction is not supported on device memory.
    #[error("At {rip:#x}, accessing {addr:#x}: {source}")]
    Decode {
        /// The instruction's linear address.
        rip: u64,
        /// The guest-physical address.
        addr: u64,
        /// What failed.
        source: DecodeError,
    },
    /// The instruction could not be carried out.
    #[error("At {rip:#x}: {source}")]
    Emulate {
        /// The instruction's linear address.
        rip: u64,
        /// What failed.
        source: EmulateError,
    },
    /// A vCPU call failed.
    #[error("Accessing vCPU state: {0}")]
    State(#[from] zx::Status),
}

/// Sets up the first vCPU's registers for `entry` (the Linux 64-bit boot protocol and Zircon agree on RSI).
///
/// # Errors
///
/// The status of writing the state.
pub fn prepare(vcpu: &zx::Vcpu, entry: Entry) -> Result<(), zx::Status> {
    let mut state = vcpu.read_state()?;
    state.rsi = entry.argument;
    vcpu.write_state(&state)
}

/// Completes the port access of `packet`.
///
/// # Errors
///
/// [`TrapError::State`]
pub fn handle_io(
    platform: &Platform,
    vcpu: &zx::Vcpu,
    packet: &zx::GuestIoPacket,
) -> Result<(), TrapError> {
    let mut data = packet.data;
    let width = usize::from(packet.access_size).min(data.len());
    let port = u64::from(packet.port);
    if packet.input {
        data = [0; 4];
        platform.io().read(port, &mut data[..width]);
        vcpu.write_io(packet.access_size, data)?;
    } else {
        platform.io().write(port, &data[..width]);
    }
    Ok(())
}

/// Completes the memory access of `packet`: fetches and decodes the instruction, and does what is left of it.
///
/// # Errors
///
/// [`TrapError`]
pub fn handle_mem(
    mmio: &Bus,
    memory: &dyn GuestMemory,
    vcpu: &zx::Vcpu,
    packet: &zx::GuestMemPacket,
) -> Result<(), TrapError> {
    let zx::GuestMemPacket::X64 { addr, cr3, rip, instruction_size, .. } = *packet else {
        return Err(TrapError::Packet(zx::PacketContents::GuestMem(*packet)));
    };
    let mut bytes = [0; MAX_INSTRUCTION];
    let fetched = fetch(memory, cr3, rip, usize::from(instruction_size), &mut bytes)?;
    let decoded = decode(fetched).map_err(|source| TrapError::Decode { rip, addr, source })?;
    let mut state = vcpu.read_state()?;
    let mut registers = load_registers(&state);
    let before = registers;
    let emulator = Emulator { bus: mmio, memory, cr3, address: addr };
    emulator.run(decoded, &mut registers).map_err(|source| TrapError::Emulate { rip, source })?;
    if registers != before {
        store_registers(&mut state, &registers);
        vcpu.write_state(&state)?;
    }
    Ok(())
}

/// Fetches the instruction at `rip`. Without a known `size` that is as much of 15 bytes as is mapped.
fn fetch<'a>(
    memory: &dyn GuestMemory,
    cr3: u64,
    rip: u64,
    size: usize,
    bytes: &'a mut [u8; MAX_INSTRUCTION],
) -> Result<&'a [u8], TrapError> {
    let wanted = if (1..=MAX_INSTRUCTION).contains(&size) { size } else { MAX_INSTRUCTION };
    match read_linear(memory, cr3, rip, &mut bytes[..wanted]) {
        Ok(()) => Ok(&bytes[..wanted]),
        Err(source) => {
            // The instruction may end before the page that is missing.
            let in_page = (PAGE_SIZE - rip % PAGE_SIZE) as usize;
            if size != 0 || in_page >= wanted {
                return Err(TrapError::Fetch { rip, source });
            }
            read_linear(memory, cr3, rip, &mut bytes[..in_page])
                .map_err(|source| TrapError::Fetch { rip, source })?;
            Ok(&bytes[..in_page])
        }
    }
}

fn load_registers(state: &zx::VcpuState) -> Registers {
    Registers {
        gpr: [
            state.rax, state.rcx, state.rdx, state.rbx, state.rsp, state.rbp, state.rsi, state.rdi,
            state.r8, state.r9, state.r10, state.r11, state.r12, state.r13, state.r14, state.r15,
        ],
        rflags: state.rflags,
    }
}

fn store_registers(state: &mut zx::VcpuState, registers: &Registers) {
    [
        state.rax, state.rcx, state.rdx, state.rbx, state.rsp, state.rbp, state.rsi, state.rdi,
        state.r8, state.r9, state.r10, state.r11, state.r12, state.r13, state.r14, state.r15,
    ] = registers.gpr;
    state.rflags = (state.rflags & !ARITHMETIC_FLAGS) | (registers.rflags & ARITHMETIC_FLAGS);
}
