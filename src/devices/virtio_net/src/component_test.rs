//! The component over FIDL.

use fidl_fuchsia_net::{IpAddress, Ipv4Address, MacAddress};
use fidl_fuchsia_virtualization::{NetForward, NetForwardProtocol};
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
    // The router's advertisement comes by itself.
    transport.answer(&mut drivers[usize::from(RX)]);
    drivers[usize::from(RX)].chain().writable(1526).publish();
    device.notify_queue(RX).unwrap();
    drivers[usize::from(TX)].chain().readable(&[0; 12]).readable(&arp_request(GATEWAY)).publish();
    device.notify_queue(TX).unwrap();
    let used = transport.answer(&mut drivers[usize::from(RX)]);
    assert_eq!(used.len, 12 + 42);
}

#[test]
fn a_port_of_the_host_has_one_owner() {
    let (transport, _drivers) = FakeTransport::new(2);
    let device = serve_in_thread::<VirtioNetMarker>(async |server| {
        let _ = serve(server.into_stream()).await;
    });
    let mac = MacAddress { octets: [2, 0, 0, 0, 0, 1] };
    device.start(transport.start_info(), &mac, false, zx::Time::INFINITE).unwrap().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut forward = NetForward {
        protocol: NetForwardProtocol::Tcp,
        host_address: IpAddress::Ipv4(Ipv4Address { addr: [127, 0, 0, 1] }),
        host_port: taken.local_addr().unwrap().port(),
        guest_port: 80,
    };
    let refused = device.forward(&forward, zx::Time::INFINITE).unwrap();
    assert_eq!(refused, Err(zx::Status::ADDRESS_IN_USE.into_raw()));
    forward.protocol = NetForwardProtocol::Udp;
    forward.host_port = 0;
    assert_eq!(device.forward(&forward, zx::Time::INFINITE).unwrap(), Ok(()));
}
