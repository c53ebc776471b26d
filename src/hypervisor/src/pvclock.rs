//! The KVM paravirtual clock: a guest reads the TSC and scales it with the numbers of a page that we fill
//! (Linux, Documentation/virt/kvm/x86/msr.rst, "MSR_KVM_SYSTEM_TIME_NEW").

use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::time::{Instant, monotonic_ns, realtime_ns, tsc_hz};
use std::sync::OnceLock;

/// Where the guest keeps its clock structures.
#[derive(Default)]
pub(crate) struct PvClock {
    /// MSR_KVM_SYSTEM_TIME_NEW: guest-physical address, bit 0 enables.
    pub(crate) system_time: u64,
    /// MSR_KVM_WALL_CLOCK_NEW: guest-physical address.
    pub(crate) wall_clock: u64,
    version: u32,
    wall_version: u32,
}

const ENABLED: u64 = 1;
/// The same parameters hold on every vCPU and never change, so the guest needs no barrier between vCPUs.
const TSC_STABLE: u8 = 1;

/// The instant at which every guest's paravirtual clock reads 0. One for the process: guests only see differences.
fn anchor() -> Instant {
    static ANCHOR: OnceLock<Instant> = OnceLock::new();
    *ANCHOR.get_or_init(Instant::now)
}

/// Multiplier and shift with which `ticks` become nanoseconds: `(ticks << shift) * multiplier >> 32`, where a
/// negative shift goes right.
fn scale(hz: u64) -> (u32, i8) {
    const NANOS: u128 = 1_000_000_000;
    let mut shift = 0_i8;
    // The largest multiplier that fits in 32 bits gives the best precision.
    loop {
        let hz = u128::from(hz);
        let multiplier =
            if shift >= 0 { (NANOS << 32) / (hz << shift) } else { (NANOS << 32 << -shift) / hz };
        match u32::try_from(multiplier) {
            Err(_) => shift += 1,
            Ok(small) if small < 1 << 31 => shift -= 1,
            Ok(multiplier) => return (multiplier, shift),
        }
        if !(-31..=31).contains(&shift) {
            return (u32::MAX, shift);
        }
    }
}

/// A write of MSR_KVM_SYSTEM_TIME(_NEW).
pub(crate) fn set_system_time(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    cpu.pvclock.system_time = value;
    if value & ENABLED == 0 {
        return Ok(());
    }
    let gpa = value & !ENABLED;
    let anchor = anchor();
    let (multiplier, shift) = scale(tsc_hz());
    let version = cpu.pvclock.version.wrapping_add(2);
    cpu.pvclock.version = version;
    let mut page = [0; 32];
    page[..4].copy_from_slice(&version.to_le_bytes());
    page[8..16].copy_from_slice(&anchor.tsc.to_le_bytes());
    // System time at `tsc_timestamp` is 0; see `anchor`.
    page[24..28].copy_from_slice(&multiplier.to_le_bytes());
    page[28] = shift as u8;
    page[29] = TSC_STABLE;
    write_structure(cpu, gpa, version, &page)
}

/// A write of MSR_KVM_WALL_CLOCK(_NEW): the time of day at which the paravirtual clock read 0.
pub(crate) fn set_wall_clock(cpu: &mut Cpu, gpa: u64) -> Result<(), Exception> {
    cpu.pvclock.wall_clock = gpa;
    let version = cpu.pvclock.wall_version.wrapping_add(2);
    cpu.pvclock.wall_version = version;
    let elapsed = monotonic_ns().saturating_sub(anchor().ns);
    let boot = realtime_ns().saturating_sub(elapsed);
    let mut page = [0; 12];
    page[..4].copy_from_slice(&version.to_le_bytes());
    page[4..8].copy_from_slice(&((boot / 1_000_000_000) as u32).to_le_bytes());
    page[8..].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
    write_structure(cpu, gpa, version, &page)
}

/// Writes a structure that starts with a version: odd while the rest changes.
fn write_structure(cpu: &mut Cpu, gpa: u64, version: u32, bytes: &[u8]) -> Result<(), Exception> {
    let gp = |_| Exception::gp(0);
    if !gpa.is_multiple_of(4) {
        return Err(Exception::gp(0));
    }
    let guest = &cpu.guest;
    guest.write_memory(gpa, &version.wrapping_sub(1).to_le_bytes()).map_err(gp)?;
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    guest.write_memory(gpa + 4, &bytes[4..]).map_err(gp)?;
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    guest.write_memory(gpa, &bytes[..4]).map_err(gp)
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn scale_converts_a_second_of_ticks() {
        for hz in [100_000_000, 1_000_000_000, 2_596_120_000, 5_700_000_000] {
            let (multiplier, shift) = scale(hz);
            let ticks = if shift >= 0 { u128::from(hz) << shift } else { u128::from(hz) >> -shift };
            let ns = (ticks * u128::from(multiplier)) >> 32;
            assert!(ns.abs_diff(1_000_000_000) < 10, "{hz} {multiplier} {shift} {ns}");
        }
    }
}
