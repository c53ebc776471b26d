use crate::info::HandleBasicInfo;
use crate::{Port, Rights, Signals, Status, Time, WaitAsyncOpts, ok, sys};
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::ops::Deref;

/// The number that names a kernel object for as long as the system runs.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Koid(sys::zx_koid_t);

impl Koid {
    /// The koid with this number.
    #[must_use]
    pub const fn from_raw(raw: sys::zx_koid_t) -> Self {
        Self(raw)
    }

    /// The koid's number.
    #[must_use]
    pub const fn raw_koid(self) -> sys::zx_koid_t {
        self.0
    }
}

/// The type of a kernel object.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ObjectType(sys::zx_obj_type_t);

macro_rules! object_types {
    ($($name:ident = $raw:ident;)*) => {
        impl ObjectType {
            $(
                #[doc = concat!("`", stringify!($raw), "`.")]
                pub const $name: ObjectType = ObjectType(sys::$raw);
            )*
        }
    };
}

object_types! {
    NONE = ZX_OBJ_TYPE_NONE;
    PROCESS = ZX_OBJ_TYPE_PROCESS;
    THREAD = ZX_OBJ_TYPE_THREAD;
    VMO = ZX_OBJ_TYPE_VMO;
    CHANNEL = ZX_OBJ_TYPE_CHANNEL;
    EVENT = ZX_OBJ_TYPE_EVENT;
    PORT = ZX_OBJ_TYPE_PORT;
    INTERRUPT = ZX_OBJ_TYPE_INTERRUPT;
    PCI_DEVICE = ZX_OBJ_TYPE_PCI_DEVICE;
    DEBUGLOG = ZX_OBJ_TYPE_DEBUGLOG;
    SOCKET = ZX_OBJ_TYPE_SOCKET;
    RESOURCE = ZX_OBJ_TYPE_RESOURCE;
    EVENTPAIR = ZX_OBJ_TYPE_EVENTPAIR;
    JOB = ZX_OBJ_TYPE_JOB;
    VMAR = ZX_OBJ_TYPE_VMAR;
    FIFO = ZX_OBJ_TYPE_FIFO;
    GUEST = ZX_OBJ_TYPE_GUEST;
    VCPU = ZX_OBJ_TYPE_VCPU;
    TIMER = ZX_OBJ_TYPE_TIMER;
    IOMMU = ZX_OBJ_TYPE_IOMMU;
    BTI = ZX_OBJ_TYPE_BTI;
    PROFILE = ZX_OBJ_TYPE_PROFILE;
    PMT = ZX_OBJ_TYPE_PMT;
    SUSPEND_TOKEN = ZX_OBJ_TYPE_SUSPEND_TOKEN;
    PAGER = ZX_OBJ_TYPE_PAGER;
    EXCEPTION = ZX_OBJ_TYPE_EXCEPTION;
    CLOCK = ZX_OBJ_TYPE_CLOCK;
    STREAM = ZX_OBJ_TYPE_STREAM;
    MSI = ZX_OBJ_TYPE_MSI;
    IOB = ZX_OBJ_TYPE_IOB;
}

impl ObjectType {
    /// The type with this number.
    #[must_use]
    pub const fn from_raw(raw: sys::zx_obj_type_t) -> Self {
        Self(raw)
    }

    /// The type's number.
    #[must_use]
    pub const fn into_raw(self) -> sys::zx_obj_type_t {
        self.0
    }
}

/// An owned handle of any type, or the invalid one; closed when dropped.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Handle(sys::zx_handle_t);

impl Handle {
    /// The handle that names nothing.
    #[must_use]
    pub const fn invalid() -> Handle {
        Handle(sys::ZX_HANDLE_INVALID)
    }

    /// Takes ownership of a raw handle.
    ///
    /// # Safety
    /// `raw` must be the invalid handle or one that nobody else owns.
    #[must_use]
    pub const unsafe fn from_raw(raw: sys::zx_handle_t) -> Handle {
        Handle(raw)
    }

    /// Whether this is [`Handle::invalid`].
    #[must_use]
    pub const fn is_invalid(&self) -> bool {
        self.0 == sys::ZX_HANDLE_INVALID
    }

    /// Exchanges the handle for one with fewer rights.
    ///
    /// # Errors
    /// `INVALID_ARGS` where `rights` has some that this handle lacks.
    pub fn replace(self, rights: Rights) -> Result<Handle, Status> {
        let mut out = sys::ZX_HANDLE_INVALID;
        // SAFETY: ownership of the raw handle goes to the call, which invalidates it also on failure.
        ok(unsafe { sys::zx_handle_replace(self.into_raw(), rights.bits(), &raw mut out) })?;
        Ok(Handle(out))
    }
}

impl Default for Handle {
    fn default() -> Self {
        Self::invalid()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.is_invalid() {
            // SAFETY: we own the handle, and nobody uses it after this.
            unsafe { sys::zx_handle_close(self.0) };
        }
    }
}

