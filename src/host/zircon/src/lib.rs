//! Zircon on Linux: the `zx_*` system calls over Linux kernel objects.
//!
//! Functions, types, constants and status codes are those of the vDSO (`fuchsia-zircon-sys` on Fuchsia), so that a program
//! above the syscall seam does not know which of the two it runs on. What enters here is what the calls need and nothing
//! above them: no FIDL, no components, no policy.
//!
//! # How
//!
//! A handle is an index into a table of this process and stands for an object, its rights and the file descriptors behind
//! it. Sent through a channel, the descriptors travel and the receiving process makes its own view of the object; koids
//! stay. So isolation and death are Linux's: when a process ends, however it ends, its peers see it.
//!
//! | Zircon | Linux | |
//! |---|---|---|
//! | channel | `SOCK_SEQPACKET` pair | one system call to write, one to read; writes beyond the socket's room queue in the sender |
//! | socket | `SOCK_STREAM` or `SOCK_SEQPACKET` pair | |
//! | event, eventpair | shared memory and an eventfd | levels, edges and pulses as on Zircon, across processes |
//! | FIFO | shared memory and an eventfd | reading and writing are no system calls, unless someone may wait |
//! | VMO | sealed memfd | |
//! | VMAR | `mmap` | for another process, its owner does the call |
//! | port | epoll set and a queue | a pair of sockets for its packets, once it was sent |
//! | timer | timerfd | |
//! | process, thread | pidfd | a process is killed when its parent process ends |
//! | job | a list of the children of the process that made it | |
//! | guest, vCPU | the `hypervisor` crate | for another process, the owner sets bells, kicks and interrupts |
//! | bell | shared bits and a socket | unread rings of one doorbell are one |
//!
//! # Beyond Zircon
//!
//! Everything that has no counterpart in the vDSO is in [`linux`]: starting a process and taking startup handles, handles
//! over file descriptors and descriptors of handles, the handles that a process has to itself, and resources.
//!
//! # Short of Zircon
//!
//! Named at each call; in sum:
//! * vCPUs and VMARs end with their process, since Linux lets no process map memory into another one without the other's
//!   help: handles to them elsewhere give `ZX_ERR_BAD_STATE` then, also for a kick or an interrupt, which Zircon accepts.
//!   While that process is stopped, calls wait. A holder of such a handle shares a socket with those it got the handle from,
//!   and can spoil it for them. A job of another process can be killed and waited for; nothing can be made in it. The
//!   asynchronous waits and bells of a port end with the last handle to it in the process that made them.
//! * What is unmapped through the root VMAR is not taken out of the regions inside it: those stay, and can be destroyed.
//! * A packet of an asynchronous wait is made when a thread waits for one: what is over by then, as a message that somebody
//!   has read, makes none.
//! * User signals of objects other than channels, events, eventpairs, FIFOs and sockets are seen within one process. The first
//!   one to a channel's peer may make that look readable once, if nobody waits for user signals there; to a port, it may look
//!   readable a moment before the first message with handles is there.
//! * `ZX_VMO_ZERO_CHILDREN`, object names and handle counts are what one process knows.
//! * 3500 unread messages give `ZX_ERR_SHOULD_WAIT` where Zircon kills the writer; what still waits for room in a socket
//!   when its process is killed is lost.
//! * Closing a handle does not end a `zx_object_wait_one` or `wait_many` that another thread makes with it.
//! * Snapshots of VMOs are copies. A socket direction that was disabled stays so.
//! * Exit codes have eight bits.
//! * The limit of open files is raised to what the process may have, when it makes its first handle.
//! * Queries: see [`zx_object_get_info`] and [`zx_object_get_property`].
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod channel;
mod event;
mod fifo;
#[cfg(test)]
mod fifo_test;
mod guest;
mod handle_table;
mod info;
mod koid;
pub mod linux;
mod object;
mod pair_signals;
mod port;
mod remote;
mod resource;
mod rights;
mod shared_signals;
mod socket;
mod status;
mod system;
mod task;
#[cfg(test)]
mod testing;
mod timer;
mod transfer;
mod vmar;
mod vmo;
#[cfg(test)]
mod vmo_test;
mod wait;

pub use channel::*;
pub use event::{zx_event_create, zx_eventpair_create, zx_object_signal, zx_object_signal_peer};
pub use fifo::{zx_fifo_create, zx_fifo_read, zx_fifo_write};
pub use guest::{
    zx_guest_create, zx_guest_set_trap, zx_vcpu_create, zx_vcpu_enter, zx_vcpu_interrupt,
    zx_vcpu_kick, zx_vcpu_read_state, zx_vcpu_write_state,
};
pub use handle_table::{
    zx_handle_close, zx_handle_close_many, zx_handle_duplicate, zx_handle_replace,
};
pub use info::{
    zx_object_get_child, zx_object_get_info, zx_object_get_property, zx_object_set_property,
};
pub use port::{zx_port_cancel, zx_port_create, zx_port_queue, zx_port_wait};
pub use resource::zx_resource_create;
pub use socket::{zx_socket_create, zx_socket_read, zx_socket_set_disposition, zx_socket_write};
pub use status::Status;
pub use system::{
    zx_clock_get_monotonic, zx_cprng_draw, zx_deadline_after, zx_nanosleep, zx_system_get_num_cpus,
    zx_system_get_page_size, zx_system_get_physmem, zx_ticks_get, zx_ticks_per_second,
};
pub use task::{zx_job_create, zx_process_exit, zx_task_kill};
pub use timer::{zx_timer_cancel, zx_timer_create, zx_timer_set};
pub use vmar::{zx_vmar_allocate, zx_vmar_destroy, zx_vmar_map, zx_vmar_protect, zx_vmar_unmap};
pub use vmo::{
    zx_vmo_create, zx_vmo_create_child, zx_vmo_get_size, zx_vmo_get_stream_size, zx_vmo_op_range,
    zx_vmo_read, zx_vmo_replace_as_executable, zx_vmo_set_cache_policy, zx_vmo_set_size,
    zx_vmo_set_stream_size, zx_vmo_transfer_data, zx_vmo_write,
};
pub use wait::{zx_object_wait_async, zx_object_wait_many, zx_object_wait_one};
