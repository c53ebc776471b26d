//! Safe wrappers of the Zircon system calls, shaped like Fuchsia's crate of this name.
//!
//! This is the syscall seam: on Fuchsia the calls are the vDSO's, on Linux they are those of the crate `zircon`, which
//! has functions with the same names, signatures and status codes. What may enter is a thin, typed face on one system
//! call; policy and protocols live above.

mod channel;
mod event;
mod fifo;
mod guest;
mod handle;
mod info;
#[cfg(target_os = "linux")]
pub mod linux;
mod port;
mod process_builder;
pub mod processargs;
mod rights;
mod signals;
mod socket;
mod status;
pub mod sys;
mod system;
mod task;
mod time;
mod timer;
mod vcpu;
mod vmar;
mod vmo;
mod wait;

pub use channel::{Channel, MessageBuf, MessageBufEtc};
pub use event::{Event, EventPair};
pub use fifo::{Fifo, UnspecifiedFifoElement};
pub use guest::Guest;
pub use handle::{
    AsHandleRef, Handle, HandleBased, HandleDisposition, HandleInfo, HandleOp, HandleRef, Koid,
    ObjectType, Peered, Unowned,
};
pub use info::HandleBasicInfo;
pub use port::{
    GuestBellPacket, GuestIoPacket, GuestMemPacket, GuestVcpuPacket, Packet, PacketContents, Port,
    SignalPacket, UserPacket, WaitAsyncOpts,
};
pub use process_builder::ProcessBuilder;
pub use rights::Rights;
pub use signals::Signals;
pub use socket::{Socket, SocketWriteDisposition};
pub use status::{Status, ok};
pub use system::{
    Clock, Resource, cprng_draw, system_get_num_cpus, system_get_page_size, system_get_physmem,
};
pub use task::{Job, Process, ProcessInfo, Task, Thread};
pub use time::{Duration, DurationNum, MonotonicDuration, MonotonicInstant, Time};
pub use timer::Timer;
pub use vcpu::{Vcpu, VcpuState, VcpuStats};
pub use vmar::{Vmar, VmarFlags, VmarFlagsExtended};
pub use vmo::{Vmo, VmoChildOptions, VmoOp, VmoOptions};
pub use wait::{WaitItem, object_wait_many};
