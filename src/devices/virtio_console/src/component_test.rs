//! The component over FIDL.

use fidl_fuchsia_virtualization_hardware::VirtioConsoleMarker;
use fuchsia_zircon::{self as zx, AsHandleRef as _};
use virtio_device::Features;
use virtio_device::fake_transport::{
    FakeTransport, configure_arguments, ready_argument, serve_in_thread,
};

use crate::component::serve;
use crate::{RX, TX};

#[test]
fn bytes_go_both_ways() {
    let (transport, mut drivers) = FakeTransport::new(2);
    let device = serve_in_thread::<VirtioConsoleMarker>(async |server| {
        let _ = serve(server.into_stream()).await;
    });
    let (host, socket) = zx::Socket::create_stream();
    device.start(transport.start_info(), socket, zx::Time::INFINITE).unwrap();
    for (queue, driver) in (0..).zip(&drivers) {
        let (size, desc, avail, used) = configure_arguments(driver.config());
        device.configure_queue(queue, size, desc, avail, used, zx::Time::INFINITE).unwrap();
    }
    device.ready(ready_argument(Features::empty()), zx::Time::INFINITE).unwrap();

    drivers[usize::from(TX)].chain().readable(b"login: ").publish();
    device.notify_queue(TX).unwrap();
    host.wait_handle(zx::Signals::SOCKET_READABLE, zx::Time::INFINITE).unwrap();
    let mut bytes = [0; 16];
    assert_eq!(host.read(&mut bytes), Ok(7));
    assert_eq!(&bytes[..7], b"login: ");

    drivers[usize::from(RX)].chain().writable(64).publish();
    device.notify_queue(RX).unwrap();
    host.write(b"root\n").unwrap();
    let used = transport.answer(&mut drivers[usize::from(RX)]);
    assert_eq!(&used.data[..used.len as usize], b"root\n");
}
