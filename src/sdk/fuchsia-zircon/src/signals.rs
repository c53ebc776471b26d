use crate::sys;
use bitflags::bitflags;

bitflags! {
    /// The signals of a kernel object.
    #[repr(transparent)]
    #[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Signals: sys::zx_signals_t {
        /// `ZX_SIGNAL_NONE`.
        const NONE = sys::ZX_SIGNAL_NONE;
        /// `ZX_OBJECT_SIGNAL_ALL`.
        const OBJECT_ALL = sys::ZX_OBJECT_SIGNAL_ALL;
        /// `ZX_USER_SIGNAL_ALL`.
        const USER_ALL = sys::ZX_USER_SIGNAL_ALL;
        /// `ZX_OBJECT_READABLE`.
        const OBJECT_READABLE = sys::ZX_OBJECT_READABLE;
        /// `ZX_OBJECT_WRITABLE`.
        const OBJECT_WRITABLE = sys::ZX_OBJECT_WRITABLE;
        /// `ZX_OBJECT_PEER_CLOSED`.
        const OBJECT_PEER_CLOSED = sys::ZX_OBJECT_PEER_CLOSED;
        /// `ZX_OBJECT_HANDLE_CLOSED`.
        const OBJECT_HANDLE_CLOSED = sys::ZX_OBJECT_HANDLE_CLOSED;
        /// `ZX_SIGNAL_HANDLE_CLOSED`.
        const HANDLE_CLOSED = sys::ZX_SIGNAL_HANDLE_CLOSED;
        /// `ZX_USER_SIGNAL_0`.
        const USER_0 = sys::ZX_USER_SIGNAL_0;
        /// `ZX_USER_SIGNAL_1`.
        const USER_1 = sys::ZX_USER_SIGNAL_1;
        /// `ZX_USER_SIGNAL_2`.
        const USER_2 = sys::ZX_USER_SIGNAL_2;
        /// `ZX_USER_SIGNAL_3`.
        const USER_3 = sys::ZX_USER_SIGNAL_3;
        /// `ZX_USER_SIGNAL_4`.
        const USER_4 = sys::ZX_USER_SIGNAL_4;
        /// `ZX_USER_SIGNAL_5`.
        const USER_5 = sys::ZX_USER_SIGNAL_5;
        /// `ZX_USER_SIGNAL_6`.
        const USER_6 = sys::ZX_USER_SIGNAL_6;
        /// `ZX_USER_SIGNAL_7`.
        const USER_7 = sys::ZX_USER_SIGNAL_7;
        /// `ZX_EVENT_SIGNALED`.
        const EVENT_SIGNALED = sys::ZX_EVENT_SIGNALED;
        /// `ZX_EVENTPAIR_SIGNALED`.
        const EVENTPAIR_SIGNALED = sys::ZX_EVENTPAIR_SIGNALED;
        /// `ZX_EVENTPAIR_PEER_CLOSED`.
        const EVENTPAIR_PEER_CLOSED = sys::ZX_EVENTPAIR_PEER_CLOSED;
        /// `ZX_TASK_TERMINATED`.
        const TASK_TERMINATED = sys::ZX_TASK_TERMINATED;
        /// `ZX_CHANNEL_READABLE`.
        const CHANNEL_READABLE = sys::ZX_CHANNEL_READABLE;
        /// `ZX_CHANNEL_WRITABLE`.
        const CHANNEL_WRITABLE = sys::ZX_CHANNEL_WRITABLE;
        /// `ZX_CHANNEL_PEER_CLOSED`.
        const CHANNEL_PEER_CLOSED = sys::ZX_CHANNEL_PEER_CLOSED;
        /// `ZX_SOCKET_READABLE`.
        const SOCKET_READABLE = sys::ZX_SOCKET_READABLE;
        /// `ZX_SOCKET_WRITABLE`.
        const SOCKET_WRITABLE = sys::ZX_SOCKET_WRITABLE;
        /// `ZX_SOCKET_PEER_CLOSED`.
        const SOCKET_PEER_CLOSED = sys::ZX_SOCKET_PEER_CLOSED;
        /// `ZX_SOCKET_PEER_WRITE_DISABLED`.
        const SOCKET_PEER_WRITE_DISABLED = sys::ZX_SOCKET_PEER_WRITE_DISABLED;
        /// `ZX_SOCKET_WRITE_DISABLED`.
        const SOCKET_WRITE_DISABLED = sys::ZX_SOCKET_WRITE_DISABLED;
        /// `ZX_SOCKET_READ_THRESHOLD`.
        const SOCKET_READ_THRESHOLD = sys::ZX_SOCKET_READ_THRESHOLD;
        /// `ZX_SOCKET_WRITE_THRESHOLD`.
        const SOCKET_WRITE_THRESHOLD = sys::ZX_SOCKET_WRITE_THRESHOLD;
        /// `ZX_TIMER_SIGNALED`.
        const TIMER_SIGNALED = sys::ZX_TIMER_SIGNALED;
        /// `ZX_VMO_ZERO_CHILDREN`.
        const VMO_ZERO_CHILDREN = sys::ZX_VMO_ZERO_CHILDREN;
        /// `ZX_TASK_TERMINATED`.
        const PROCESS_TERMINATED = sys::ZX_TASK_TERMINATED;
        /// `ZX_TASK_TERMINATED`.
        const JOB_TERMINATED = sys::ZX_TASK_TERMINATED;
        /// `ZX_TASK_TERMINATED`.
        const THREAD_TERMINATED = sys::ZX_TASK_TERMINATED;
    }
}

impl Signals {
    /// The signals with these bits; bits without a name are kept.
    #[must_use]
    pub const fn from_raw(raw: sys::zx_signals_t) -> Self {
        Self::from_bits_retain(raw)
    }
}
