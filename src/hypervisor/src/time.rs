//! Host time: the frequency of the TSC, and an alarm clock that gets a vCPU's attention at a deadline.

use crate::guest::lock;
use crate::host_access;
use crate::state::Attention;
use crate::vcpu::VcpuRemote;
use rustix::time::{ClockId, clock_gettime};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    timespec_ns(ClockId::Monotonic)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    timespec_ns(ClockId::Realtime)
}

fn timespec_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(NANOS_PER_SECOND).wrapping_add(time.tv_nsec as u64)
}

/// One instant on both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Instant {
    pub(crate) tsc: u64,
    /// CLOCK_MONOTONIC.
    pub(crate) ns: u64,
}

impl Instant {
    /// Reads both clocks as close together as this thread manages in a few tries.
    pub(crate) fn now() -> Instant {
        let mut best: Option<(u64, Instant)> = None;
        for _ in 0..8 {
            let before = host_access::tsc();
            let ns = monotonic_ns();
            let width = host_access::tsc().wrapping_sub(before);
            if best.is_none_or(|(narrowest, _)| width < narrowest) {
                best = Some((width, Instant { tsc: before.wrapping_add(width / 2), ns }));
            }
        }
        best.map_or_else(
            || Instant { tsc: host_access::tsc(), ns: monotonic_ns() },
            |(_, instant)| instant,
        )
    }
}

static CALIBRATION_START: OnceLock<Instant> = OnceLock::new();
static TSC_HZ: OnceLock<u64> = OnceLock::new();
/// Each end of the calibration is off by some tens of nanoseconds; over this interval that is a few ppm.
const CALIBRATION_NS: u64 = 10_000_000;

/// Notes the start of the TSC calibration, so that [`tsc_hz`] rarely has to wait.
pub(crate) fn start_calibration() {
    CALIBRATION_START.get_or_init(Instant::now);
}

/// The host's TSC frequency: from CPUID where it says so, else measured against CLOCK_MONOTONIC.
pub(crate) fn tsc_hz() -> u64 {
    *TSC_HZ.get_or_init(|| cpuid_tsc_hz().unwrap_or_else(measured_tsc_hz))
}

/// Leaf 0x15 (SDM vol. 3 §18.7.3), when the crystal frequency is enumerated too.
fn cpuid_tsc_hz() -> Option<u64> {
    if host_access::cpuid_max(0) < 0x15 {
        return None;
    }
    let leaf = host_access::cpuid(0x15, 0);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        return None;
    }
    Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax))
}

fn measured_tsc_hz() -> u64 {
    let start = *CALIBRATION_START.get_or_init(Instant::now);
    let elapsed = monotonic_ns().saturating_sub(start.ns);
    if elapsed < CALIBRATION_NS {
        thread::sleep(Duration::from_nanos(CALIBRATION_NS - elapsed));
    }
    let end = Instant::now();
    let ns = u128::from(end.ns.saturating_sub(start.ns).max(1));
    let ticks = u128::from(end.tsc.wrapping_sub(start.tsc));
    ((ticks * u128::from(NANOS_PER_SECOND) / ns) as u64).max(1_000_000)
}

/// Nanoseconds that `ticks` of the TSC take; saturates.
pub(crate) fn tsc_to_ns(ticks: u64) -> u64 {
    let ns = u128::from(ticks) * u128::from(NANOS_PER_SECOND) / u128::from(tsc_hz());
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Sets [`Attention::TIMER`] on vCPUs at their deadlines, from one thread a guest that sleeps in between.
pub(crate) struct AlarmClock {
    shared: Arc<AlarmShared>,
}

struct AlarmShared {
    alarms: Mutex<Alarms>,
    changed: Condvar,
}

struct Alarms {
    pending: Vec<Alarm>,
    /// When the thread will look again; `u64::MAX` is never.
    wakes_at: u64,
    running: bool,
    stop: bool,
}

struct Alarm {
    vcpu: Weak<VcpuRemote>,
    id: u32,
    /// CLOCK_MONOTONIC nanoseconds; `u64::MAX` is never.
    deadline: u64,
}

impl AlarmClock {
    pub(crate) fn new() -> AlarmClock {
        let alarms =
            Alarms { pending: Vec::new(), wakes_at: u64::MAX, running: false, stop: false };
        AlarmClock {
            shared: Arc::new(AlarmShared { alarms: Mutex::new(alarms), changed: Condvar::new() }),
        }
    }

    /// Replaces the alarm of a vCPU. A deadline that has passed goes off at once.
    pub(crate) fn set(&self, vcpu: &Arc<VcpuRemote>, deadline: u64) {
        let mut alarms = lock(&self.shared.alarms);
        match alarms.pending.iter_mut().find(|alarm| alarm.id == vcpu.id()) {
            Some(alarm) => alarm.deadline = deadline,
            None => {
                alarms.pending.push(Alarm { vcpu: Arc::downgrade(vcpu), id: vcpu.id(), deadline });
            }
        }
        if !alarms.running && self.start() {
            alarms.running = true;
        } else if deadline < alarms.wakes_at {
            self.shared.changed.notify_one();
        }
    }

    /// Removes the alarm of a vCPU. The thread is not woken for that; it may find nothing to do later.
    pub(crate) fn cancel(&self, id: u32) {
        if let Some(alarm) =
            lock(&self.shared.alarms).pending.iter_mut().find(|alarm| alarm.id == id)
        {
            alarm.deadline = u64::MAX;
        }
    }

    fn start(&self) -> bool {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("guest-timer".into()).spawn(move || shared.run());
        if let Err(error) = &thread {
            tracing::error!("no thread for guest timers: {error}");
        }
        thread.is_ok()
    }
}

impl Drop for AlarmClock {
    fn drop(&mut self) {
        lock(&self.shared.alarms).stop = true;
        self.shared.changed.notify_one();
    }
}

impl AlarmShared {
    fn run(&self) {
        minimize_timer_slack();
        let mut alarms = lock(&self.alarms);
        while !alarms.stop {
            let now = monotonic_ns();
            let mut next = u64::MAX;
            alarms.pending.retain_mut(|alarm| {
                let Some(vcpu) = alarm.vcpu.upgrade() else {
                    return false;
                };
                if alarm.deadline <= now {
                    alarm.deadline = u64::MAX;
                    vcpu.request_attention(Attention::TIMER);
                }
                next = next.min(alarm.deadline);
                true
            });
            alarms.wakes_at = next;
            alarms = if next == u64::MAX {
                self.changed.wait(alarms).unwrap_or_else(PoisonError::into_inner)
            } else {
                let wait = Duration::from_nanos(next.saturating_sub(now));
                self.changed.wait_timeout(alarms, wait).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

/// Asks Linux to wake this thread on time rather than up to 50 µs late.
pub(crate) fn minimize_timer_slack() {
    // SAFETY: this prctl takes a number and changes only the calling thread's timer slack. A failure costs precision.
    let _ = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_convert_and_saturate() {
        assert_eq!(tsc_to_ns(tsc_hz()), NANOS_PER_SECOND);
        assert_eq!(tsc_to_ns(0), 0);
        assert!(tsc_to_ns(u64::MAX) > u64::MAX / 10);
    }

    #[test]
    fn measured_frequency_agrees_with_the_clock() {
        let start = Instant::now();
        thread::sleep(Duration::from_millis(20));
        let end = Instant::now();
        let by_tsc = tsc_to_ns(end.tsc - start.tsc);
        let by_clock = end.ns - start.ns;
        assert!(by_tsc.abs_diff(by_clock) < by_clock / 100, "{by_tsc} {by_clock}");
    }
}
