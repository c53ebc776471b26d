use crate::sys;
use bitflags::bitflags;

bitflags! {
    /// What a handle allows.
    #[repr(transparent)]
    #[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Rights: sys::zx_rights_t {
        /// `ZX_RIGHT_NONE`.
        const NONE = sys::ZX_RIGHT_NONE;
        /// `ZX_RIGHT_DUPLICATE`.
        const DUPLICATE = sys::ZX_RIGHT_DUPLICATE;
        /// `ZX_RIGHT_TRANSFER`.
        const TRANSFER = sys::ZX_RIGHT_TRANSFER;
        /// `ZX_RIGHT_READ`.
        const READ = sys::ZX_RIGHT_READ;
        /// `ZX_RIGHT_WRITE`.
        const WRITE = sys::ZX_RIGHT_WRITE;
        /// `ZX_RIGHT_EXECUTE`.
        const EXECUTE = sys::ZX_RIGHT_EXECUTE;
        /// `ZX_RIGHT_MAP`.
        const MAP = sys::ZX_RIGHT_MAP;
        /// `ZX_RIGHT_GET_PROPERTY`.
        const GET_PROPERTY = sys::ZX_RIGHT_GET_PROPERTY;
        /// `ZX_RIGHT_SET_PROPERTY`.
        const SET_PROPERTY = sys::ZX_RIGHT_SET_PROPERTY;
        /// `ZX_RIGHT_ENUMERATE`.
        const ENUMERATE = sys::ZX_RIGHT_ENUMERATE;
        /// `ZX_RIGHT_DESTROY`.
        const DESTROY = sys::ZX_RIGHT_DESTROY;
        /// `ZX_RIGHT_SET_POLICY`.
        const SET_POLICY = sys::ZX_RIGHT_SET_POLICY;
        /// `ZX_RIGHT_GET_POLICY`.
        const GET_POLICY = sys::ZX_RIGHT_GET_POLICY;
        /// `ZX_RIGHT_SIGNAL`.
        const SIGNAL = sys::ZX_RIGHT_SIGNAL;
        /// `ZX_RIGHT_SIGNAL_PEER`.
        const SIGNAL_PEER = sys::ZX_RIGHT_SIGNAL_PEER;
        /// `ZX_RIGHT_WAIT`.
        const WAIT = sys::ZX_RIGHT_WAIT;
        /// `ZX_RIGHT_INSPECT`.
        const INSPECT = sys::ZX_RIGHT_INSPECT;
        /// `ZX_RIGHT_MANAGE_JOB`.
        const MANAGE_JOB = sys::ZX_RIGHT_MANAGE_JOB;
        /// `ZX_RIGHT_MANAGE_PROCESS`.
        const MANAGE_PROCESS = sys::ZX_RIGHT_MANAGE_PROCESS;
        /// `ZX_RIGHT_MANAGE_THREAD`.
        const MANAGE_THREAD = sys::ZX_RIGHT_MANAGE_THREAD;
        /// `ZX_RIGHT_APPLY_PROFILE`.
        const APPLY_PROFILE = sys::ZX_RIGHT_APPLY_PROFILE;
        /// `ZX_RIGHT_MANAGE_SOCKET`.
        const MANAGE_SOCKET = sys::ZX_RIGHT_MANAGE_SOCKET;
        /// `ZX_RIGHT_OP_CHILDREN`.
        const OP_CHILDREN = sys::ZX_RIGHT_OP_CHILDREN;
        /// `ZX_RIGHT_RESIZE`.
        const RESIZE = sys::ZX_RIGHT_RESIZE;
        /// `ZX_RIGHT_ATTACH_VMO`.
        const ATTACH_VMO = sys::ZX_RIGHT_ATTACH_VMO;
        /// `ZX_RIGHT_MANAGE_VMO`.
        const MANAGE_VMO = sys::ZX_RIGHT_MANAGE_VMO;
        /// `ZX_RIGHT_SAME_RIGHTS`.
        const SAME_RIGHTS = sys::ZX_RIGHT_SAME_RIGHTS;
        /// What nearly every object's handles allow: duplicate, transfer, wait, inspect.
        const BASIC_RIGHTS = sys::ZX_RIGHT_DUPLICATE | sys::ZX_RIGHT_TRANSFER | sys::ZX_RIGHT_WAIT | sys::ZX_RIGHT_INSPECT;
        /// Reading and writing.
        const IO = sys::ZX_RIGHT_READ | sys::ZX_RIGHT_WRITE;
        /// Getting and setting properties.
        const PROPERTY = sys::ZX_RIGHT_GET_PROPERTY | sys::ZX_RIGHT_SET_PROPERTY;
        /// The rights of a new channel end.
        const CHANNEL_DEFAULT = (Self::BASIC_RIGHTS.bits() & !sys::ZX_RIGHT_DUPLICATE)
            | Self::IO.bits() | sys::ZX_RIGHT_SIGNAL | sys::ZX_RIGHT_SIGNAL_PEER;
        /// The rights of a new VMO.
        const VMO_DEFAULT = Self::BASIC_RIGHTS.bits() | Self::IO.bits() | Self::PROPERTY.bits()
            | sys::ZX_RIGHT_MAP | sys::ZX_RIGHT_SIGNAL;
    }
}

impl Rights {
    /// The rights with these bits; bits without a name are kept.
    #[must_use]
    pub const fn from_raw(raw: sys::zx_rights_t) -> Self {
        Self::from_bits_retain(raw)
    }
}
