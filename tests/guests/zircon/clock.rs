//! Time: the time-stamp counter, scaled as the hypervisor's paravirtual clock says (Linux' `pvclock`, which Zircon uses
//! on virtual machines as well), and the date from the CMOS clock.

use crate::hardware::{in8, out8, tsc, write_msr};
use crate::sync::{BootCell, Shared};
use core::arch::x86_64::__cpuid;
use core::fmt;

const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const SYSTEM_TIME_ENABLE: u64 = 1;

/// What the hypervisor writes.
#[repr(C)]
struct TimeInfo {
    version: u32,
    _pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    _reserved: [u8; 2],
}

static TIME_INFO: Shared<TimeInfo> = Shared::new(TimeInfo {
    version: 0,
    _pad: 0,
    tsc_timestamp: 0,
    system_time: 0,
    tsc_to_system_mul: 0,
    tsc_shift: 0,
    flags: 0,
    _reserved: [0; 2],
});

/// How time-stamp counter and nanoseconds relate.
struct Scale {
    start: u64,
    multiplier: u32,
    shift: i8,
}

static SCALE: BootCell<Scale> = BootCell::new();

/// Learns the time-stamp counter's frequency.
///
/// # Panics
/// Where no hypervisor says it: there is no other clock to measure it with.
pub fn initialize() {
    let signature = __cpuid(KVM_SIGNATURE);
    let features = __cpuid(KVM_FEATURES).eax;
    assert!(
        signature.ebx.to_le_bytes() == *b"KVMK" && features & KVM_FEATURE_CLOCKSOURCE2 != 0,
        "there is no paravirtual clock"
    );
    let info = TIME_INFO.get();
    // SAFETY: the hypervisor writes to this structure, which is aligned and only read here.
    let (multiplier, shift) = unsafe {
        write_msr(KVM_SYSTEM_TIME_NEW, info as u64 | SYSTEM_TIME_ENABLE);
        // An odd version is one that is being written.
        while (&raw const (*info).version).read_volatile() & 1 != 0 {
            core::hint::spin_loop();
        }
        (
            (&raw const (*info).tsc_to_system_mul).read_volatile(),
            (&raw const (*info).tsc_shift).read_volatile(),
        )
    };
    assert!(multiplier != 0, "the paravirtual clock stands still");
    SCALE.set(Scale { start: tsc(), multiplier, shift });
}

fn scale() -> &'static Scale {
    SCALE.get().expect("the clock is not set up yet")
}

/// Nanoseconds since the kernel started.
pub fn nanos() -> u64 {
    let scale = scale();
    let ticks = u128::from(tsc().wrapping_sub(scale.start));
    let shifted = match scale.shift {
        shift @ 0.. => ticks << shift,
        shift => ticks >> -shift,
    };
    (shifted * u128::from(scale.multiplier) >> 32) as u64
}

/// What the time-stamp counter will be in `nanos` nanoseconds.
pub fn tsc_after(nanos: u64) -> u64 {
    let scale = scale();
    let ticks = (u128::from(nanos) << 32) / u128::from(scale.multiplier);
    let ticks = match scale.shift {
        shift @ 0.. => ticks >> shift,
        shift => ticks << -shift,
    };
    tsc().wrapping_add(ticks as u64)
}

/// A date and time of day.
pub struct Date([u8; 6]);

/// The date that the CMOS clock has (MC146818 datasheet).
pub fn date() -> Date {
    let register = |index| {
        out8(0x70, index);
        in8(0x71)
    };
    let binary = register(0x0b) & 4 != 0;
    let value = |index| {
        let value = register(index);
        if binary { value } else { (value >> 4) * 10 + (value & 15) }
    };
    let read = || {
        // Bit 7 of register A: an update is near.
        while register(0x0a) & 0x80 != 0 {
            core::hint::spin_loop();
        }
        [9, 8, 7, 4, 2, 0].map(value)
    };
    // Two alike, so that no update came between.
    let mut last = read();
    loop {
        let next = read();
        if next == last {
            return Date(next);
        }
        last = next;
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [year, month, day, hour, minute, second] = self.0;
        write!(f, "20{year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}
