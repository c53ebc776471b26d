use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Handle, HandleDisposition, HandleInfo, Peered, Status, Time, ok, sys};
use std::mem;

/// Room for the bytes of any message.
const READ_BYTES: usize = sys::ZX_CHANNEL_MAX_MSG_BYTES as usize;
/// Room for the handles of any message.
const READ_HANDLES: usize = sys::ZX_CHANNEL_MAX_MSG_HANDLES as usize;

/// One end of a bidirectional message pipe: up to 64 KiB and 64 handles a message.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Channel(Handle);
impl_handle_based!(Channel);
impl Peered for Channel {}

impl Channel {
    /// A new channel's two ends.
    ///
    /// # Panics
    /// When the process has no more handles or memory, as on Fuchsia.
    #[must_use]
    pub fn create() -> (Channel, Channel) {
        let (mut left, mut right) = (0, 0);
        // SAFETY: both results have a valid place.
        let status = unsafe { sys::zx_channel_create(0, &raw mut left, &raw mut right) };
        ok(status).expect("zx_channel_create");
        // SAFETY: the call gave us both handles.
        unsafe { (Channel(Handle::from_raw(left)), Channel(Handle::from_raw(right))) }
    }

    /// Whether the other end is gone.
    ///
    /// # Errors
    /// Those of a wait, but for the time-out.
    pub fn is_closed(&self) -> Result<bool, Status> {
        match self.wait_handle(crate::Signals::CHANNEL_PEER_CLOSED, Time::INFINITE_PAST) {
            Ok(_) => Ok(true),
            Err(Status::TIMED_OUT) => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// Writes a message. The handles are gone from the caller, whatever comes of it.
    ///
    /// # Errors
    /// `PEER_CLOSED`; `OUT_OF_RANGE` past the limits; `ACCESS_DENIED` for a handle that cannot be transferred.
    pub fn write(&self, bytes: &[u8], handles: &mut [Handle]) -> Result<(), Status> {
        let (num_bytes, num_handles) = (len(bytes)?, len(handles)?);
        // SAFETY: both slices are valid for their lengths; `Handle` is a transparent `zx_handle_t`.
        let status = unsafe {
            sys::zx_channel_write(
                self.raw_handle(),
                0,
                bytes.as_ptr(),
                num_bytes,
                handles.as_ptr().cast(),
                num_handles,
            )
        };
        // The call has consumed them, also where it failed.
        for handle in handles {
            mem::forget(mem::take(handle));
        }
        ok(status)
    }

    /// Writes a message whose handles are checked and restricted on the way.
    ///
    /// # Errors
    /// As [`Channel::write`], and `WRONG_TYPE`; each disposition's `result` says which handle it was.
    #[inline]
    pub fn write_etc(
        &self,
        bytes: &[u8],
        handles: &mut [HandleDisposition<'_>],
    ) -> Result<(), Status> {
        if !handles.is_empty() {
            return self.write_with_handles(bytes, handles);
        }
        let num_bytes = len(bytes)?;
        let none = std::ptr::null_mut();
        // SAFETY: the buffer is valid for its length, and there is no other.
        ok(unsafe {
            sys::zx_channel_write_etc(self.raw_handle(), 0, bytes.as_ptr(), num_bytes, none, 0)
        })
    }

    #[inline(never)]
    fn write_with_handles(
        &self,
        bytes: &[u8],
        handles: &mut [HandleDisposition<'_>],
    ) -> Result<(), Status> {
        let (num_bytes, num_handles) = (len(bytes)?, len(handles)?);
        let mut raw = take_raw(handles);
        // SAFETY: both buffers are valid for their lengths.
        let status = unsafe {
            sys::zx_channel_write_etc(
                self.raw_handle(),
                0,
                bytes.as_ptr(),
                num_bytes,
                raw.as_mut_ptr(),
                num_handles,
            )
        };
        for (handle, raw) in handles.iter_mut().zip(&raw) {
            handle.result = Status::from_raw(raw.result);
        }
        ok(status)
    }

    /// Reads a message into a buffer, which gets room for the largest one.
    ///
    /// # Errors
    /// `SHOULD_WAIT` when there is none, `PEER_CLOSED` when there will be none.
    pub fn read(&self, buffer: &mut MessageBuf) -> Result<(), Status> {
        let MessageBuf { bytes, handles } = buffer;
        self.read_split(bytes, handles)
    }

    /// As [`Channel::read`], into two vectors.
    ///
    /// # Errors
    /// As [`Channel::read`].
    pub fn read_split(&self, bytes: &mut Vec<u8>, handles: &mut Vec<Handle>) -> Result<(), Status> {
        let read = |b: *mut u8, h: *mut Handle, nb, nh, ab, ah| {
            // SAFETY: `read_whole` passes spare capacity of these lengths; `Handle` is a transparent `zx_handle_t`.
            unsafe { sys::zx_channel_read(self.raw_handle(), 0, b, h.cast(), nb, nh, ab, ah) }
        };
        read_whole(bytes, handles, read)
    }

    /// Reads a message with its handles' types and rights.
    ///
    /// # Errors
    /// As [`Channel::read`].
    #[inline]
    pub fn read_etc(&self, buffer: &mut MessageBufEtc) -> Result<(), Status> {
        let MessageBufEtc { bytes, handle_infos } = buffer;
        self.read_etc_split(bytes, handle_infos)
    }

    /// As [`Channel::read_etc`], into two vectors.
    ///
    /// # Errors
    /// As [`Channel::read`].
    #[inline]
    pub fn read_etc_split(
        &self,
        bytes: &mut Vec<u8>,
        handle_infos: &mut Vec<HandleInfo>,
    ) -> Result<(), Status> {
        let read = |b: *mut u8, h: *mut HandleInfo, nb, nh, ab, ah| {
            // SAFETY: as in `read_split`; `HandleInfo` has the layout of `zx_handle_info_t`.
            unsafe { sys::zx_channel_read_etc(self.raw_handle(), 0, b, h.cast(), nb, nh, ab, ah) }
        };
        read_whole(bytes, handle_infos, read)
    }

    /// Writes a message and waits for the one with the same transaction id, which the kernel chooses.
    ///
    /// # Errors
    /// Those of writing; `TIMED_OUT`; `PEER_CLOSED`.
    pub fn call(
        &self,
        deadline: Time,
        bytes: &[u8],
        handles: &mut [Handle],
        buffer: &mut MessageBuf,
    ) -> Result<(), Status> {
        let (wr_num_bytes, wr_num_handles) = (len(bytes)?, len(handles)?);
        let MessageBuf { bytes: rd_bytes, handles: rd_handles } = buffer;
        make_room(rd_bytes, rd_handles);
        let args = sys::zx_channel_call_args_t {
            wr_bytes: bytes.as_ptr(),
            wr_handles: handles.as_ptr().cast(),
            rd_bytes: rd_bytes.as_mut_ptr(),
            rd_handles: rd_handles.as_mut_ptr().cast(),
            wr_num_bytes,
            wr_num_handles,
            rd_num_bytes: READ_BYTES as u32,
            rd_num_handles: READ_HANDLES as u32,
        };
        let (mut actual_bytes, mut actual_handles) = (0, 0);
        // SAFETY: every buffer is valid for the length given with it.
        let status = unsafe {
            sys::zx_channel_call(
                self.raw_handle(),
                0,
                deadline.into_nanos(),
                &raw const args,
                &raw mut actual_bytes,
                &raw mut actual_handles,
            )
        };
        for handle in handles {
            mem::forget(mem::take(handle));
        }
        ok(status)?;
        // SAFETY: the call has filled so many bytes and handles, which are at most what it was told of.
        unsafe {
            rd_bytes.set_len(actual_bytes as usize);
            rd_handles.set_len(actual_handles as usize);
        }
        Ok(())
    }

    /// As [`Channel::call`], with checked handles both ways.
    ///
    /// # Errors
    /// As [`Channel::call`].
    #[inline]
    pub fn call_etc(
        &self,
        deadline: Time,
        bytes: &[u8],
        handles: &mut [HandleDisposition<'_>],
        buffer: &mut MessageBufEtc,
    ) -> Result<(), Status> {
        let (wr_num_bytes, wr_num_handles) = (len(bytes)?, len(handles)?);
        let mut raw = take_raw(handles);
        let MessageBufEtc { bytes: rd_bytes, handle_infos } = buffer;
        make_room(rd_bytes, handle_infos);
        let mut args = sys::zx_channel_call_etc_args_t {
            wr_bytes: bytes.as_ptr(),
            wr_handles: raw.as_mut_ptr(),
            rd_bytes: rd_bytes.as_mut_ptr(),
            rd_handles: handle_infos.as_mut_ptr().cast(),
            wr_num_bytes,
            wr_num_handles,
            rd_num_bytes: READ_BYTES as u32,
            rd_num_handles: READ_HANDLES as u32,
        };
        let (mut actual_bytes, mut actual_handles) = (0, 0);
        // SAFETY: every buffer is valid for the length given with it.
        let status = unsafe {
            sys::zx_channel_call_etc(
                self.raw_handle(),
                0,
                deadline.into_nanos(),
                &raw mut args,
                &raw mut actual_bytes,
                &raw mut actual_handles,
            )
        };
        for (handle, raw) in handles.iter_mut().zip(&raw) {
            handle.result = Status::from_raw(raw.result);
        }
        ok(status)?;
        // SAFETY: the call has filled so many bytes and handles, which are at most what it was told of.
        unsafe {
            rd_bytes.set_len(actual_bytes as usize);
            handle_infos.set_len(actual_handles as usize);
        }
        Ok(())
    }
}

fn len<T>(slice: &[T]) -> Result<u32, Status> {
    u32::try_from(slice.len()).map_err(|_| Status::OUT_OF_RANGE)
}

/// The dispositions of a message as the system call takes them. Most messages have none, which takes no work.
fn take_raw(handles: &mut [HandleDisposition<'_>]) -> Vec<sys::zx_handle_disposition_t> {
    if handles.is_empty() {
        return Vec::new();
    }
    handles.iter_mut().map(HandleDisposition::take_raw).collect()
}

/// Closes handles, which most messages have not, and which is therefore not inlined.
#[inline]
fn close<H>(handles: &mut Vec<H>) {
    #[cold]
    #[inline(never)]
    fn close_some<H>(handles: &mut Vec<H>) {
        handles.clear();
    }
    if !handles.is_empty() {
        close_some(handles);
    }
}

/// Empties the buffers of a message to be read; the new one fits whatever it is. What is reserved stays uninitialized.
#[inline]
fn make_room<H>(bytes: &mut Vec<u8>, handles: &mut Vec<H>) {
    bytes.clear();
    close(handles);
    bytes.reserve(READ_BYTES);
    handles.reserve(READ_HANDLES);
}

/// Reads a message into buffers that are made large enough for any.
#[inline]
fn read_whole<H>(
    bytes: &mut Vec<u8>,
    handles: &mut Vec<H>,
    read: impl FnOnce(*mut u8, *mut H, u32, u32, *mut u32, *mut u32) -> sys::zx_status_t,
) -> Result<(), Status> {
    make_room(bytes, handles);
    let (mut actual_bytes, mut actual_handles) = (0, 0);
    ok(read(
        bytes.as_mut_ptr(),
        handles.as_mut_ptr(),
        READ_BYTES as u32,
        READ_HANDLES as u32,
        &raw mut actual_bytes,
        &raw mut actual_handles,
    ))?;
    // SAFETY: the call has filled so many elements, which are at most what it was told of.
    unsafe {
        bytes.set_len(actual_bytes as usize);
        handles.set_len(actual_handles as usize);
    }
    Ok(())
}

/// A message's bytes and handles, kept from read to read to save allocations.
#[derive(Debug, Default)]
pub struct MessageBuf {
    bytes: Vec<u8>,
    handles: Vec<Handle>,
}

impl MessageBuf {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), handles: Vec::new() }
    }

    /// A buffer with these contents.
    #[must_use]
    pub fn new_with(bytes: Vec<u8>, handles: Vec<Handle>) -> Self {
        Self { bytes, handles }
    }

    /// The message's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of handles.
    #[must_use]
    pub fn n_handles(&self) -> usize {
        self.handles.len()
    }

    /// Takes the handle at `index`, if it is there and not yet taken.
    pub fn take_handle(&mut self, index: usize) -> Option<Handle> {
        self.handles.get_mut(index).map(mem::take).filter(|handle| !handle.is_invalid())
    }

    /// Both parts, mutably.
    pub fn split_mut(&mut self) -> (&mut Vec<u8>, &mut Vec<Handle>) {
        (&mut self.bytes, &mut self.handles)
    }

    /// Both parts.
    #[must_use]
    pub fn split(self) -> (Vec<u8>, Vec<Handle>) {
        (self.bytes, self.handles)
    }

    /// Makes room for this many bytes.
    pub fn ensure_capacity_bytes(&mut self, bytes: usize) {
        self.bytes.reserve(bytes.saturating_sub(self.bytes.len()));
    }

    /// Empties the buffer and closes what handles it has.
    #[inline]
    pub fn clear(&mut self) {
        self.bytes.clear();
        close(&mut self.handles);
    }
}

/// As [`MessageBuf`], with the handles' types and rights.
#[derive(Debug, Default)]
pub struct MessageBufEtc {
    bytes: Vec<u8>,
    handle_infos: Vec<HandleInfo>,
}

impl MessageBufEtc {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), handle_infos: Vec::new() }
    }

