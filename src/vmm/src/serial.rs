//! The guest's serial port as the rest of the VMM sees it: bytes out, bytes in, with back-pressure towards the guest's
//! input and none towards its output.

use std::task::{Context, Poll};

/// A UART's host side.
pub trait SerialPort: Send + Sync {
    /// Takes everything the guest has sent; pending until there is something. One task may poll at a time.
    fn poll_output(&self, cx: &mut Context<'_>) -> Poll<Vec<u8>>;

    /// Offers `data` to the receiver and returns how many bytes it took; pending while the receiver is full. One task
    /// may poll at a time.
    fn poll_input(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<usize>;
}
