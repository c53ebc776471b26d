//! The component over FIDL.

use fidl_fuchsia_net::MacAddress;
use fidl_fuchsia_virtualization_hardware::VirtioNetMarker;
use fuchsia_zircon as zx;
use virtio_device::Features;
use virtio_device::fake_transport::{
    FakeTransport, configure_arguments, ready_argument, serve_in_thread,
};

use crate::component::serve;
use crate::device_test::arp_request;
use crate::stack::GATEWAY;
use crate::{RX, TX};

#[test]
fn the_router_answers_the_guest() {
    let (transport, mut drivers) = FakeTransport::new(2);
    let device = serve_in_thread::<VirtioNetMarker>(async |server| {
        let _ = serve(server.into_stream()).await;
    });
    let mac = MacAddress { octets: [2, 0, 0, 0, 0, 1] };
    let started = device.start(transport.start_info(), &mac, true, zx::Time::INFINITE);
    assert_eq!(started.unwrap(), Ok(()));
    for (queue, driver) in (0..).zip(&drivers) {
        let (size, desc, avail, used) = configure_arguments(driver.config());
        device.configure_queue(queue, size, desc, avail, used, zx::Time::INFINITE).unwrap();
    }
    device.ready(ready_argument(Features::empty()), zx::Time::INFINITE).unwrap();

    drivers[usize::from(RX)].chain().writable(1526).publish();
    device.notify_queue(RX).unwrap();
    drivers[usize::from(TX)].chain().readable(&[0; 12]).readable(&arp_request(GATEWAY)).publish();
    device.notify_queue(TX).unwrap();
    let used = transport.answer(&mut drivers[usize::from(RX)]);
    assert_eq!(used.len, 12 + 42);
}