/// A handle that somebody else owns, as good as the owned type for the lifetime `'a`.
#[derive(Debug)]
pub struct Unowned<'a, T: HandleBased> {
    inner: ManuallyDrop<T>,
    owner: PhantomData<&'a T>,
}

/// An untyped [`Unowned`].
pub type HandleRef<'a> = Unowned<'a, Handle>;

impl<T: HandleBased> Unowned<'_, T> {
    /// Borrows a raw handle.
    ///
    /// # Safety
    /// `raw` must stay open for the lifetime of the result and be of `T`'s type.
    #[must_use]
    pub unsafe fn from_raw_handle(raw: sys::zx_handle_t) -> Self {
        Self { inner: ManuallyDrop::new(T::from_handle(Handle(raw))), owner: PhantomData }
    }

    /// The raw handle.
    #[must_use]
    pub fn raw_handle(&self) -> sys::zx_handle_t {
        self.inner.as_handle_ref().raw_handle_value()
    }

    /// Another handle to the same object.
    ///
    /// # Errors
    /// `ACCESS_DENIED` without the right to duplicate, `INVALID_ARGS` for rights that this handle lacks.
    pub fn duplicate(&self, rights: Rights) -> Result<T, Status> {
        let mut out = sys::ZX_HANDLE_INVALID;
        // SAFETY: `out` is a valid place for the result.
        ok(unsafe { sys::zx_handle_duplicate(self.raw_handle(), rights.bits(), &raw mut out) })?;
        Ok(T::from_handle(Handle(out)))
    }
}

impl<T: HandleBased> Clone for Unowned<'_, T> {
    fn clone(&self) -> Self {
        // SAFETY: the copy's lifetime is this one's, for which the handle stays open.
        unsafe { Self::from_raw_handle(self.raw_handle()) }
    }
}

impl<T: HandleBased> Deref for Unowned<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl HandleRef<'_> {
    fn raw_handle_value(&self) -> sys::zx_handle_t {
        self.inner.0
    }
}

impl<T: HandleBased> AsHandleRef for Unowned<'_, T> {
    fn as_handle_ref(&self) -> HandleRef<'_> {
        self.inner.as_handle_ref()
    }
}

/// Whatever has a handle.
pub trait AsHandleRef {
    /// The handle, untyped and borrowed.
    fn as_handle_ref(&self) -> HandleRef<'_>;

    /// The raw handle.
    fn raw_handle(&self) -> sys::zx_handle_t {
        self.as_handle_ref().raw_handle_value()
    }

    /// Sets and clears the object's user signals.
    ///
    /// # Errors
    /// `ACCESS_DENIED` without the right to signal, `INVALID_ARGS` for signals that are not the user's.
    fn signal_handle(&self, clear_mask: Signals, set_mask: Signals) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe { sys::zx_object_signal(self.raw_handle(), clear_mask.bits(), set_mask.bits()) })
    }

    /// Waits until one of `signals` is set and returns all that are.
    ///
    /// # Errors
    /// `TIMED_OUT` after `deadline`; `CANCELED` when the handle was closed meanwhile.
    fn wait_handle(&self, signals: Signals, deadline: Time) -> Result<Signals, Status> {
        let mut pending = 0;
        // SAFETY: `pending` is a valid place for the result.
        ok(unsafe {
            sys::zx_object_wait_one(
                self.raw_handle(),
                signals.bits(),
                deadline.into_nanos(),
                &raw mut pending,
            )
        })?;
        Ok(Signals::from_raw(pending))
    }

    /// Asks for one packet on `port` when one of `signals` is set.
    ///
    /// # Errors
    /// `ACCESS_DENIED` without the right to wait or to write to the port.
    fn wait_async_handle(
        &self,
        port: &Port,
        key: u64,
        signals: Signals,
        options: WaitAsyncOpts,
    ) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe {
            sys::zx_object_wait_async(
                self.raw_handle(),
                port.raw_handle(),
                key,
                signals.bits(),
                options.bits(),
            )
        })
    }

    /// The object's koid, type and this handle's rights.
    ///
    /// # Errors
    /// `BAD_HANDLE`.
    fn basic_info(&self) -> Result<HandleBasicInfo, Status> {
        crate::info::handle_basic(&self.as_handle_ref())
    }

    /// The object's koid.
    ///
    /// # Errors
    /// `BAD_HANDLE`.
    fn get_koid(&self) -> Result<Koid, Status> {
        Ok(self.basic_info()?.koid)
    }
}

impl<T: AsHandleRef> AsHandleRef for &T {
    fn as_handle_ref(&self) -> HandleRef<'_> {
        (*self).as_handle_ref()
    }
}

impl AsHandleRef for Handle {
    fn as_handle_ref(&self) -> HandleRef<'_> {
        HandleRef { inner: ManuallyDrop::new(Handle(self.0)), owner: PhantomData }
    }
}

