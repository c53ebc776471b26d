//! The executor of Fuchsia programs and what can be awaited on it: tasks, timers, signals, channels, sockets, FIFOs. An executor is
//! a queue of ready tasks and one [`zx::Port`]: whatever a task waits for arrives there as a packet, so that an idle
//! executor costs one system call a turn and nothing polls. Only what waits on a port belongs here; it names no operating
//! system, since the port is behind the syscall seam.
#![forbid(unsafe_code)]

// The attributes name this crate by its path, in its own tests, too.
extern crate self as fuchsia_async;

mod channel;
mod clock;
mod executor;
mod fake_time;
mod fifo;
mod local;
mod on_signals;
mod packets;
mod ready;
mod rwhandle;
mod send;
mod socket;
mod task;
mod thread_pool;
mod timer;

pub use fuchsia_async_macro::{run, run_singlethreaded};
pub use fuchsia_zircon as zx;

pub use channel::{Channel, RecvEtcMsg, RecvMsg};
pub use clock::{Time, WakeupTime};
pub use executor::EHandle;
pub use fake_time::TestExecutor;
pub use fifo::{
    Fifo, FifoEntry, FifoReadBuffer, FifoReadable, FifoWritable, FifoWriteBuffer, ReadEntries,
    ReadOne, WriteEntries,
};
pub use local::LocalExecutor;
pub use on_signals::{OnSignals, OnSignalsRef};
pub use packets::{PacketReceiver, ReceiverRegistration};
pub use rwhandle::RWHandle;
pub use send::SendExecutor;
pub use socket::{DatagramStream, Socket};
pub use task::Task;
pub use thread_pool::unblock;
pub use timer::{Interval, OnTimeout, TimeoutExt, Timer};

pub use zx::Duration;
