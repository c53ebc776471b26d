//! The component over FIDL.

use fidl_fuchsia_virtualization_hardware::{VirtioRngMarker, VirtioRngSynchronousProxy};
use fuchsia_zircon as zx;
use virtio_device::Features;
use virtio_device::fake_transport::{
    FakeTransport, configure_arguments, ready_argument, serve_in_thread,
};

use crate::component::serve;

#[test]
fn a_guest_gets_random_bytes_before_and_after_a_reset() {
    let (transport, mut drivers) = FakeTransport::new(2);
    let device = serve_in_thread::<VirtioRngMarker>(async |server| {
        let _ = serve(server.into_stream()).await;
    });
    device.start(transport.start_info(), zx::Time::INFINITE).unwrap();
    for driver in &mut drivers {
        let (size, desc, avail, used) = configure_arguments(driver.config());
        device.configure_queue(0, size, desc, avail, used, zx::Time::INFINITE).unwrap();
        device.ready(ready_argument(Features::empty()), zx::Time::INFINITE).unwrap();
        driver.chain().writable(100).publish();
        device.notify_queue(0).unwrap();
        let used = transport.answer(driver);
        assert_eq!(used.len, 100);
        assert!(used.data.iter().any(|byte| *byte != 0xa5));
        device.reset(zx::Time::INFINITE).unwrap();
    }
}

#[test]
fn start_comes_first_and_once() {
    let start = |device: &VirtioRngSynchronousProxy| {
        device.start(FakeTransport::new(1).0.start_info(), zx::Time::INFINITE)
    };
    let device = serve_in_thread::<VirtioRngMarker>(async |server| {
        assert!(serve(server.into_stream()).await.is_err());
    });
    device.ready(0, zx::Time::INFINITE).unwrap_err();
    start(&device).unwrap_err();

    let device = serve_in_thread::<VirtioRngMarker>(async |server| {
        assert!(serve(server.into_stream()).await.is_err());
    });
    start(&device).unwrap();
    start(&device).unwrap_err();
}

#[test]
fn a_broken_driver_is_told_to_reset() {
    let (transport, mut drivers) = FakeTransport::new(1);
    let device = serve_in_thread::<VirtioRngMarker>(async |server| {
        let _ = serve(server.into_stream()).await;
    });
    device.start(transport.start_info(), zx::Time::INFINITE).unwrap();
    let (size, desc, avail, used) = configure_arguments(drivers[0].config());
    device.configure_queue(0, size, desc, avail, used, zx::Time::INFINITE).unwrap();
    device.ready(ready_argument(Features::empty()), zx::Time::INFINITE).unwrap();
    drivers[0].raw_publish(9999);
    device.notify_queue(0).unwrap();
    assert!(transport.interrupt().contains(zx::Signals::USER_1 | zx::Signals::USER_3));
}
