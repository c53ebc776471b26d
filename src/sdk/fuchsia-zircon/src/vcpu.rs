use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Guest, Handle, Packet, Status, ok, sys};

/// A virtual CPU, bound to the thread that created it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Vcpu(Handle);
impl_handle_based!(Vcpu);

/// A vCPU's general registers, as the host's architecture has them.
pub type VcpuState = sys::zx_vcpu_state_t;

pub use sys::VcpuStats;

impl Vcpu {
    /// A vCPU whose first instruction is at `entry`; this thread alone may enter it.
    ///
    /// # Errors
    /// `BAD_STATE` when the thread has one already, `ACCESS_DENIED`, `INVALID_ARGS`, `NO_MEMORY`.
    pub fn create(guest: &Guest, entry: u64) -> Result<Vcpu, Status> {
        let entry = usize::try_from(entry).map_err(|_| Status::INVALID_ARGS)?;
        let mut out = 0;
        // SAFETY: the result has a valid place.
        ok(unsafe { sys::zx_vcpu_create(guest.raw_handle(), 0, entry, &raw mut out) })?;
        // SAFETY: the call gave us the handle.
        Ok(Vcpu(unsafe { Handle::from_raw(out) }))
    }

    /// Runs the guest until it does something that the kernel does not handle.
    ///
    /// # Errors
    /// `CANCELED` after a kick; `BAD_STATE` on another thread; others when the guest
    /// cannot go on.
    pub fn enter(&self) -> Result<Packet, Status> {
        let mut packet = sys::zx_port_packet_t::default();
        // SAFETY: the result has a valid place.
        ok(unsafe { sys::zx_vcpu_enter(self.raw_handle(), &raw mut packet) })?;
        Ok(Packet::from_raw(packet))
    }

    /// Makes the current or the next [`Vcpu::enter`] return `CANCELED`; from any thread.
    ///
    /// # Errors
    /// `ACCESS_DENIED`.
    pub fn kick(&self) -> Result<(), Status> {
        // SAFETY: the call takes a number only.
        ok(unsafe { sys::zx_vcpu_kick(self.raw_handle()) })
    }

    /// Queues a virtual interrupt; from any thread.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` for a vector that there is not, `ACCESS_DENIED`.
    pub fn interrupt(&self, vector: u32) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe { sys::zx_vcpu_interrupt(self.raw_handle(), vector) })
    }

    /// The general registers.
    ///
    /// # Errors
    /// `BAD_STATE` on another thread, `ACCESS_DENIED`.
    pub fn read_state(&self) -> Result<VcpuState, Status> {
        let mut state = VcpuState::default();
        // SAFETY: the buffer is the topic's whole record.
        ok(unsafe {
            sys::zx_vcpu_read_state(
                self.raw_handle(),
                sys::ZX_VCPU_STATE,
                (&raw mut state).cast(),
                size_of::<VcpuState>(),
            )
        })?;
        Ok(state)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// As [`Vcpu::read_state`].
    pub fn write_state(&self, state: &VcpuState) -> Result<(), Status> {
        // SAFETY: the buffer is the topic's whole record.
        ok(unsafe {
            sys::zx_vcpu_write_state(
                self.raw_handle(),
                sys::ZX_VCPU_STATE,
                std::ptr::from_ref(state).cast(),
                size_of::<VcpuState>(),
            )
        })
    }

    /// What the vCPU did so far: its exits by reason, and what the translator did. From any thread; a vCPU in the guest
    /// is asked, which takes about as long as a kick.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` on Fuchsia, whose kernel counts for each CPU of the machine only (`ZX_INFO_GUEST_STATS`);
    /// `ACCESS_DENIED` without the right to read.
    pub fn stats(&self) -> Result<VcpuStats, Status> {
        sys::vcpu_stats(self.raw_handle()).map_err(Status::from_raw)
    }

    /// Gives the value that the guest's input instruction reads; `access_size` is 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// As [`Vcpu::read_state`]; `INVALID_ARGS` for another size.
    pub fn write_io(&self, access_size: u8, data: [u8; 4]) -> Result<(), Status> {
        let io = sys::zx_vcpu_io_t { access_size, data, ..Default::default() };
        // SAFETY: the buffer is the topic's whole record.
        ok(unsafe {
            sys::zx_vcpu_write_state(
                self.raw_handle(),
                sys::ZX_VCPU_IO,
                (&raw const io).cast(),
                size_of::<sys::zx_vcpu_io_t>(),
            )
        })
    }
}
