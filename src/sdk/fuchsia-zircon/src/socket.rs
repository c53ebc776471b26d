use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Handle, Peered, Status, ok, sys};

/// One end of a byte stream or datagram pipe.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Socket(Handle);
impl_handle_based!(Socket);
impl Peered for Socket {}

/// Whether one direction of a socket still takes data.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum SocketWriteDisposition {
    /// Writing is allowed.
    Enabled,
    /// Writing fails with `BAD_STATE`; the other end reads what is left and then `BAD_STATE`.
    Disabled,
}

impl Socket {
    fn create(options: u32) -> (Socket, Socket) {
        let (mut left, mut right) = (0, 0);
        // SAFETY: both results have a valid place.
        let status = unsafe { sys::zx_socket_create(options, &raw mut left, &raw mut right) };
        ok(status).expect("zx_socket_create");
        // SAFETY: the call gave us both handles.
        unsafe { (Socket(Handle::from_raw(left)), Socket(Handle::from_raw(right))) }
    }

    /// A new byte stream's two ends.
    ///
    /// # Panics
    /// When the process has no more handles or memory, as on Fuchsia.
    #[must_use]
    pub fn create_stream() -> (Socket, Socket) {
        Self::create(sys::ZX_SOCKET_STREAM)
    }

    /// A new datagram pipe's two ends.
    ///
    /// # Panics
    /// When the process has no more handles or memory, as on Fuchsia.
    #[must_use]
    pub fn create_datagram() -> (Socket, Socket) {
        Self::create(sys::ZX_SOCKET_DATAGRAM)
    }

    /// Writes what fits and returns how much it was.
    ///
    /// # Errors
    /// `SHOULD_WAIT` when nothing fits, `PEER_CLOSED`, `BAD_STATE` when writing was disabled.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Status> {
        let mut actual = 0;
        // SAFETY: the buffer is valid for its length.
        ok(unsafe {
            sys::zx_socket_write(self.raw_handle(), 0, bytes.as_ptr(), bytes.len(), &raw mut actual)
        })?;
        Ok(actual)
    }

    /// Reads what there is, up to the buffer's length, and returns how much it was.
    ///
    /// # Errors
    /// `SHOULD_WAIT` when there is nothing, `PEER_CLOSED` or `BAD_STATE` when there will be nothing.
    pub fn read(&self, bytes: &mut [u8]) -> Result<usize, Status> {
        let mut actual = 0;
        // SAFETY: the buffer is valid for its length.
        ok(unsafe {
            sys::zx_socket_read(
                self.raw_handle(),
                0,
                bytes.as_mut_ptr(),
                bytes.len(),
                &raw mut actual,
            )
        })?;
        Ok(actual)
    }

    /// How many bytes there are to read.
    ///
    /// # Errors
    /// As [`Socket::read`].
    pub fn outstanding_read_bytes(&self) -> Result<usize, Status> {
        let mut raw = sys::zx_info_socket_t::default();
        // SAFETY: the topic's record is `zx_info_socket_t`, plain integers.
        unsafe { crate::info::get(&self.as_handle_ref(), sys::ZX_INFO_SOCKET, &raw mut raw)? };
        Ok(raw.rx_buf_available)
    }

    /// Half-closes one or both directions; `None` leaves one as it is.
    ///
    /// # Errors
    /// `BAD_STATE` when enabling a direction in which unread data is left after a disabling.
    pub fn set_disposition(
        &self,
        disposition: Option<SocketWriteDisposition>,
        peer: Option<SocketWriteDisposition>,
    ) -> Result<(), Status> {
        let raw = |disposition| match disposition {
            None => 0,
            Some(SocketWriteDisposition::Disabled) => sys::ZX_SOCKET_DISPOSITION_WRITE_DISABLED,
            Some(SocketWriteDisposition::Enabled) => sys::ZX_SOCKET_DISPOSITION_WRITE_ENABLED,
        };
        // SAFETY: the call takes numbers only.
        ok(unsafe {
            sys::zx_socket_set_disposition(self.raw_handle(), raw(disposition), raw(peer))
        })
    }

    /// Disables writing here: the peer reads to the end and then sees it.
    ///
    /// # Errors
    /// As [`Socket::set_disposition`].
    pub fn half_close(&self) -> Result<(), Status> {
        self.set_disposition(Some(SocketWriteDisposition::Disabled), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_carries_bytes_and_a_half_close() {
        let (left, right) = Socket::create_stream();
        assert_eq!(left.write(b"abc"), Ok(3));
        let mut buffer = [0; 8];
        assert_eq!(right.read(&mut buffer[..2]), Ok(2));
        left.half_close().unwrap();
        assert_eq!(left.write(b"d"), Err(Status::BAD_STATE));
        assert_eq!(right.read(&mut buffer), Ok(1));
        assert_eq!(right.read(&mut buffer), Err(Status::BAD_STATE));
        assert_eq!(right.write(b"back"), Ok(4));
        drop(right);
        assert_eq!(left.read(&mut buffer), Ok(4));
        assert_eq!(left.read(&mut buffer), Err(Status::PEER_CLOSED));
    }

    #[test]
    fn a_datagram_stays_whole() {
        let (left, right) = Socket::create_datagram();
        left.write(b"one").unwrap();
        left.write(b"two").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(right.read(&mut buffer), Ok(3));
        assert_eq!(right.read(&mut buffer), Ok(3));
        assert_eq!(&buffer[..3], b"two");
        assert_eq!(right.read(&mut buffer), Err(Status::SHOULD_WAIT));
    }
}
