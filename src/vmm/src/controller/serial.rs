//! The serial port on a socket.

use crate::serial::SerialPort;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::future::{join, poll_fn};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use std::sync::Arc;

/// Output that is worth a write of its own, in bytes; less waits a moment for more.
const WORTHWHILE: usize = 256;
/// How long that moment is: far below what a person notices.
const MOMENT: zx::Duration = zx::Duration::from_millis(1);

/// Copies between `port` and `socket` until the socket's other side is gone.
pub(super) async fn pump(port: Arc<dyn SerialPort>, socket: zx::Socket) {
    let (mut reader, mut writer) = fasync::Socket::from_socket(socket).split();
    let output = async {
        loop {
            let mut bytes = poll_fn(|cx| port.poll_output(cx)).await;
            if bytes.len() < WORTHWHILE && bytes.last() != Some(&b'\n') {
                fasync::Timer::new(fasync::Time::after(MOMENT)).await;
                let more = poll_fn(|cx| match port.poll_output(cx) {
                    std::task::Poll::Ready(more) => std::task::Poll::Ready(more),
                    std::task::Poll::Pending => std::task::Poll::Ready(Vec::new()),
                });
                bytes.extend(more.await);
            }
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let input = async {
        let mut buffer = [0; 256];
        while let Ok(len @ 1..) = reader.read(&mut buffer).await {
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let taken = poll_fn(|cx| port.poll_input(cx, rest)).await;
                rest = &rest[taken..];
            }
        }
    };
    join(output, input).await;
}
