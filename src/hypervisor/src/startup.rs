//! INIT and start-up IPIs between vCPUs that exist (SDM vol. 3 §8.4, §10.4.7).
//!
//! The first start-up IPI to a vCPU is the monitor's, who creates it at the address the packet gives. From then on the
//! two messages go from vCPU to vCPU without leaving the guest, so that an operating system can take a processor
//! offline and start it again. A start-up IPI to a vCPU that does not wait for one is ignored, as on a processor.

use crate::cpu::Cpu;
use crate::guest::Guest;
use crate::state::Attention;
use crate::vcpu::VcpuRemote;
use std::sync::atomic::{AtomicU32, Ordering};

const INIT: u32 = 1 << 31;
const START: u32 = 1 << 8;

/// INIT and start-up IPIs sent to a vCPU and not yet seen by its thread.
#[derive(Default)]
pub(crate) struct StartupMailbox(AtomicU32);

/// What a vCPU found in its mailbox; INIT comes before the start-up IPI.
pub(crate) struct Startup {
    pub(crate) init: bool,
    pub(crate) vector: Option<u8>,
}

impl StartupMailbox {
    /// INIT supersedes start-up IPIs from before it.
    fn init(&self) {
        self.0.store(INIT, Ordering::SeqCst);
    }

    /// The first start-up IPI after an INIT counts.
    fn start(&self, vector: u8) {
        let add = |old: u32| (old & START == 0).then_some(old | START | u32::from(vector));
        // An error means that one is there already.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
    }

    pub(crate) fn take(&self) -> Startup {
        let word = self.0.swap(0, Ordering::SeqCst);
        Startup { init: word & INIT != 0, vector: (word & START != 0).then_some(word as u8) }
    }
}

/// The vCPUs of `mask` that exist.
fn existing(guest: &Guest, mask: u64) -> impl Iterator<Item = std::sync::Arc<VcpuRemote>> {
    guest.vcpus().into_iter().filter(move |vcpu| mask >> vcpu.id() & 1 != 0)
}

/// Sends INIT to the vCPUs of `mask`.
pub(crate) fn send_init(cpu: &Cpu, mask: u64) {
    for vcpu in existing(&cpu.guest, mask) {
        vcpu.startup.init();
        vcpu.request_attention(Attention::RUN_LOOP);
    }
}

/// Sends a start-up IPI to the vCPUs of `mask`, and gives the lowest that the monitor must create first.
pub(crate) fn send_start(cpu: &Cpu, mask: u64, vector: u8) -> Option<u64> {
    let mut missing = mask;
    for vcpu in existing(&cpu.guest, mask) {
        missing &= !(1 << vcpu.id());
        vcpu.startup.start(vector);
        vcpu.request_attention(Attention::RUN_LOOP);
    }
    (missing != 0).then(|| missing.trailing_zeros().into())
}
