//! Kernel object identifiers, unique across the processes of a machine.

use fuchsia_zircon_types::zx_koid_t;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static BASE: OnceLock<u64> = OnceLock::new();
static COUNT: AtomicU64 = AtomicU64::new(1);

/// A new identifier. A process counts from 39 random bits with 24 zero bits below them, so identifiers do not repeat
/// across processes; the top bit stays clear as on Zircon, where it marks artificial koids.
pub(crate) fn allocate() -> zx_koid_t {
    let base = BASE.get_or_init(|| {
        let mut seed = [0; 8];
        crate::system::fill_random(&mut seed);
        (u64::from_le_bytes(seed) >> 1) & !0xff_ffff | 1 << 24
    });
    base.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)) & !(1 << 63)
}