/// A typed owned handle.
pub trait HandleBased: AsHandleRef + From<Handle> + Into<Handle> {
    /// Another handle to the same object.
    ///
    /// # Errors
    /// `ACCESS_DENIED` without the right to duplicate, `INVALID_ARGS` for rights that this handle lacks.
    fn duplicate_handle(&self, rights: Rights) -> Result<Self, Status> {
        self.as_handle_ref().duplicate(rights).map(Self::from_handle)
    }

    /// Exchanges the handle for one with fewer rights.
    ///
    /// # Errors
    /// `INVALID_ARGS` where `rights` has some that this handle lacks.
    fn replace_handle(self, rights: Rights) -> Result<Self, Status> {
        self.into_handle().replace(rights).map(Self::from_handle)
    }

    /// Forgets the type.
    fn into_handle(self) -> Handle {
        self.into()
    }

    /// Gives up ownership: the caller closes the result.
    fn into_raw(self) -> sys::zx_handle_t {
        let handle = ManuallyDrop::new(self.into_handle());
        handle.0
    }

    /// Claims that a handle is of this type; the kernel checks at each use.
    fn from_handle(handle: Handle) -> Self {
        Self::from(handle)
    }

    /// The same handle as another type.
    fn into_handle_based<H: HandleBased>(self) -> H {
        H::from_handle(self.into_handle())
    }

    /// Whether this holds the invalid handle.
    fn is_invalid_handle(&self) -> bool {
        self.raw_handle() == sys::ZX_HANDLE_INVALID
    }
}

impl HandleBased for Handle {}

/// An object with a peer.
pub trait Peered: HandleBased {
    /// Sets and clears the peer's user signals.
    ///
    /// # Errors
    /// `PEER_CLOSED`; `ACCESS_DENIED` without the right to signal the peer.
    fn signal_peer(&self, clear_mask: Signals, set_mask: Signals) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe {
            sys::zx_object_signal_peer(self.raw_handle(), clear_mask.bits(), set_mask.bits())
        })
    }
}

/// What to do with a handle that is written to a channel.
#[derive(Debug)]
pub enum HandleOp<'a> {
    /// The receiver gets this handle.
    Move(Handle),
    /// The receiver gets another handle to this one's object.
    Duplicate(HandleRef<'a>),
}

/// A handle to be written to a channel, with the type and rights that the receiver is to see.
#[derive(Debug)]
pub struct HandleDisposition<'a> {
    /// The handle and what to do with it.
    pub handle_op: HandleOp<'a>,
    /// The type that it must have; [`ObjectType::NONE`] takes any.
    pub object_type: ObjectType,
    /// The rights that the receiver gets.
    pub rights: Rights,
    /// After a failed write, what was wrong with this handle.
    pub result: Status,
}

impl<'a> HandleDisposition<'a> {
    /// A disposition from its parts.
    #[must_use]
    pub fn new(
        handle_op: HandleOp<'a>,
        object_type: ObjectType,
        rights: Rights,
        result: Status,
    ) -> Self {
        Self { handle_op, object_type, rights, result }
    }

    /// Gives up ownership of a moved handle, for the system call that consumes it.
    pub(crate) fn take_raw(&mut self) -> sys::zx_handle_disposition_t {
        let (operation, handle) = match &mut self.handle_op {
            HandleOp::Move(handle) => (sys::ZX_HANDLE_OP_MOVE, mem::take(handle).into_raw()),
            HandleOp::Duplicate(handle) => (sys::ZX_HANDLE_OP_DUPLICATE, handle.raw_handle()),
        };
        sys::zx_handle_disposition_t {
            operation,
            handle,
            type_: self.object_type.into_raw(),
            rights: self.rights.bits(),
            result: sys::ZX_OK,
        }
    }
}

/// A handle that was read from a channel.
#[derive(Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HandleInfo {
    /// The handle.
    pub handle: Handle,
    /// Its object's type.
    pub object_type: ObjectType,
    /// Its rights.
    pub rights: Rights,
    unused: u32,
}

impl HandleInfo {
    /// A description from its parts.
    #[must_use]
    pub const fn new(handle: Handle, object_type: ObjectType, rights: Rights) -> Self {
        Self { handle, object_type, rights, unused: 0 }
    }
}

const _: () = {
    assert!(size_of::<HandleInfo>() == size_of::<sys::zx_handle_info_t>());
    assert!(align_of::<HandleInfo>() == align_of::<sys::zx_handle_info_t>());
};

/// Makes a struct around [`Handle`] a handle type.
macro_rules! impl_handle_based {
    ($type:ident) => {
        impl $crate::AsHandleRef for $type {
            fn as_handle_ref(&self) -> $crate::HandleRef<'_> {
                self.0.as_handle_ref()
            }
        }

        impl From<$crate::Handle> for $type {
            fn from(handle: $crate::Handle) -> Self {
                $type(handle)
            }
        }

        impl From<$type> for $crate::Handle {
            fn from(object: $type) -> $crate::Handle {
                object.0
            }
        }

        impl $crate::HandleBased for $type {}
    };
}
pub(crate) use impl_handle_based;
