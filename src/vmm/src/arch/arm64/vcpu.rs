//! What a vCPU's packets mean on arm64: memory accesses arrive decoded, and there are no I/O ports.

use super::Platform;
use crate::arch::Entry;
use crate::bus::Bus;
use crate::memory::GuestMemory;
use fuchsia_zircon as zx;

/// Why a trapped access could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum TrapError {
    /// The packet is not one that this architecture sends.
    #[error("Unexpected packet {0:?}")]
    Packet(zx::PacketContents),
    /// A vCPU call failed.
    #[error("Accessing vCPU state: {0}")]
    State(#[from] zx::Status),
}

/// Sets up the first vCPU's registers for `entry` (the arm64 boot protocol's X0).
///
/// # Errors
///
/// The status of reading or writing the state.
pub fn prepare(vcpu: &zx::Vcpu, entry: Entry) -> Result<(), zx::Status> {
    let mut state = vcpu.read_state()?;
    state.x[0] = entry.argument;
    vcpu.write_state(&state)
}

/// There are no ports.
///
/// # Errors
///
/// [`TrapError::Packet`], always.
pub fn handle_io(
    _platform: &Platform,
    _vcpu: &zx::Vcpu,
    packet: &zx::GuestIoPacket,
) -> Result<(), TrapError> {
    Err(TrapError::Packet(zx::PacketContents::GuestIo(*packet)))
}

/// Completes the memory access of `packet`.
///
/// # Errors
///
/// [`TrapError`]
pub fn handle_mem(
    mmio: &Bus,
    _memory: &dyn GuestMemory,
    vcpu: &zx::Vcpu,
    packet: &zx::GuestMemPacket,
) -> Result<(), TrapError> {
    let zx::GuestMemPacket::Arm64 { addr, access_size, sign_extend, xt, read, data } = *packet
    else {
        return Err(TrapError::Packet(zx::PacketContents::GuestMem(*packet)));
    };
    let width = usize::from(access_size).clamp(1, 8);
    if !read {
        mmio.write(addr, &data.to_le_bytes()[..width]);
        return Ok(());
    }
    let mut bytes = [0; 8];
    mmio.read(addr, &mut bytes[..width]);
    let value = u64::from_le_bytes(bytes);
    let unused = 64 - 8 * width as u32;
    let value = if sign_extend { ((value << unused) as i64 >> unused) as u64 } else { value };
    let mut state = vcpu.read_state()?;
    // Register 31 is the zero register.
    if let Some(register) = state.x.get_mut(usize::from(xt)) {
        *register = value;
        vcpu.write_state(&state)?;
    }
    Ok(())
}