    /// A buffer with these contents.
    #[must_use]
    pub fn new_with(bytes: Vec<u8>, handle_infos: Vec<HandleInfo>) -> Self {
        Self { bytes, handle_infos }
    }

    /// The message's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of handles.
    #[must_use]
    pub fn n_handle_infos(&self) -> usize {
        self.handle_infos.len()
    }

    /// Both parts, mutably.
    pub fn split_mut(&mut self) -> (&mut Vec<u8>, &mut Vec<HandleInfo>) {
        (&mut self.bytes, &mut self.handle_infos)
    }

    /// Both parts.
    #[must_use]
    pub fn split(self) -> (Vec<u8>, Vec<HandleInfo>) {
        (self.bytes, self.handle_infos)
    }

    /// Makes room for this many bytes.
    pub fn ensure_capacity_bytes(&mut self, bytes: usize) {
        self.bytes.reserve(bytes.saturating_sub(self.bytes.len()));
    }

    /// Empties the buffer and closes what handles it has.
    #[inline]
    pub fn clear(&mut self) {
        self.bytes.clear();
        close(&mut self.handle_infos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, HandleBased, HandleOp, ObjectType, Rights};

    #[test]
    fn a_message_arrives_with_its_handles() {
        let (left, right) = Channel::create();
        let event = Event::create();
        let koid = event.get_koid().unwrap();
        left.write(b"hello", &mut [event.into_handle()]).unwrap();
        let mut buffer = MessageBuf::new();
        right.read(&mut buffer).unwrap();
        assert_eq!(buffer.bytes(), b"hello");
        assert_eq!(buffer.take_handle(0).unwrap().get_koid(), Ok(koid));
        assert_eq!(buffer.take_handle(0), None);
        assert_eq!(right.read(&mut buffer), Err(Status::SHOULD_WAIT));
        drop(left);
        assert_eq!(right.read(&mut buffer), Err(Status::PEER_CLOSED));
        assert_eq!(right.is_closed(), Ok(true));
    }

    #[test]
    fn the_largest_message_fits_a_new_buffer() {
        let (left, right) = Channel::create();
        let bytes = vec![7; sys::ZX_CHANNEL_MAX_MSG_BYTES as usize];
        left.write(&bytes, &mut []).unwrap();
        assert_eq!(left.write(&[0; 65537], &mut []), Err(Status::OUT_OF_RANGE));
        let mut buffer = MessageBufEtc::new();
        right.read_etc(&mut buffer).unwrap();
        assert_eq!(buffer.bytes(), bytes);
        assert!(buffer.split_mut().0.capacity() >= READ_BYTES);
    }

    #[test]
    fn dispositions_restrict_rights_and_check_types() {
        let (left, right) = Channel::create();
        let event = Event::create();
        let disposition = |object_type| {
            HandleDisposition::new(
                HandleOp::Duplicate(event.as_handle_ref()),
                object_type,
                Rights::WAIT | Rights::TRANSFER,
                Status::OK,
            )
        };
        let mut wrong = [disposition(ObjectType::CHANNEL)];
        assert_eq!(left.write_etc(&[], &mut wrong), Err(Status::WRONG_TYPE));
        assert_eq!(wrong[0].result, Status::WRONG_TYPE);
        left.write_etc(&[], &mut [disposition(ObjectType::EVENT)]).unwrap();
        let mut buffer = MessageBufEtc::new();
        right.read_etc(&mut buffer).unwrap();
        let (_, infos) = buffer.split();
        assert_eq!(infos[0].rights, Rights::WAIT | Rights::TRANSFER);
        assert_eq!(infos[0].object_type, ObjectType::EVENT);
    }
}
